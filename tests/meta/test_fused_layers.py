"""Convolutions on rows of channels against torch's, buffers, and weights as one vector."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from metaecg.meta.fused_layers import (
    WIDE,
    Buffers,
    ConvShape,
    FlatWeights,
    conv_backward,
    conv_forward,
)

NARROW = [
    ConvShape(n_in, n_out, kernel, stride, length)
    for (n_in, n_out), (kernel, stride), length in itertools.product(
        [(1, 4), (6, 4)],
        [(1, 1), (3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (5, 3), (5, 4), (5, 5)],
        [1, 2, 7, 12, 13],
    )
]
WIDES = [
    ConvShape(n, n, kernel, stride, length)
    for (n, kernel), stride, length in itertools.product([(40, 3), (32, 5)], [1, 2, 3], [1, 7, 12])
]
SHAPES = pytest.mark.parametrize("shape", NARROW + WIDES, ids=str)


def noise(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(shape: ConvShape, windows: torch.Tensor) -> torch.Tensor:
    """Windows (T, n, n_in, length) where a convolution reads them, zeros between."""
    x = torch.zeros(len(windows), shape.rows_in(windows.shape[1]), shape.n_in).double()
    for i in range(windows.shape[1]):
        start = i * shape.stride_in + shape.padding
        x[:, start : start + shape.length_in] = windows[:, i].mT
    return x


def windows_of(shape: ConvShape, x: torch.Tensor, n_windows: int) -> torch.Tensor:
    """The windows in `rows_of`'s layout, (T, n, n_in, length)."""
    starts = [i * shape.stride_in + shape.padding for i in range(n_windows)]
    return torch.stack([x[:, s : s + shape.length_in].mT for s in starts], dim=1)


def outputs_of(shape: ConvShape, y: torch.Tensor) -> torch.Tensor:
    """The rows of `y` (T, n * n_rows, n_out) that count, as (T, n, n_out, length)."""
    return y.unflatten(1, (-1, shape.n_rows))[:, :, : shape.length].mT


def convolved(shape: ConvShape, windows, weight):
    """torch's convolution of windows (T, n, n_in, length) with (T, n_out, kernel, n_in)."""
    settings = {"stride": shape.stride, "padding": shape.padding}
    tasks = zip(windows, weight.mT, strict=True)
    return torch.stack([F.conv1d(x, w, **settings) for x, w in tasks])


def make_case(shape: ConvShape, *, n_tasks=2, n_windows=3):
    windows = noise(n_tasks, n_windows, shape.n_in, shape.length_in)
    return windows, noise(n_tasks, shape.n_out, shape.kernel, shape.n_in, seed=8)


def test_the_shapes_of_these_tests_take_both_ways():
    assert not any(shape.is_wide for shape in NARROW) and all(shape.is_wide for shape in WIDES)


def test_a_task_with_enough_weights_is_wide_and_a_kernel_of_one_row_is_not():
    assert ConvShape(WIDE // 4, 2, 2, 1, 9).is_wide
    assert not ConvShape(WIDE // 4 - 1, 2, 2, 1, 9).is_wide
    assert not ConvShape(WIDE, 4, 1, 1, 9).is_wide


@SHAPES
@pytest.mark.parametrize("n_tasks", [1, 3])
@pytest.mark.parametrize("n_windows", [1, 3])
def test_the_convolution_is_that_of_torch(shape, n_tasks, n_windows):
    windows, weight = make_case(shape, n_tasks=n_tasks, n_windows=n_windows)
    y = conv_forward(shape, rows_of(shape, windows), weight)
    assert y.shape == (n_tasks, n_windows * shape.n_rows, shape.n_out)
    torch.testing.assert_close(outputs_of(shape, y), convolved(shape, windows, weight))


@SHAPES
@pytest.mark.parametrize("n_tasks", [1, 3])
def test_its_gradients_are_those_of_autograd(shape, n_tasks):
    windows, weight = make_case(shape, n_tasks=n_tasks)
    leaves = windows.clone().requires_grad_(), weight.clone().requires_grad_()
    expected_y = convolved(shape, *leaves)
    slope = noise(*expected_y.shape, seed=9)
    expected = torch.autograd.grad(expected_y, leaves, slope)
    g_y = torch.zeros(n_tasks, windows.shape[1] * shape.n_rows, shape.n_out).double()
    outputs_of(shape, g_y).copy_(slope)
    x = rows_of(shape, windows)
    g_x, g_weight = conv_backward(shape, g_y, x, weight, of_x=True)
    torch.testing.assert_close(windows_of(shape, g_x, windows.shape[1]), expected[0])
    torch.testing.assert_close(g_weight, expected[1])
    none, same = conv_backward(shape, g_y, x, weight, of_x=False)
    assert none is None and torch.allclose(same, g_weight, rtol=1e-12)


@SHAPES
def test_no_window_reads_another(shape):
    windows, weight = make_case(shape)
    spoilt = windows.clone()
    spoilt[:, 1] = torch.nan
    y = outputs_of(shape, conv_forward(shape, rows_of(shape, spoilt), weight))
    expected = convolved(shape, windows, weight)
    torch.testing.assert_close(y[:, [0, 2]], expected[:, [0, 2]])
    assert torch.isnan(y[:, 1]).any()


@pytest.mark.parametrize("shape", [NARROW[-1], WIDES[-1]], ids=str)
def test_no_task_reads_another(shape):
    windows, weight = make_case(shape, n_tasks=3)
    x, g_y = rows_of(shape, windows), noise(3, 3 * shape.n_rows, shape.n_out)
    expected = conv_forward(shape, x, weight), *conv_backward(shape, g_y, x, weight, of_x=True)
    x[1], weight[1] = torch.nan, torch.nan
    found = conv_forward(shape, x, weight), *conv_backward(shape, g_y, x, weight, of_x=True)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine[[0, 2]], other[[0, 2]])
        assert torch.isnan(mine[1]).any()


def test_a_buffer_that_was_given_back_is_taken_again_for_the_same_purpose_and_shape_only():
    buffers = Buffers(torch.float32)
    first = buffers.take("x", 2, 3)
    assert first.dtype == torch.float32 and first.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert buffers.take("x", 2, 3) is not first
    buffers.give("x", first)
    assert buffers.take("y", 2, 3) is not first
    assert buffers.take("x", 3, 2) is not first
    assert buffers.take("x", 2, 3) is first


def test_weights_make_one_vector_in_which_a_convolution_has_the_order_of_its_patches():
    flat = FlatWeights({"bias": (2,), "conv": (1, 2, 3)})
    conv = torch.tensor([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]])  # (n_out, n_in, kernel)
    packed = flat.pack({"conv": conv, "bias": torch.tensor([7.0, 8.0])})
    assert packed.tolist() == [7, 8, 1, 10, 2, 20, 3, 30]
    assert flat.views(packed)["conv"].tolist() == [[[1, 10], [2, 20], [3, 30]]]
    assert torch.equal(flat.unpack(packed)["conv"], conv)
    assert flat.views(packed.expand(4, -1))["conv"].shape == (4, 1, 3, 2)
