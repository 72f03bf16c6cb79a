"""Prepare whole databases: read, cut, label, and keep the windows memory-mapped in a cache."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from metaecg.data import cache
from metaecg.data.databases import DATABASES, get_database
from metaecg.data.preprocessing import MARGIN_S, Preprocessing
from metaecg.data.records import read_record, record_files
from metaecg.data.windows import RecordInfo, WindowSet, cut_windows, join
from metaecg.errors import DataError

PREPARATION_VERSION = 2
"""Part of every cache key; raise it when the same files and settings would give other windows."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All windows of some databases, and what is known of each recording."""

    windows: WindowSet
    records: tuple[RecordInfo, ...]

    @property
    def subject_ids(self) -> list[str]:
        """Every subject, in the order of databases and records."""
        return list(dict.fromkeys(record.subject_id for record in self.records))

    @property
    def databases(self) -> list[str]:
        """Every database, in order."""
        return list(dict.fromkeys(record.database for record in self.records))

    @cached_property
    def manifest_sha256(self) -> str:
        """One checksum over the checksums of all files."""
        lines = [
            f"{checksum}  {record.database}/{name}"
            for record in self.records
            for name, checksum in sorted(record.checksums.items())
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def of_subject(self, subject_id: str) -> WindowSet:
        """Return one subject's windows in the order of time."""
        return self.windows.select(self._rows[subject_id])

    def episodes(self, subject_id: str) -> list[tuple[str, float, float]]:
        """Return the annotated VA of a subject as ``(record_id, start_s, stop_s)``."""
        return [
            (record.record_id, start_s, stop_s)
            for record in self.records
            if record.subject_id == subject_id
            for start_s, stop_s in record.episodes
        ]

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        none = np.zeros(0, dtype=np.int64)
        rows = {subject_id: none for subject_id in self.subject_ids}
        for subject_id in np.unique(self.windows.subject_ids).tolist():
            found = np.flatnonzero(self.windows.subject_ids == subject_id)
            rows[subject_id] = found[np.argsort(self.windows.time_s[found], kind="stable")]
        return rows


def prepare(
    root: str | Path,
    databases: Sequence[str],
    preprocessing: Preprocessing | None = None,
    *,
    cache_root: str | Path | None = None,
    dense_va: bool = False,
    n_workers: int = 2,
    on_record: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Return every window of the databases under `root`, from the cache where it has them.

    Parameters
    ----------
    root
        Folder that holds one folder per database.
    databases
        Slugs, such as ``["mitdb", "vfdb"]``.
    preprocessing
        Rate, length and band of the windows.
    cache_root
        Where prepared windows are kept; ``None`` prepares without a cache.
    dense_va
        See `cut_windows`.
    n_workers
        Threads; nearly all of the work runs outside Python's lock.
    on_record
        Called with ``(n_done, n_total)`` while preparing, in the caller's thread and in order; not
        called when the cache answers.

    Raises
    ------
    DataError
        A database is unknown or not there, or a recording is unusable; see `read_record`.
    CacheError
        The cache can't be written, for example because the disk is full.

    Notes
    -----
    The cache's key is the content: checksums of all files and the preprocessing. Two processes may
    prepare the same windows at once; what they publish is the same and appears whole or not at all.
    """
    preprocessing = preprocessing or Preprocessing()
    paths = find_records(root, databases)
    checksums = cache.checksums(
        [f for p in paths for f in _files(p)], cache_root, n_workers=n_workers
    )
    key = _key(paths, checksums, preprocessing, dense_va)
    if cache_root is not None:
        found = cache.load(Path(cache_root), key, read=_read_dataset)
        if found is not None:
            return found
    dataset = _build(paths, checksums, preprocessing, dense_va, n_workers, on_record)
    if cache_root is None:
        return dataset
    cache.store(Path(cache_root), key, write=lambda folder: _write_dataset(folder, dataset))
    return cache.load(Path(cache_root), key, read=_read_dataset) or dataset


def find_records(root: str | Path, databases: Sequence[str]) -> list[Path]:
    """Return the record paths (without extension) of the databases under `root`, in order.

    ``RECORDS`` files may name records that are not there (part of a database): every header in the
    folder counts, and nothing else.
    """
    root, found = Path(root), []
    for slug in dict.fromkeys(databases):  # a database named twice counts once
        if slug not in DATABASES and not (root / slug).is_dir():
            get_database(slug)  # raises, naming the databases that exist
        if not (root / slug).is_dir():
            raise DataError(
                f"{root / slug} does not exist. Fetch the database with "
                f"python -m metaecg.data download {slug}, or name its parent folder with --data."
            )
        headers = sorted((root / slug).glob("*.hea"))
        if not headers:
            raise DataError(f"{root / slug} holds no WFDB header (*.hea); expected recordings.")
        found += [header.with_suffix("") for header in headers]
    return found


def _files(path: Path) -> list[Path]:
    known = DATABASES.get(path.parent.name)
    return record_files(path, extension=known.annotation_extension if known else "atr")


def _key(paths, checksums: dict[Path, str], preprocessing: Preprocessing, dense_va: bool) -> str:
    content = {
        "version": PREPARATION_VERSION,
        "margin_s": MARGIN_S,
        "preprocessing": {**preprocessing.to_dict(), "normalize": None},  # applied later
        "dense_va": dense_va,
        "files": [
            (path.parent.name, file.name, checksums[file])
            for path in paths
            for file in _files(path)
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _build(paths, checksums, preprocessing, dense_va, n_workers, on_record) -> Dataset:
    def prepare_one(path: Path) -> tuple[WindowSet, RecordInfo]:
        windows, info = cut_windows(read_record(path), preprocessing, dense_va=dense_va)
        return windows, replace(info, checksums={f.name: checksums[f] for f in _files(path)})

    parts = []
    pool = ThreadPoolExecutor(max_workers=n_workers)
    try:
        for part in pool.map(prepare_one, paths):
            parts.append(part)
            if on_record:
                on_record(len(parts), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C the rest isn't read
    infos = tuple(info for _, info in parts)
    return Dataset(windows=join(_lay_end_to_end(parts)), records=infos)


def _lay_end_to_end(parts: list[tuple[WindowSet, RecordInfo]]) -> list[WindowSet]:
    """Give the second recording of a subject times after the first one's end."""
    ends: dict[str, float] = {}
    moved = []
    for windows, info in parts:
        offset = ends.get(info.subject_id, 0.0)
        moved.append(replace(windows, time_s=windows.start_s + offset))
        ends[info.subject_id] = offset + info.duration_s
    return moved


def _write_dataset(folder: Path, dataset: Dataset) -> None:
    windows = dataset.windows
    records = [record.record_id for record in dataset.records]
    place = {record_id: i for i, record_id in enumerate(records)}
    np.save(folder / "windows.npy", windows.windows)
    np.savez(
        folder / "table.npz",
        labels=windows.labels.astype(np.int8),
        is_mixed=windows.is_mixed,
        record=np.array([place[r] for r in windows.record_ids.tolist()], dtype=np.int32),
        start_s=windows.start_s,
        time_s=windows.time_s,
    )
    facts = {
        "fs_hz": windows.fs_hz,
        "window_s": windows.window_s,
        "classes": windows.classes,
        "records": [record.to_dict() for record in dataset.records],
    }
    (folder / "dataset.json").write_text(json.dumps(facts))


def _read_dataset(folder: Path) -> Dataset:
    facts = json.loads((folder / "dataset.json").read_text())
    records = tuple(RecordInfo.from_dict(values) for values in facts["records"])
    with open(folder / "table.npz", "rb") as file, np.load(file, allow_pickle=False) as table:
        columns = {name: table[name] for name in table.files}
    record = columns.pop("record")
    windows = WindowSet(
        windows=np.load(folder / "windows.npy", mmap_mode="r", allow_pickle=False),
        labels=columns.pop("labels").astype(np.int64),
        subject_ids=np.array([r.subject_id for r in records])[record],
        record_ids=np.array([r.record_id for r in records])[record],
        classes=tuple(facts["classes"]),
        fs_hz=facts["fs_hz"],
        window_s=facts["window_s"],
        **columns,
    )
    if {len(column) for column in columns.values()} != {len(windows.windows)}:
        raise ValueError(f"{folder}: windows and table don't line up.")
    return Dataset(windows=windows, records=records)
