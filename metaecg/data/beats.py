"""Cut recordings into beats with AAMI labels, and prepare whole databases of them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from metaecg.checks import check_option
from metaecg.data.databases import DATABASES
from metaecg.data.datasets import (
    Cutting,
    Dataset,
    find_records,
    prepare_records,
    without_normalize,
)
from metaecg.data.labels import AAMI_CLASSES, AAMI_OF_SYMBOL, PACED, va_intervals
from metaecg.data.preprocessing import Preprocessing
from metaecg.data.records import Record
from metaecg.data.rpeaks import detect_r_peaks, match_beats
from metaecg.data.rr import rr_features, rr_names
from metaecg.data.windows import RecordInfo, WindowSet, cut_at
from metaecg.errors import DataError

UNMATCHED = -1
"""Label of a beat that no annotated beat stands for: a false detection, or nobody has labelled it."""
BEAT_PREPROCESSING = Preprocessing(window_s=0.75)
BEFORE_S = 0.3
"""The window reaches from before the P wave of a beat (its PR interval is at most about 0.2 s) to the
end of most T waves."""
R_PEAKS = ("annotated", "detected")
PREPARATION_VERSION = 2
"""Part of every cache key of beats; raise it when the same files and settings would give others."""
_PACED = {("mitdb", name) for name in PACED}


@dataclass(frozen=True, kw_only=True)
class BeatSet(WindowSet):
    """Beats with labels and where they come from: a `WindowSet` of one window per beat.

    `labels` index `classes` (N S V F Q) or are `UNMATCHED`. Windows of neighbouring beats overlap
    where the heart is fast. `is_mixed` is False throughout.
    """

    sample: np.ndarray = field(repr=False)
    """R peak in samples of the recording at its own rate, shape ``(n_beats,)``, int64."""
    symbols: np.ndarray = field(repr=False)
    """Annotation symbol that the label comes from, shape ``(n_beats,)``; empty if `UNMATCHED`."""
    rr: np.ndarray = field(repr=False)
    """RR features, shape ``(n_beats, n_features)``, float32, over every R peak of the recording, also
    those without a window."""
    rr_names: tuple[str, ...]
    """Names of the columns of `rr`; those that start with ``next`` know the next beat."""
    before_s: float
    """From the start of a window to its R peak, seconds."""
    classes: tuple[str, ...] = AAMI_CLASSES

    columns: ClassVar[tuple[str, ...]] = (*WindowSet.columns, "sample", "symbols", "rr")

    @property
    def after_s(self) -> float:
        """From the R peak to the end of the window, seconds."""
        return self.window_s - self.before_s

    @property
    def r_peak_s(self) -> np.ndarray:
        """R peak within the recording, seconds, shape ``(n_beats,)``."""
        return self.start_s + self.before_s

    @property
    def letters(self) -> np.ndarray:
        """Label of each beat as a letter, shape ``(n_beats,)``; empty if `UNMATCHED`."""
        return np.array([*self.classes, ""])[self.labels]

    def labelled(self) -> "BeatSet":
        """Return the beats that have a label."""
        return self.select(self.labels != UNMATCHED)


@dataclass(frozen=True, kw_only=True)
class BeatRecordInfo(RecordInfo):
    """What is known of a recording beside its beats.

    `excluded` counts R peaks without a window: ``edge`` (the window leaves the recording), ``gap``
    (it holds a sample that was not measured).
    """

    lead_names: tuple[str, ...]
    annotated: dict[str, int]
    """Annotated beats by class; empty where the annotations say nothing of beats."""
    missed: dict[str, int]
    """Annotated beats by class that are not in the set: at an edge, in a gap, not detected. EC57
    counts them as missed."""
    n_doubles: int = 0
    """Beat marks on a sample that has one already; the first of the file counts."""

    @classmethod
    def from_dict(cls, values: dict) -> "BeatRecordInfo":
        """Rebuild from `to_dict`'s values."""
        return super().from_dict({**values, "lead_names": tuple(values["lead_names"])})


def cut_beats(
    record: Record,
    preprocessing: Preprocessing = BEAT_PREPROCESSING,
    *,
    r_peaks: str | np.ndarray = "annotated",
    before_s: float = BEFORE_S,
    use_next_rr: bool = False,
) -> tuple[BeatSet, BeatRecordInfo]:
    """Cut a window around every R peak of a recording.

    A window starts `before_s` before the R peak and lasts ``preprocessing.window_s``, whatever the
    heart rate: it can be cut as soon as it ends. A window that leaves the recording or holds a
    sample that was not measured is left out and counted; it is never padded. Beats in noise stay:
    EC57 counts them.

    Parameters
    ----------
    record
        Recording with the leads that are wanted. `read_record` chooses one by name: MLII in mitdb,
        V5 where there is none (102 and 104, both paced); record 114 has its leads swapped in the
        file.
    preprocessing
        Rate, length and band of the windows. Normalisation is not applied here.
    r_peaks
        ``"annotated"``: the annotated beats. ``"detected"``: `detect_r_peaks` on the first lead.
        Or positions in samples of the recording, strictly increasing. Unless annotated, a beat has
        the label of the annotated one within 0.15 s (`match_beats`), `UNMATCHED` if there is none.
        The beat marks of a database that isn't known for beats by kind (vfdb, cudb) give no labels.
    before_s
        From the start of a window to its R peak, seconds, below ``preprocessing.window_s``.
    use_next_rr
        Add the interval to the next beat to the RR features, which delays them by a beat.

    Returns
    -------
    beats
        In the order of time; ``time_s`` equals ``start_s``.
    info
        Annotated VA, counts of what is not in `beats`, names of the leads.

    Raises
    ------
    DataError
        ``"annotated"`` without annotated beats by kind, or positions that are no beats of this
        recording.
    ValueError
        `r_peaks` or `before_s` is no possible value.
    """
    if not 0 < before_s < preprocessing.window_s:
        raise ValueError(
            f"before_s is {before_s!r}; expected a number above 0 and below the window's "
            f"{preprocessing.window_s:g} s."
        )
    annotated, symbols, n_doubles = _annotated(record)
    peaks, of = _peaks(record, r_peaks, annotated)
    start_s = peaks / record.fs_hz - before_s
    windows, is_measured = cut_at(record, start_s, preprocessing)
    symbol = np.concatenate([symbols, [""]])[of]
    n_beats = len(windows)
    rr = rr_features(peaks / record.fs_hz, use_next=use_next_rr)
    beats = BeatSet(
        windows=windows,
        labels=_labels(symbol[is_measured]),
        is_mixed=np.zeros(n_beats, dtype=bool),
        subject_ids=np.full(n_beats, record.subject_id),
        record_ids=np.full(n_beats, record.record_id),
        start_s=start_s[is_measured],
        time_s=start_s[is_measured],
        sample=peaks[is_measured],
        symbols=symbol[is_measured],
        rr=rr[is_measured],
        rr_names=rr_names(use_next=use_next_rr),
        before_s=before_s,
        fs_hz=preprocessing.fs_hz,
        window_s=preprocessing.window_s,
    )
    info = _info(record, beats, start_s[~is_measured], symbols)
    return beats, replace(info, n_doubles=n_doubles)


def prepare_beats(
    root: str | Path,
    databases: Sequence[str],
    preprocessing: Preprocessing = BEAT_PREPROCESSING,
    *,
    r_peaks: str = "annotated",
    before_s: float = BEFORE_S,
    use_next_rr: bool = False,
    n_leads: int = 1,
    cache_root: str | Path | None = None,
    only: Collection[str] | None = None,
    n_workers: int = 2,
    on_record: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Return every beat of the databases under `root`, from the cache where it has them.

    The paced records of mitdb (`PACED`) stay closed, as the protocol ``aami`` has it. With
    ``n_leads=2`` a window has the preferred lead and the next one of the recording; where there is
    one alone, it stands twice. Everything else as for `metaecg.data.datasets.prepare` and
    `cut_beats`.

    Returns
    -------
    Dataset
        ``windows`` is a `BeatSet`, ``records`` are `BeatRecordInfo`.

    Raises
    ------
    DataError
        As `prepare` and `cut_beats`; or all that is named is paced.
    ValueError
        As `cut_beats`.
    """
    check_option("r_peaks", r_peaks, R_PEAKS)
    check_option("n_leads", n_leads, (1, 2))
    options = {"r_peaks": r_peaks, "before_s": before_s, "use_next_rr": use_next_rr}
    leads = {} if n_leads == 1 else {"n_leads": n_leads}
    cut = partial(cut_beats, preprocessing=preprocessing, **options)
    cutting = Cutting(
        cut=cut if n_leads == 1 else partial(_cut_two_leads, cut),
        settings={
            "preprocessing": without_normalize(preprocessing),
            "beats": {"version": PREPARATION_VERSION, **options, **leads},
        },
        leads="preferred" if n_leads == 1 else "two",
        set_type=BeatSet,
        info_type=BeatRecordInfo,
    )
    paths = find_records(root, databases, only=only)
    paths = [path for path in paths if (path.parent.name, path.name) not in _PACED]
    if not paths:
        raise DataError(
            f"every recording that was named is paced ({', '.join(PACED)} of mitdb); expected at least "
            "one other. Name other subjects."
        )
    return prepare_records(
        paths, cutting, cache_root=cache_root, n_workers=n_workers, on_record=on_record
    )


def _cut_two_leads(cut: Callable, record: Record) -> tuple[BeatSet, BeatRecordInfo]:
    """Cut a recording with two leads; one lead alone stands for both."""
    beats, info = cut(record)
    if beats.windows.shape[1] == 1:
        beats = replace(beats, windows=np.repeat(beats.windows, 2, axis=1))
    return beats, info


def _annotated(record: Record) -> tuple[np.ndarray, np.ndarray, int]:
    """Return samples and symbols of the annotated beats by kind, one per sample, and how many more
    there are; none where nothing is annotated by kind."""
    known = DATABASES.get(record.database)
    if record.annotations is None or (known is not None and "aami" not in known.vocabularies):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype="<U1"), 0
    symbols = np.array(record.annotations.symbol, dtype="<U1")
    is_beat = np.isin(symbols, [*AAMI_OF_SYMBOL])
    sample, first = np.unique(record.annotations.sample[is_beat], return_index=True)
    return sample, symbols[is_beat][first], int(is_beat.sum()) - len(sample)


def _peaks(
    record: Record, r_peaks: str | np.ndarray, annotated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the R peaks in samples, and for each the index of its annotated beat or -1."""
    if isinstance(r_peaks, str):
        check_option("r_peaks", r_peaks, R_PEAKS)
        if r_peaks == "annotated" and not len(annotated):
            raise DataError(
                f"record {record.record_id!r} has no annotated beats by kind; expected symbols such "
                "as N or V. Use r_peaks='detected', or annotations=True where it was read."
            )
        if r_peaks == "annotated":
            return annotated, np.arange(len(annotated))
        r_peaks = detect_r_peaks(record.signal_mv[0], fs_hz=record.fs_hz)
    peaks = np.asarray(r_peaks)
    if peaks.ndim != 1 or not np.issubdtype(peaks.dtype, np.integer):
        raise DataError(
            f"r_peaks has shape {peaks.shape} and type {peaks.dtype}; expected samples, whole "
            "numbers of shape (n_beats,). Multiply seconds by the recording's rate and round."
        )
    if len(peaks) and not 0 <= peaks.min() <= peaks.max() < record.n_samples:
        raise DataError(
            f"r_peaks goes from {peaks.min()} to {peaks.max()}; expected samples of record "
            f"{record.record_id!r}, 0 to {record.n_samples - 1}."
        )
    return peaks, match_beats(peaks / record.fs_hz, annotated / record.fs_hz)


def _labels(symbols: np.ndarray) -> np.ndarray:
    """Return the index of each symbol's class, `UNMATCHED` for an empty one."""
    of = {symbol: AAMI_CLASSES.index(name) for symbol, name in AAMI_OF_SYMBOL.items()}
    return np.array([of.get(symbol, UNMATCHED) for symbol in symbols.tolist()], dtype=np.int64)


def _by_class(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels[labels != UNMATCHED], minlength=len(AAMI_CLASSES))


def _info(
    record: Record, beats: BeatSet, left_out_s: np.ndarray, symbols: np.ndarray
) -> BeatRecordInfo:
    """Say what is known of the recording; `left_out_s` are the starts of windows left out."""
    ends_s = left_out_s + beats.window_s
    n_edge = int(((left_out_s < 0) | (ends_s > record.duration_s)).sum())
    annotated = _by_class(_labels(symbols))
    missed = annotated - _by_class(beats.labels)
    return BeatRecordInfo(
        record_id=record.record_id,
        subject_id=record.subject_id,
        database=record.database,
        duration_s=record.duration_s,
        episodes=va_intervals(record).va if record.annotations is not None else (),
        excluded={"edge": n_edge, "gap": len(left_out_s) - n_edge},
        lead_names=record.lead_names,
        annotated=dict(zip(AAMI_CLASSES, annotated.tolist(), strict=True)) if len(symbols) else {},
        missed=dict(zip(AAMI_CLASSES, missed.tolist(), strict=True)) if len(symbols) else {},
    )
