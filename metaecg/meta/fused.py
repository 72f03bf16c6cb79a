"""Compact CNNs of many tasks at once on the CPU: matrix products, and one kernel per layer around.

`torch.func.vmap` turns the convolutions of tasks with weights of their own into grouped ones, which
are slow on a CPU, and every elementwise step into a pass through memory. Here the channels of a moment
lie side by side, so that a patch of a strided convolution is a run of memory: a convolution is a few
batched matrix products without any copy. Normalisation and ReLU are one kernel. The meta-gradient
needs products with the Hessian, which are the derivative of the gradient along a direction: a pass of
tangents forward and one back, on what the gradient left behind.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from metaecg.meta.fused_layers import Buffers, ConvShape, FlatWeights, as_matrix, matrix_shape
from metaecg.meta.fused_passes import Head, Layer, Trace, backward, forward, tangents
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
        self._buffers: dict[torch.dtype, Buffers] = {}
        self._patches: tuple[Tensor, Tensor] | None = None
        self._flat = FlatWeights({})

    def pack(self, weights: Weights) -> dict[str, Tensor]:
        """Return all weights in one vector, so that an inner step is one operation."""
        self._flat = FlatWeights({name: tuple(w.shape) for name, w in weights.items()})
        return {FLAT: self._flat.pack(weights)}

    def unpack(self, packed: Weights) -> dict[str, Tensor]:
        """Return the weights by name."""
        return self._flat.unpack(packed[FLAT])

    def slope(self, weights: Weights, x: Tensor, y: Tensor, *, shared: bool, curved: bool) -> Slope:
        """See `metaecg.meta.stacked.StackedModel`."""
        flat = weights[FLAT].expand(len(x), -1) if shared else weights[FLAT]
        trace = self._trace(flat, x)
        losses = forward(trace, self._first_patches(x), y)
        gradients = flat.new_empty(flat.shape)
        backward(trace, self._flat.views(gradients))

        def hessian_product(vectors: Weights) -> dict[str, Tensor]:
            products = flat.new_empty(flat.shape)
            tangents(trace, self._flat.views(vectors[FLAT]), self._flat.views(products))
            trace.release()
            return {FLAT: products.sum(dim=0) if shared else products}

        if not curved:
            trace.release()
        return Slope(
            losses=losses,
            gradients={FLAT: gradients},
            hessian_product=hessian_product if curved else None,
        )

    def _trace(self, flat: Tensor, x: Tensor) -> Trace:
        views = self._flat.views(flat)
        for name, weight in self.network.named_parameters():
            if name not in views:  # frozen: the same for all tasks
                views[name] = as_matrix(weight.detach()).expand(len(x), *matrix_shape(weight.shape))
        shapes = conv_shapes(self.network, x.shape[-1])
        return Trace(
            layers=[
                Layer(
                    name=f"blocks.{i}",
                    shape=shape,
                    window_rows=window_rows(shapes, i),
                    weight=views[f"blocks.{i}.conv.weight"],
                    gamma=views[f"blocks.{i}.norm.weight"].contiguous(),
                    beta=views[f"blocks.{i}.norm.bias"].contiguous(),
                )
                for i, shape in enumerate(shapes)
            ],
            head=Head(weight=views["head.weight"], bias=views["head.bias"]),
            buffers=self._buffers.setdefault(x.dtype, Buffers(x.dtype)),
            n_windows=x.shape[1],
        )

    def _first_patches(self, x: Tensor) -> Tensor:
        """Return the patches of the first convolution, (T, n * length, kernel * n_leads).

        An inner loop asks for those of the same windows again and again.
        """
        if self._patches is None or self._patches[0] is not x:
            conv = self.network.blocks[0].conv
            padding = conv.padding[0]
            patches = F.pad(x, (padding, padding)).unfold(-1, conv.kernel_size[0], conv.stride[0])
            rows = patches.permute(0, 1, 3, 4, 2)  # (T, n, length, kernel, n_leads)
            self._patches = x, rows.reshape(len(x), x.shape[1] * rows.shape[2], -1)
        return self._patches[1]


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
