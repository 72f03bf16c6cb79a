"""What is checked of every upload, whatever its format: names, unit, rate, leads, sizes, values."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaecg.errors import DataError
from metaecg.serve.units import MAX_ABS_MV, mv_per_unit

MAX_CHANNELS = 256
"""Columns of a file, of which at most `UploadLimits.n_leads` are taken."""
MAX_NAME = 64
MAX_TITLE = 200
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class UploadFacts:
    """What the sender states beside the files. Where a file says it too, both have to agree."""

    fs_hz: float | None = None
    """Sampling rate; needed for CSV."""
    unit: str | None = None
    """``"mV"``, ``"uV"`` or ``"V"``; needed for CSV, and for EDF leads without one."""
    lead_names: tuple[str, ...] | None = None
    """For a CSV without a row of names: one for each column. Where a file names its leads: those that
    are wanted, in this order."""
    gain_per_mv: float | None = None
    """Steps of the converter per millivolt, for WFDB leads that are marked as not calibrated."""
    lead: int | None = None
    """Which lead is judged, as an index into the leads that are taken; by default `preferred_lead`."""
    name: str | None = None
    """What people call the recording; by default what the file is called."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What an upload may be at most."""

    n_bytes: int = 512 * 1024 * 1024
    """All files together."""
    duration_s: float = 7 * 86400.0
    n_leads: int = 16
    min_fs_hz: float = 100.0
    max_fs_hz: float = 2000.0
    n_values: int = 2**29
    """Samples of all leads together, unpacked."""
    n_files: int = 64


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Signals as a file had them, in millivolts, before the last checks."""

    signal_mv: np.ndarray
    """Shape ``(n_leads, n_samples)``, float32; NaN where nothing was measured."""
    fs_hz: float
    lead_names: tuple[str, ...]
    name: str = ""
    lead: int | None = None


def quoted(text: object) -> str:
    """Return `text` in quotation marks, shortened, for a message."""
    shown = repr(str(text)[:60])
    return shown if len(str(text)) <= 60 else shown + "..."


def check_file_name(name: str) -> str:
    """Return the name of an uploaded file if it is a plain name, no path; else raise DataError.

    No name of an upload is ever used as a path; a name that looks like one is refused all the same.
    """
    is_plain = (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and not _UNSAFE.search(name)
        and not set(name) & set("/\\:")
        and name.strip() == name
        and not name.startswith((".", "~"))
        and name != "-"  # WFDB's standard input
    )
    if not is_plain:
        raise DataError(
            f"the file name {quoted(name)} is not a plain name; expected one such as 100.dat, "
            "without a folder. Rename the file."
        )
    return name


def single_file(files, what: str) -> tuple[str, bytes]:
    """Return name and content of the one file; another number of files is a DataError."""
    if len(files) != 1:
        raise DataError(
            f"{len(files)} files were sent; {what} is one file. Send each recording by itself."
        )
    return next(iter(files.items()))


def stated_unit(facts: UploadFacts) -> float:
    """Return the millivolts of the unit that was stated; without one a DataError."""
    if facts.unit is None:
        raise DataError("the unit is not stated; expected mV, uV or V. State the unit.")
    return mv_per_unit(facts.unit, where="the recording")


def check_same_unit(facts: UploadFacts, found: float, *, where: str) -> None:
    """Refuse a stated unit that is another one than the file's (`found`: its millivolts)."""
    if facts.unit is not None and stated_unit(facts) != found:
        raise DataError(
            f"{where}: the file's unit has {found:g} mV, the unit that was stated is "
            f"{quoted(facts.unit)}. Leave it out, or send the right file."
        )


def check_rate(fs_hz: object, limits: UploadLimits) -> float:
    """Return a sampling rate in hertz as float; an absurd one is a DataError."""
    is_number = isinstance(fs_hz, (int, float)) and not isinstance(fs_hz, bool)
    if not is_number or not limits.min_fs_hz <= fs_hz <= limits.max_fs_hz:
        raise DataError(
            f"fs_hz is {quoted(fs_hz)}; expected {limits.min_fs_hz:g} to {limits.max_fs_hz:g} Hz. "
            "State the true sampling rate, or resample the recording."
        )
    return float(fs_hz)


def agreed_rate(facts: UploadFacts, found: float | None, limits: UploadLimits) -> float:
    """Return the rate of the file, or the stated one where the file has none."""
    if found is None and facts.fs_hz is None:
        raise DataError(
            "fs_hz is not stated and the file doesn't say it; expected the sampling rate in "
            "hertz. State fs_hz."
        )
    stated = None if facts.fs_hz is None else check_rate(facts.fs_hz, limits)
    if found is None:
        return stated
    found = check_rate(found, limits)
    if stated is not None and not math.isclose(stated, found, rel_tol=1e-9):
        raise DataError(
            f"fs_hz was stated as {stated:g} and the file says {found:g} Hz; expected the same. "
            "Leave it out, or send the right file."
        )
    return found


def check_lengths(n_samples: int, n_leads: int, fs_hz: float, limits: UploadLimits) -> None:
    """Refuse no sample at all, too many leads, too long a recording; before the signal is unpacked."""
    if n_leads > limits.n_leads:
        raise DataError(
            f"the recording has {n_leads} leads; at most {limits.n_leads} are taken. Name the "
            "leads that are wanted in lead_names."
        )
    if n_samples < 1 or n_leads < 1:
        raise DataError(
            f"the recording has {n_leads} leads of {n_samples} samples; expected at least one of each."
        )
    if n_samples / fs_hz > limits.duration_s:
        raise DataError(
            f"the recording lasts {n_samples / fs_hz:.0f} s; at most {limits.duration_s:g} s are "
            "taken. Send it in parts."
        )
    if n_samples * n_leads > limits.n_values:
        raise DataError(
            f"the recording has {n_samples * n_leads} samples in all; at most {limits.n_values} "
            "are taken. Send it in parts, or fewer leads."
        )


def check_lead_names(names: Sequence[object]) -> tuple[str, ...]:
    """Return the names without white space around them; empty, long or equal ones are DataErrors."""
    found = []
    for name in names:
        text = name.strip() if isinstance(name, str) else ""
        if not text or len(text) > MAX_NAME or not text.isprintable():
            raise DataError(
                f"a lead is named {quoted(name)}; expected a name of 1 to {MAX_NAME} characters, "
                "such as II or V5."
            )
        if text in found:
            raise DataError(
                f"two leads are named {quoted(text)}; expected different names. Rename one."
            )
        found.append(text)
    return tuple(found)


def distinct_names(names: Sequence[str | None]) -> tuple[str, ...]:
    """Return names for the signals of a file whose format allows equal and missing ones.

    Examples
    --------
    >>> distinct_names(["ECG", None, "ECG"])
    ('ECG', 'lead 2', 'ECG (2)')
    """
    found: list[str] = []
    for i, name in enumerate(names):
        stem = _printable(name or "")[: MAX_NAME - 8].strip() or f"lead {i + 1}"
        text, number = stem, 2
        while text in found:
            text, number = f"{stem} ({number})", number + 1
        found.append(text)
    return tuple(found)


def chosen_columns(names: Sequence[str], facts: UploadFacts) -> list[int]:
    """Return the indices of the wanted columns among the file's, all if no names were stated."""
    if facts.lead_names is None:
        return list(range(len(names)))
    wanted = check_lead_names(facts.lead_names)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        shown = ", ".join(quoted(name) for name in names[:20])
        raise DataError(
            f"lead_names has {quoted(unknown[0])}; the file has {shown}. Name leads of the file."
        )
    return [list(names).index(name) for name in wanted]


def check_signal(columns: Columns) -> None:
    """Refuse infinite and absurd values, and a recording of which nothing was measured.

    The message never has a value of the signal.
    """
    n_measured = 0
    for name, row in zip(columns.lead_names, columns.signal_mv, strict=True):
        is_nan = np.isnan(row)
        n_measured += len(row) - int(np.count_nonzero(is_nan))
        beyond = ~is_nan & ~(np.abs(row) <= MAX_ABS_MV)
        if beyond.any():
            raise DataError(
                f"lead {quoted(name)} has a sample beyond {MAX_ABS_MV:g} mV, or an infinite one, at "
                f"{int(np.argmax(beyond))}; expected an ECG in millivolts. Check unit and gain."
            )
    if not n_measured:
        raise DataError(
            "every sample is marked as not measured; expected a signal. Send the file that holds it."
        )


def title_of(facts: UploadFacts, found: str) -> str:
    """Return what people call the recording: as stated, else as the file has it; one short line."""
    if facts.name is None:
        return _printable(found)[:MAX_TITLE].strip()
    if len(facts.name) > MAX_TITLE or not facts.name.isprintable():
        raise DataError(
            f"the name {quoted(facts.name)} can't be kept; expected at most {MAX_TITLE} characters "
            "in one line."
        )
    return facts.name.strip()


def _printable(text: str) -> str:
    """Return the text without control characters and those that turn the direction of reading."""
    return "".join(character for character in text if character.isprintable()).strip()
