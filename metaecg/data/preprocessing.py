"""How a signal becomes windows: resampling, band-pass, normalisation, reproducible in a live stream.

Everything here has a finite impulse response. A window depends on the samples inside it and on
`MARGIN_S` seconds to either side, on nothing else: a file and a live stream give the same window,
the stream with a delay of `MARGIN_S`.
"""

from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import lru_cache

import numpy as np

from metaecg.checks import check_option, check_positive
from metaecg.errors import DataError

MARGIN_S = 1.25
"""Seconds before and after a window that its filtered samples may depend on: 1 s of the high-pass
kernel, and room for the low-pass and the polyphase kernels (checked in `_kernels`)."""

LOWPASS_HALF_S = 0.15
KAISER_BETA = 5.0  # side lobes at -53 dB
MAX_RESAMPLE_HALF = 10
"""Half length of the resampling kernel in samples of the slower rate, at most."""
MIN_STD_MV = 0.02
"""A window with less spread than this (a flat line with amplifier noise, not a rhythm) is scaled
by this value instead of its own spread, so that noise isn't blown up to the size of an ECG."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Everything that has to agree between training, personalization and use.

    Parameters
    ----------
    fs_hz
        Sampling rate of the windows in hertz; recordings are resampled to it.
    window_s
        Window length in seconds.
    lowcut_hz, highcut_hz
        The -6 dB points of the zero-phase band-pass, in hertz. `lowcut_hz` is at least 0.5, since a
        lower one would need a longer margin than `MARGIN_S`.
    normalize
        ``"window"``: each lead of each window to mean 0 and standard deviation 1 (at least
        `MIN_STD_MV` is taken as spread). ``"none"``: millivolts as they are.
    """

    fs_hz: float = 200.0
    window_s: float = 2.0
    lowcut_hz: float = 0.5
    highcut_hz: float = 40.0
    normalize: str = "window"

    def __post_init__(self) -> None:
        check_positive("fs_hz", self.fs_hz)
        check_positive("window_s", self.window_s)
        check_option("normalize", self.normalize, ("window", "none"))
        if not 0.5 <= self.lowcut_hz < self.highcut_hz <= 0.45 * self.fs_hz:
            raise ValueError(
                f"the band-pass is {self.lowcut_hz} to {self.highcut_hz} Hz at {self.fs_hz} Hz; "
                f"expected 0.5 <= lowcut_hz < highcut_hz <= {0.45 * self.fs_hz:g} (0.45 fs_hz)."
            )

    @property
    def n_samples(self) -> int:
        """Samples in a window."""
        return round(self.window_s * self.fs_hz)

    def to_dict(self) -> dict:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """Rebuild from `to_dict`'s values; an unknown key raises DataError."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise DataError(
                f"the preprocessing has the unknown keys {unknown}; it was written by a newer "
                "metaecg. Update metaecg."
            )
        return cls(**values)

    def normalize_windows(self, windows_mv: np.ndarray) -> np.ndarray:
        """Return the windows as the network wants them.

        Repeating it changes nothing, except for a lead flatter than `MIN_STD_MV`: what has been
        scaled by that value can't be told from millivolts, and a second time would blow it up.
        No rule that keeps such leads small could avoid it, so windows are handed on in millivolts
        and normalised where they enter a network.

        Parameters
        ----------
        windows_mv
            Shape ``(n_windows, n_leads, n_samples)``, millivolts.

        Returns
        -------
        numpy.ndarray
            Same shape, float32.
        """
        windows = np.asarray(windows_mv, dtype=np.float32)
        if self.normalize == "none":
            return windows
        centred = windows - windows.mean(axis=-1, keepdims=True)
        spread = centred.std(axis=-1, keepdims=True)
        return centred / np.maximum(spread, np.float32(MIN_STD_MV))


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
    from scipy import signal  # half a second, which a check of settings needn't wait for

    most = max(up, down)
    kernel = signal.firwin(2 * half * most + 1, 1 / most, window=("kaiser", KAISER_BETA))
    for phase in range(up):
        kernel[phase::up] /= kernel[phase::up].sum() * up
    return kernel


def _band_pass(preprocessing: Preprocessing) -> np.ndarray:
    from scipy import signal

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
    from scipy import signal

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


def measured_segments(signal_mv: np.ndarray) -> list[tuple[int, int]]:
    """Return the half-open sample ranges in which every lead holds finite samples."""
    return [(start, stop) for start, stop in measured_bounds(signal_mv).tolist()]


def measured_bounds(signal_mv: np.ndarray) -> np.ndarray:
    """Return what `measured_segments` gives as an array of shape ``(n, 2)``, int64.

    A list takes many times the memory where a signal has a gap every few samples.
    """
    finite = np.isfinite(signal_mv).all(axis=0)
    if len(finite) and finite.all():
        return np.array([[0, len(finite)]], dtype=np.int64)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2).astype(np.int64)
