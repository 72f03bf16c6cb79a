"""What the store takes at its door: names that every database can hold."""

import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np

from metaecg.errors import DataError
from metaecg.serve.store_errors import NotFoundError

SUBJECT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MADE_ID = re.compile(r"[0-9a-f]{32}")
MAX_INTEGER = 2**31 - 1
MAX_NOTE_CHARACTERS = 10_000


def check_subject_id(subject_id: str) -> str:
    """Return a name for a new patient, or raise DataError."""
    if not (isinstance(subject_id, str) and SUBJECT_ID.fullmatch(subject_id)):
        raise DataError(
            f"subject_id is {str(subject_id)[:80]!r}; expected 1 to 64 letters, digits, '.', '_' or "
            "'-', the first a letter or digit."
        )
    return subject_id


def is_subject_id(subject_id: object) -> bool:
    """Whether a patient could have this name; others aren't worth a question to the database."""
    return isinstance(subject_id, str) and SUBJECT_ID.fullmatch(subject_id) is not None


def check_made_id(kind: str, made_id: str) -> str:
    """Return an id that the server could have made; any other is NotFoundError of this `kind`."""
    if not (isinstance(made_id, str) and MADE_ID.fullmatch(made_id)):
        raise NotFoundError(kind, made_id)
    return made_id


def check_text(name: str, text: str, *, longest: int, shortest: int = 1) -> str:
    """Return `text` if every database can hold it: no NUL, no half characters, not too long."""
    if not isinstance(text, str) or not shortest <= len(text) <= longest:
        raise DataError(
            f"{name} is {str(text)[:80]!r}; expected text of {shortest} to {longest} characters."
        )
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(
            f"{name} holds a character that is none (NUL or half a surrogate pair); leave it out."
        )
    return text


def check_range(name: str, value: int, *, lowest: int, highest: int = MAX_INTEGER) -> int:
    """Return a whole number within the range, or raise DataError."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not lowest <= value <= highest:
        raise DataError(f"{name} is {value!r}; expected a whole number {lowest} to {highest}.")
    return int(value)


def check_json(name: str, value: Any) -> Any:
    """Return `value` if JSON can hold it; NaN isn't among that, and PostgreSQL refuses it."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} can't be written as JSON: {error}. Leave that out.") from error
    return value


def check_time(name: str, value: datetime | None) -> datetime | None:
    """Return a time with a zone, or None; refuse a time that could mean another moment."""
    if value is None or (isinstance(value, datetime) and value.tzinfo is not None):
        return value
    raise DataError(f"{name} is {value!r}, which has no zone; give a time with one, such as UTC.")


def check_signal(signal_mv: np.ndarray, *, lead_names: Iterable[str], lead: int) -> np.ndarray:
    """Return a signal as float32 ``(n_leads, n_samples)`` that fits its leads; gaps are NaN."""
    signal = np.asarray(signal_mv)
    names = list(lead_names)
    if signal.ndim != 2 or signal.shape[0] != len(names) or 0 in signal.shape:
        raise DataError(
            f"signal_mv has shape {signal.shape} and there are {len(names)} lead names; expected "
            "(n_leads, n_samples), one name per lead and at least one of each."
        )
    if not 0 <= lead < len(names):
        raise DataError(f"lead is {lead}; expected 0 to {len(names) - 1}.")
    return signal.astype("<f4", copy=False)


def check_peaks(peaks: np.ndarray, *, n_samples: int) -> np.ndarray:
    """Return the samples of beats as int64: strictly increasing, within the recording."""
    found = np.asarray(peaks)
    is_whole = found.ndim == 1 and (found.dtype.kind in "iu" or found.size == 0)
    if not is_whole or np.any(np.diff(found) <= 0) or np.any((found < 0) | (found >= n_samples)):
        raise DataError(
            f"peaks has shape {found.shape} and type {found.dtype}; expected whole numbers of samples, "
            f"one after another, from 0 to {n_samples - 1}."
        )
    return found.astype("<i8")
