"""Slopes and Hessian products of the fused passes against those of vmap, and what calls leave
behind for the next."""

from dataclasses import replace

import pytest
import torch
from fused_cases import (
    Point,
    assert_as_vmap,
    assert_near,
    fused_slope,
    make_cnn,
    make_point,
    pack,
    unpack,
    vmap_slope,
)

from metaecg.meta.fused import FLAT, FusedCompactCNN, conv_shapes

SHARED = pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
N_TASKS = pytest.mark.parametrize("n_tasks", [1, 3])
WIDTHS = pytest.mark.parametrize("width", [8, 24, 32])  # no layer wide, two of three, all


def test_the_widths_of_these_tests_take_both_ways_through_a_convolution():
    def ways(width):
        return [shape.is_wide for shape in conv_shapes(make_cnn(width=width), 50)]

    assert ways(8) == [False] * 4
    assert ways(24) == [False, False, True, True]
    assert ways(32) == [False, True, True, True]


@WIDTHS
@N_TASKS
@SHARED
@pytest.mark.parametrize("n_windows", [1, 4])
def test_slopes_and_hessian_products_are_those_of_vmap(width, n_tasks, shared, n_windows):
    network = make_cnn(width=width)
    point = make_point(network, n_tasks=n_tasks, n_windows=n_windows, shared=shared)
    assert_as_vmap(network, point)


@pytest.mark.parametrize("width", [4, 24])
@pytest.mark.parametrize("n_windows", [1, 3])
@pytest.mark.parametrize(
    ("fs_hz", "n_samples", "n_leads", "n_classes"),
    [
        (50.0, 37, 1, 2),  # stride 1
        (125.0, 99, 3, 3),  # stride 2, odd length
        (200.0, 101, 2, 3),
        (360.0, 250, 1, 2),
        (250.0, 23, 2, 2),  # shorter than the first kernel
        (10.0, 30, 1, 2),  # the first kernel is one sample long
        (10.0, 31, 2, 3),
    ],
)
def test_every_geometry_gives_what_vmap_gives(
    fs_hz, n_samples, n_leads, n_classes, n_windows, width
):
    network = make_cnn(
        width=width, n_leads=n_leads, fs_hz=fs_hz, n_samples=n_samples, n_classes=n_classes
    )
    assert_as_vmap(network, make_point(network, n_windows=n_windows, n_samples=n_samples))


@SHARED
@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize(
    "part", ["conv", "norm", "norm.bias", "head", "head.bias", "blocks.0", "blocks.2.conv"]
)
@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "frozen"])
def test_frozen_weights_are_those_of_the_network_and_have_no_slope(part, is_kept, width, shared):
    network = make_cnn(width=width)
    kept = {k for k, _ in network.named_parameters() if (part in k) == is_kept}
    point = make_point(network, kept=kept, shared=shared)
    assert_as_vmap(network, point)


@WIDTHS
@SHARED
def test_single_precision_gives_the_same_to_single_precision(width, shared):
    network = make_cnn(width=width, n_samples=200, fs_hz=100.0)
    point = make_point(network, n_samples=200, shared=shared)
    found = fused_slope(FusedCompactCNN(network.float()), point.to(torch.float32))
    assert {found[0].dtype} | {t.dtype for part in found[1:] for t in part.values()} == {
        torch.float32
    }
    assert_near(found, vmap_slope(network.double(), point), rtol=2e-5)


def test_a_large_offset_costs_single_precision_no_more_than_the_windows_have_lost():
    network = make_cnn(n_samples=200, fs_hz=100.0)
    point = make_point(network, n_samples=200).to(torch.float32)
    point = replace(point, x=point.x + 1000)
    found = fused_slope(FusedCompactCNN(network), point)
    assert_near(found[:2], vmap_slope(network, point.to(torch.float64))[:2], rtol=2e-3)


@WIDTHS
@pytest.mark.parametrize("level", [0.0, 1.5])
def test_flat_windows_have_the_slope_of_vmap(width, level):
    network = make_cnn(width=width)
    point = make_point(network)
    point.x[:, ::2] = level
    assert_as_vmap(network, point, rtol=1e-8)


def test_maxima_at_many_moments_share_the_slope():
    network = make_cnn(n_samples=80)
    point = make_point(network, n_samples=80)
    repeated = point.x[..., :8].repeat(1, 1, 1, 10)  # 8 is a multiple of all strides together
    assert_as_vmap(network, replace(point, x=repeated), rtol=1e-8)


@WIDTHS
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_layer_whose_channels_are_all_off_has_the_slope_of_vmap(width, layer):
    network = make_cnn(width=width)
    point = make_point(network)
    point.weights[f"blocks.{layer}.norm.bias"].fill_(-100.0)
    assert_as_vmap(network, point)
    _, gradients, _ = fused_slope(FusedCompactCNN(network), point)
    assert not gradients[f"blocks.{layer}.conv.weight"].any()
    assert gradients["head.bias"].any()


def test_a_weight_of_zero_in_a_norm_has_the_slope_of_vmap():
    network = make_cnn()
    point = make_point(network)
    point.weights["blocks.1.norm.weight"][:, ::2] = 0.0
    assert_as_vmap(network, point)


def test_packing_is_undone_and_does_not_depend_on_the_order_of_the_names():
    network = make_cnn(n_leads=2)
    model = FusedCompactCNN(network)
    weights = {k: p.detach() for k, p in network.named_parameters()}
    packed = model.pack(weights)
    backwards = model.pack(dict(reversed(weights.items())))
    assert torch.equal(packed[FLAT], backwards[FLAT])
    unpacked = model.unpack(backwards)
    assert unpacked.keys() == weights.keys()
    assert all(torch.equal(unpacked[name], weight) for name, weight in weights.items())


# What a call leaves behind


def bits(result) -> list[bytes]:
    losses, *parts = result
    tensors = [losses, *(t for part in parts for _, t in sorted(part.items()))]
    return [t.contiguous().numpy().tobytes() for t in tensors]


def assert_as_fresh(model: FusedCompactCNN, point: Point) -> None:
    """A model that was used gives bit for bit what a new one gives."""
    network = model.network
    assert bits(fused_slope(model, point)) == bits(fused_slope(FusedCompactCNN(network), point))


@WIDTHS
def test_a_model_gives_other_data_what_a_fresh_one_gives(width):
    network = make_cnn(width=width)
    model = FusedCompactCNN(network)
    for seed, n_tasks, n_windows in [(1, 3, 4), (2, 3, 4), (3, 1, 4), (4, 3, 7), (5, 3, 4)]:
        assert_as_fresh(model, make_point(network, seed=seed, n_tasks=n_tasks, n_windows=n_windows))


@pytest.mark.parametrize("width", [8, 32])
def test_windows_of_another_length_find_no_old_values_between_them(width):
    """The lengths are those whose buffers have equal shapes and other rows of padding."""
    network = make_cnn(width=width)
    model = FusedCompactCNN(network)
    for n_samples, n_windows in [(50, 6), (49, 6), (25, 12), (26, 12), (8, 30), (9, 30), (50, 6)]:
        assert_as_fresh(model, make_point(network, n_samples=n_samples, n_windows=n_windows))


def test_single_and_double_precision_take_turns():
    network = make_cnn()
    model, point = FusedCompactCNN(network), make_point(network)
    for dtype in (torch.float64, torch.float32, torch.float64):
        assert_as_fresh(model, point.to(dtype))


@WIDTHS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
def test_values_that_are_not_finite_stay_in_their_task_and_in_their_call(value, width):
    network = make_cnn(width=width)
    model, clean = FusedCompactCNN(network), make_point(network)
    bad = replace(clean, x=clean.x.clone())
    bad.x[1] = value
    losses, gradients, products = fused_slope(model, bad)
    good = [0, 2]
    assert torch.isfinite(losses).tolist() == [True, False, True]
    for name in gradients:
        assert torch.isfinite(gradients[name][good]).all(), name
        assert torch.isfinite(products[name][good]).all(), name
    everywhere = replace(clean, x=torch.full_like(clean.x, value))
    fused_slope(model, everywhere)
    assert_as_fresh(model, clean)


def test_one_value_that_is_nan_spoils_the_loss_of_its_task():
    network = make_cnn(n_leads=2)
    for sample in (0, 1, 25, 49):
        point = make_point(network)
        point.x[1, 2, 1, sample] = torch.nan
        losses, _, _ = fused_slope(FusedCompactCNN(network), point)
        assert torch.isnan(losses).tolist() == [False, True, False]


def slopes_at(model, points):
    return [
        model.slope(pack(model, p.weights, stacked=True), p.x, p.y, shared=False, curved=True)
        for p in points
    ]


@WIDTHS
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_products_with_the_hessians_of_several_points_come_in_any_order(order, width):
    network = make_cnn(width=width)
    model = FusedCompactCNN(network)
    points = [make_point(network, seed=seed) for seed in (1, 2, 3)]
    slopes = slopes_at(model, points)
    for at in order:
        vectors = pack(model, points[at].vectors, stacked=True)
        products = unpack(model, slopes[at].hessian_product(vectors), stacked=True)
        gradients = unpack(model, slopes[at].gradients, stacked=True)
        found = slopes[at].losses, gradients, products
        expected = fused_slope(FusedCompactCNN(network), points[at])
        assert bits(found) == bits(expected)


def test_a_curved_slope_that_is_dropped_without_its_product_does_no_harm():
    network = make_cnn()
    model, point = FusedCompactCNN(network), make_point(network)
    for seed in (1, 2):
        slopes_at(model, [make_point(network, seed=seed)])
    assert_as_fresh(model, point)


def test_slopes_that_are_not_curved_give_their_buffers_back_at_once():
    network = make_cnn()
    model, point = FusedCompactCNN(network), make_point(network)
    packed = pack(model, point.weights, stacked=True)
    buffers = set()
    for _ in range(3):
        slope = model.slope(packed, point.x, point.y, shared=False, curved=False)
        assert slope.hessian_product is None
        (kept,) = model._buffers.values()
        buffers.add(frozenset(t.data_ptr() for free in kept._free.values() for t in free))
    assert len(buffers) == 1
