"""Cut recordings into labelled windows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

import numpy as np

from metaecg.checks import did_you_mean
from metaecg.data.filtering import filter_segment
from metaecg.data.labels import VA_CLASSES, covered_fraction, va_intervals
from metaecg.data.preprocessing import Preprocessing, measured_segments
from metaecg.data.records import Record
from metaecg.errors import DataError

DENSE_STRIDE_S = 0.1
DENSE_LIMIT = 150
"""MetaVA's released cutting: this stride on VA until this many positive windows (metava, section 2)."""

NO_SIGNAL = (".hea", ".atr", ".qrs")
"""Endings of files that belong to a recording and hold no signal."""


@dataclass(frozen=True, kw_only=True)
class WindowSet:
    """Windows with labels and where they come from; all arrays line up.

    Two sets with the same preprocessing can be joined with `join`.
    """

    windows: np.ndarray = field(repr=False)
    """Shape ``(n_windows, n_leads, n_samples)``, float32, millivolts."""
    labels: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``, int64, index into `classes`; mixed windows by majority."""
    is_mixed: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``, bool: the window touches both states."""
    subject_ids: np.ndarray = field(repr=False)
    record_ids: np.ndarray = field(repr=False)
    start_s: np.ndarray = field(repr=False)
    """Start within the recording, seconds."""
    time_s: np.ndarray = field(repr=False)
    """Start in the subject's own time, in which several recordings lie end to end, seconds."""
    classes: tuple[str, ...] = VA_CLASSES
    fs_hz: float
    window_s: float

    columns: ClassVar[tuple[str, ...]] = tuple(
        "windows labels is_mixed subject_ids record_ids start_s time_s".split()
    )
    """Every array of the set; `select`, `join` and the cache keep them in line."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: np.ndarray) -> "WindowSet":
        """Return the windows at `index` (positions or a boolean mask), in that order."""
        return replace(self, **{name: getattr(self, name)[index] for name in self.columns})

    def of_subject(self, subject_id: str) -> "WindowSet":
        """Return one subject's windows in the order of time."""
        found = np.flatnonzero(self.subject_ids == subject_id)
        if len(found) == 0:
            raise DataError(
                f"no windows of subject {subject_id!r}; expected "
                f"{did_you_mean(subject_id, np.unique(self.subject_ids).tolist())}"
            )
        return self.select(found[np.argsort(self.time_s[found], kind="stable")])

    def count(self, label: str) -> int:
        """Return how many windows carry the class `label`."""
        return int((self.labels == self.classes.index(label)).sum())


@dataclass(frozen=True, kw_only=True)
class RecordInfo:
    """What is known of a recording beside its windows."""

    record_id: str
    subject_id: str
    database: str
    duration_s: float
    episodes: tuple[tuple[float, float], ...]
    """Annotated VA, seconds within the recording, half open."""
    excluded: dict[str, int]
    """How many windows were left out, by reason: ``gap``, ``noise or asystole``."""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file, by file name."""

    @property
    def signal_checksums(self) -> set[str]:
        """SHA-256 of the files that hold signal: what tells one recording from another.

        Headers and marks don't: two patients with nothing to mark may have equal annotation files.
        """
        return {c for name, c in self.checksums.items() if not name.endswith(NO_SIGNAL)}

    def to_dict(self) -> dict:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RecordInfo":
        """Rebuild from `to_dict`'s values."""
        episodes = tuple((float(a), float(b)) for a, b in values["episodes"])
        return cls(**{**values, "episodes": episodes})


def join(sets: Sequence[WindowSet]) -> WindowSet:
    """Put window sets of one preprocessing behind one another."""
    if not sets:
        raise DataError("there are no windows to join; expected at least one recording.")
    joined = {name: np.concatenate([getattr(s, name) for s in sets]) for name in sets[0].columns}
    return replace(sets[0], **joined)


def cut_windows(
    record: Record, preprocessing: Preprocessing, *, dense_va: bool = False
) -> tuple[WindowSet, RecordInfo]:
    """Cut a recording into labelled two-state windows (``other``, ``va``).

    Window `k` covers ``[k window_s, (k+1) window_s)``; no window overlaps another. A window that
    holds a sample that was not measured, and one that touches NOISE or ASYS, is left out and
    counted. VA covering at least half of a window makes it ``va``; a window that touches both
    states is marked as mixed.

    Parameters
    ----------
    record
        Recording with annotations.
    preprocessing
        Rate, length and band of the windows. Normalisation is not applied here.
    dense_va
        Cut as MetaVA's release does: a stride of `DENSE_STRIDE_S` while inside VA, until
        `DENSE_LIMIT` positive windows. Windows then overlap: for ``as_published`` only.

    Returns
    -------
    windows
        In the order of time; ``time_s`` equals ``start_s`` (the dataset lays several recordings of
        one subject end to end).
    info
        Episodes and the number of windows left out.
    """
    intervals = va_intervals(record)
    window_s = preprocessing.window_s
    starts = (
        _dense_starts(record, intervals.va, window_s)
        if dense_va
        else _plain_starts(record, window_s)
    )
    windows, is_measured = cut_at(record, starts, preprocessing)
    va = covered_fraction(intervals.va, starts, window_s=window_s)
    is_noise = covered_fraction(intervals.excluded, starts, window_s=window_s) > 1e-9
    kept = is_measured & ~is_noise
    found = WindowSet(
        windows=windows if kept[is_measured].all() else windows[kept[is_measured]],
        labels=(va[kept] >= 0.5 - 1e-9).astype(np.int64),
        is_mixed=(va[kept] > 1e-9) & (va[kept] < 1 - 1e-9),
        subject_ids=np.full(kept.sum(), record.subject_id),
        record_ids=np.full(kept.sum(), record.record_id),
        start_s=starts[kept],
        time_s=starts[kept],
        fs_hz=preprocessing.fs_hz,
        window_s=window_s,
    )
    excluded = {
        "gap": int((~is_measured).sum()),
        "noise or asystole": int((is_measured & is_noise).sum()),
    }
    return found, RecordInfo(
        record_id=record.record_id,
        subject_id=record.subject_id,
        database=record.database,
        duration_s=record.duration_s,
        episodes=intervals.va,
        excluded=excluded,
    )


def windows_from_marks(
    record: Record,
    marks: Sequence[tuple[float, float, str]],
    preprocessing: Preprocessing,
    *,
    classes: tuple[str, ...] = VA_CLASSES,
) -> WindowSet:
    """Cut windows inside the stretches that a person marked.

    Each mark gives as many whole windows as fit, from its start on; gaps give none.

    Parameters
    ----------
    record
        Recording; annotations are not needed.
    marks
        ``(start_s, stop_s, class name)``, seconds within the recording.
    preprocessing
        Rate, length and band of the windows.
    classes
        The class names that marks may carry.

    Raises
    ------
    DataError
        A mark lies outside the recording, is shorter than a window, overlaps another mark or
        carries an unknown class.
    """
    _check_marks(record, marks, preprocessing, classes)
    starts, labels = [], []
    for start_s, stop_s, label in sorted(marks):
        n_fit = int(np.floor((stop_s - start_s) / preprocessing.window_s + 1e-9))
        # The windows lie on the grid of output samples, like those of a file or a stream.
        first = np.ceil(start_s * preprocessing.fs_hz - 1e-6) / preprocessing.fs_hz
        starts.extend(first + preprocessing.window_s * np.arange(n_fit))
        labels.extend([classes.index(label)] * n_fit)
    start_s = np.array(starts)
    windows, is_measured = cut_at(record, start_s, preprocessing)
    return WindowSet(
        windows=windows,
        labels=np.array(labels, dtype=np.int64)[is_measured],
        is_mixed=np.zeros(is_measured.sum(), dtype=bool),
        subject_ids=np.full(is_measured.sum(), record.subject_id),
        record_ids=np.full(is_measured.sum(), record.record_id),
        start_s=start_s[is_measured],
        time_s=start_s[is_measured],
        classes=classes,
        fs_hz=preprocessing.fs_hz,
        window_s=preprocessing.window_s,
    )


def _plain_starts(record: Record, window_s: float) -> np.ndarray:
    return window_s * np.arange(int(np.floor(record.duration_s / window_s + 1e-9)))


def _dense_starts(
    record: Record, va: tuple[tuple[float, float], ...], window_s: float
) -> np.ndarray:
    starts, at, n_dense = [], 0.0, 0
    while at + window_s <= record.duration_s + 1e-9:
        starts.append(at)
        is_va = covered_fraction(va, np.array([at]), window_s=window_s)[0] >= 0.5
        dense = is_va and n_dense < DENSE_LIMIT
        n_dense += int(dense)
        at = round(at + (DENSE_STRIDE_S if dense else window_s), 6)
    return np.array(starts)


def cut_at(
    record: Record, start_s: np.ndarray, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Return the fully measured windows among those at `start_s`, and which ones they are.

    A window starts on the nearest sample of the grid at ``preprocessing.fs_hz``. One that leaves
    the recording is not fully measured.

    Returns
    -------
    windows
        Shape ``(n_measured, n_leads, n_samples)``, float32, millivolts.
    is_measured
        Shape ``(n_windows,)``, bool, in line with `start_s`.
    """
    n_samples = preprocessing.n_samples
    first = np.round(start_s * preprocessing.fs_hz).astype(np.int64)
    order = np.argsort(first, kind="stable")  # a recording may have as many stretches as windows
    is_measured = np.zeros(len(first), dtype=bool)
    found = np.empty((len(first), len(record.signal_mv), n_samples), dtype=np.float32)
    for start, stop in measured_segments(record.signal_mv):
        if (stop - start) / record.fs_hz < preprocessing.window_s:
            continue
        filtered, grid = filter_segment(
            record.signal_mv[:, start:stop],
            start=start,
            fs_hz=record.fs_hz,
            preprocessing=preprocessing,
        )
        stop_grid = grid + filtered.shape[1] - n_samples + 1
        if stop_grid <= grid:  # off the grid, two seconds may hold one sample less
            continue
        inside = order[slice(*np.searchsorted(first, [grid, stop_grid], sorter=order))]
        views = np.lib.stride_tricks.sliding_window_view(filtered, n_samples, axis=1)
        found[inside] = views[:, first[inside] - grid].swapaxes(0, 1)  # (n, n_leads, n_samples)
        is_measured[inside] = True
    return found if is_measured.all() else found[is_measured], is_measured


def _check_marks(record: Record, marks, preprocessing: Preprocessing, classes) -> None:
    if not marks:
        raise DataError("there are no marks; expected at least one (start_s, stop_s, class).")
    previous_stop = 0.0
    for start_s, stop_s, label in sorted(marks):
        where = f"mark ({start_s:g} s, {stop_s:g} s, {label!r}) of {record.record_id!r}"
        if label not in classes:
            raise DataError(
                f"{where}: the class is unknown; expected {did_you_mean(label, classes)}"
            )
        if not 0 <= start_s < stop_s <= record.duration_s + 1e-9:
            raise DataError(f"{where} lies outside the recording of {record.duration_s:g} s.")
        if stop_s - start_s < preprocessing.window_s - 1e-9:
            raise DataError(f"{where} is shorter than a window of {preprocessing.window_s:g} s.")
        if start_s < previous_stop - 1e-9:
            raise DataError(
                f"{where} overlaps the mark before it, which ends at {previous_stop:g} s."
            )
        previous_stop = stop_s
