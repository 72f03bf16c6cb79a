"""A recording as WFDB files: the header is checked and written anew before anything is opened.

The library's own reader (`metaecg.data`) unpacks the signal, so an uploaded recording equals the same
one read from a folder. It wants files: they lie in a private folder under names of ours, and nothing
of the upload, such as the file names in the header, ever becomes a path.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metaecg.data.headers import read_header
from metaecg.data.records import read_signal
from metaecg.errors import DataError
from metaecg.serve.units import mv_per_unit
from metaecg.serve.upload_checks import (
    MAX_CHANNELS,
    Columns,
    UploadFacts,
    UploadLimits,
    agreed_rate,
    check_file_name,
    check_lengths,
    check_same_unit,
    chosen_columns,
    distinct_names,
    quoted,
)
from metaecg.serve.upload_folder import private_folder

MAX_HEADER_BYTES = 256 * 1024
BYTES_PER_SAMPLES = {
    "8": (1, 1),
    "16": (2, 1),
    "24": (3, 1),
    "32": (4, 1),
    "80": (1, 1),
    "160": (2, 1),
    "212": (3, 2),
    "310": (4, 3),
    "311": (4, 3),
}
"""Formats that are read: so many bytes hold so many samples. Not 61, on which wfdb 4.3.1
fails, and not the compressed ones (508, 516, 524):
a small file of them unpacks to any size."""
GAIN_RANGE = (1e-2, 1e9)
"""Steps per millivolt beyond these belong to no converter."""
MAX_PER_FRAME = 64
_COUNT = re.compile(r"\d{1,12}", re.A)
_RATE = re.compile(r"(\d{1,9}(?:\.\d{0,9})?)(?:/\S*)?", re.A)
_FORMAT = re.compile(r"(\d{1,3})(?:x(\d{1,4}))?(?::(\d{1,9}))?(?:\+(\d{1,9}))?", re.A)
_GAIN = re.compile(
    r"([+-]?(?:\d{1,20}\.?\d{0,20}|\.\d{1,20})(?:e[+-]?\d{1,3})?)(\(-?\d{1,10}\))?(?:/(\S+))?",
    re.I | re.A,
)
_WHOLE = re.compile(r"[+-]?\d{1,10}", re.A)


@dataclass(frozen=True, kw_only=True)
class _Signal:
    """One line of a header, as far as it matters."""

    file_name: str
    format: str
    per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: str
    unit: str
    numbers: tuple[str, ...]
    """Resolution, zero, first value, checksum: as many as there are."""
    name: str | None


@dataclass(frozen=True, kw_only=True)
class _Header:
    record_name: str
    fs_hz: float
    n_samples: int
    signals: tuple[_Signal, ...]


def read_wfdb(files: Mapping[str, bytes], facts: UploadFacts, limits: UploadLimits) -> Columns:
    """Return the wanted signals of a WFDB record; what doesn't belong together is a DataError."""
    headers = [name for name in files if name.endswith(".hea")]
    if len(headers) != 1:
        raise DataError(
            f"{len(headers)} header files (.hea) were sent; a WFDB recording has one, and its signal "
            "files. Send each recording by itself."
        )
    header = _header(files[headers[0]])
    names = distinct_names([signal.name for signal in header.signals])
    columns = chosen_columns(names, facts)
    fs_hz = agreed_rate(facts, header.fs_hz, limits)
    check_lengths(header.n_samples, len(columns), fs_hz, limits)
    _check_files(header, {name: files[name] for name in files if name != headers[0]}, limits)
    gains = _gains(header, names, columns, facts)
    return Columns(
        signal_mv=_unpacked(header, files, columns, gains, fs_hz, names),
        fs_hz=fs_hz,
        lead_names=tuple(names[i] for i in columns),
        name=header.record_name,
    )


def _header(content: bytes) -> _Header:
    lines = _lines(content)
    name, n_signals, rate, n_samples = (*lines[0].split(None, 4)[:4], "", "", "")[:4]
    if "/" in name:
        raise DataError(
            f"the header describes the record {quoted(name)} of several segments; expected one "
            "segment. Send the segments as recordings of their own."
        )
    if not _COUNT.fullmatch(n_signals) or not 1 <= int(n_signals) == len(lines) - 1 <= MAX_CHANNELS:
        raise DataError(
            f"the header promises {quoted(n_signals)} signals and describes {len(lines) - 1}; expected "
            f"the same, 1 to {MAX_CHANNELS}. It may have been cut short."
        )
    if not _RATE.fullmatch(rate):
        raise DataError(
            f"the header's sampling rate is {quoted(rate)}; expected hertz, such as 250."
        )
    if not _COUNT.fullmatch(n_samples) or not int(n_samples):
        raise DataError(
            f"the header's number of samples is {quoted(n_samples)}; expected a whole number above 0, "
            "after the sampling rate."
        )
    return _Header(
        record_name=name,
        fs_hz=float(_RATE.fullmatch(rate).group(1)),
        n_samples=int(n_samples),
        signals=tuple(_signal(line) for line in lines[1:]),
    )


def _lines(content: bytes) -> list[str]:
    """Return the lines that say something, comments left out."""
    if len(content) > MAX_HEADER_BYTES:
        raise DataError(
            f"the header has {len(content)} bytes; at most {MAX_HEADER_BYTES} are read. Is it a header?"
        )
    text = content.decode("utf-8", errors="replace")
    if "\0" in text:
        raise DataError("the header has a zero byte; expected text. Is it a header?")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise DataError("the header has no line; expected one for the record and one per signal.")
    return lines


def _signal(line: str) -> _Signal:
    fields = line.split(None, 8)
    where = f"the header's line {quoted(line)}"
    found = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    if found is None or found.group(1) not in BYTES_PER_SAMPLES:
        raise DataError(
            f"{where} has no format that is read; expected one of {', '.join(BYTES_PER_SAMPLES)}. "
            "Convert the signal to format 16 (compressed formats are not taken)."
        )
    per_frame, skew, offset = (int(text) if text else None for text in found.groups()[1:])
    calibration = _GAIN.fullmatch(fields[2]) if len(fields) > 2 else _GAIN.fullmatch("0")
    if calibration is None:
        raise DataError(
            f"{where} has the gain {quoted(fields[2])}; expected steps per unit, such as 200 or 400(0)/mV."
        )
    numbers = fields[3:7]
    if not all(_WHOLE.fullmatch(number) for number in numbers):
        raise DataError(
            f"{where} has a resolution, zero, first value or checksum that is no whole number. Correct it."
        )
    if per_frame is not None and not 1 <= per_frame <= MAX_PER_FRAME:
        raise DataError(
            f"{where} has {per_frame} samples in a frame; expected 1 to {MAX_PER_FRAME}."
        )
    return _Signal(
        file_name=fields[0],
        format=found.group(1),
        per_frame=per_frame or 1,
        skew=skew or 0,
        offset=offset or 0,
        gain=float(calibration.group(1)),
        baseline=calibration.group(2) or "",
        unit=calibration.group(3) or "mV",
        numbers=tuple(numbers),
        name=fields[8] if len(fields) > 8 else None,
    )


def _check_files(header: _Header, files: Mapping[str, bytes], limits: UploadLimits) -> None:
    """Refuse names that are paths, files that are missing or too many, and wrong sizes."""
    named = dict.fromkeys(signal.file_name for signal in header.signals)
    for name in named:
        check_file_name(name)
        if name not in files:
            raise DataError(
                f"the header names the signal file {quoted(name)}, which was not sent. Send it too."
            )
    for name in files:
        if name not in named:
            raise DataError(
                f"the file {quoted(name)} was sent and the header doesn't name it; expected the header "
                "and its signal files alone. Leave it out (marks aren't read)."
            )
    for name in named:
        _check_size(header, name, len(files[name]), limits)


def _check_size(header: _Header, name: str, n_found: int, limits: UploadLimits) -> None:
    signals = [signal for signal in header.signals if signal.file_name == name]
    if len({(signal.format, signal.offset) for signal in signals}) > 1:
        raise DataError(
            f"the signals in {quoted(name)} have different formats or offsets; expected the same. "
            "Correct the header."
        )
    n_values = header.n_samples * sum(signal.per_frame for signal in signals)
    if n_values > limits.n_values:
        raise DataError(
            f"{quoted(name)} has {n_values} samples; at most {limits.n_values} are read."
        )
    n_bytes, n_held = BYTES_PER_SAMPLES[signals[0].format]
    least = signals[0].offset + math.ceil(n_values * n_bytes / n_held)
    most = signals[0].offset + math.ceil(n_values / n_held) * n_bytes
    if not least <= n_found <= most:
        raise DataError(
            f"{quoted(name)} has {n_found} bytes; the header promises {header.n_samples} samples of "
            f"{len(signals)} signals, that is {least}. It was cut short, or the header is of another "
            "recording."
        )
    if any(signal.skew > header.n_samples for signal in signals):
        raise DataError(f"a signal in {quoted(name)} is shifted by more samples than there are.")


def _gains(
    header: _Header, names: tuple[str, ...], columns: list[int], facts: UploadFacts
) -> dict[int, tuple[float, str]]:
    """Return the steps per unit and the unit of every wanted signal, by its place in the header."""
    found = {}
    for i in columns:
        signal, where = header.signals[i], f"signal {quoted(names[i])}"
        per_unit = mv_per_unit(signal.unit, where=where)
        check_same_unit(facts, per_unit, where=where)
        gain = signal.gain
        if not gain:
            gain = _stated_gain(facts, where) * per_unit
        elif facts.gain_per_mv is not None and not math.isclose(gain / per_unit, facts.gain_per_mv):
            raise DataError(
                f"{where}: the header has {gain / per_unit:g} steps per mV, gain_per_mv was stated as "
                f"{facts.gain_per_mv:g}. Leave it out, or send the right file."
            )
        if not GAIN_RANGE[0] <= gain / per_unit <= GAIN_RANGE[1]:
            raise DataError(
                f"{where}: the gain is {gain / per_unit:g} steps per mV; expected {GAIN_RANGE[0]:g} to "
                f"{GAIN_RANGE[1]:g}. Correct the header."
            )
        found[i] = (gain, signal.unit)
    return found


def _stated_gain(facts: UploadFacts, where: str) -> float:
    """Return the gain that was stated for a signal without one.

    `metaecg.data` takes 200 steps per mV there, as WFDB does. Nobody would notice in an upload.
    """
    if facts.gain_per_mv is None:
        raise DataError(
            f"{where} is marked as not calibrated (gain 0); expected steps per mV. State gain_per_mv, or "
            "correct the header."
        )
    return facts.gain_per_mv


def _unpacked(
    header: _Header,
    files: Mapping[str, bytes],
    columns: list[int],
    gains: dict[int, tuple[float, str]],
    fs_hz: float,
    names: tuple[str, ...],
) -> np.ndarray:
    with private_folder() as folder:
        ours = {}
        for signal in header.signals:
            if signal.file_name not in ours:
                ours[signal.file_name] = f"rec{len(ours)}.dat"
                (folder / ours[signal.file_name]).write_bytes(files[signal.file_name])
        path = folder / "rec"
        lines = [f"rec {len(header.signals)} {fs_hz!r} {header.n_samples}"]
        lines += [
            _line(signal, ours[signal.file_name], *gains.get(i, (200.0, "mV")))
            for i, signal in enumerate(header.signals)
        ]
        path.with_suffix(".hea").write_text("\n".join(lines) + "\n", encoding="ascii")
        understood = read_header(path)
        understood.sig_name = list(names)  # for messages: the header of ours names none
        return read_signal(path, understood, columns)


def _line(signal: _Signal, file_name: str, gain: float, unit: str) -> str:
    """Return the header's line of a signal, written from what was understood of it."""
    layout = signal.format
    layout += f"x{signal.per_frame}" * (signal.per_frame > 1)
    layout += f":{signal.skew}" * bool(signal.skew) + f"+{signal.offset}" * bool(signal.offset)
    unit = {1.0: "mV", 1e-3: "uV", 1e3: "V"}[mv_per_unit(unit, where="the header")]
    fields = [file_name, layout, f"{gain!r}{signal.baseline}/{unit}", *signal.numbers]
    return " ".join(fields)
