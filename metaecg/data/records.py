"""One recording: WFDB files in, a checked `Record` in millivolts out."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metaecg.data.headers import millivolts_per_step, read_header
from metaecg.errors import DataError

_NOT_MEASURED = {
    "80": -(2**7),
    "508": -(2**7),
    "310": -(2**9),
    "311": -(2**9),
    "212": -(2**11),
    "24": -(2**23),
    "524": -(2**23),
    "32": -(2**31),
    "8": None,
}
"""The digital value that WFDB reserves for "not measured", by format; all others: ``-2**15``."""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Marks on a recording, in the order of time."""

    sample: np.ndarray
    """Sample indices at the recording's own rate, shape ``(n_marks,)``, int64."""
    symbol: tuple[str, ...]
    """WFDB symbols: ``N``, ``V``, ``[``, ``+``..."""
    note: tuple[str, ...]
    """The text beside a mark, such as ``(VT``; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One recording of one person."""

    record_id: str
    """``database/name``, such as ``mitdb/100``."""
    subject_id: str
    """Who it is, such as ``mitdb/201`` (also for record 202, the same person)."""
    signal_mv: np.ndarray = field(repr=False)
    """Shape ``(n_leads, n_samples)``, float32, millivolts; NaN where nothing was measured."""
    fs_hz: float
    lead_names: tuple[str, ...]
    annotations: Annotations | None = field(default=None, repr=False)
    database: str = ""

    @property
    def n_samples(self) -> int:
        return self.signal_mv.shape[1]

    @property
    def duration_s(self) -> float:
        """Length of the recording in seconds."""
        return self.n_samples / self.fs_hz


def read_record(
    path: str | Path,
    *,
    database: str | None = None,
    leads: str = "preferred",
    annotations: bool = True,
) -> Record:
    """Read a WFDB recording and check that header, signal and annotations agree.

    Parameters
    ----------
    path
        The record's path without extension, or its ``.hea`` file.
    database
        Slug in `metaecg.data.databases.DATABASES`; it decides the lead, the person and the rate
        that is expected. By default the folder's name if that is a known slug. An unknown database
        gives ``subject_id = folder/record`` and the first lead.
    leads
        ``"preferred"`` (one lead, chosen by name), ``"two"`` (that one and the next in the file,
        from a recording with one lead that one alone) or ``"all"``.
    annotations
        Read the annotation file too; a missing or an empty one is then an error.

    Raises
    ------
    DataError
        A file is missing or cut short, header and signal disagree (length, checksum), the unit is
        not a voltage, the sampling rate is not the database's, annotations are missing, empty, cut
        short or beyond the signal's end.

    Notes
    -----
    NaN marks what was not measured (``-2048`` in 12-bit files, as WFDB defines it) and is kept.
    A gain of 0 means "not calibrated"; see `metaecg.data.headers.millivolts_per_step`.
    """
    path = Path(path).with_suffix("") if str(path).endswith(".hea") else Path(path)
    known = _known_database(path, database)
    header = read_header(path, known)
    channels = _choose_channels(header, known, leads)
    signal_mv = read_signal(path, header, channels)
    marks = _read_annotations(path, header, known) if annotations else None
    folder = known.slug if known else path.parent.name
    return Record(
        record_id=f"{folder}/{path.name}",
        subject_id=_subject(path, header, known),
        signal_mv=signal_mv,
        fs_hz=float(header.fs),
        lead_names=tuple(header.sig_name[i] for i in channels),
        annotations=marks,
        database=folder,
    )


def subject_of(path: str | Path, *, database: str | None = None) -> str:
    """Return whose recording `path` is, as `read_record` would; the signal is not opened.

    `path` and `database` as for `read_record`. The header is read only where it alone names the
    person (incartdb).

    Raises
    ------
    DataError
        The header that has to name the person can't be read or doesn't.

    Examples
    --------
    >>> subject_of("data/mitdb/202"), subject_of("data/mine/p7")
    ('mitdb/201', 'mine/p7')
    """
    path = Path(path).with_suffix("") if str(path).endswith(".hea") else Path(path)
    known = _known_database(path, database)
    header = read_header(path, known) if known and known.patient_comment else None
    return _subject(path, header, known)


def read_signal(
    path: Path, header, channels: list[int], *, scale: Callable = millivolts_per_step
) -> np.ndarray:
    """Return the chosen leads, float32, NaN where nothing was measured; checksums are compared.

    Parameters
    ----------
    path
        The record's path without extension.
    header
        What `metaecg.data.headers.read_header` returned for it.
    channels
        Indices of the leads in the order that is wanted.
    scale
        ``scale(path, header, i)``: the size of one step of the converter of lead `i`, by default in
        millivolts, where any other unit is refused.
    """
    rows, read = [], _reader_for(header)
    for i, digital in zip(channels, read(path, header, channels), strict=True):
        _check_checksum(path, header, i, digital)
        # In double precision: the difference of two 16-bit numbers may have 17.
        row = np.subtract(digital, header.baseline[i], dtype=np.float64)
        row *= scale(path, header, i)
        row[digital == _NOT_MEASURED.get(header.fmt[i], -(2**15))] = np.nan
        rows.append(_on_the_frames(header, i, row).astype(np.float32))
    return rows[0][None] if len(rows) == 1 else np.stack(rows)


def record_files(path: str | Path, *, extension: str = "atr") -> list[Path]:
    """Return the files that `read_record` reads for this record (those that exist)."""
    path = Path(path)
    header = path.with_name(path.name + ".hea")
    names = {header.name, f"{path.name}.{extension}"}
    if header.exists():
        for line in header.read_text(errors="replace").splitlines()[1:]:
            if line.strip() and not line.startswith("#"):
                names.add(line.split()[0])
    return sorted(file for file in (path.with_name(name) for name in names) if file.exists())


def _known_database(path: Path, database: str | None):
    from metaecg.data.databases import DATABASES, get_database

    if database is not None:
        return get_database(database)
    return DATABASES.get(path.parent.name)


def _choose_channels(header, known, leads: str) -> list[int]:
    if leads == "all":
        return list(range(header.n_sig))
    if leads not in ("preferred", "two"):
        raise ValueError(f"leads is {leads!r}; expected 'preferred', 'two' or 'all'.")
    first = _preferred_channel(header, known)
    others = [i for i in range(header.n_sig) if i != first]
    return [first, *others[: int(leads == "two")]]


def _preferred_channel(header, known) -> int:
    if known is None:
        return 0
    from metaecg.data.databases import choose_lead

    return choose_lead(known.slug, header.sig_name)


def _on_the_frames(header, i: int, row: np.ndarray) -> np.ndarray:
    """Bring a lead to one sample per frame (their mean) and to the same clock as the others."""
    if len(row) != header.sig_len:
        row = row.reshape(header.sig_len, -1).mean(axis=1)
    skew = (header.skew or [0] * header.n_sig)[i] or 0
    if not skew:
        return row
    return np.concatenate([row[skew:], np.full(min(skew, len(row)), np.nan)])


def _reader_for(header) -> Callable:
    """Return what unpacks the samples: wfdb, unless it is a common case (one file, one format)."""
    formats = {*header.fmt}
    one_file = len(set(header.file_name)) == 1 and len(formats) == 1
    whole = all(n in (1, None) for n in header.samps_per_frame or [None])
    unskewed = all(not skew for skew in header.skew or [0])
    offsets = {offset or 0 for offset in header.byte_offset or [0]}
    if not (one_file and whole and unskewed and len(offsets) == 1):
        return _read_with_wfdb
    if formats == {"16"}:
        return _read_16
    return _read_212 if formats == {"212"} and offsets == {0} else _read_with_wfdb


def _read_16(path: Path, header, channels: list[int]) -> list[np.ndarray]:
    """Return the wanted leads of format 16: little-endian numbers of two bytes, frame by frame."""
    offset = (header.byte_offset or [0])[0] or 0
    n_values = header.sig_len * header.n_sig
    file = path.with_name(header.file_name[0])
    frames = np.fromfile(file, dtype="<i2", count=n_values, offset=offset)
    frames = frames.reshape(header.sig_len, header.n_sig)
    return [frames[:, i] for i in channels]


def _read_212(path: Path, header, channels: list[int]) -> list[np.ndarray]:
    """Unpack format 212 (two 12-bit samples in three bytes), only the leads that are wanted.

    Equality with ``wfdb.rdrecord`` is tested on every record at hand.
    """
    n_values = header.sig_len * header.n_sig
    raw = np.fromfile(path.with_name(header.file_name[0]), dtype=np.uint8)
    n_bytes = -(-n_values // 2) * 3
    if len(raw) < n_bytes:  # an odd number of samples may leave out the last byte
        raw = np.concatenate([raw, np.zeros(n_bytes - len(raw), np.uint8)])
    raw = raw[:n_bytes].reshape(-1, 3)
    if header.n_sig == 2:
        return [_half_of_212(raw, i) for i in channels]
    pairs = np.stack([_half_of_212(raw, 0), _half_of_212(raw, 1)], axis=1)
    frames = pairs.reshape(-1)[:n_values].reshape(header.sig_len, header.n_sig)
    return [frames[:, i] for i in channels]


def _half_of_212(raw: np.ndarray, i: int) -> np.ndarray:
    """Return the first or the second sample of each three bytes, int16 with its sign."""
    value = raw[:, 1].astype(np.uint16)
    if i == 0:
        value <<= 8  # the lower four bits of the middle byte, then the first byte
        value |= raw[:, 0]
    else:
        value &= 0xF0  # the upper four bits of the middle byte, then the last byte
        value <<= 4
        value |= raw[:, 2]
    value <<= 4
    signed = value.view(np.int16)
    signed >>= 4
    return signed


def _read_with_wfdb(path: Path, header, channels: list[int]) -> list[np.ndarray]:
    """Return the samples of the chosen leads as stored: all of each frame, not shifted."""
    import wfdb

    try:
        record = wfdb.rdrecord(str(path), physical=False, smooth_frames=False, ignore_skew=True)
    except Exception as error:
        raise DataError(
            f"record {path.name!r}: the signal can't be read ({error}). Fetch its files again."
        ) from error
    return [record.e_d_signal[i] for i in channels]


def _check_checksum(path: Path, header, i: int, digital: np.ndarray) -> None:
    """Compare the 16-bit sum of a lead's samples with the header's."""
    expected = (header.checksum or [None] * header.n_sig)[i]
    if expected is None:
        return
    found = int(digital.sum(dtype=np.int64)) & 0xFFFF
    if found != int(expected) & 0xFFFF:
        signed = struct.unpack("h", struct.pack("H", found))[0]
        raise DataError(
            f"record {path.name!r}, lead {header.sig_name[i]!r}: the samples sum to the checksum "
            f"{signed}, the header says {expected}. Header and signal don't belong together or "
            "one is damaged; fetch both again."
        )


def _read_annotations(path: Path, header, known) -> Annotations:
    from metaecg.data.annotations import unpack_annotations

    extension = known.annotation_extension if known else "atr"
    file = path.with_name(f"{path.name}.{extension}")
    if not file.exists():
        raise DataError(
            f"record {path.name!r}: the annotation file {file} is missing. Fetch it, or read the "
            "record with annotations=False."
        )
    data = file.read_bytes()
    marks = unpack_annotations(data) or _read_unusual_annotations(path, extension, data, header)
    sample = marks.sample
    outside = sample[(sample < 0) | (sample > header.sig_len)]
    if len(outside):
        raise DataError(
            f"record {path.name!r}: {file.name} has a mark at sample {outside[-1]}; expected 0 to "
            f"{header.sig_len}, where the signal ends. Signal and annotations don't belong "
            "together; fetch both again."
        )
    if len(sample) > 1 and np.diff(sample).min() >= 0:
        return marks
    order = np.argsort(sample, kind="stable")  # a file may step back in time
    return Annotations(
        sample=sample[order],
        symbol=tuple(marks.symbol[i] for i in order),
        note=tuple(marks.note[i] for i in order),
    )


def _read_unusual_annotations(path: Path, extension: str, data: bytes, header) -> Annotations:
    """Let wfdb read what `unpack_annotations` leaves alone, and say what is wrong with it."""
    import wfdb

    name = f"{path.name}.{extension}"
    try:
        marks = wfdb.rdann(str(path), extension)
    except Exception as error:
        raise DataError(
            f"record {path.name!r}: {name} ({len(data)} bytes) can't be read as WFDB annotations "
            f"({error}). Fetch it again."
        ) from error
    if data[-2:] != b"\0\0":
        raise DataError(
            f"record {path.name!r}: {name} ({len(data)} bytes) has no end mark (two zero bytes). The "
            "file was cut short; fetch it again."
        )
    if marks.fs and abs(marks.fs - header.fs) > 1e-6:
        raise DataError(
            f"record {path.name!r}: {name} counts time at {marks.fs:g} Hz, the signal is sampled at "
            f"{header.fs:g} Hz; expected the same. Rewrite the marks at the signal's rate."
        )
    if len(marks.sample) == 0:
        raise DataError(
            f"record {path.name!r}: {name} holds no annotation; expected at least one rhythm or beat "
            "mark. Fetch it again, or leave the record out."
        )
    notes = tuple(note.strip("\x00 \t") for note in marks.aux_note)
    return Annotations(
        sample=np.asarray(marks.sample, dtype=np.int64), symbol=tuple(marks.symbol), note=notes
    )


def _subject(path: Path, header, known) -> str:
    if known is None:
        return f"{path.parent.name}/{path.name}"
    from metaecg.data.databases import subject_id

    return subject_id(known.slug, path.name, tuple((header and header.comments) or ()))
