"""Read a WFDB header and refuse one that would give wrong millivolts or a wrong length."""

import math
import re
from pathlib import Path

from metaecg.errors import DataError

_MV_PER_UNIT = {"mv": 1.0, "uv": 1e-3, "v": 1e3}  # by lower-case unit, µ spelt u
_BYTES_PER_SAMPLE = {"8": 1, "16": 2, "24": 3, "32": 4, "61": 2, "80": 1, "160": 2, "212": 1.5}

_CALIBRATION = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?(\(-?\d+\))?(/[^\d\s()]\S*)?", re.I)
"""A header's ``gain(baseline)/unit``, for instance ``200``, ``400.0(0)/mV``."""


def read_header(path: Path, known=None):
    """Return the header of a record, as wfdb's ``Record``, once its lengths can be trusted.

    Parameters
    ----------
    path
        The record's path without extension.
    known
        The `Database` it belongs to, whose sampling rate is then expected.

    Raises
    ------
    DataError
        The file is missing or no header of a single-segment record, the sampling rate makes no
        sense, or a signal file is missing or shorter than the header promises.
    """
    header = _parse(path)
    _check_rate(path, header, known)
    _check_sizes(path, header)
    return header


def millivolts_per_step(path: Path, header, i: int) -> float:
    """Return the size of one step of the converter of lead `i`.

    Raises
    ------
    DataError
        The gain or the unit makes no sense.

    Notes
    -----
    A gain of 0, or none at all, is WFDB's mark for "not calibrated", and WFDB's rule to take 200
    steps per millivolt then is followed. It isn't refused: real headers of afdb, nsrdb and svdb
    have it. Amplitudes in millivolts are a convention there; windows that are normalised one by one
    don't depend on them.

    wfdb ignores what it doesn't understand in a header: it reads a gain of ``2,5`` as 2, of ``nan``
    as 200, and the unit µV as V, a million times too large. So the field is checked as it is
    written.
    """
    where = f"record {path.name!r}, lead {header.sig_name[i]!r}"
    fields = _signal_lines(path)[i].split()
    written = fields[2] if len(fields) > 2 else "0"  # none: not calibrated, like 0
    match = _CALIBRATION.fullmatch(written)
    if match is None:
        raise DataError(
            f"{where}: the header's gain is written {written!r}; expected steps per unit, such as "
            "200 or 400.0(0)/mV. Correct the header or fetch it again."
        )
    gain = header.adc_gain[i]
    if not (math.isfinite(gain) and gain > 0):
        raise DataError(
            f"{where}: the gain is {gain:g}; expected a finite number of steps per millivolt above "
            "0 (0 itself: not calibrated). Correct the header or fetch it again."
        )
    unit = (match.group(4) or "/mV")[1:]
    for micro in ("\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"):
        unit = unit.replace(micro, "u")
    if unit.lower() not in _MV_PER_UNIT:
        raise DataError(
            f"{where}: the unit is {unit!r}; expected mV (or uV, V). Convert the signal to "
            "millivolts first."
        )
    return _MV_PER_UNIT[unit.lower()] / gain


def _parse(path: Path):
    import wfdb

    file = _file(path)
    if not file.exists():
        raise DataError(
            f"record {path.name!r}: {file} does not exist. Check the folder, or fetch the "
            "database with python -m metaecg.data download."
        )
    try:
        header = wfdb.rdheader(str(path))
    except Exception as error:  # wfdb raises bare Exceptions and whatever parsing trips over
        raise DataError(
            f"record {path.name!r}: {file} is not a WFDB header ({error}). Fetch the file again."
        ) from error
    if isinstance(header, wfdb.MultiRecord):
        raise DataError(
            f"record {path.name!r}: {file} describes a record of {header.n_seg} segments; expected "
            "one segment. Read the segments as records of their own."
        )
    if not header.n_sig or not header.sig_len or not getattr(header, "file_name", None):
        raise DataError(
            f"record {path.name!r}: {file} names no signal or no length; expected at least "
            "one signal with a number of samples. Fetch the file again."
        )
    if not len(header.file_name) == len(_signal_lines(path)) == header.n_sig:
        raise DataError(
            f"record {path.name!r}: {file} promises {header.n_sig} signals and describes "
            f"{len(_signal_lines(path))}. The file was cut short; fetch it again."
        )
    return header


def _file(path: Path) -> Path:
    return path.with_name(path.name + ".hea")


def _signal_lines(path: Path) -> list[str]:
    """Return the lines that describe signals, as written: wfdb drops what isn't ASCII."""
    text = _file(path).read_bytes().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")][1:]


def _check_rate(path: Path, header, known) -> None:
    if not (header.fs and math.isfinite(header.fs) and header.fs > 0):
        raise DataError(
            f"record {path.name!r}: the header's sampling rate is {header.fs}; expected a number "
            "of hertz above 0. Fetch the header again."
        )
    if known is not None and abs(header.fs - known.fs_hz) > 1e-6:
        raise DataError(
            f"record {path.name!r}: the header says {header.fs:g} Hz; {known.slug} is sampled at "
            f"{known.fs_hz:g} Hz. Fetch the header again, or read the record as another database."
        )


def _check_sizes(path: Path, header) -> None:
    """Compare every signal file's size with what the header promises."""
    for file_name in dict.fromkeys(header.file_name):
        file = path.with_name(file_name)
        if not file.exists():
            raise DataError(
                f"record {path.name!r}: the signal file {file} is missing. Fetch it again."
            )
        columns = [i for i, name in enumerate(header.file_name) if name == file_name]
        if any(header.fmt[i] not in _BYTES_PER_SAMPLE for i in columns):
            continue
        samples = sum((header.samps_per_frame or [1] * header.n_sig)[i] or 1 for i in columns)
        offset = (header.byte_offset or [0] * header.n_sig)[columns[0]] or 0
        n_bytes = header.sig_len * samples * _BYTES_PER_SAMPLE[header.fmt[columns[0]]]
        expected = offset + math.ceil(n_bytes)
        found = file.stat().st_size
        if found < expected:
            raise DataError(
                f"record {path.name!r}: {file_name} has {found} bytes; the header promises "
                f"{header.sig_len} samples of {len(columns)} leads, that is {expected} bytes. The "
                "file was cut short, or the header belongs to another one; fetch both again."
            )
