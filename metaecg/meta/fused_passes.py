"""The passes through a compact CNN of T tasks: forward, backward, and the tangents of both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from metaecg.meta import fused_kernels as kernels
from metaecg.meta.fused_layers import (
    Buffers,
    ConvShape,
    conv_backward_input,
    conv_backward_weight,
    conv_forward,
)
from metaecg.models.backbones.compact_cnn import N_GROUPS

Views = Mapping[str, Tensor]
"""By the weight's name in the network, as `metaecg.meta.fused_layers.FlatWeights.views` has them."""


@dataclass(kw_only=True)
class Layer:
    """A convolution, its norm and ReLU: weights, and what the passes leave behind."""

    name: str
    shape: ConvShape
    window_rows: tuple[int, int, int, int]
    """n_rows, length, stride and offset, as `metaecg.meta.fused_kernels` has them."""
    weight: Tensor
    """(T, kernel * n_in, n_out)"""
    gamma: Tensor
    beta: Tensor
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    mean: Tensor = field(init=False)
    rstd: Tensor = field(init=False)
    g_out: Tensor = field(init=False)


@dataclass(kw_only=True)
class Head:
    """Pooling, the linear layer and cross-entropy: weights, and what the passes leave behind."""

    weight: Tensor
    """(T, n_classes, n_features)"""
    bias: Tensor
    x: Tensor = field(init=False)
    features: Tensor = field(init=False)
    ties: Tensor = field(init=False)
    probabilities: Tensor = field(init=False)
    g_logits: Tensor = field(init=False)


@dataclass(kw_only=True)
class Trace:
    """Weights of T tasks and all that a forward and a backward pass over n windows left behind."""

    layers: list[Layer]
    head: Head
    buffers: Buffers
    n_windows: int
    _taken: list[tuple[str, Tensor]] = field(default_factory=list)

    @property
    def n_tasks(self) -> int:
        return len(self.head.weight)

    def inputs(self, purpose: str, i: int) -> Tensor:
        """Take a buffer in the shape of the input of layer `i`; of the pooling behind the last."""
        if i < len(self.layers):
            shape = self.layers[i].shape
            return self._take(f"{purpose} {i}", shape.rows_in(self.n_windows), shape.n_in)
        last = self.layers[-1].shape
        return self._take(f"{purpose} {i}", self.n_windows * last.length, last.n_out)

    def outputs(self, purpose: str, i: int) -> Tensor:
        """Take a buffer in the shape of the output of the convolution of layer `i`."""
        shape = self.layers[i].shape
        return self._take(f"{purpose} {i}", self.n_windows * shape.n_rows, shape.n_out)

    def statistics(self, purpose: str) -> Tensor:
        """Take a buffer for one number per window and group."""
        return self._take(purpose, self.n_windows, N_GROUPS)

    def per_window(self, purpose: str, n: int) -> Tensor:
        """Take a buffer for `n` numbers per window."""
        return self._take(purpose, self.n_windows, n)

    def _take(self, purpose: str, *shape: int) -> Tensor:
        buffer = self.buffers.take(purpose, self.n_tasks, *shape)
        self._taken.append((purpose, buffer))
        return buffer

    def release(self) -> None:
        """Give all buffers back."""
        for purpose, buffer in self._taken:
            self.buffers.give(purpose, buffer)
        self._taken.clear()


def forward(trace: Trace, patches: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each task, shape (T,).

    `patches` are those of the first convolution, (T, n * length, kernel * n_leads).
    """
    x = patches
    for i, layer in enumerate(trace.layers):
        layer.x, layer.y = x, trace.outputs("y", i)
        layer.mean, layer.rstd = trace.statistics("mean"), trace.statistics("rstd")
        x = trace.inputs("x", i + 1)
        conv_forward(layer.shape, layer.x, layer.weight, layer.y)
        _run(
            kernels.norm_relu,
            *(layer.y, layer.gamma, layer.beta, x, layer.mean, layer.rstd),
            *layer.window_rows,
        )
    return _forward_head(trace, x, labels)


def _forward_head(trace: Trace, x: Tensor, labels: Tensor) -> Tensor:
    head, n_channels = trace.head, x.shape[2]
    head.x = x
    head.features = trace.per_window("features", 2 * n_channels)
    head.ties = trace.per_window("ties", n_channels)
    _run(kernels.pool, x, head.features, head.ties, _length(trace))
    logits = torch.baddbmm(head.bias[:, None], head.features, head.weight.transpose(1, 2))
    log_p = F.log_softmax(logits, dim=-1)
    head.probabilities = log_p.exp()
    target = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    head.g_logits = (head.probabilities - target) / trace.n_windows
    return -(log_p * target).sum(dim=(1, 2)) / trace.n_windows


def _length(trace: Trace) -> int:
    return trace.layers[-1].shape.length


def backward(trace: Trace, gradients: Views) -> None:
    """Write the gradient of each task's loss, after `forward`; weights without a view are frozen."""
    head = trace.head
    _write(gradients, "head.weight", torch.bmm(head.g_logits.transpose(1, 2), head.features))
    _write(gradients, "head.bias", head.g_logits.sum(dim=1))
    g_out = _backward_pool(trace, torch.bmm(head.g_logits, head.weight), "g_x")
    for i in reversed(range(len(trace.layers))):
        layer = trace.layers[i]
        layer.g_out = g_out
        g_y = trace.buffers.take(f"g_y {i}", *layer.y.shape)
        g_gamma, g_beta = torch.empty_like(layer.gamma), torch.empty_like(layer.beta)
        _run(
            kernels.norm_relu_backward,
            *(g_out, layer.y, layer.gamma, layer.beta, layer.mean, layer.rstd),
            *(g_y, g_gamma, g_beta),
            *layer.window_rows,
        )
        _write(gradients, f"{layer.name}.norm.weight", g_gamma)
        _write(gradients, f"{layer.name}.norm.bias", g_beta)
        if (g_weight := gradients.get(f"{layer.name}.conv.weight")) is not None:
            conv_backward_weight(layer.shape, layer.x, g_y, g_weight)
        if i > 0:
            g_out = trace.inputs("g_x", i)
            conv_backward_input(layer.shape, layer.weight, g_y, g_out)
        trace.buffers.give(f"g_y {i}", g_y)


def _write(views: Views, name: str, value: Tensor) -> None:
    if name in views:
        views[name].copy_(value)


def _backward_pool(trace: Trace, g_features: Tensor, purpose: str) -> Tensor:
    head = trace.head
    g_x = trace.inputs(purpose, len(trace.layers))
    _run(kernels.pool_backward, g_features, head.x, head.features, head.ties, g_x, _length(trace))
    return g_x


def tangents(trace: Trace, vectors: Views, products: Views) -> None:
    """Write the derivative of the gradient along `vectors`, after `backward`."""
    directions = [_direction(layer, vectors) for layer in trace.layers]
    d_x = _tangent_forward(trace, directions)
    dg_out = _tangent_head(trace, d_x, vectors, products)
    for i in reversed(range(len(trace.layers))):
        dg_out = _tangent_backward(trace, i, directions[i], dg_out, products)


@dataclass(kw_only=True)
class Direction:
    """A direction in a layer's weights, and what the forward pass along it leaves behind."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    mean: Tensor = field(init=False)
    corr: Tensor = field(init=False)


def _direction(layer: Layer, vectors: Views) -> Direction:
    """Return the part of `vectors` that moves `layer`; frozen weights don't move."""

    def part(name: str, like: Tensor) -> Tensor:
        return vectors.get(f"{layer.name}.{name}", torch.zeros(like.shape, dtype=like.dtype))

    return Direction(
        weight=part("conv.weight", layer.weight),
        gamma=part("norm.weight", layer.gamma).contiguous(),
        beta=part("norm.bias", layer.beta).contiguous(),
    )


def _tangent_forward(trace: Trace, directions: list[Direction]) -> Tensor:
    """Return the tangent of what the pooling reads."""
    d_x = None
    for i, (layer, d) in enumerate(zip(trace.layers, directions, strict=True)):
        d.x, d.y = d_x, trace.outputs("d_y", i)
        d.mean, d.corr = trace.statistics("d_mean"), trace.statistics("d_corr")
        conv_forward(layer.shape, layer.x, d.weight, d.y)
        if i > 0:
            conv_forward(layer.shape, d.x, layer.weight, d.y, add=True)
        d_x = trace.inputs("d_x", i + 1)
        _run(
            kernels.norm_relu_tangent,
            *(layer.y, d.y, layer.gamma, layer.beta, d.gamma, d.beta, layer.mean, layer.rstd),
            *(d_x, d.mean, d.corr),
            *layer.window_rows,
        )
    return d_x


def _tangent_head(trace: Trace, d_x: Tensor, vectors: Views, products: Views) -> Tensor:
    """Write the derivatives of the head's gradients, return that of what the pooling hands back."""
    head = trace.head
    d_weight = vectors.get("head.weight", torch.zeros_like(head.weight))
    d_bias = vectors.get("head.bias", torch.zeros_like(head.bias))
    d_features = trace.per_window("d_features", head.features.shape[2])
    _run(kernels.pool_tangent, d_x, head.x, head.features, head.ties, d_features, _length(trace))
    d_logits = torch.baddbmm(d_bias[:, None], d_features, head.weight.transpose(1, 2))
    d_logits.baddbmm_(head.features, d_weight.transpose(1, 2))
    p = head.probabilities
    dg = p * (d_logits - (p * d_logits).sum(dim=-1, keepdim=True)) / trace.n_windows
    of_weight = torch.bmm(dg.transpose(1, 2), head.features)
    of_weight.baddbmm_(head.g_logits.transpose(1, 2), d_features)
    _write(products, "head.weight", of_weight)
    _write(products, "head.bias", dg.sum(dim=1))
    dg_features = torch.bmm(dg, head.weight).baddbmm_(head.g_logits, d_weight)
    return _backward_pool(trace, dg_features, "dg_x")


def _tangent_backward(
    trace: Trace, i: int, d: Direction, dg_out: Tensor, products: Views
) -> Tensor | None:
    """Write the derivatives of the gradients of layer `i`, return that of its input's."""
    layer = trace.layers[i]
    g_y, dg_y = (trace.buffers.take(f"{name} {i}", *layer.y.shape) for name in ("g_y", "dg_y"))
    dg_gamma, dg_beta = torch.empty_like(layer.gamma), torch.empty_like(layer.beta)
    _run(
        kernels.norm_relu_tangent_backward,
        *(layer.g_out, dg_out, layer.y, d.y, layer.gamma, layer.beta, d.gamma),
        *(layer.mean, layer.rstd, d.mean, d.corr, g_y, dg_y, dg_gamma, dg_beta),
        *layer.window_rows,
    )
    _write(products, f"{layer.name}.norm.weight", dg_gamma)
    _write(products, f"{layer.name}.norm.bias", dg_beta)
    if (dg_weight := products.get(f"{layer.name}.conv.weight")) is not None:
        conv_backward_weight(layer.shape, layer.x, dg_y, dg_weight)
        if i > 0:
            conv_backward_weight(layer.shape, d.x, g_y, dg_weight, add=True)
    dg_x = None
    if i > 0:
        dg_x = trace.inputs("dg_x", i)
        conv_backward_input(layer.shape, layer.weight, dg_y, dg_x)
        conv_backward_input(layer.shape, d.weight, g_y, dg_x, add=True)
    trace.buffers.give(f"g_y {i}", g_y)
    trace.buffers.give(f"dg_y {i}", dg_y)
    return dg_x


def _run(kernel: Callable, *arguments: Tensor | int) -> None:
    kernel(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))
