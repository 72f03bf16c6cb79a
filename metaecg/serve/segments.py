"""What is judged, labelled and shown of a recording: its windows, or its beats.

A segment has an index that never changes: window `k` covers ``[k window_s, (k+1) window_s)``, beat `k`
is the `k`-th R peak that was found at the upload. What a network is given comes from `metaecg.data`,
so a recording in the store and the same recording in a file give the same numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from metaecg.data.beat_input import beat_inputs
from metaecg.data.beats import BeatSet, cut_beats
from metaecg.data.filtering import filter_segment
from metaecg.data.preprocessing import MARGIN_S, Preprocessing
from metaecg.data.records import Record
from metaecg.data.rpeaks import MIN_FS_HZ, detect_r_peaks
from metaecg.data.windows import cut_at
from metaecg.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from metaecg.models.checkpoints import BaseModel

PEAKS_VERSION = 1
"""Part of the name of every segmentation into beats; raise it when the same signal would give other
peaks. Labels of the old ones are then not read as labels of the new ones."""
SHOWN_AFTER = 0.6
"""Two beats are told apart on the page at this part of the interval between their R peaks."""
SHOWN_BEFORE_S, SHOWN_AFTER_S = 0.4, 0.6
"""A beat is shown from at most so long before its R peak to at most so long after it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """Segments of one recording in the order of time; all arrays line up."""

    index: np.ndarray
    """Number of each segment, shape ``(n,)``, int64, strictly increasing; gaps leave numbers out."""
    start_s: np.ndarray
    stop_s: np.ndarray
    """What is shown of each, seconds within the recording, half open. A window's own bounds; for a
    beat from after the beat before it to before the next one, less than its network sees."""
    peak_s: np.ndarray | None = None
    """R peaks, seconds; ``None`` for windows."""
    beats: BeatSet | None = field(default=None, repr=False)
    """The beats as they were cut, in line with the segments; only `Segmentation.inputs` gives them."""
    is_whole: bool = True
    """All of the recording's are there: what a judgement by neighbours needs."""

    def __len__(self) -> int:
        return len(self.index)

    def rows_of(self, indices: Sequence[int]) -> np.ndarray:
        """Return the rows of the segments with these numbers, in the order of time; others give none."""
        return np.flatnonzero(np.isin(self.index, np.asarray(list(indices), dtype=np.int64)))

    def between(self, start_s: float, stop_s: float) -> np.ndarray:
        """Return the rows of the segments that touch the time from `start_s` to `stop_s`."""
        return np.flatnonzero((self.stop_s > start_s) & (self.start_s < stop_s))

    def select(self, rows: np.ndarray) -> "Segments":
        """Return the segments at `rows` (positions in the order of time, or a boolean mask)."""
        index = self.index[rows]
        return replace(
            self,
            index=index,
            start_s=self.start_s[rows],
            stop_s=self.stop_s[rows],
            peak_s=None if self.peak_s is None else self.peak_s[rows],
            beats=None if self.beats is None else self.beats.select(rows),
            is_whole=self.is_whole and len(index) == len(self.index),
        )


class Segmentation(ABC):
    """How recordings become segments for one base. Made by `segmentation_of`."""

    kind: str
    """``"windows"`` or ``"beats"``."""
    name: str
    """Tells one way to number segments from another; labels are stored under it."""
    preprocessing: Preprocessing
    """Rate, length and band of what the network sees."""

    def check_rate(self, fs_hz: float) -> None:
        """Raise DataError if recordings at this sampling rate can't be brought to the base's."""
        try:
            _try_filter(fs_hz, self.preprocessing)
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"fs_hz is {fs_hz!r}; expected a number of hertz that can be resampled to "
                f"{self.preprocessing.fs_hz:g} Hz. Resample the recording first."
            ) from error

    @abstractmethod
    def peaks(self, signal_mv: np.ndarray, fs_hz: float) -> np.ndarray | None:
        """Return the R peaks of one lead in samples, int64; ``None`` where windows are judged.

        `signal_mv` has the shape ``(1, n_samples)`` or ``(n_samples,)``. To be called once, at the
        upload, and to be stored: a label belongs to a peak's place in this list.

        Raises
        ------
        DataError
            The sampling rate is too low, or the signal is none that peaks can be found in.
        """

    @abstractmethod
    def segments(
        self,
        n_samples: int,
        fs_hz: float,
        peaks: np.ndarray | None = None,
        *,
        measured: Sequence[tuple[int, int]] | np.ndarray | None = None,
    ) -> Segments:
        """Return the segments of a recording without its signal.

        Parameters
        ----------
        n_samples, fs_hz
            Length and sampling rate of the recording, hertz.
        peaks
            What `peaks` gave; for windows ``None``.
        measured
            Half-open ranges of samples that were measured (`measured_segments`): segments that
            hold others are left out, as `inputs` leaves them out. ``None``: all were.
        """

    @abstractmethod
    def inputs(
        self,
        signal_mv: np.ndarray,
        fs_hz: float,
        peaks: np.ndarray | None = None,
        only: Sequence[int] | None = None,
    ) -> tuple[Segments, np.ndarray]:
        """Return the segments of a recording, and what the base's network is given of each.

        Parameters
        ----------
        signal_mv
            One lead, shape ``(1, n_samples)``, millivolts; NaN where nothing was measured. Segments
            that hold NaN are left out.
        fs_hz
            Sampling rate, hertz.
        peaks
            What `peaks` gave; for windows ``None``.
        only
            Numbers of the segments that are wanted; those that don't exist are left out. ``None``:
            all.

        Returns
        -------
        segments
            In the order of time, with ``is_whole`` false where something was left out by `only`.
        inputs
            Shape ``(n, n_leads, n_samples)``, float32, for ``base.logits`` and `Personalizer`; in
            line with the segments.

        Raises
        ------
        DataError
            The signal has another shape, the rate can't be used, or peaks are missing.
        """

    @abstractmethod
    def needed(
        self, indices: Sequence[int], *, n_samples: int, fs_hz: float
    ) -> list[tuple[int, int]]:
        """Return the ranges of samples that the inputs of some segments depend on.

        Half open, in the order of time, apart from one another. A signal with NaN everywhere else
        gives the same inputs of these segments, but for rounding.
        """


class WindowSegmentation(Segmentation):
    """Windows side by side, as `metaecg.data.windows.cut_windows` has them."""

    kind = "windows"

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.name = f"windows:{preprocessing.window_s:g}@{preprocessing.fs_hz:g}"

    def peaks(self, signal_mv: np.ndarray, fs_hz: float) -> None:
        return None

    def segments(self, n_samples, fs_hz, peaks=None, *, measured=None) -> Segments:
        found = self._at(self._count(n_samples, fs_hz))
        whole = [(0, n_samples)] if measured is None else measured
        is_measured = _fully_measured(found.start_s, fs_hz, whole, self.preprocessing)
        return replace(found.select(is_measured), is_whole=True)

    def inputs(self, signal_mv, fs_hz, peaks=None, only=None) -> tuple[Segments, np.ndarray]:
        return self._cut(_record(signal_mv, fs_hz), only)

    def inputs_of_each(self, signals_mv: np.ndarray, fs_hz: float) -> tuple[Segments, np.ndarray]:
        """Return the windows of several signals of one length, all filtered at once.

        A gap in one of them leaves the window out of all.

        Parameters
        ----------
        signals_mv
            Shape ``(n_signals, n_samples)``, millivolts, float32.
        fs_hz
            Sampling rate, hertz.

        Returns
        -------
        segments
            The windows, the same of every signal.
        inputs
            Shape ``(n_signals, n_windows, n_samples)``: of each signal what `inputs` gives, but for
            rounding.
        """
        found, windows = self._cut(_nameless(signals_mv, fs_hz))
        return found, windows.swapaxes(0, 1)

    def needed(self, indices, *, n_samples, fs_hz) -> list[tuple[int, int]]:
        found = self._at(self._count(n_samples, fs_hz))
        found = found.select(found.rows_of(indices))
        # Two samples more than the margin: whoever asks may round to samples as it likes.
        low = np.floor((found.start_s - MARGIN_S) * fs_hz).astype(np.int64) - 2
        high = np.ceil((found.stop_s + MARGIN_S) * fs_hz).astype(np.int64) + 2
        return _merged(np.maximum(low, 0), np.minimum(high, n_samples))

    def _cut(
        self, record: Record, only: Sequence[int] | None = None
    ) -> tuple[Segments, np.ndarray]:
        self.check_rate(record.fs_hz)
        found = self._at(self._count(record.n_samples, record.fs_hz))
        if only is not None:
            found = found.select(found.rows_of(only))
        windows, is_measured = cut_at(record, found.start_s, self.preprocessing)
        return replace(found.select(is_measured), is_whole=found.is_whole), windows

    def _count(self, n_samples: int, fs_hz: float) -> int:
        return int(np.floor(n_samples / fs_hz / self.preprocessing.window_s + 1e-9))

    def _at(self, n: int) -> Segments:
        start_s = self.preprocessing.window_s * np.arange(n)
        return Segments(
            index=np.arange(n), start_s=start_s, stop_s=start_s + self.preprocessing.window_s
        )


class BeatSegmentation(Segmentation):
    """Beats at their R peaks, as `metaecg.data.beats.cut_beats` has them."""

    kind = "beats"

    def __init__(self, preprocessing: Preprocessing, cutting: Mapping) -> None:
        self.preprocessing = preprocessing
        self._cutting = dict(cutting)
        self.name = f"beats:found-{PEAKS_VERSION}"

    def peaks(self, signal_mv: np.ndarray, fs_hz: float) -> np.ndarray:
        if fs_hz < MIN_FS_HZ:
            raise DataError(
                f"fs_hz is {fs_hz:g}; beats can be found from {MIN_FS_HZ:g} Hz on. Record at a higher rate."
            )
        return detect_r_peaks(signal_mv, fs_hz=fs_hz)

    def segments(self, n_samples, fs_hz, peaks=None, *, measured=None) -> Segments:
        peaks = _needed_peaks(peaks)
        peak_s = peaks / fs_hz
        shown = _shown(peak_s, n_samples / fs_hz)
        found = Segments(
            index=np.arange(len(peaks)), start_s=shown[0], stop_s=shown[1], peak_s=peak_s
        )
        whole = [(0, n_samples)] if measured is None else measured
        window_start_s = peak_s - self._cutting["before_s"]
        is_measured = _fully_measured(window_start_s, fs_hz, whole, self.preprocessing)
        return replace(found.select(is_measured), is_whole=True)

    def inputs(self, signal_mv, fs_hz, peaks=None, only=None) -> tuple[Segments, np.ndarray]:
        record = _record(signal_mv, fs_hz)
        self.check_rate(fs_hz)
        peaks = _needed_peaks(peaks)
        beats, _ = cut_beats(record, self.preprocessing, r_peaks=peaks, **self._cutting)
        found = self.segments(record.n_samples, fs_hz, peaks)
        rows = np.flatnonzero(np.isin(peaks[found.index], beats.sample))
        found = replace(found.select(rows), beats=beats, is_whole=True)
        inputs = beat_inputs(beats)  # of all: a beat is set against those before it
        if only is None:
            return found, inputs
        rows = found.rows_of(only)
        return found.select(rows), inputs[rows]

    def needed(self, indices, *, n_samples, fs_hz) -> list[tuple[int, int]]:
        return [(0, n_samples)]


def segmentation_of(base: "BaseModel") -> Segmentation:
    """Return how recordings become segments for `base`: beats for one made for beats, else windows.

    Raises
    ------
    CheckpointError
        The base takes several leads; one lead of a recording is judged.
    """
    from metaecg.models.beat_detector import CUTTING

    if CUTTING in base.training:
        return BeatSegmentation(base.preprocessing, base.training[CUTTING])
    if base.n_leads != 1:
        raise CheckpointError(
            f"the base takes {base.n_leads} leads; expected one, since one lead of a recording is "
            "judged. Serve a base of one lead, such as va-base."
        )
    return WindowSegmentation(base.preprocessing)


@lru_cache(maxsize=64)  # a request with a single window would spend half its time here
def _try_filter(fs_hz: float, preprocessing: Preprocessing) -> None:
    filter_segment(np.zeros((1, 1)), start=0, fs_hz=fs_hz, preprocessing=preprocessing)


def _record(signal_mv: np.ndarray, fs_hz: float) -> Record:
    """Return one lead as a nameless recording, for the functions that cut recordings."""
    signal_mv = np.asarray(signal_mv, dtype=np.float32)
    if signal_mv.ndim != 2 or len(signal_mv) != 1:
        raise DataError(
            f"the signal has shape {signal_mv.shape}; expected one lead, (1, n_samples). Choose a lead."
        )
    return _nameless(signal_mv, fs_hz)


def _nameless(signal_mv: np.ndarray, fs_hz: float) -> Record:
    return Record(
        record_id="recording",
        subject_id="subject",
        signal_mv=signal_mv,
        fs_hz=fs_hz,
        lead_names=("lead",) * len(signal_mv),
    )


def _needed_peaks(peaks: np.ndarray | None) -> np.ndarray:
    if peaks is None:
        raise DataError(
            "peaks is None; beats need the R peaks of the recording. Hand over what "
            "Segmentation.peaks gave for it."
        )
    return np.asarray(peaks, dtype=np.int64)


def _fully_measured(
    start_s: np.ndarray,
    fs_hz: float,
    measured: Sequence[tuple[int, int]] | np.ndarray,
    preprocessing: Preprocessing,
) -> np.ndarray:
    """Return which windows lie in a measured range, on the same grid as `filter_segment`'s."""
    ranges = np.asarray(measured, dtype=np.int64).reshape(-1, 2)
    start, stop = ranges[np.diff(ranges)[:, 0] / fs_hz >= preprocessing.window_s].T
    if not len(start):
        return np.zeros(len(start_s), dtype=bool)
    ratio = Fraction(preprocessing.fs_hz / fs_hz).limit_denominator(1000)
    low = -(-start * ratio.numerator // ratio.denominator)
    high = stop * ratio.numerator // ratio.denominator
    first = np.round(start_s * preprocessing.fs_hz).astype(np.int64)
    place = np.searchsorted(low, first, side="right") - 1
    return (place >= 0) & (first + preprocessing.n_samples <= high[np.maximum(place, 0)])


def _shown(peak_s: np.ndarray, duration_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return from when to when each beat is shown, seconds: no two overlap."""
    between_s = np.diff(peak_s)
    after_s = np.append(np.minimum(SHOWN_AFTER * between_s, SHOWN_AFTER_S), SHOWN_AFTER_S)
    before_s = np.minimum((1 - SHOWN_AFTER) * between_s, SHOWN_BEFORE_S)
    before_s = np.insert(before_s, 0, SHOWN_BEFORE_S)
    return (
        np.maximum(peak_s - before_s[: len(peak_s)], 0.0),
        np.minimum(peak_s + after_s[: len(peak_s)], duration_s),
    )


def _merged(low: np.ndarray, high: np.ndarray) -> list[tuple[int, int]]:
    """Return the ranges with those that touch made one; both ascend."""
    found: list[tuple[int, int]] = []
    for start, stop in zip(low.tolist(), high.tolist(), strict=True):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
