"""What decides how a signal becomes windows: rate, band, normalisation; the filter is in `filtering`.

Everything here has a finite impulse response. A window depends on the samples inside it and on
`MARGIN_S` seconds to either side, on nothing else: a file and a live stream give the same window,
the stream with a delay of `MARGIN_S`.
"""

from dataclasses import asdict, dataclass, fields

import numpy as np

from metaecg.checks import check_option, check_positive
from metaecg.errors import DataError

MARGIN_S = 1.25
"""Seconds before and after a window that its filtered samples may depend on: 1 s of the high-pass
kernel, and room for the low-pass and the polyphase kernels (checked where they are made)."""

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
