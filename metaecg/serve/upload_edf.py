"""A recording as EDF or EDF+C, read strictly.

The header is fixed-width text [1]_; once it can be trusted the samples are one array of 16-bit numbers.
edfio, against which this is tested, mends a header that lies about sizes and warns, and takes
any calibration; here both are refused.

References
----------
.. [1] B. Kemp et al., "A simple format for exchange of digitized polygraphic recordings",
   Electroencephalogr. Clin. Neurophysiol. 82(5):391-393, 1992.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metaecg.errors import DataError
from metaecg.serve.units import mv_per_unit
from metaecg.serve.upload_checks import (
    MAX_CHANNELS,
    Columns,
    UploadFacts,
    UploadLimits,
    agreed_rate,
    check_lengths,
    check_same_unit,
    chosen_columns,
    distinct_names,
    quoted,
    single_file,
    stated_unit,
)

ANNOTATIONS = "EDF Annotations"
_WHOLE = re.compile(r"[+-]?\d{1,8}", re.A)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.I | re.A)
_MAIN = {"reserved": (192, 44), "n_records": (236, 8), "record_s": (244, 8), "n_signals": (252, 4)}
_MAIN |= {"version": (0, 8), "n_header_bytes": (184, 8)}
_OF_SIGNAL = (
    ("label", 16),
    ("transducer", 80),
    ("unit", 8),
    ("physical_min", 8),
    ("physical_max", 8),
    ("digital_min", 8),
    ("digital_max", 8),
    ("prefiltering", 80),
    ("n_per_record", 8),
    ("reserved", 32),
)
"""Fields of the header and their places: offset and width; width in the order of the file."""


@dataclass(frozen=True)
class _Header:
    n_bytes: int
    n_records: int
    record_s: float
    signals: tuple[dict[str, str], ...]
    n_per_record: tuple[int, ...]


def read_edf(files: Mapping[str, bytes], facts: UploadFacts, limits: UploadLimits) -> Columns:
    """Return the wanted signals of an EDF file; a header that lies is a DataError."""
    file_name, content = single_file(files, "an EDF recording")
    header = _header(content)
    _check_size(content, header)
    places = [i for i, signal in enumerate(header.signals) if signal["label"] != ANNOTATIONS]
    names = distinct_names([header.signals[i]["label"] for i in places])
    chosen = chosen_columns(names, facts)
    names, places = tuple(names[i] for i in chosen), [places[i] for i in chosen]
    check_lengths(1, len(names), 1.0, limits)
    n_each = {header.n_per_record[i] for i in places}
    if len(n_each) > 1:
        raise DataError(
            "the signals of the file have different sampling rates; expected one. Name the ECG leads in "
            "lead_names."
        )
    n_per_record = n_each.pop()
    fs_hz = agreed_rate(facts, n_per_record / header.record_s, limits)
    check_lengths(n_per_record * header.n_records, len(names), fs_hz, limits)
    scales = [
        _scale(header.signals[i], facts, where=f"signal {quoted(name)}")
        for i, name in zip(places, names, strict=True)
    ]
    return Columns(
        signal_mv=_unpacked(content, header, places, scales),
        fs_hz=fs_hz,
        lead_names=names,
        name=file_name.rsplit(".", 1)[0],
    )


def _header(content: bytes) -> _Header:
    if len(content) < 256:
        raise DataError(f"the file has {len(content)} bytes; an EDF header alone has 256.")
    main = {key: _text(content[at : at + width]) for key, (at, width) in _MAIN.items()}
    if main["version"] != "0":
        raise DataError(
            f"the file starts with {quoted(main['version'])}; expected 0, the version of EDF. Export the "
            "recording as EDF (BDF is another format)."
        )
    if main["reserved"].upper().startswith("EDF+D"):
        raise DataError(
            "the file is EDF+D, with interruptions; expected one stretch. Export it as EDF+C."
        )
    n_signals = _whole(main["n_signals"], "number of signals", 1, MAX_CHANNELS)
    n_bytes = 256 * (n_signals + 1)
    _whole(main["n_header_bytes"], "number of bytes in the header", n_bytes, n_bytes)
    if len(content) < n_bytes:
        raise DataError(
            f"the file has {len(content)} bytes; the header of {n_signals} signals alone has "
            f"{n_bytes}. The file was cut short."
        )
    record_s = _number(main["record_s"], "duration of a data record")
    if not record_s > 0:
        raise DataError(f"the duration of a data record is {record_s:g} s; expected more than 0.")
    signals = _signals(content[256:n_bytes], n_signals)
    return _Header(
        n_bytes=n_bytes,
        n_records=_whole(main["n_records"], "number of data records", 1, 10**8),
        record_s=record_s,
        signals=signals,
        n_per_record=tuple(
            _whole(signal["n_per_record"], "number of samples in a data record", 1, 10**8)
            for signal in signals
        ),
    )


def _signals(raw: bytes, n_signals: int) -> tuple[dict[str, str], ...]:
    """Return the fields of every signal; the file has each field of all signals side by side."""
    found: list[dict[str, str]] = [{} for _ in range(n_signals)]
    at = 0
    for key, width in _OF_SIGNAL:
        for signal in found:
            signal[key] = _text(raw[at : at + width])
            at += width
    return tuple(found)


def _text(raw: bytes) -> str:
    """Return a field as text. The format says ASCII; µ and accents of Latin-1 are common."""
    return raw.decode("latin-1").strip(" \0")


def _whole(text: str, what: str, low: int, high: int) -> int:
    value = int(text) if _WHOLE.fullmatch(text) else None
    if value is None or not low <= value <= high:
        expected = f"{low}" if low == high else f"a whole number from {low} to {high}"
        raise DataError(
            f"the {what} in the EDF header is {quoted(text)}; expected {expected}. Export it again."
        )
    return value


def _number(text: str, what: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise DataError(
            f"the {what} in the EDF header is {quoted(text)}; expected a finite number. Export it "
            "again."
        )
    return value


def _check_size(content: bytes, header: _Header) -> None:
    expected = header.n_bytes + 2 * header.n_records * sum(header.n_per_record)
    if len(content) != expected:
        raise DataError(
            f"the file has {len(content)} bytes; its header promises {header.n_records} data records of "
            f"{2 * sum(header.n_per_record)} bytes, {expected} in all. It was cut short, or the "
            "header is of another file; export it again."
        )


def _scale(signal: dict[str, str], facts: UploadFacts, *, where: str) -> tuple[float, float]:
    """Return (millivolts of one step, millivolts at 0) of a signal."""
    if signal["unit"] or facts.unit is None:
        unit_mv = mv_per_unit(signal["unit"], where=where)
        check_same_unit(facts, unit_mv, where=where)
    else:
        unit_mv = stated_unit(facts)
    low, high = (
        _whole(signal[f"digital_{end}"], f"digital {end}imum", -(2**15), 2**15 - 1)
        for end in ("min", "max")
    )
    bottom, top = (
        _number(signal[f"physical_{end}"], f"physical {end}imum") for end in ("min", "max")
    )
    if low >= high or bottom == top:
        raise DataError(
            f"{where}: the header maps {low} to {high} onto {bottom:g} to {top:g}; expected two "
            "different numbers on each side, the lower digital one first. Export it again."
        )
    step = (top - bottom) / (high - low)
    return unit_mv * step, unit_mv * (bottom - low * step)


def _unpacked(
    content: bytes, header: _Header, places: list[int], scales: list[tuple[float, float]]
) -> np.ndarray:
    frames = np.frombuffer(content, dtype="<i2", offset=header.n_bytes)
    frames = frames.reshape(header.n_records, sum(header.n_per_record))
    stops = np.cumsum(header.n_per_record)
    n_each = header.n_per_record[places[0]]
    found = np.empty((len(places), header.n_records * n_each), dtype=np.float32)
    with np.errstate(over="ignore"):  # what is beyond float32 is refused as infinite
        for row, place, (mv_per_step, mv_at_zero) in zip(found, places, scales, strict=True):
            steps = frames[:, stops[place] - n_each : stops[place]].reshape(-1)
            row[:] = steps * mv_per_step + mv_at_zero
    return found
