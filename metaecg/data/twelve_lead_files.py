"""The signals of many 12-lead recordings: standard lead order, one length, kept in the cache."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaecg.data import cache
from metaecg.data.headers import millivolts_per_step, read_header
from metaecg.data.records import read_signal, record_files
from metaecg.data.twelve_lead_input import TwelveLeadInput, fit_length
from metaecg.errors import CacheError, DataError

STANDARD_LEADS = (*("I", "II", "III", "aVR", "aVL", "aVF"), *(f"V{i}" for i in range(1, 7)))
"""The order of the leads, whatever the order in a file."""

PREPARATION_VERSION = 1
"""Part of every cache key; raise it when the same files and settings would give other signals."""

NO_VOLTAGE = "NU"
"""The unit of recordings that were normalised before they were published: no unit at all."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What `read_signals` found, the signals perhaps memory-mapped."""

    values: np.ndarray
    """Shape ``(n_kept, 12, n_samples)``, float32."""
    kept: np.ndarray
    """Shape ``(n_kept,)``: ``values[i]`` belongs to ``paths[kept[i]]``."""
    dropped: dict[int, str]
    """Index into the paths -> why that recording isn't used."""
    fs_hz: float
    unit: str
    n_cropped: int
    n_padded: int


def read_twelve_leads(path: Path) -> tuple[np.ndarray, float, str]:
    """Read one recording.

    Parameters
    ----------
    path
        The record's path without extension; WFDB files, or the Challenge's ``.hea`` and ``.mat``.

    Returns
    -------
    signals
        Shape ``(12, n_samples)``, float32, in the order of `STANDARD_LEADS`; NaN where nothing was
        measured.
    fs_hz
        Sampling rate in hertz.
    unit
        ``"mV"``, or ``"NU"`` where the header says that the amplitudes mean nothing.

    Raises
    ------
    DataError
        A lead is missing or there twice, or the files are damaged; see
        `metaecg.data.records.read_record`.
    """
    header = read_header(path)
    channels = _standard_order(path, header.sig_name)
    units = {header.units[i].upper() == NO_VOLTAGE for i in channels}
    if len(units) > 1:
        raise DataError(
            f"record {path.name!r}: its leads have the units {', '.join(header.units)}; expected "
            "one kind for all. Correct the header or leave the record out."
        )
    normalised = units.pop()
    signals = read_signal(path, header, channels, scale=_unit_step if normalised else millivolts_per_step)  # fmt: skip
    return signals, float(header.fs), NO_VOLTAGE if normalised else "mV"


def read_signals(
    paths: Sequence[Path],
    checksums: dict[Path, str],
    *,
    duration_s: float,
    preprocessing: TwelveLeadInput | None,
    cache_root: str | Path | None,
) -> Signals:
    """Read recordings one by one into one array, or take them from the cache.

    With `preprocessing` every recording is filtered as a whole and then brought to its length.
    Without, it keeps its first `duration_s` seconds, zeros behind where it is shorter, and all
    must have one sampling rate. A recording with a sample that wasn't measured is dropped.

    Parameters
    ----------
    paths
        Record paths without extension.
    checksums
        SHA-256 of every file of every record; the cache's key is made of them.
    duration_s, preprocessing
        As above.
    cache_root
        Where prepared signals are kept and memory-mapped from; None keeps them in memory.
    """
    settings = _Settings(duration_s, preprocessing)
    if cache_root is None:
        rows = _Rows(len(paths))
        facts = _read_all(paths, settings, rows.append)
        return _signals(rows.values(), facts)
    key = _key(paths, checksums, settings)
    root = Path(cache_root)
    found = cache.load(root, key, read=_load)
    if found is None:
        cache.store(root, key, write=lambda folder: _store(folder, paths, settings))
        found = cache.load(root, key, read=_load)
    if found is None:
        raise CacheError(
            f"the signals just written to the cache {root} can't be read back. Choose another folder."
        )
    return found


def files_of(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return record path -> its header and signal files."""
    return {path: [f for f in record_files(path) if f.suffix != ".atr"] for path in paths}


@dataclass(frozen=True)
class _Settings:
    duration_s: float
    preprocessing: TwelveLeadInput | None

    def prepare(self, signals: np.ndarray, fs_hz: float) -> np.ndarray:
        if self.preprocessing is not None:
            return self.preprocessing.prepare(signals, fs_hz=fs_hz)
        return fit_length(signals, round(self.duration_s * fs_hz))

    def target_s(self) -> float:
        if self.preprocessing is None:
            return self.duration_s
        return self.preprocessing.n_samples / self.preprocessing.fs_hz

    def to_dict(self) -> dict:
        if self.preprocessing is None:
            return {"duration_s": self.duration_s}
        return self.preprocessing.to_dict()


class _Rows:
    """An array that is allocated once, when the first row tells its shape."""

    def __init__(self, n_most: int) -> None:
        self.n_most, self.n, self.array = n_most, 0, None

    def append(self, row: np.ndarray) -> None:
        if self.array is None:
            self.array = np.empty((self.n_most, *row.shape), dtype=np.float32)
        self.array[self.n] = row
        self.n += 1

    def values(self) -> np.ndarray:
        return self.array[: self.n] if self.array is not None else np.zeros((0, 12, 0), np.float32)


def _read_all(
    paths: Sequence[Path], settings: _Settings, keep: Callable[[np.ndarray], None]
) -> dict:
    """Hand every usable recording to `keep`; return what `Signals` has beside the values."""
    facts = {"kept": [], "dropped": {}, "rates": {}, "units": {}, "n_cropped": 0, "n_padded": 0}
    for i, path in enumerate(paths):
        signals, fs_hz, unit = read_twelve_leads(path)
        if not np.isfinite(signals).all():
            n_bad = int((~np.isfinite(signals)).any(axis=0).sum())
            facts["dropped"][i] = f"{n_bad} of {signals.shape[1]} samples were not measured"
            continue
        _check_alike(facts, path, fs_hz, unit, settings)
        excess_s = signals.shape[1] / fs_hz - settings.target_s()
        facts["n_cropped"] += excess_s > 0.5 / fs_hz
        facts["n_padded"] += excess_s < -0.5 / fs_hz
        facts["kept"].append(i)
        keep(settings.prepare(signals, fs_hz))
    return _finish(facts, settings)


def _check_alike(facts: dict, path: Path, fs_hz: float, unit: str, settings: _Settings) -> None:
    """Refuse a second unit, and a second rate that nobody resamples."""
    first = next(iter(facts["units"]), unit), next(iter(facts["rates"]), fs_hz)
    facts["units"][unit] = facts["rates"][fs_hz] = True
    if unit != first[0]:
        raise DataError(
            f"record {path.name!r} is in {unit}, those before it are in {first[0]}; expected one "
            "unit. Read the two kinds as two sets."
        )
    if fs_hz != first[1] and settings.preprocessing is None:
        raise DataError(
            f"record {path.name!r} has {fs_hz:g} Hz, those before it have {first[1]:g} Hz; expected "
            "one rate. Pass preprocessing, which resamples, or read the two kinds as two sets."
        )


def _finish(facts: dict, settings: _Settings) -> dict:
    if not facts["kept"]:
        reason = next(iter(facts["dropped"].values()), "there is none")
        raise DataError(
            f"none of {len(facts['dropped'])} recordings can be used; the first one: {reason}."
        )
    preprocessing = settings.preprocessing
    scaled = preprocessing is not None and preprocessing.normalize == "lead"
    return {
        **{name: facts[name] for name in ("kept", "dropped", "n_cropped", "n_padded")},
        "fs_hz": preprocessing.fs_hz if preprocessing else next(iter(facts["rates"])),
        "unit": "sd" if scaled else next(iter(facts["units"])),
    }


def _signals(values: np.ndarray, facts: dict) -> Signals:
    dropped = {int(i): reason for i, reason in facts["dropped"].items()}
    rest = {name: facts[name] for name in ("fs_hz", "unit", "n_cropped", "n_padded")}
    kept = np.array(facts["kept"], dtype=np.int64)
    return Signals(values=values, kept=kept, dropped=dropped, **rest)


def _store(folder: Path, paths: Sequence[Path], settings: _Settings) -> None:
    shape: list[int] = []
    with open(folder / "signals.f32", "wb") as file:

        def write(row: np.ndarray) -> None:
            shape[:] = row.shape
            file.write(np.ascontiguousarray(row, dtype="<f4").data)

        facts = _read_all(paths, settings, write)
    facts = {**facts, "shape": [len(facts["kept"]), *shape]}
    (folder / "signals.json").write_text(json.dumps(facts))


def _load(folder: Path) -> Signals:
    facts = json.loads((folder / "signals.json").read_text())
    shape, file = tuple(facts["shape"]), folder / "signals.f32"
    if file.stat().st_size != 4 * int(np.prod(shape)):
        raise ValueError(f"{file} has {file.stat().st_size} bytes, not what {shape} needs.")
    return _signals(np.memmap(file, dtype="<f4", mode="r", shape=shape), facts)


def _key(paths: Sequence[Path], checksums: dict[Path, str], settings: _Settings) -> str:
    content = {
        "kind": "twelve leads",
        "version": PREPARATION_VERSION,
        "settings": settings.to_dict(),
        "files": [[f.name, checksums[f]] for files in files_of(paths).values() for f in files],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _standard_order(path: Path, names: Sequence[str]) -> list[int]:
    """Return the place of every standard lead in the file."""
    found = [str(name).strip().upper() for name in names]
    missing = [lead for lead in STANDARD_LEADS if found.count(lead.upper()) != 1]
    if missing:
        raise DataError(
            f"record {path.name!r} has the leads {', '.join(names)}; expected each of the 12 "
            f"standard leads once, and {', '.join(missing)} is not. Leave the record out."
        )
    return [found.index(lead.upper()) for lead in STANDARD_LEADS]


def _unit_step(path: Path, header, i: int) -> float:
    """Return the size of a step in a unit that is no voltage."""
    gain = header.adc_gain[i]
    if not (np.isfinite(gain) and gain > 0):
        raise DataError(
            f"record {path.name!r}, lead {header.sig_name[i]!r}: the gain is {gain}; expected a "
            "finite number of steps per unit above 0. Correct the header or fetch it again."
        )
    return 1.0 / gain
