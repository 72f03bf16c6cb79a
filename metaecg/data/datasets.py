"""Prepare whole databases: read, cut, label, and keep the windows memory-mapped in a cache."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from metaecg.checks import did_you_mean
from metaecg.data import cache
from metaecg.data.databases import DATABASES, get_database
from metaecg.data.preprocessing import MARGIN_S, Preprocessing
from metaecg.data.records import Record, read_record, record_files, subject_of
from metaecg.data.windows import RecordInfo, WindowSet, cut_windows, join
from metaecg.errors import CacheError, DataError

PREPARATION_VERSION = 3
"""Part of every cache key; raise it when the same files and settings would give other windows."""

_PER_RECORD = ("subject_ids", "record_ids")
"""Columns of a set that the records' own facts give."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How recordings become windows, for `prepare_records`."""

    cut: Callable[[Record], tuple[WindowSet, RecordInfo]]
    settings: Mapping[str, object]
    """What decides the windows beside the files, as JSON values: part of the cache's key."""
    leads: str = "preferred"
    """Leads that are read (`read_record`); what isn't ``"preferred"`` stands in `settings` too."""
    set_type: type[WindowSet] = WindowSet
    info_type: type[RecordInfo] = RecordInfo
    """What `cut` returns; a cache entry is read back as these."""


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
    only: Collection[str] | None = None,
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
    only
        Subjects to prepare. The recordings of all others stay closed, signal and marks, and nothing
        of them is in what comes back. ``None``: everybody.
    n_workers
        Threads; nearly all of the work runs outside Python's lock.
    on_record
        Called with ``(n_done, n_total)`` while preparing, in the caller's thread and in order; not
        called when the cache answers.

    Raises
    ------
    DataError
        A database is unknown or not there, a recording is unusable (see `read_record`), or
        `only` names nobody, or somebody who has no recording.
    CacheError
        The cache can't be written, for example because the disk is full.

    Notes
    -----
    The cache's key is the content: checksums of all files and the preprocessing. Two processes may
    prepare the same windows at once; what they publish is the same and appears whole or not at all.
    """
    preprocessing = preprocessing or Preprocessing()
    cutting = Cutting(
        cut=lambda record: cut_windows(record, preprocessing, dense_va=dense_va),
        settings={"preprocessing": without_normalize(preprocessing), "dense_va": dense_va},
    )
    paths = find_records(root, databases, only=only)
    return prepare_records(
        paths, cutting, cache_root=cache_root, n_workers=n_workers, on_record=on_record
    )


def prepare_records(
    paths: Sequence[Path],
    cutting: Cutting,
    *,
    cache_root: str | Path | None = None,
    n_workers: int = 2,
    on_record: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Return what `cutting` makes of the recordings, from the cache where it has them.

    `paths` as `find_records` returns them; the rest as for `prepare`.
    """
    checksums = cache.checksums(
        [f for p in paths for f in _files(p)], cache_root, n_workers=n_workers
    )
    parts = _prepared(paths, checksums, cutting, n_workers, on_record)
    if cache_root is None:
        return _joined(parts)
    key = _key(paths, checksums, cutting)

    def read(folder: Path) -> Dataset:
        return _read_dataset(folder, cutting)

    found = cache.load(Path(cache_root), key, read=read)
    if found is not None:
        return found
    cache.store(Path(cache_root), key, write=lambda folder: _write_dataset(folder, parts))
    found = cache.load(Path(cache_root), key, read=read)
    if found is None:
        raise CacheError(
            f"the windows just written to the cache {cache_root} can't be read back. Choose another "
            "folder with --cache DIR."
        )
    return found


def without_normalize(preprocessing: Preprocessing) -> dict:
    """Return the preprocessing as JSON values for a key; normalisation is applied later."""
    return {**preprocessing.to_dict(), "normalize": None}


def find_records(
    root: str | Path, databases: Sequence[str], *, only: Collection[str] | None = None
) -> list[Path]:
    """Return the record paths (without extension) of the databases under `root`, in order.

    ``RECORDS`` files may name records that are not there (part of a database): every header in the
    folder counts, and nothing else. `only` as for `prepare`.
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
    return found if only is None else _recordings_of(only, found)


def _recordings_of(only: Collection[str], paths: list[Path]) -> list[Path]:
    subjects = [subject_of(path) for path in paths]
    unknown = sorted(set(only) - set(subjects))
    if unknown or not only:
        named = repr(unknown[0]) if unknown else "nobody"
        raise DataError(
            f"only names {named}, who has no recording; expected some of the {len(set(subjects))} "
            f"subjects: {did_you_mean(unknown[0] if unknown else '', set(subjects))}"
        )
    return [path for path, its in zip(paths, subjects, strict=True) if its in only]


def _files(path: Path) -> list[Path]:
    known = DATABASES.get(path.parent.name)
    return record_files(path, extension=known.annotation_extension if known else "atr")


def _key(paths, checksums: dict[Path, str], cutting: Cutting) -> str:
    content = {
        "version": PREPARATION_VERSION,
        "margin_s": MARGIN_S,
        **cutting.settings,
        "files": [
            (path.parent.name, file.name, checksums[file])
            for path in paths
            for file in _files(path)
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prepared(
    paths, checksums, cutting, n_workers, on_record
) -> Iterator[tuple[WindowSet, RecordInfo]]:
    """Yield each record's windows in order, while threads prepare the next ones."""
    ends: dict[str, float] = {}

    def prepare_one(path: Path) -> tuple[WindowSet, RecordInfo]:
        try:
            windows, info = cutting.cut(read_record(path, leads=cutting.leads))
        except OSError as error:
            raise DataError(f"record {path.name!r} can't be read: {error}.") from error
        return windows, replace(info, checksums={f.name: checksums[f] for f in _files(path)})

    pool = ThreadPoolExecutor(max_workers=n_workers)
    try:
        for n_done, (windows, info) in enumerate(pool.map(prepare_one, paths), 1):
            # A subject's second recording starts where the first one ended.
            offset = ends.get(info.subject_id, 0.0)
            ends[info.subject_id] = offset + info.duration_s
            yield replace(windows, time_s=windows.start_s + offset), info
            if on_record:
                on_record(n_done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C the rest isn't read


def _joined(parts: Iterable[tuple[WindowSet, RecordInfo]]) -> Dataset:
    windows, infos = zip(*parts, strict=True)
    return Dataset(windows=join(windows), records=infos)


def _write_dataset(folder: Path, parts: Iterable[tuple[WindowSet, RecordInfo]]) -> None:
    """Write the windows record by record as they come, then what belongs to them."""
    columns: dict[str, list[np.ndarray]] = {}
    n_windows: list[int] = []
    infos: list[RecordInfo] = []
    with open(folder / "windows.f32", "wb") as file:
        for windows, info in parts:
            file.write(np.ascontiguousarray(windows.windows, dtype="<f4").data)
            for name in windows.columns:
                if name != "windows" and name not in _PER_RECORD:
                    columns.setdefault(name, []).append(getattr(windows, name))
            n_windows.append(len(windows))
            infos.append(info)
    table = {name: np.concatenate(found) for name, found in columns.items()}
    np.savez(folder / "table.npz", n_windows=np.array(n_windows), **table)
    facts = {
        **{
            f.name: getattr(windows, f.name)
            for f in fields(windows)
            if f.name not in windows.columns
        },
        "shape": windows.windows.shape[1:],
        "records": [info.to_dict() for info in infos],
    }
    (folder / "dataset.json").write_text(json.dumps(facts))


def _read_dataset(folder: Path, cutting: Cutting) -> Dataset:
    facts = json.loads((folder / "dataset.json").read_text())
    records = tuple(cutting.info_type.from_dict(values) for values in facts.pop("records"))
    path = folder / "table.npz"
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as table:
        columns = {name: table[name] for name in table.files}
    record = np.repeat(np.arange(len(records)), columns.pop("n_windows"))
    shape = (len(record), *facts.pop("shape"))
    windows = cutting.set_type(
        windows=_mapped(folder / "windows.f32", shape),
        subject_ids=np.array([r.subject_id for r in records])[record],
        record_ids=np.array([r.record_id for r in records])[record],
        **{name: tuple(v) if isinstance(v, list) else v for name, v in facts.items()},
        **columns,
    )
    if {len(column) for column in columns.values()} != {len(record)}:
        raise ValueError(f"{folder}: windows and table don't line up.")
    return Dataset(windows=windows, records=records)


def _mapped(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map a file of float32 values; one of another size than `shape` needs is a ValueError."""
    n_bytes = 4 * int(np.prod(shape))
    if file.stat().st_size != n_bytes:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, {n_bytes} were expected.")
    if not n_bytes:  # an empty file can't be mapped
        return np.zeros(shape, dtype=np.float32)
    return np.memmap(file, dtype="<f4", mode="r", shape=shape)
