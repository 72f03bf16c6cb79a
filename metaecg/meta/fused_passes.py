"""The passes of T tasks through the blocks of a compact CNN: forward, backward, and the tangents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metaecg.meta import fused_kernels as kernels
from metaecg.meta.fused_layers import Buffers, ConvShape, conv_backward, conv_forward
from metaecg.models.backbones.compact_cnn import N_GROUPS

Views = Mapping[str, Tensor]
"""By the weight's name in the network; one per task, a convolution's (T, n_out, kernel, n_in)."""


@dataclass(kw_only=True)
class Layer:
    """A convolution, its norm and ReLU: weights, and what the passes leave behind."""

    name: str
    shape: ConvShape
    window_rows: tuple[int, int, int, int]
    """n_rows, length, stride and offset, as `metaecg.meta.fused_kernels` has them."""
    weight: Tensor
    gamma: Tensor
    beta: Tensor
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    mean: Tensor = field(init=False)
    rstd: Tensor = field(init=False)
    g_out: Tensor = field(init=False)


@dataclass(kw_only=True)
class Direction:
    """A direction in a layer's weights, and what the forward pass along it leaves behind."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    x: Tensor | None = field(init=False)
    y: Tensor = field(init=False)
    mean: Tensor = field(init=False)
    corr: Tensor = field(init=False)


@dataclass(kw_only=True)
class Body:
    """The blocks of T tasks, and all that the passes over n windows each leave behind."""

    layers: list[Layer]
    buffers: Buffers
    n_windows: int
    top: Tensor = field(init=False)
    """What the pooling reads, (T, n * length, C)."""
    features: Tensor = field(init=False)
    ties: Tensor = field(init=False)
    _taken: list[tuple[str, Tensor]] = field(default_factory=list)

    def inputs(self, purpose: str, i: int) -> Tensor:
        """Take a buffer in the shape of the input of layer `i`; of the pooling behind the last."""
        if i < len(self.layers):
            shape = self.layers[i].shape
            return self.take(f"{purpose} {i}", shape.rows_in(self.n_windows), shape.n_in)
        last = self.layers[-1].shape
        return self.take(f"{purpose} {i}", self.n_windows * last.length, last.n_out)

    def take(self, purpose: str, *shape: int) -> Tensor:
        """Take a buffer until `release`."""
        buffer = self.buffers.take(purpose, len(self.layers[0].gamma), *shape)
        self._taken.append((purpose, buffer))
        return buffer

    def release(self) -> None:
        """Give all buffers back."""
        for purpose, buffer in self._taken:
            self.buffers.give(purpose, buffer)
        self._taken.clear()


def forward(body: Body, patches: Tensor) -> Tensor:
    """Return the pooled features (T, n, 2 * C).

    `patches` are those of the first convolution, (T, n * length, kernel * n_leads).
    """
    x = patches
    for i, layer in enumerate(body.layers):
        layer.x, layer.y = x, conv_forward(layer.shape, x, layer.weight)
        layer.mean = x.new_empty(len(x), body.n_windows, N_GROUPS)
        layer.rstd = torch.empty_like(layer.mean)
        x = body.inputs("x", i + 1)
        _run(
            kernels.norm_relu,
            *(layer.y, layer.gamma, layer.beta, x, layer.mean, layer.rstd),
            *layer.window_rows,
        )
    body.top = x
    body.features = x.new_empty(len(x), body.n_windows, 2 * x.shape[2])
    body.ties = x.new_empty(len(x), body.n_windows, x.shape[2])
    _run(kernels.pool, x, body.features, body.ties, _length(body))
    return body.features


def _length(body: Body) -> int:
    return body.layers[-1].shape.length


def backward(body: Body, g_features: Tensor, gradients: Views) -> None:
    """Write the gradient of the weights, after `forward`; those without a view are frozen."""
    g_out = _backward_pool(body, g_features)
    for i in reversed(range(len(body.layers))):
        layer = body.layers[i]
        layer.g_out = g_out
        g_y = body.buffers.take(f"g_y {i}", *layer.y.shape)
        g_gamma, g_beta = torch.empty_like(layer.gamma), torch.empty_like(layer.beta)
        _run(
            kernels.norm_relu_backward,
            *(g_out, layer.y, layer.gamma, layer.beta, layer.mean, layer.rstd),
            *(g_y, g_gamma, g_beta),
            *layer.window_rows,
        )
        g_out, g_weight = conv_backward(layer.shape, g_y, layer.x, layer.weight, of_x=i > 0)
        body.buffers.give(f"g_y {i}", g_y)
        _write(gradients, layer, g_weight, g_gamma, g_beta)


def _backward_pool(body: Body, g_features: Tensor) -> Tensor:
    g_top = torch.empty_like(body.top)
    _run(
        kernels.pool_backward,
        *(g_features, body.top, body.features, body.ties, g_top, _length(body)),
    )
    return g_top


def _write(views: Views, layer: Layer, weight: Tensor, gamma: Tensor, beta: Tensor) -> None:
    parts = {"conv.weight": weight, "norm.weight": gamma, "norm.bias": beta}
    for name, value in parts.items():
        view = views.get(f"{layer.name}.{name}")
        if view is not None:
            view.copy_(value.reshape(view.shape))


def tangent_forward(body: Body, vectors: Views) -> tuple[Tensor, list[Direction]]:
    """Return the derivative of the features along `vectors`, and what `tangent_backward` needs."""
    d_x, directions = None, []
    for i, layer in enumerate(body.layers):
        d = _direction(layer, vectors)
        d.x, d.y = d_x, conv_forward(layer.shape, layer.x, d.weight)
        if i > 0:
            d.y.add_(conv_forward(layer.shape, d.x, layer.weight))
        d.mean, d.corr = torch.empty_like(layer.mean), torch.empty_like(layer.mean)
        d_x = body.inputs("d_x", i + 1)
        _run(
            kernels.norm_relu_tangent,
            *(layer.y, d.y, layer.gamma, layer.beta, d.gamma, d.beta, layer.mean, layer.rstd),
            *(d_x, d.mean, d.corr),
            *layer.window_rows,
        )
        directions.append(d)
    d_features = torch.empty_like(body.features)
    _run(kernels.pool_tangent, d_x, body.top, body.features, body.ties, d_features, _length(body))
    return d_features, directions


def _direction(layer: Layer, vectors: Views) -> Direction:
    """Return the part of `vectors` that moves `layer`; frozen weights don't move."""

    def part(name: str, like: Tensor) -> Tensor:
        view = vectors.get(f"{layer.name}.{name}")
        return torch.zeros_like(like) if view is None else view.contiguous()

    return Direction(
        weight=layer.shape.weight_like(part("conv.weight", layer.weight)),
        gamma=part("norm.weight", layer.gamma),
        beta=part("norm.bias", layer.beta),
    )


def tangent_backward(
    body: Body, directions: list[Direction], dg_features: Tensor, products: Views
) -> None:
    """Write the derivative of the weights' gradient, after `backward` and `tangent_forward`."""
    dg_out = _backward_pool(body, dg_features)
    for i in reversed(range(len(body.layers))):
        layer, d = body.layers[i], directions[i]
        g_y, dg_y = (body.buffers.take(f"{name} {i}", *layer.y.shape) for name in ("g_y", "dg_y"))
        dg_gamma, dg_beta = torch.empty_like(layer.gamma), torch.empty_like(layer.beta)
        _run(
            kernels.norm_relu_tangent_backward,
            *(layer.g_out, dg_out, layer.y, d.y, layer.gamma, layer.beta, d.gamma),
            *(layer.mean, layer.rstd, d.mean, d.corr, g_y, dg_y, dg_gamma, dg_beta),
            *layer.window_rows,
        )
        dg_out, dg_weight = conv_backward(layer.shape, dg_y, layer.x, layer.weight, of_x=i > 0)
        if i > 0:
            more_out, more_weight = conv_backward(layer.shape, g_y, d.x, d.weight, of_x=True)
            dg_out.add_(more_out)
            dg_weight.add_(more_weight)
        body.buffers.give(f"g_y {i}", g_y)
        body.buffers.give(f"dg_y {i}", dg_y)
        _write(products, layer, dg_weight, dg_gamma, dg_beta)


def _run(kernel: Callable, *arguments: Tensor | int) -> None:
    kernel(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))
