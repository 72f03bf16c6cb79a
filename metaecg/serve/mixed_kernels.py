"""A `CompactBody` for windows that each have weights of their own, compiled by numba.

A window goes through all layers before the next one comes, and a layer's weights are put together just
before they are used, so that nothing of it but the base's weights leaves the processor's caches.

Layout: rows are moments in time, columns are channels, so that what a kernel sees is a run of memory,
and a convolution is a product of such runs with the weights of each output channel, ``(n_out, size)``.
``size`` is ``kernel * n_in`` filled up with zeros to a multiple of `LANES`.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

LANES = 16
"""Numbers of the widest vector registers (AVX-512); a run that is a multiple has no rest."""
TILE = 4
"""Moments, and channels, that one loop computes together: sixteen sums fit into the registers."""
RANKS = 4
"""Ranks of a low-rank change that are added in one pass."""
EPS = 1e-5
"""As `torch.nn.GroupNorm`."""

# Columns of `geometry`, one row per layer.
N_IN, N_OUT, KERNEL, STRIDE, LENGTH_IN, LENGTH_OUT, SIZE = range(7)
# Columns of `offsets`: where an adapter's tensors start in `flat`, below 0 where it has none.
A, B, WEIGHT, GAMMA, BETA = range(5)

# Sums may be reordered, which lets them run in vector registers; NaN and infinity keep their meaning.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


def _compiled(function: Callable) -> Callable:
    """Compile at the first call, and keep the result on disk where a folder can be written."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither this folder nor the user's cache: each process compiles anew
        return njit(**OPTIONS)(function)


@_compiled
def run_rows(x, which, flat, offsets, ranks, scales, weights, gammas, betas, geometry, groups, out):
    """Write what a head sees of each window, mean and maximum over time, to `out` (n, 2 * C).

    Parameters
    ----------
    x
        Windows ``(n, n_leads, n_samples)``, float32.
    which
        The adapter of each window, ``(n,)``; below 0: the base.
    flat, offsets, ranks, scales
        Numbers of all adapters; where those of adapter and layer start, ``(n_adapters, n_layers, 5)``;
        rank and scale of its low-rank change.
    weights, gammas, betas
        Of the base: convolutions one behind the other; norms ``(n_layers, C)``.
    geometry
        ``(n_layers, 7)``; see the columns above.
    groups
        Of the group norm.
    """
    n_layers, size = len(geometry), geometry[:, SIZE].max()
    most = ranks.max() if len(ranks) else 0
    low = np.zeros((most // RANKS * RANKS + RANKS, size), x.dtype)
    scratch = np.empty((geometry[:, N_OUT] * geometry[:, SIZE]).max(), x.dtype)
    nothing = np.full(5, -1, np.int64)
    for row in range(len(x)):
        adapter = which[row]
        rank, scale = 0, x.dtype.type(0)
        if adapter >= 0:
            rank, scale = ranks[adapter], scales[adapter]
        current = _padded_input(x[row], geometry[0])
        start = 0
        for layer in range(n_layers):
            shape = geometry[layer]
            n_out, stop = shape[N_OUT], start + shape[N_OUT] * shape[SIZE]
            weight = weights[start:stop].reshape(n_out, shape[SIZE])
            at = offsets[adapter, layer] if adapter >= 0 else nothing
            found = np.empty((shape[LENGTH_OUT], n_out), x.dtype)
            if at[A] >= 0 or at[WEIGHT] >= 0:
                own = scratch[: stop - start].reshape(n_out, shape[SIZE])
                _turn_low(flat, at, shape, rank, low)
                _own_weights(weight, shape, flat, at, rank, scale, low, own)
                weight = own
            _convolve(current, weight, found, shape)
            gamma, beta = gammas[layer], betas[layer]
            if at[GAMMA] >= 0:
                gamma = flat[at[GAMMA] : at[GAMMA] + n_out]
            if at[BETA] >= 0:
                beta = flat[at[BETA] : at[BETA] + n_out]
            _norm_relu(found, gamma, beta, groups)
            if layer + 1 < n_layers:
                current = _padded(found, geometry[layer + 1])
            else:
                _pool(found, out[row])
            start = stop


@_compiled
def _turn_low(flat, at, shape, rank, low):
    """Write A, which is (rank, n_in, kernel), as runs to `low` (at least rank, size), zeros behind."""
    if at[A] < 0:
        return
    n_in, kernel = shape[N_IN], shape[KERNEL]
    low[:] = 0
    for r in range(rank):
        for i in range(n_in):
            for k in range(kernel):
                low[r, k * n_in + i] = flat[at[A] + (r * n_in + i) * kernel + k]


@_compiled
def _own_weights(base, shape, flat, at, rank, scale, low, own):
    """Write a layer's weights to `own` (n_out, size): the base's or the adapter's, and ``scale * B A``.

    No views of the arrays are taken: counting those who hold one would take longer than the sums.
    """
    n_in, kernel, size = shape[N_IN], shape[KERNEL], shape[SIZE]
    if at[WEIGHT] >= 0:
        for c in range(len(own)):
            for i in range(n_in):
                for k in range(kernel):
                    own[c, k * n_in + i] = flat[at[WEIGHT] + (c * n_in + i) * kernel + k]
            for k in range(kernel * n_in, size):
                own[c, k] = 0
    for c in range(len(own)):
        for r in range(0, rank if at[A] >= 0 else 0, RANKS):  # several in one pass
            b0 = _factor(flat, at, c, r, rank, scale)
            b1 = _factor(flat, at, c, r + 1, rank, scale)
            b2 = _factor(flat, at, c, r + 2, rank, scale)
            b3 = _factor(flat, at, c, r + 3, rank, scale)
            before = own if r or at[WEIGHT] >= 0 else base
            for k in range(size):
                more = b0 * low[r, k] + b1 * low[r + 1, k] + b2 * low[r + 2, k] + b3 * low[r + 3, k]
                own[c, k] = before[c, k] + more


@_compiled
def _factor(flat, at, c, r, rank, scale):
    """Return an element of ``scale * B``, which is (n_out, rank); 0 beyond the rank."""
    return flat[at[B] + c * rank + r] * scale if r < rank else flat.dtype.type(0)


@_compiled
def _padded_input(window, shape):
    """Return a window (n_leads, n) as moments of channels with zeros around, one behind the other."""
    n_in, padding = shape[N_IN], shape[KERNEL] // 2
    current = np.zeros((window.shape[1] + 2 * padding) * n_in + shape[SIZE], window.dtype)
    for i in range(n_in):
        for t in range(window.shape[1]):
            current[(t + padding) * n_in + i] = window[i, t]
    return current


@_compiled
def _padded(found, shape):
    """Return moments of channels with zeros around, one behind the other."""
    n_in, padding = shape[N_IN], shape[KERNEL] // 2
    current = np.zeros((len(found) + 2 * padding) * n_in + shape[SIZE], found.dtype)
    start = padding * n_in
    current[start : start + found.size] = found.reshape(found.size)
    return current


@_compiled
def _convolve(x, weight, y, shape):
    """Write the convolution to `y` (length, n_out); both are at least `TILE`, n_out a multiple of it."""
    size, step, length = shape[SIZE], shape[STRIDE] * shape[N_IN], shape[LENGTH_OUT]
    zero = y.dtype.type(0)
    for c in range(0, y.shape[1], TILE):
        w0, w1, w2, w3 = weight[c], weight[c + 1], weight[c + 2], weight[c + 3]
        for begin in range(0, length, TILE):
            t = min(begin, length - TILE)  # the last tile computes some moments again
            x0 = x[t * step : t * step + size]
            x1 = x[(t + 1) * step : (t + 1) * step + size]
            x2 = x[(t + 2) * step : (t + 2) * step + size]
            x3 = x[(t + 3) * step : (t + 3) * step + size]
            # Plain names, for an array would not stay in registers.
            y00 = y01 = y02 = y03 = zero
            y10 = y11 = y12 = y13 = zero
            y20 = y21 = y22 = y23 = zero
            y30 = y31 = y32 = y33 = zero
            for k in range(size):
                p0, p1, p2, p3 = x0[k], x1[k], x2[k], x3[k]
                q0, q1, q2, q3 = w0[k], w1[k], w2[k], w3[k]
                y00, y01, y02, y03 = y00 + p0 * q0, y01 + p0 * q1, y02 + p0 * q2, y03 + p0 * q3
                y10, y11, y12, y13 = y10 + p1 * q0, y11 + p1 * q1, y12 + p1 * q2, y13 + p1 * q3
                y20, y21, y22, y23 = y20 + p2 * q0, y21 + p2 * q1, y22 + p2 * q2, y23 + p2 * q3
                y30, y31, y32, y33 = y30 + p3 * q0, y31 + p3 * q1, y32 + p3 * q2, y33 + p3 * q3
            y[t, c], y[t, c + 1], y[t, c + 2], y[t, c + 3] = y00, y01, y02, y03
            y[t + 1, c], y[t + 1, c + 1], y[t + 1, c + 2], y[t + 1, c + 3] = y10, y11, y12, y13
            y[t + 2, c], y[t + 2, c + 1], y[t + 2, c + 2], y[t + 2, c + 3] = y20, y21, y22, y23
            y[t + 3, c], y[t + 3, c + 1], y[t + 3, c + 2], y[t + 3, c + 3] = y30, y31, y32, y33


@_compiled
def _norm_relu(y, gamma, beta, groups):
    """Put ``relu(gamma * (y - mean) / std + beta)`` in the place of `y` (length, C)."""
    length, n_channels = y.shape
    width, zero = n_channels // groups, y.dtype.type(0)
    total, square = np.zeros(n_channels, y.dtype), np.zeros(n_channels, y.dtype)
    first = y[0].copy()  # sums are taken about the first moment: a large mean then costs no digits
    for t in range(length):
        for c in range(n_channels):
            value = y[t, c] - first[c]
            total[c] += value
            square[c] += value * value
    scale, shift = np.empty(n_channels, y.dtype), np.empty(n_channels, y.dtype)
    for group in range(groups):
        low, high = group * width, (group + 1) * width
        mean = 0.0
        for c in range(low, high):
            mean += np.float64(total[c]) / length + np.float64(first[c])
        mean /= width
        variance = 0.0
        for c in range(low, high):
            # The sum of (y - mean)^2 from the sums about the channel's first moment.
            away = np.float64(first[c]) - mean
            variance += np.float64(square[c]) + 2 * away * total[c] + length * away * away
        rstd = 1 / np.sqrt(variance / (width * length) + EPS)
        for c in range(low, high):
            scale[c] = rstd * gamma[c]
            shift[c] = beta[c] - mean * rstd * gamma[c]
    for t in range(length):
        for c in range(n_channels):
            z = y[t, c] * scale[c] + shift[c]
            y[t, c] = zero if z <= zero else z  # written so that a NaN stays one


@_compiled
def _pool(y, out):
    """Write mean, then maximum, over the moments of `y` (length, C)."""
    length, n_channels = y.shape
    for c in range(n_channels):
        out[c], out[n_channels + c] = y[0, c], y[0, c]
    for t in range(1, length):
        for c in range(n_channels):
            value = y[t, c]
            out[c] += value
            # A NaN is the maximum of everything, as in torch.
            if not value <= out[n_channels + c]:
                out[n_channels + c] = value
    for c in range(n_channels):
        out[c] /= length
