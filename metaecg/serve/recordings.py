"""What is done with a stored recording: its segments, what a network is given of them, what one says.

A recording may be a week long, so windows are taken from pieces of it. A piece starts where a window
does and reaches as far around its windows as their filter does: the same windows, but for rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from metaecg.data.beat_input import beat_forms
from metaecg.data.preprocessing import measured_bounds
from metaecg.serve.caches import BoundedCache
from metaecg.serve.segment_probabilities import positive_class, probabilities
from metaecg.serve.segments import Segmentation, Segments
from metaecg.serve.store import Store
from metaecg.serve.store_rows import RecordingInfo

BLOCK_SEGMENTS = 1800
"""Windows that are cut at once from a long recording: an hour of them."""
BLOCK_SAMPLES = 2**20
"""Samples that are read at once where all are looked at."""
GAP_BYTES = 16 * 1024 * 1024
"""Memory for which parts of recordings were measured; a week with a gap in every window takes a third."""
JOIN_S = 60.0
"""Wanted stretches closer than this are read as one: a chunk of the store is as long."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A recording, and how to read the lead of it that is judged."""

    info: RecordingInfo
    peaks: np.ndarray | None = field(repr=False)
    read: Callable[[int, int], np.ndarray] = field(repr=False)
    """Takes first and last sample, half open; returns ``(1, n)`` float32 millivolts."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a detector says of every segment of a recording; all arrays line up."""

    index: np.ndarray
    start_s: np.ndarray
    stop_s: np.ndarray
    probability: np.ndarray
    """Of every class, shape ``(n, n_classes)``."""

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        arrays = (self.index, self.start_s, self.stop_s, self.probability)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a network gives for every segment of a recording; how neighbours count comes after it."""

    segments: Segments
    logits: np.ndarray
    """Shape ``(n, n_classes)``, in line with the segments."""
    forms: np.ndarray | None = None
    """What tells beats apart (`metaecg.data.beat_input.beat_forms`), in line; ``None`` for windows."""

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        s = self.segments
        arrays = (s.index, s.start_s, s.stop_s, s.peak_s, self.logits, self.forms)
        return sum(array.nbytes for array in arrays if array is not None)


class GapCache:
    """Which parts of recordings were measured; recordings never change, so this is found once.

    Parameters
    ----------
    max_bytes
        Memory that may be taken for it.
    """

    def __init__(self, max_bytes: int = GAP_BYTES) -> None:
        self._known = BoundedCache(max_bytes, size_of=lambda ranges: ranges.nbytes)

    @property
    def n_bytes(self) -> int:
        """How much memory it holds."""
        return self._known.n_bytes

    def measured_segments_of(self, segmentation: Segmentation, opened: Opened) -> Segments:
        """Return the segments of a recording that a network can be given."""
        info, window_s = opened.info, segmentation.preprocessing.window_s

        def holds_a_segment(n: np.ndarray) -> np.ndarray:
            return n / info.fs_hz >= window_s  # what `segments` leaves out isn't kept

        measured = self._known.get_or_make(
            (info.recording_id, window_s),
            lambda: measured_ranges(opened.read, info.n_samples, is_long=holds_a_segment),
        )
        return segmentation.segments(info.n_samples, info.fs_hz, opened.peaks, measured=measured)


def measured_ranges(
    read: Callable[[int, int], np.ndarray],
    n_samples: int,
    *,
    is_long: Callable[[np.ndarray], np.ndarray] = lambda n: n > 0,
    block: int = BLOCK_SAMPLES,
) -> np.ndarray:
    """Return the ranges of samples that were measured, reading a block at a time.

    Half open, in the order of time, shape ``(n, 2)``, int64. `is_long` says which numbers of samples
    are enough for a range to count.
    """
    found = np.empty((0, 2), dtype=np.int64)
    for begin in range(0, n_samples, block):
        new = begin + measured_bounds(read(begin, min(begin + block, n_samples)))
        if len(found) and len(new) and found[-1, 1] == new[0, 0]:
            new[0, 0] = found[-1, 0]
            found = found[:-1]
        kept = is_long(np.diff(new)[:, 0])
        kept[-1:] = True  # it may go on in the next block
        found = np.concatenate([found, new[kept]])
    return found[is_long(np.diff(found)[:, 0])]


def open_recording(
    store: Store, segmentation: Segmentation, org_id: int, subject_id: str, recording_id: str
) -> Opened:
    """Return a recording with its peaks.

    One that was uploaded to a server with another kind of base has none yet; they are found now.
    """
    info = store.get_recording(org_id, subject_id, recording_id)
    where = (org_id, subject_id, recording_id)

    def read(start: int, stop: int) -> np.ndarray:
        return store.read_signal(*where, start=start, stop=stop, lead=info.lead)

    peaks = None
    if segmentation.kind == "beats":
        peaks = store.read_peaks(*where, segmentation.name)
        if peaks is None:
            peaks = segmentation.peaks(read(0, info.n_samples), info.fs_hz)
            store.put_peaks(*where, segmentation.name, peaks)
    return Opened(info=info, peaks=peaks, read=read)


def signals_of(opened: Opened, start_s: np.ndarray, stop_s: np.ndarray) -> list[np.ndarray]:
    """Return the samples of stretches in the order of time; those close together are read as one."""
    fs_hz = opened.info.fs_hz
    bounds = np.round(np.stack([start_s, stop_s], axis=1) * fs_hz).astype(np.int64).tolist()
    found = []
    for start, stop in _joined(bounds, round(JOIN_S * fs_hz)):
        signal = opened.read(start, stop)[0]
        inside = [(low, high) for low, high in bounds if start <= low and high <= stop]
        found += [signal[low - start : high - start] for low, high in inside]
    return found


def all_segments(segmentation: Segmentation, opened: Opened) -> Segments:
    """Return the segments by length and peaks alone: also those with samples that weren't measured."""
    info = opened.info
    return segmentation.segments(info.n_samples, info.fs_hz, opened.peaks)


def inputs_of(
    segmentation: Segmentation, opened: Opened, only: Sequence[int]
) -> tuple[Segments, np.ndarray]:
    """Return some segments of a recording and what a network is given of each.

    Numbers of segments that don't exist, or hold samples that were not measured, are left out.
    """
    info = opened.info
    ranges = segmentation.needed(only, n_samples=info.n_samples, fs_hz=info.fs_hz)
    step = _step(segmentation, info.fs_hz)
    if step is None:
        return segmentation.inputs(
            opened.read(0, info.n_samples), info.fs_hz, opened.peaks, only=only
        )
    wanted = np.unique(np.asarray(list(only), dtype=np.int64))
    parts = [
        _piece(segmentation, opened, start, stop, wanted, step)
        for start, stop in _joined(ranges, round(JOIN_S * info.fs_hz))
    ]
    return joined_segments(segmentation, [p[0] for p in parts]), _stacked(segmentation, parts)


def see(segmentation: Segmentation, opened: Opened, model) -> Seen:
    """Return what a network gives for every segment; of windows never holding more than an hour."""
    info = opened.info
    if _step(segmentation, info.fs_hz) is None:
        return _seen_at_once(segmentation, opened, model)
    numbers = all_segments(segmentation, opened).index
    parts, logits = [], [model.logits(_stacked(segmentation, []))]
    for begin in range(0, len(numbers), BLOCK_SEGMENTS):
        segments, inputs = inputs_of(segmentation, opened, numbers[begin : begin + BLOCK_SEGMENTS])
        parts.append(segments)
        logits.append(model.logits(inputs))
    segments = joined_segments(segmentation, parts, is_whole=True)
    return Seen(segments=segments, logits=np.concatenate(logits))


def _seen_at_once(segmentation: Segmentation, opened: Opened, model) -> Seen:
    info = opened.info
    segments, inputs = segmentation.inputs(opened.read(0, info.n_samples), info.fs_hz, opened.peaks)
    forms = None if segments.beats is None else beat_forms(inputs, segments.beats)
    segments = replace(segments, beats=None)  # their signal isn't needed any more
    return Seen(segments=segments, logits=model.logits(inputs), forms=forms)


def judge(base, model, seen: Seen, rhythm: str, labels: Mapping[int, str] | None = None) -> Judged:
    """Return what a detector says of every segment, neighbours counted as `rhythm` says.

    Beats that a person labelled count as what they are.
    """
    segments = seen.segments
    nothing = np.empty(
        (0, 0, 0), dtype=np.float32
    )  # what was seen of the inputs is all that is needed
    found = probabilities(
        base, model, segments, nothing, rhythm, labels=labels, logits=seen.logits, forms=seen.forms
    )
    return Judged(
        index=segments.index, start_s=segments.start_s, stop_s=segments.stop_s, probability=found
    )


def episodes_of(judged: Judged, is_positive: np.ndarray, positive: np.ndarray) -> list[dict]:
    """Return the runs of neighbouring segments that are named positive, in the order of time.

    Segments are neighbours if their numbers are: what lies between two of them was not measured
    or was judged otherwise.
    """
    rows = np.flatnonzero(is_positive)
    if not len(rows):
        return []
    cuts = np.flatnonzero(np.diff(judged.index[rows]) > 1) + 1
    return [
        {
            "start_s": float(judged.start_s[run[0]]),
            "stop_s": float(judged.stop_s[run[-1]]),
            "n_segments": len(run),
            "peak_probability": float(positive[run].max()),
        }
        for run in np.split(rows, cuts)
    ]


def positive_column(base) -> int:
    """Return the column of the class that probabilities are of."""
    return list(base.classes).index(positive_class(base))


def _step(segmentation: Segmentation, fs_hz: float) -> float | None:
    """Return the samples from one window to the next, ``None`` if pieces can't be taken.

    They can't where beats are judged, each against those before it, and where windows don't start
    on whole samples.
    """
    if segmentation.kind != "windows":
        return None
    step = segmentation.preprocessing.window_s * fs_hz
    return round(step) if abs(step - round(step)) < 1e-9 * step else None


def _joined(ranges: list[tuple[int, int]], nearest: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        if found and start - found[-1][1] < nearest:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def _piece(
    segmentation: Segmentation, opened: Opened, start: int, stop: int, wanted: np.ndarray, step: int
) -> tuple[Segments, np.ndarray]:
    """Return the wanted windows that lie between two samples."""
    first = start // step
    inside = wanted[(wanted >= first) & (wanted * step < stop)] - first
    signal = opened.read(first * step, stop)
    segments, inputs = segmentation.inputs(signal, opened.info.fs_hz, None, only=inside.tolist())
    return _moved(segmentation, segments, first), inputs


def _moved(segmentation: Segmentation, segments: Segments, first: int) -> Segments:
    index = segments.index + first
    start_s = segmentation.preprocessing.window_s * index
    return Segments(
        index=index,
        start_s=start_s,
        stop_s=start_s + segmentation.preprocessing.window_s,
        is_whole=False,
    )


def joined_segments(
    segmentation: Segmentation, parts: list[Segments], *, is_whole: bool = False
) -> Segments:
    """Return the windows of several pieces as those of one recording."""
    if not parts:
        return segmentation.segments(0, segmentation.preprocessing.fs_hz)
    return Segments(
        index=np.concatenate([part.index for part in parts]),
        start_s=np.concatenate([part.start_s for part in parts]),
        stop_s=np.concatenate([part.stop_s for part in parts]),
        is_whole=is_whole,
    )


def _stacked(segmentation: Segmentation, parts: list) -> np.ndarray:
    if not parts:
        return np.empty((0, 1, segmentation.preprocessing.n_samples), dtype=np.float32)
    return np.concatenate([inputs for _, inputs in parts])
