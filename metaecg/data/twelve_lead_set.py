"""A set of 12-lead recordings with their statements, and how one is put together."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from metaecg.data import cache
from metaecg.data.twelve_lead_files import STANDARD_LEADS, files_of, read_signals
from metaecg.data.twelve_lead_input import TwelveLeadInput


@dataclass(frozen=True, kw_only=True)
class TwelveLeadSet:
    """Recordings, who they are of, and what was stated about them; row `i` of all belongs together."""

    signals: np.ndarray = field(repr=False)
    """Shape ``(n_records, 12, n_samples)``, float32, finite, perhaps a read-only memory map."""
    fs_hz: float
    unit: str
    """``"mV"``; ``"NU"`` (normalised when published, no voltage); ``"sd"`` (scaled here by lead)."""
    record_ids: np.ndarray = field(repr=False)
    """Such as ``ptb-xl/24``, ``challenge-2021/HR00024``."""
    subject_ids: np.ndarray = field(repr=False)
    """Such as ``ptb-xl/patient-9012``; the record's id where the person isn't known."""
    subjects_known: bool
    """False where one person may still have two names: a split by subject is one by record then."""
    labels: np.ndarray = field(repr=False)
    """Shape ``(n_records, n_classes)``, uint8, 0 or 1; every record has at least one 1."""
    class_names: tuple[str, ...]
    statements: tuple[tuple[str, ...], ...] = field(repr=False)
    """Every code of each record, also of classes that weren't kept."""
    strat_fold: np.ndarray | None = field(repr=False)
    """PTB-XL's fold of each record, 1 to 10; None in the Challenge."""
    reports: tuple[str, ...] = field(repr=False)
    """Free text in the language it was written in; empty where there is none."""
    sources: np.ndarray = field(repr=False)
    """The database within the Challenge, such as ``georgia``; ``ptb-xl``."""
    label_sources: np.ndarray = field(repr=False)
    """``original``, or what the table's column ``scp_codes_source`` says (``reconstructed``)."""
    dropped: Mapping[str, str] = field(repr=False)
    """Record id -> why it isn't here."""
    n_cropped: int = 0
    n_padded: int = 0
    manifest_sha256: str = ""
    """One checksum over those of all files read."""
    lead_names: tuple[str, ...] = STANDARD_LEADS

    def __len__(self) -> int:
        return len(self.record_ids)

    @property
    def positives(self) -> dict[str, int]:
        """Class -> records that have it."""
        return dict(zip(self.class_names, self.labels.sum(axis=0, dtype=int).tolist(), strict=True))

    def select(self, rows: np.ndarray) -> "TwelveLeadSet":
        """Return some records as a set of their own; `rows` are indices or a boolean mask."""
        rows = np.arange(len(self))[rows]
        names = {f.name for f in fields(self)} - {"lead_names", "class_names", "dropped"}
        chosen = {}
        for name in names:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                chosen[name] = value[rows]
            elif isinstance(value, tuple):
                chosen[name] = tuple(value[i] for i in rows)
        return replace(self, **chosen)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a recording before its signal is read; fields as in `TwelveLeadSet`."""

    path: Path
    record_id: str
    subject_id: str
    codes: tuple[str, ...]
    source: str
    label_source: str = "original"
    report: str = ""
    fold: int | None = None


def assemble(
    records: Sequence[Entry],
    labelled: tuple[np.ndarray, tuple[str, ...]],
    *,
    duration_s: float,
    preprocessing: TwelveLeadInput | None,
    cache_root: str | Path | None,
    subjects_known: bool,
) -> TwelveLeadSet:
    """Read the signals of the records that have a label, and put everything side by side."""
    labels, class_names = labelled
    has_label = labels.any(axis=1)
    dropped = {r.record_id: "no kept class" for r, has in zip(records, has_label, strict=True) if not has}  # fmt: skip
    records = [r for r, has in zip(records, has_label, strict=True) if has]
    files = files_of([r.path for r in records])
    sums = cache.checksums([f for each in files.values() for f in each], cache_root)
    found = read_signals(
        [r.path for r in records],
        sums,
        duration_s=duration_s,
        preprocessing=preprocessing,
        cache_root=cache_root,
    )
    dropped |= {records[i].record_id: reason for i, reason in found.dropped.items()}
    subjects = _one_name_each(records, files, sums)
    kept = [records[i] for i in found.kept]
    folds = None if kept[0].fold is None else np.array([r.fold for r in kept])
    return TwelveLeadSet(
        signals=found.values,
        fs_hz=found.fs_hz,
        unit=found.unit,
        record_ids=np.array([r.record_id for r in kept]),
        subject_ids=np.array([subjects[i] for i in found.kept]),
        subjects_known=subjects_known,
        labels=labels[has_label][found.kept],
        class_names=class_names,
        statements=tuple(r.codes for r in kept),
        strat_fold=folds,
        reports=tuple(r.report for r in kept),
        sources=np.array([r.source for r in kept]),
        label_sources=np.array([r.label_source for r in kept]),
        dropped=dropped,
        n_cropped=found.n_cropped,
        n_padded=found.n_padded,
        manifest_sha256=hashlib.sha256("\n".join(sums.values()).encode()).hexdigest(),
    )


def _one_name_each(records: Sequence[Entry], files: dict, sums: dict) -> list[str]:
    """Return the subject of each record; the same signal file under two names is one subject."""
    owner: dict[tuple[str, ...], str] = {}
    names = {record.subject_id: record.subject_id for record in records}
    for record in records:
        content = tuple(sums[f] for f in files[record.path] if f.suffix != ".hea")
        first = names[owner.setdefault(content, record.subject_id)]
        mine = names[record.subject_id]
        if first != mine:  # everything under either name is one person
            names = {key: first if name == mine else name for key, name in names.items()}
    return [names[record.subject_id] for record in records]
