"""Compact CNNs of many tasks at once on the CPU: one convolution, one kernel per layer.

`torch.func.vmap` turns the convolutions of tasks with weights of their own into grouped ones, which
are slow on a CPU, and every elementwise step into a pass through memory. Here the channels of a moment
lie side by side and the windows of a task one behind the other, so that a convolution of all of them
is one over a long picture. Normalisation and ReLU are one kernel. The meta-gradient needs products with the Hessian, which are the derivative of the gradient
along a direction: a pass of tangents forward and one back, on what the gradient left behind.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from metaecg.meta.fused_layers import Buffers, ConvShape, FlatWeights, in_patch_order
from metaecg.meta.fused_passes import (
    Body,
    Layer,
    Views,
    backward,
    forward,
    tangent_backward,
    tangent_forward,
)
from metaecg.meta.stacked import Slope, Weights
from metaecg.models.backbones.compact_cnn import CompactCNN

FLAT = "all weights"
"""Key of the one vector that all weights are packed into."""


class FusedCompactCNN:
    """The `StackedModel` of a `CompactCNN` under cross-entropy, on the CPU.

    Not to be used by two threads at once: it keeps its buffers for the next call.

    Parameters
    ----------
    network
        Gives the shapes, and the weights that are missing in a call (frozen ones).
    """

    def __init__(self, network: CompactCNN) -> None:
        self.network = network
        self._buffers: dict[tuple[torch.dtype, int], Buffers] = {}
        self._patches: tuple[Tensor, Tensor] | None = None
        self._flat = FlatWeights({})
        self._shapes: dict[int, list[tuple[ConvShape, tuple[int, int, int, int]]]] = {}

    def pack(self, weights: Weights) -> dict[str, Tensor]:
        """Return all weights in one vector, so that an inner step is one operation.

        Their order is the network's, whatever that of `weights`: vectors must agree on it.
        """
        named = self.network.named_parameters()
        self._flat = FlatWeights({name: tuple(p.shape) for name, p in named if name in weights})
        return {FLAT: self._flat.pack(weights)}

    def unpack(self, packed: Weights) -> dict[str, Tensor]:
        """Return the weights by name."""
        return self._flat.unpack(packed[FLAT])

    def slope(self, weights: Weights, x: Tensor, y: Tensor, *, shared: bool, curved: bool) -> Slope:
        """See `metaecg.meta.stacked.StackedModel`."""
        flat = weights[FLAT].expand(len(x), -1) if shared else weights[FLAT]
        views = self._all_views(flat)
        body = self._body(views, x)
        features = forward(body, self._first_patches(x))
        head = Head(weight=views["head.weight"], bias=views["head.bias"], features=features)
        losses = head.forward(y)
        gradients = torch.empty_like(flat, memory_format=torch.contiguous_format)
        of = self._flat.views(gradients)
        backward(body, head.backward(of), of)

        def hessian_product(vectors: Weights) -> dict[str, Tensor]:
            products = torch.empty_like(gradients)
            along, of = self._flat.views(vectors[FLAT]), self._flat.views(products)
            d_features, directions = tangent_forward(body, along)
            tangent_backward(body, directions, head.tangents(d_features, along, of), of)
            body.release()
            return {FLAT: products.sum(dim=0) if shared else products}

        if not curved:
            body.release()
        return Slope(
            losses=losses,
            gradients={FLAT: gradients},
            hessian_product=hessian_product if curved else None,
        )

    def _all_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return every weight, one copy per task, (T, *shape)."""
        views = self._flat.views(flat)
        for name, weight in self.network.named_parameters():
            if name not in views:  # frozen: the same for all tasks
                views[name] = in_patch_order(weight.detach()).expand(len(flat), *[-1] * weight.ndim)
        return views

    def _body(self, views: Views, x: Tensor) -> Body:
        layers = [
            Layer(
                name=f"blocks.{i}",
                shape=shape,
                window_rows=rows,
                weight=shape.weight_like(views[f"blocks.{i}.conv.weight"]),
                gamma=views[f"blocks.{i}.norm.weight"].contiguous(),
                beta=views[f"blocks.{i}.norm.bias"].contiguous(),
            )
            for i, (shape, rows) in enumerate(self._geometry(x.shape[-1]))
        ]
        # Windows of another length may fill a buffer of the same shape, with other rows between.
        buffers = self._buffers.setdefault((x.dtype, x.shape[-1]), Buffers(x.dtype))
        return Body(layers=layers, buffers=buffers, n_windows=x.shape[1])

    def _geometry(self, n_samples: int) -> list[tuple[ConvShape, tuple[int, int, int, int]]]:
        """Return shape and window rows of every layer."""
        if n_samples not in self._shapes:
            shapes = conv_shapes(self.network, n_samples)
            self._shapes[n_samples] = [(s, window_rows(shapes, i)) for i, s in enumerate(shapes)]
        return self._shapes[n_samples]

    def _first_patches(self, x: Tensor) -> Tensor:
        """Return the patches of the first convolution, (T, n * length, kernel * n_leads).

        An inner loop asks for those of the same windows again and again.
        """
        if self._patches is None or self._patches[0] is not x:
            conv = self.network.blocks[0].conv
            padding = conv.padding[0]
            patches = F.pad(x, (padding, padding)).unfold(-1, conv.kernel_size[0], conv.stride[0])
            rows = patches.permute(0, 1, 3, 4, 2)  # (T, n, length, kernel, n_leads)
            patches = rows.reshape(len(x), x.shape[1] * rows.shape[2], -1)
            self._patches = x, patches.contiguous()  # of a single window it may be a view
        return self._patches[1]


@dataclass(kw_only=True)
class Head:
    """The linear layers of T tasks under cross-entropy, and what the passes leave behind."""

    weight: Tensor
    """(T, n_classes, n_features)"""
    bias: Tensor
    features: Tensor
    """(T, n, n_features)"""
    probabilities: Tensor = field(init=False)
    g_logits: Tensor = field(init=False)

    def forward(self, labels: Tensor) -> Tensor:
        """Return the loss of each task, shape (T,)."""
        logits = torch.baddbmm(self.bias[:, None], self.features, self.weight.mT)
        log_p = F.log_softmax(logits, dim=-1)
        self.probabilities = log_p.exp()
        target = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
        self.g_logits = (self.probabilities - target) / labels.shape[1]
        return -log_p.gather(-1, labels[..., None]).mean(dim=(1, 2))

    def backward(self, gradients: Views) -> Tensor:
        """Write the gradient of the weights, return that of the features."""
        _write(gradients, torch.bmm(self.g_logits.mT, self.features), self.g_logits.sum(dim=1))
        return torch.bmm(self.g_logits, self.weight)

    def tangents(self, d_features: Tensor, vectors: Views, products: Views) -> Tensor:
        """Write the derivatives of the weights' gradients, return those of the features'."""
        d_weight = vectors.get("head.weight", torch.zeros_like(self.weight))
        d_bias = vectors.get("head.bias", torch.zeros_like(self.bias))
        d_logits = torch.baddbmm(d_bias[:, None], d_features, self.weight.mT)
        d_logits += torch.bmm(self.features, d_weight.mT)
        p = self.probabilities
        dg = p * (d_logits - (p * d_logits).sum(dim=-1, keepdim=True)) / p.shape[1]
        of_weight = torch.bmm(dg.mT, self.features) + torch.bmm(self.g_logits.mT, d_features)
        _write(products, of_weight, dg.sum(dim=1))
        return torch.bmm(dg, self.weight) + torch.bmm(self.g_logits, d_weight)


def _write(views: Views, weight: Tensor, bias: Tensor) -> None:
    for name, value in (("head.weight", weight), ("head.bias", bias)):
        if name in views:
            views[name].copy_(value)


def conv_shapes(network: CompactCNN, n_samples: int) -> list[ConvShape]:
    """Return the geometry of the convolutions; the first one reads ready-made patches."""
    shapes, length = [], n_samples
    for i, block in enumerate(network.blocks):
        conv = block.conv
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        shape = ConvShape(conv.in_channels, conv.out_channels, kernel, stride, length)
        length = shape.length
        if i == 0:
            shape = ConvShape(conv.in_channels * kernel, conv.out_channels, 1, 1, length)
        shapes.append(shape)
    return shapes


def window_rows(shapes: list[ConvShape], i: int) -> tuple[int, int, int, int]:
    """Return what the kernels of layer `i` ask for: n_rows, length, stride and offset.

    The output stands in the next layer's input, or, after the last layer, without gaps.
    """
    this = shapes[i]
    if i + 1 == len(shapes):
        return this.n_rows, this.length, this.length, 0
    return this.n_rows, this.length, shapes[i + 1].stride_in, shapes[i + 1].padding
