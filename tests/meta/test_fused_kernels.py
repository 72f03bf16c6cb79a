"""Each kernel against group norm, ReLU and pooling of torch, and their derivatives by autograd."""

import numpy as np
import pytest
import torch
from torch.autograd.functional import jvp, vjp
from torch.nn import functional as F

from metaecg.meta import fused_kernels as kernels
from metaecg.models.backbones.compact_cnn import N_GROUPS

T, N, C, LENGTH = 2, 3, 8, 11
ROWS = (13, LENGTH, 17, 2)  # n_rows, length, stride, offset: gaps everywhere
FLOATS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def noise(*shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(windows: torch.Tensor, *, n_rows: int, offset: int = 0) -> torch.Tensor:
    """Windows (T, n, length, C) as rows (T, n * n_rows + offset, C), with NaN between them."""
    rows = windows.new_full((T, N * n_rows + offset, C), torch.nan)
    for i in range(N):
        rows[:, i * n_rows + offset : i * n_rows + offset + LENGTH] = windows[:, i]
    return rows


def as_y(windows):
    return spread(windows, n_rows=ROWS[0])


def as_out(windows):
    return spread(windows, n_rows=ROWS[2], offset=ROWS[3])


def taken(rows: torch.Tensor, *, n_rows: int, offset: int = 0) -> torch.Tensor:
    """Undo `spread`, and see that the rows between are NaN as before."""
    starts = [i * n_rows + offset for i in range(N)]
    windows = torch.stack([rows[:, s : s + LENGTH] for s in starts], dim=1)
    between = torch.ones(rows.shape[1], dtype=torch.bool)
    for s in starts:
        between[s : s + LENGTH] = False
    assert torch.isnan(rows[:, between]).all()
    return windows


def from_y(rows):
    return taken(rows, n_rows=ROWS[0])


def from_out(rows):
    return taken(rows, n_rows=ROWS[2], offset=ROWS[3])


def norm_relu(y, gamma, beta):
    """The same with torch: y (T, n, length, C), gamma and beta (T, C)."""
    normed = F.group_norm(y.flatten(0, 1).mT, N_GROUPS, eps=kernels.EPS).mT.unflatten(0, (T, N))
    return F.relu(normed * gamma[:, None, None] + beta[:, None, None])


def run(kernel, *arguments):
    kernel(*(a.numpy() if isinstance(a, torch.Tensor) else a for a in arguments))


def make_inputs(dtype=torch.float64, *, seed=7, offset=0.0):
    """y, gamma and beta; the channels of a group have means of their own."""
    y = noise(T, N, LENGTH, C, seed=seed) + torch.arange(C) / 3 + offset
    weights = noise(T, C, seed=seed + 1), noise(T, C, seed=seed + 2)
    return tuple(t.to(dtype) for t in (y, *weights))


def forward(y, gamma, beta):
    """Run the kernel; return output, mean and rstd."""
    out = as_out(torch.zeros_like(y))
    mean, rstd = y.new_empty(T, N, N_GROUPS), y.new_empty(T, N, N_GROUPS)
    run(kernels.norm_relu, as_y(y), gamma, beta, out, mean, rstd, *ROWS)
    return from_out(out), mean, rstd


def near(dtype):
    return (
        {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    )


@FLOATS
def test_norm_and_relu_are_those_of_torch(dtype):
    y, gamma, beta = make_inputs(dtype)
    out, mean, rstd = forward(y, gamma, beta)
    torch.testing.assert_close(out, norm_relu(y, gamma, beta), **near(dtype))
    grouped = y.unflatten(3, (N_GROUPS, -1))
    torch.testing.assert_close(mean, grouped.mean(dim=(2, 4)), **near(dtype))
    variance = grouped.var(dim=(2, 4), correction=0)
    torch.testing.assert_close(rstd, (variance + kernels.EPS).rsqrt(), **near(dtype))


@pytest.mark.parametrize("offset", [1e3, -1e4])
def test_a_mean_far_from_zero_does_not_cost_the_variance_its_digits(offset):
    y, gamma, beta = make_inputs(torch.float32, offset=offset)
    _, _, rstd = forward(y, gamma, beta)
    grouped = y.double().unflatten(3, (N_GROUPS, -1))  # with what y has lost already
    expected = (grouped.var(dim=(2, 4), correction=0) + kernels.EPS).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=2e-6, atol=0)


def test_channels_with_means_of_their_own_in_a_group_keep_their_digits_too():
    y, gamma, beta = make_inputs(torch.float32)
    y[..., ::2] += 1e4  # groups are pairs of neighbours here
    _, _, rstd = forward(y, gamma, beta)
    grouped = y.double().unflatten(3, (N_GROUPS, -1))
    expected = (grouped.var(dim=(2, 4), correction=0) + kernels.EPS).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=2e-6, atol=0)


def test_a_window_without_change_is_normalised_to_the_shift():
    y, gamma, beta = make_inputs()
    out, _, rstd = forward(torch.full_like(y, 3.0), gamma, beta)
    assert torch.equal(out, F.relu(beta)[:, None, None].expand_as(out))
    assert torch.allclose(rstd, torch.tensor(kernels.EPS).double().rsqrt())


def test_nan_and_infinity_spoil_their_window_and_no_other():
    for value in (torch.nan, torch.inf, -torch.inf):
        y, gamma, beta = make_inputs()
        expected, _, _ = forward(y, gamma, beta)
        y[1, 1, 5, 3] = value
        out, _, _ = forward(y, gamma, beta)
        assert torch.isnan(out[1, 1, :, 2:4]).all()
        out[1, 1], expected[1, 1] = 0, 0
        assert torch.equal(out, expected)


def backward(y, gamma, beta, g_out):
    """Run the kernel; return the gradients of y, gamma and beta."""
    _, mean, rstd = forward(y, gamma, beta)
    g_y, weights = as_y(y), [torch.full_like(gamma, torch.nan) for _ in range(2)]
    run(
        kernels.norm_relu_backward,
        *(as_out(g_out), as_y(y), gamma, beta, mean, rstd, g_y, *weights, *ROWS),
    )
    return from_y(g_y), *weights


@FLOATS
def test_the_gradients_of_norm_and_relu_are_those_of_torch(dtype):
    inputs, g_out = make_inputs(dtype), noise(T, N, LENGTH, C, seed=3, dtype=dtype)
    _, expected = vjp(norm_relu, inputs, g_out)
    for mine, other in zip(backward(*inputs, g_out), expected, strict=True):
        torch.testing.assert_close(mine, other, **near(dtype))


def tangent(inputs, directions):
    """Run the kernel; return the tangent of the output and what the way back needs."""
    (y, gamma, beta), (d_y, d_gamma, d_beta) = inputs, directions
    _, mean, rstd = forward(y, gamma, beta)
    d_out, d_mean, d_corr = as_out(y), torch.empty_like(mean), torch.empty_like(mean)
    run(
        kernels.norm_relu_tangent,
        *(as_y(y), as_y(d_y), gamma, beta, d_gamma, d_beta, mean, rstd),
        *(d_out, d_mean, d_corr, *ROWS),
    )
    return from_out(d_out), d_mean, d_corr


@FLOATS
def test_the_tangent_of_norm_and_relu_is_that_of_torch(dtype):
    inputs, directions = make_inputs(dtype), make_inputs(dtype, seed=20)
    expected = jvp(norm_relu, inputs, directions)[1]
    torch.testing.assert_close(tangent(inputs, directions)[0], expected, **near(dtype))


def tangent_backward(inputs, directions, g_out, dg_out):
    """Run the kernel; return the gradient of y, and the derivatives of all three gradients."""
    (y, gamma, beta), (d_y, d_gamma, _) = inputs, directions
    _, mean, rstd = forward(*inputs)
    _, d_mean, d_corr = tangent(inputs, directions)
    g_y, dg_y = as_y(y), as_y(y)
    weights = [torch.full_like(gamma, torch.nan) for _ in range(2)]
    run(
        kernels.norm_relu_tangent_backward,
        *(as_out(g_out), as_out(dg_out), as_y(y), as_y(d_y), gamma, beta, d_gamma),
        *(mean, rstd, d_mean, d_corr, g_y, dg_y, *weights, *ROWS),
    )
    return from_y(g_y), from_y(dg_y), *weights


@FLOATS
def test_the_derivative_of_the_gradients_is_that_of_torch(dtype):
    inputs, directions = make_inputs(dtype), make_inputs(dtype, seed=20)
    g_out, dg_out = (noise(T, N, LENGTH, C, seed=seed, dtype=dtype) for seed in (3, 4))

    def gradients(y, gamma, beta, g_out):
        return vjp(norm_relu, (y, gamma, beta), g_out, create_graph=True)[1]

    expected = jvp(gradients, (*inputs, g_out), (*directions, dg_out))
    found = tangent_backward(inputs, directions, g_out, dg_out)
    for mine, other in zip(found, (expected[0][0], *expected[1]), strict=True):
        scale = other.abs().max().item()
        tolerance = near(dtype)
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance["rtol"] * scale)


def test_the_derivative_of_the_gradients_is_the_limit_of_their_differences():
    inputs, directions = make_inputs(), make_inputs(seed=20)
    g_out, dg_out = (noise(T, N, LENGTH, C, seed=seed) for seed in (3, 4))
    step = 1e-6
    plus, minus = (
        backward(*(a + s * d for a, d in zip(inputs, directions, strict=True)), g_out + s * dg_out)
        for s in (step, -step)
    )
    found = tangent_backward(inputs, directions, g_out, dg_out)[1:]
    for mine, above, below in zip(found, plus, minus, strict=True):
        torch.testing.assert_close(mine, (above - below) / (2 * step), rtol=1e-5, atol=1e-5)


# Pooling


def pooled(x):
    """Mean and maximum over the rows of windows (T, n, length, C) with torch."""
    return torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=2)


def make_tied(dtype=torch.float64):
    """Windows of small whole numbers: most maxima stand at several moments."""
    values = torch.randint(3, (T, N, LENGTH, C), generator=torch.Generator().manual_seed(1))
    return values.to(dtype)


def pool(x):
    """Run the kernel; return features and ties."""
    features, ties = x.new_empty(T, N, 2 * C), x.new_empty(T, N, C)
    run(kernels.pool, x.flatten(1, 2), features, ties, LENGTH)
    return features, ties


@FLOATS
@pytest.mark.parametrize("make", [make_tied, lambda d: make_inputs(d)[0]], ids=["tied", "apart"])
def test_pooling_and_its_derivatives_are_those_of_torch(make, dtype):
    x, d_x = make(dtype), noise(T, N, LENGTH, C, seed=2, dtype=dtype)
    g_features = noise(T, N, 2 * C, seed=3, dtype=dtype)
    features, ties = pool(x)
    expected, expected_g = vjp(pooled, x, g_features)
    torch.testing.assert_close(features, expected, **near(dtype))
    g_x = torch.full_like(x.flatten(1, 2), torch.nan)
    run(kernels.pool_backward, g_features, x.flatten(1, 2), features, ties, g_x, LENGTH)
    torch.testing.assert_close(g_x, expected_g.flatten(1, 2), **near(dtype))
    d_features = torch.full_like(features, torch.nan)
    rows = d_x.flatten(1, 2), x.flatten(1, 2)
    run(kernels.pool_tangent, *rows, features, ties, d_features, LENGTH)
    torch.testing.assert_close(d_features, jvp(pooled, x, d_x)[1], **near(dtype))


def test_rows_that_share_the_maximum_are_counted():
    x = torch.zeros(T, N, LENGTH, C).double()
    x[0, 0, 2, 0] = x[0, 0, 7, 0] = 5.0
    features, ties = pool(x)
    assert ties[0, 0].tolist() == [2.0] + [LENGTH] * (C - 1)
    assert features[0, 0, C:].tolist() == [5.0] + [0.0] * (C - 1)


def test_nan_spoils_the_mean_of_its_channel():
    x = make_tied()
    x[1, 2, 4, 3] = torch.nan
    features, _ = pool(x)
    assert np.argwhere(np.isnan(features[..., :C].numpy())).tolist() == [[1, 2, 3]]
