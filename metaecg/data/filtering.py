"""Resample and band-pass stretches of a signal, the same in a file and in a live stream."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy import signal

from metaecg.data.preprocessing import MARGIN_S, Preprocessing
from metaecg.errors import DataError

LOWPASS_HALF_S = 0.15
KAISER_BETA = 5.0  # side lobes at -53 dB
MAX_RESAMPLE_HALF = 10
"""Half length of the resampling kernel in samples of the slower rate, at most."""


@dataclass(frozen=True)
class _Kernels:
    up: int
    down: int
    resample: np.ndarray  # as scipy.signal.resample_poly takes it
    taps: np.ndarray  # band-pass at the output rate, odd length, symmetric


@lru_cache(maxsize=64)
def _kernels(fs_in_hz: float, preprocessing: Preprocessing) -> _Kernels:
    """Return the resampling and the band-pass kernels, and prove that they fit the margin."""
    fs_hz = preprocessing.fs_hz
    ratio = Fraction(fs_hz / fs_in_hz).limit_denominator(1000)
    if abs(float(ratio) * fs_in_hz - fs_hz) > 1e-6 * fs_hz:
        raise DataError(
            f"{fs_in_hz} Hz can't be resampled to {fs_hz} Hz by a ratio of whole numbers up to "
            "1000. Choose another fs_hz."
        )
    half = _resample_half(min(fs_in_hz, fs_hz), preprocessing.highcut_hz)
    taps = _band_pass(preprocessing)
    needed = (len(taps) // 2) / fs_hz + half / min(fs_in_hz, fs_hz)
    if needed > MARGIN_S:
        raise DataError(
            f"filtering {fs_in_hz} Hz to {fs_hz} Hz needs a margin of {needed:.3f} s; at most "
            f"{MARGIN_S} s are kept around a window. Choose a higher fs_hz."
        )
    up, down = ratio.numerator, ratio.denominator
    # Single precision is enough for signals of a few millivolts and halves the time.
    return _Kernels(up, down, _resampler(up, down, half), taps.astype(np.float32))


def _resample_half(slower_hz: float, highcut_hz: float) -> int:
    """Return the half length, in samples of the slower rate, that keeps the pass band clean.

    What lies above ``slower_hz - highcut_hz`` would fold into the pass band; below `highcut_hz`
    nothing may be lost. Kaiser's rule gives the length for a transition between the two.
    """
    width_hz = max(slower_hz - 2 * highcut_hz, 1e-9)
    attenuation_db = KAISER_BETA / 0.1102 + 8.7
    length = (attenuation_db - 7.95) / 14.36 * slower_hz / width_hz
    return min(int(np.ceil(length / 2)), MAX_RESAMPLE_HALF)


def _resampler(up: int, down: int, half: int) -> np.ndarray:
    """Return the polyphase kernel; every phase passes a constant unchanged."""
    if up == down:
        return np.ones(1)
    most = max(up, down)
    kernel = signal.firwin(2 * half * most + 1, 1 / most, window=("kaiser", KAISER_BETA))
    for phase in range(up):
        kernel[phase::up] /= kernel[phase::up].sum() * up
    return kernel


def _band_pass(preprocessing: Preprocessing) -> np.ndarray:
    # A Hann average whose length is 1/lowcut has half its gain there; what is left after
    # subtracting it is a high-pass with zero gain at 0 Hz.
    fs_hz = preprocessing.fs_hz
    half = round(fs_hz / preprocessing.lowcut_hz / 2)
    average = signal.windows.hann(2 * half + 1)
    high = -average / average.sum()
    high[half] += 1.0
    low_half = round(LOWPASS_HALF_S * fs_hz)
    low = signal.firwin(2 * low_half + 1, preprocessing.highcut_hz, fs=fs_hz)
    return np.convolve(high, low)


def filter_segment(
    segment_mv: np.ndarray, *, start: int, fs_hz: float, preprocessing: Preprocessing
) -> tuple[np.ndarray, int]:
    """Resample and band-pass a stretch of measured samples.

    Beyond both ends the nearest measured sample is held for `MARGIN_S`, so that nothing is taken
    from the far side of a gap; a sample closer to an end than `MARGIN_S` feels that.

    Parameters
    ----------
    segment_mv
        Shape ``(n_leads, n_samples)``, millivolts, finite, at `fs_hz`.
    start
        Index of its first sample in the recording. Output samples lie on the recording's own grid
        whatever the start is.
    fs_hz
        Sampling rate of the segment.
    preprocessing
        Target rate and band.

    Returns
    -------
    filtered_mv
        Shape ``(n_leads, n_out)``, float32, at ``preprocessing.fs_hz``.
    out_start
        Index of its first sample on the recording's grid at ``preprocessing.fs_hz``.
    """
    kernels = _kernels(float(fs_hz), preprocessing)
    up, down = kernels.up, kernels.down
    n_samples = segment_mv.shape[1]
    margin = int(np.ceil(MARGIN_S * fs_hz)) + 1
    left = margin + (start - margin) % down  # the padded segment starts on the output grid
    padded = np.pad(segment_mv, ((0, 0), (left, margin)), mode="edge")
    resampled = padded
    if up != down:
        resampled = signal.resample_poly(padded, up, down, axis=1, window=kernels.resample)
    filtered = signal.oaconvolve(resampled, kernels.taps[None], mode="same", axes=1)
    grid_start = (start - left) // down * up
    first = -(-start * up // down)  # ceil
    stop = (start + n_samples) * up // down  # a sample stands for the time until the next one
    return filtered[:, first - grid_start : stop - grid_start].astype(np.float32), first
