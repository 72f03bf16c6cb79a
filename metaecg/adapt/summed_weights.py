"""Low-rank layers as one layer with the sum of their weights.

PEFT computes ``W x + s B (A x)``: beside the result two more maps of its size are alive for a
moment. ``(W + s B A) x`` is the same without them, and one matrix product of the weights' size
takes the place of two convolutions of the windows.

With gradients the sum needs that of the whole weight, and the products of A and B with it are small.
That is the faster way for small layers: six convolutions of the windows become three.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_WITH_GRADIENT = 2**16
"""Weights of a layer, at most, that is summed where gradients are wanted: the gradient of a larger
one takes memory that the low rank is there to save. Those of va-base and veb-base have 12,288."""


@contextmanager
def summed_weights(network: nn.Module, *, with_gradient: bool = False) -> Iterator[None]:
    """Let every LoRA layer of `network` that no gradient passes act through the sum of its weights.

    No weight is changed: the sum is made when the layer is called and dropped after it. The
    answers are the same up to rounding. A layer is left to PEFT while a gradient is wanted of its
    weights or its input, while it is merged or switched off, and if it is anything but a plain
    low-rank layer with one adapter (DoRA, a bias of its own, active dropout). Networks without
    such layers are left alone.

    Parameters
    ----------
    network
        Of `metaecg.adapt.methods.prepare_network`, or any other; as before after the block.
    with_gradient
        Also where gradients are wanted, in layers of at most `MAX_WITH_GRADIENT` weights.
    """
    layers = _low_rank_layers(network)
    try:
        for layer in layers:
            layer.forward = _summing(layer, layer.forward, with_gradient)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # the class's own comes back


def _low_rank_layers(network: nn.Module) -> list[nn.Module]:
    if not hasattr(network, "peft_config"):
        return []
    from peft.tuners.lora import layer as lora

    return [m for m in network.modules() if type(m) in (lora.Linear, lora.Conv1d)]


def _summing(layer: nn.Module, otherwise, with_gradient: bool):
    """Return the forward pass of a layer through the sum; `otherwise` where that can't be."""
    is_small = layer.get_base_layer().weight.numel() <= MAX_WITH_GRADIENT

    def forward(x: Tensor, *args, **kwargs) -> Tensor:
        is_left = not (with_gradient and is_small) and _needs_gradient(layer, x)
        if args or kwargs or is_left or not _is_plain(layer):
            return otherwise(x, *args, **kwargs)
        base, (adapter,) = layer.get_base_layer(), layer.active_adapters
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        # a convolution's weight is a matrix whose rows hold the inputs at all places of the kernel
        weight = torch.addmm(
            base.weight.flatten(1), b.flatten(1), a.flatten(1), alpha=layer.scaling[adapter]
        ).view_as(base.weight)
        if isinstance(base, nn.Linear):
            return F.linear(x, weight, base.bias)
        return F.conv1d(x, weight, base.bias, base.stride, base.padding, base.dilation, base.groups)

    return forward


def _needs_gradient(layer: nn.Module, x: Tensor) -> bool:
    wanted = x.requires_grad or any(p.requires_grad for p in layer.parameters())
    return torch.is_grad_enabled() and wanted


def _is_plain(layer: nn.Module) -> bool:
    if layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return False
    (adapter,) = layer.active_adapters
    base = layer.get_base_layer()
    return (
        adapter in layer.lora_A
        and adapter not in getattr(layer, "lora_variant", [adapter])  # DoRA and its like
        and layer.lora_B[adapter].bias is None
        and (isinstance(layer.lora_dropout[adapter], nn.Identity) or not layer.training)
        and type(base) in (nn.Linear, nn.Conv1d)
        and (type(base) is nn.Linear or base.groups == 1 and base.padding_mode == "zeros")
    )
