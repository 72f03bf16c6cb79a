"""The operations of a meta-step: by hand, and beside torch's own counter."""

import pytest
import torch
from meta_step import flops
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from metaecg.models.registry import build_network

LAYERS = [2, 3]
"""F1 = 2, P = 5: a gradient is 3 * 5 - 2 = 13, a Hessian product 6 * 5 - 4 * 2 = 22."""


def counted(work):
    """Return what `work` gives, and the operations that torch counts in it."""
    with FlopCounterMode(display=False) as counter:
        result = work()
    return result, counter.get_total_flops()


def plain_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 7, padding=3, bias=False),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv1d(4, 8, 5, padding=2, bias=False),
        nn.Tanh(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


@pytest.mark.parametrize("width", [16, 64])
def test_forward_and_gradient_are_counted_as_torch_counts_them(width):
    network = build_network(
        "compact-cnn", n_leads=1, n_samples=400, fs_hz=200.0, n_classes=2, width=width
    )
    layers = flops.of_layers(network, torch.zeros(1, 1, 400))
    x, y = torch.randn(3, 1, 400), torch.tensor([0, 1, 0])
    loss, forward = counted(lambda: F.cross_entropy(network(x), y))
    _, backward = counted(loss.backward)
    assert forward == 3 * sum(layers)
    assert forward + backward == 3 * flops.of_gradient(layers)


def test_a_hessian_product_is_counted_as_torch_counts_it_but_for_the_windows_own_part():
    network = (
        plain_network()
    )  # torch's second derivative of a strided convolution has spare outputs
    layers = flops.of_layers(network, torch.zeros(1, 2, 40))
    x, y = torch.randn(3, 2, 40), torch.tensor([0, 1, 2])
    weights = list(network.parameters())
    slope = torch.autograd.grad(F.cross_entropy(network(x), y), weights, create_graph=True)
    along = sum(g.sum() for g in slope)
    _, product = counted(lambda: torch.autograd.grad(along, weights))
    for_the_window = 3 * layers[0]  # torch differentiates by the window too, though nobody asks
    assert product - for_the_window == 3 * flops.of_hessian_product(layers)


@pytest.mark.parametrize(
    ("second_order", "expected"), [(False, 2 * (12 * 13 + 5 * 13)), (True, 2 * (12 * 35 + 5 * 13))]
)
def test_a_meta_step_is_its_gradients_and_products(second_order, expected):
    found = flops.of_meta_step(
        LAYERS, n_tasks=2, n_support=3, n_query=5, inner_steps=4, second_order=second_order
    )
    assert found == expected


def test_counting_leaves_no_hook_behind():
    network = plain_network()
    flops.of_layers(network, torch.zeros(1, 2, 40))
    assert not any(module._forward_hooks for module in network.modules())
