"""Group norm, ReLU and pooling of many tasks at once, with first and second derivatives.

Compiled by numba at the first call and kept on disk. A window is small enough for the fastest caches,
so that each pass here replaces several passes through memory.

Layout: rows are moments in time, columns are channels, so that a convolution's patch is a run of
memory. `y` is what the convolution gave, (T, n * n_rows, C): T tasks, n windows of `n_rows` rows, of
which the first `length` count. `out` and `g_out` stand in the next layer's input, (T, rows, C), where
window i has its rows from ``i * stride + offset``. `gamma` and `beta` are (T, C), `mean` and `rstd`
(T, n, groups). The rows between, which pad the next convolution, are never touched.

A leading ``d_`` is the derivative along a direction in the weights (a tangent); ``g_`` is the
gradient of the loss; ``dg_`` is the derivative of a gradient along the direction.

References
----------
.. [1] B. Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6(1), 1994: the
   derivative of the gradient along a direction, by a forward pass of tangents.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

EPS = 1e-5
"""As `torch.nn.GroupNorm`."""

# Sums may be reordered, which lets them run in vector registers; NaN and infinity keep their meaning.
OPTIONS = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


def _compiled(function: Callable) -> Callable:
    """Compile at the first call, and keep the result on disk where a folder can be written."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither this folder nor the user's cache: each process compiles anew
        return njit(**OPTIONS)(function)


@_compiled
def norm_relu(y, gamma, beta, out, mean, rstd, n_rows, length, stride, offset):
    """Write ``relu(gamma * (y - mean) * rstd + beta)`` to `out`, and the statistics."""
    n_tasks, n_windows, _ = mean.shape
    n_channels, zero = y.shape[2], y.dtype.type(0)
    first = np.empty(n_channels, y.dtype)
    total = np.empty(n_channels, y.dtype)
    square = np.empty(n_channels, y.dtype)
    scale = np.empty(n_channels, y.dtype)
    shift = np.empty(n_channels, y.dtype)
    for t in range(n_tasks):
        for i in range(n_windows):
            base = i * n_rows
            # Sums are taken about the first row: a large mean then costs no digits.
            for c in range(n_channels):
                first[c] = y[t, base, c]
                total[c] = zero
                square[c] = zero
            for k in range(length):
                row = y[t, base + k]
                for c in range(n_channels):
                    value = row[c] - first[c]
                    total[c] += value
                    square[c] += value * value
            _statistics(first, total, square, length, mean[t, i], rstd[t, i])
            _load(mean[t, i], rstd[t, i], scale, shift)
            for k in range(length):
                row = y[t, base + k]
                target = out[t, i * stride + offset + k]
                for c in range(n_channels):
                    z = (row[c] * scale[c] + shift[c]) * gamma[t, c] + beta[t, c]
                    # Written so that a NaN stays one.
                    target[c] = zero if z <= zero else z


@_compiled
def _statistics(first, total, square, length, mean, rstd):
    """Write a window's mean and 1 / deviation by group, from the sums over each channel."""
    width = len(first) // len(mean)
    for g in range(len(mean)):
        center = 0.0
        for c in range(g * width, (g + 1) * width):
            center += first[c] + total[c] / length
        center /= width
        spread = 0.0
        for c in range(g * width, (g + 1) * width):
            apart = first[c] + total[c] / length - center
            spread += square[c] - total[c] * total[c] / length + length * apart * apart
        mean[g] = center
        rstd[g] = 1 / np.sqrt(spread / (length * width) + EPS)


@_compiled
def _load(mean, rstd, scale, shift):
    """Write what normalises each channel: ``x = y * scale + shift``."""
    width = len(scale) // len(mean)
    for c in range(len(scale)):
        scale[c] = rstd[c // width]
        shift[c] = -mean[c // width] * rstd[c // width]


@_compiled
def _group_mean(values, length, mean):
    """Write, for each channel, the mean of its group, from the sums over each channel's rows."""
    width = len(values) // len(mean)
    for g in range(len(mean)):
        total = 0.0
        for c in range(g * width, (g + 1) * width):
            total += values[c]
        mean[g] = total / (length * width)


@_compiled
def _spread(mean, level):
    """Write each group's number to all of its channels."""
    width = len(level) // len(mean)
    for c in range(len(level)):
        level[c] = mean[c // width]


@_compiled
def norm_relu_backward(
    g_out, y, gamma, beta, mean, rstd, g_y, g_gamma, g_beta, n_rows, length, stride, offset
):
    """Write the gradient of `y`, and those of `gamma` and `beta`, which are set, not added to.

    With x the normalised `y` and h the gradient at it, ``g_y = rstd * (h - mean(h) - x * mean(x h))``,
    means over a group.
    """
    n_tasks, n_windows, _ = mean.shape
    n_channels, zero = y.shape[2], y.dtype.type(0)
    s = np.empty((6, n_channels), y.dtype)
    scale, shift, sum_g, sum_gx, level, slope = s[0], s[1], s[2], s[3], s[4], s[5]
    means = np.empty(mean.shape[2], y.dtype)
    g_gamma[:] = zero
    g_beta[:] = zero
    for t in range(n_tasks):
        for i in range(n_windows):
            y_w = y[t, i * n_rows : i * n_rows + length]
            g_w = g_out[t, i * stride + offset : i * stride + offset + length]
            target = g_y[t, i * n_rows : i * n_rows + length]
            _load(mean[t, i], rstd[t, i], scale, shift)
            sum_g[:] = zero
            sum_gx[:] = zero
            for k in range(length):
                for c in range(n_channels):
                    x = y_w[k, c] * scale[c] + shift[c]
                    g = zero if x * gamma[t, c] + beta[t, c] <= zero else g_w[k, c]
                    sum_g[c] += g
                    sum_gx[c] += g * x
            for c in range(n_channels):
                g_beta[t, c] += sum_g[c]
                g_gamma[t, c] += sum_gx[c]
            _group_mean(gamma[t] * sum_g, length, means)
            _spread(means, level)
            _group_mean(gamma[t] * sum_gx, length, means)
            _spread(means, slope)
            for k in range(length):
                for c in range(n_channels):
                    x = y_w[k, c] * scale[c] + shift[c]
                    g = zero if x * gamma[t, c] + beta[t, c] <= zero else g_w[k, c]
                    target[k, c] = scale[c] * (g * gamma[t, c] - level[c] - x * slope[c])


# fmt: off
@_compiled
def norm_relu_tangent(
    y, d_y, gamma, beta, d_gamma, d_beta, mean, rstd, d_out, d_mean, d_corr,
    n_rows, length, stride, offset,
):
    # fmt: on
    """Write the tangent of the output, and two means about `d_y` that the way back needs.

    With x the normalised `y` and means over a group, `d_mean` is mean(d_y) and `d_corr` is
    mean(x d_y); then ``d_x = rstd * (d_y - d_mean - x * d_corr)``.
    """
    n_tasks, n_windows, _ = mean.shape
    n_channels, zero = y.shape[2], y.dtype.type(0)
    s = np.empty((6, n_channels), y.dtype)
    scale, shift, total, corr, d_level, d_slope = s[0], s[1], s[2], s[3], s[4], s[5]
    for t in range(n_tasks):
        for i in range(n_windows):
            y_w = y[t, i * n_rows : i * n_rows + length]
            d_w = d_y[t, i * n_rows : i * n_rows + length]
            target = d_out[t, i * stride + offset : i * stride + offset + length]
            _load(mean[t, i], rstd[t, i], scale, shift)
            total[:] = zero
            corr[:] = zero
            for k in range(length):
                for c in range(n_channels):
                    total[c] += d_w[k, c]
                    corr[c] += d_w[k, c] * (y_w[k, c] * scale[c] + shift[c])
            _group_mean(total, length, d_mean[t, i])
            _group_mean(corr, length, d_corr[t, i])
            _spread(d_mean[t, i], d_level)
            _spread(d_corr[t, i], d_slope)
            for k in range(length):
                for c in range(n_channels):
                    x = y_w[k, c] * scale[c] + shift[c]
                    d_x = scale[c] * (d_w[k, c] - d_level[c] - x * d_slope[c])
                    d_z = d_gamma[t, c] * x + gamma[t, c] * d_x + d_beta[t, c]
                    target[k, c] = zero if x * gamma[t, c] + beta[t, c] <= zero else d_z


# fmt: off
@_compiled
def norm_relu_tangent_backward(
    g_out, dg_out, y, d_y, gamma, beta, d_gamma, mean, rstd, d_mean, d_corr,
    g_y, dg_y, dg_gamma, dg_beta, n_rows, length, stride, offset,
):
    # fmt: on
    """Write the gradient of `y` again, its derivative, and those of the gradients of the weights.

    The gradient is ``g_y = rstd * e`` with ``e = h - mean(h) - x * mean(x h)``; the derivative of
    rstd is ``-rstd**2 * d_corr``.
    """
    n_tasks, n_windows, n_groups = mean.shape
    n_channels, zero = y.shape[2], y.dtype.type(0)
    p = np.empty((8, n_channels), y.dtype)  # what `_tangent_rows` needs by channel
    sums = np.empty((4, n_channels), y.dtype)
    means = np.empty(n_groups, y.dtype)
    dg_gamma[:] = zero
    dg_beta[:] = zero
    for t in range(n_tasks):
        for i in range(n_windows):
            rows = slice(i * n_rows, i * n_rows + length)
            out_rows = slice(i * stride + offset, i * stride + offset + length)
            y_w, d_w, g_w, dg_w = y[t, rows], d_y[t, rows], g_out[t, out_rows], dg_out[t, out_rows]
            _load(mean[t, i], rstd[t, i], p[0], p[1])
            _spread(d_mean[t, i], p[2])
            _spread(d_corr[t, i], p[3])
            _tangent_sums(y_w, d_w, g_w, dg_w, gamma[t], beta[t], p, sums)
            for c in range(n_channels):
                dg_beta[t, c] += sums[2, c]
                dg_gamma[t, c] += sums[3, c]
            for j in range(4):  # of h, x h, and the derivatives of both
                values = gamma[t] * sums[j]
                if j >= 2:
                    values += d_gamma[t] * sums[j - 2]
                _group_mean(values, length, means)
                _spread(means, p[4 + j])
            _tangent_rows(
                y_w, d_w, g_w, dg_w, gamma[t], beta[t], d_gamma[t], p, g_y[t, rows], dg_y[t, rows]
            )


@_compiled
def _tangent_sums(y, d_y, g_out, dg_out, gamma, beta, p, sums):
    """Write the sums over a window's rows of g, g x, and their derivatives, by channel."""
    zero = y.dtype.type(0)
    scale, shift, d_level, d_slope = p[0], p[1], p[2], p[3]
    sum_g, sum_gx, dsum_g, dsum_gx = sums[0], sums[1], sums[2], sums[3]
    sums[:] = zero
    for k in range(len(y)):
        for c in range(len(gamma)):
            x = y[k, c] * scale[c] + shift[c]
            off = x * gamma[c] + beta[c] <= zero
            d_x = scale[c] * (d_y[k, c] - d_level[c] - x * d_slope[c])
            g = zero if off else g_out[k, c]
            dg = zero if off else dg_out[k, c]
            sum_g[c] += g
            sum_gx[c] += g * x
            dsum_g[c] += dg
            dsum_gx[c] += dg * x + g * d_x


@_compiled
def _tangent_rows(y, d_y, g_out, dg_out, gamma, beta, d_gamma, p, g_y, dg_y):
    """Write the gradient of a window's `y` and its derivative."""
    zero = y.dtype.type(0)
    scale, shift, d_level, d_slope = p[0], p[1], p[2], p[3]
    level, slope, dlevel, dslope = p[4], p[5], p[6], p[7]
    for k in range(len(y)):
        for c in range(len(gamma)):
            x = y[k, c] * scale[c] + shift[c]
            off = x * gamma[c] + beta[c] <= zero
            d_x = scale[c] * (d_y[k, c] - d_level[c] - x * d_slope[c])
            g = zero if off else g_out[k, c]
            dg = zero if off else dg_out[k, c]
            e = gamma[c] * g - level[c] - x * slope[c]
            de = d_gamma[c] * g + gamma[c] * dg - dlevel[c] - d_x * slope[c] - x * dslope[c]
            g_y[k, c] = scale[c] * e
            dg_y[k, c] = scale[c] * (de - scale[c] * d_slope[c] * e)


@_compiled
def pool(x, features, ties, length):
    """Write mean and maximum over the rows of each window, and how many rows share the maximum.

    `x` is (T, n * length, C), `features` (T, n, 2 * C), `ties` (T, n, C).
    """
    n_tasks, n_windows, n_channels = ties.shape
    for t in range(n_tasks):
        for i in range(n_windows):
            x_w = x[t, i * length : (i + 1) * length]
            total, highest = features[t, i, :n_channels], features[t, i, n_channels:]
            total[:] = 0
            highest[:] = -np.inf
            ties[t, i] = 0
            for k in range(length):
                for c in range(n_channels):
                    total[c] += x_w[k, c]
                    highest[c] = max(highest[c], x_w[k, c])
            for k in range(length):
                for c in range(n_channels):
                    ties[t, i, c] += x_w[k, c] == highest[c]
            for c in range(n_channels):
                total[c] /= length


@_compiled
def pool_backward(g_features, x, features, ties, g_x, length):
    """Write the gradient of `x`; rows that share a maximum share its gradient, as in torch.amax."""
    n_tasks, n_windows, n_channels = ties.shape
    zero = x.dtype.type(0)
    of_mean, of_top = np.empty(n_channels, x.dtype), np.empty(n_channels, x.dtype)
    for t in range(n_tasks):
        for i in range(n_windows):
            highest = features[t, i, n_channels:]
            x_w, target = x[t, i * length : (i + 1) * length], g_x[t, i * length : (i + 1) * length]
            for c in range(n_channels):
                of_mean[c] = g_features[t, i, c] / length
                of_top[c] = g_features[t, i, n_channels + c] / ties[t, i, c]
            for k in range(length):
                for c in range(n_channels):
                    top = of_top[c] if x_w[k, c] == highest[c] else zero
                    target[k, c] = of_mean[c] + top


@_compiled
def pool_tangent(d_x, x, features, ties, d_features, length):
    """Write the tangent of the features; that of a shared maximum is the mean over its rows."""
    n_tasks, n_windows, n_channels = ties.shape
    zero = x.dtype.type(0)
    d_features[:] = zero
    for t in range(n_tasks):
        for i in range(n_windows):
            highest = features[t, i, n_channels:]
            d_mean, d_top = d_features[t, i, :n_channels], d_features[t, i, n_channels:]
            x_w, d_w = x[t, i * length : (i + 1) * length], d_x[t, i * length : (i + 1) * length]
            for k in range(length):
                for c in range(n_channels):
                    d_mean[c] += d_w[k, c]
                    d_top[c] += d_w[k, c] if x_w[k, c] == highest[c] else zero
            for c in range(n_channels):
                d_mean[c] /= length
                d_top[c] /= ties[t, i, c]
