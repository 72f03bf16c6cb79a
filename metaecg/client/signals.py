"""A signal on its way to the server: unit, rate and lead names are said, gaps are null."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from metaecg.checks import check_option, check_positive
from metaecg.errors import DataError

UNITS = ("mV", "uV", "V")
_ROWS_AT_ONCE = 65536


@runtime_checkable
class AnyRecord(Protocol):
    """What the client needs of a `metaecg.data.records.Record`."""

    record_id: str
    signal_mv: np.ndarray
    fs_hz: float
    lead_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Signal:
    """A checked signal with all that has to be said of it."""

    values: np.ndarray = field(repr=False)
    """Shape ``(n_leads, n_samples)``, float32; NaN where nothing was measured."""
    fs_hz: float
    unit: str
    lead_names: tuple[str, ...]
    name: str

    def facts(self) -> dict:
        """Return what is said of the signal, for JSON."""
        return {"fs_hz": self.fs_hz, "unit": self.unit, "lead_names": list(self.lead_names)}


def signal_of(
    signal: AnyRecord | np.ndarray | Sequence,
    *,
    fs_hz: float | None,
    unit: str | None,
    lead_names: Sequence[str] | str | None,
) -> Signal:
    """Check a recording or an array and return it with its facts.

    Parameters
    ----------
    signal
        A `Record`, which brings its facts along, or an array of shape ``(n_samples,)`` or
        ``(n_leads, n_samples)``.
    fs_hz, unit, lead_names
        Needed with an array (``"mV"``, ``"uV"`` or ``"V"``), refused with a `Record`.

    Raises
    ------
    ValueError
        A fact is missing, given twice or impossible.
    DataError
        The array has another shape, no sample, or an infinite one.
    """
    given = {"fs_hz": fs_hz, "unit": unit, "lead_names": lead_names}
    if isinstance(signal, AnyRecord):
        twice = [name for name, value in given.items() if value is not None]
        if twice:
            raise ValueError(
                f"{', '.join(twice)} was given beside a record, which has its own; leave it out."
            )
        return _checked(
            signal.signal_mv, signal.fs_hz, "mV", tuple(signal.lead_names), signal.record_id
        )
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} is missing; an array says neither its rate nor its unit nor its "
            "leads, and nothing is guessed. Give fs_hz, unit and lead_names, or a Record."
        )
    names = (lead_names,) if isinstance(lead_names, str) else tuple(lead_names)
    return _checked(signal, fs_hz, unit, names, "")


def numbers(values: np.ndarray, *, gap: str) -> str:
    """Return a float32 array as text, `gap` for NaN."""
    return ",".join(_texts(values)).replace("nan", gap)


def json_signal(signal: Signal) -> str:
    """Return the signal as JSON: a list per lead."""
    rows = (f"[{numbers(row, gap='null')}]" for row in signal.values)
    return f"[{','.join(rows)}]"


def csv_signal(signal: Signal) -> bytes:
    """Return the signal as CSV: a row of names, a column per lead, ``nan`` for a gap."""
    parts = [f"{csv_row(signal.lead_names)}\n".encode()]
    for start in range(0, signal.values.shape[1], _ROWS_AT_ONCE):
        block = signal.values[:, start : start + _ROWS_AT_ONCE]
        rows = zip(*map(_texts, block), strict=True)
        parts.append("".join(f"{','.join(row)}\n" for row in rows).encode())
    return b"".join(parts)


def csv_row(names: Sequence[str]) -> str:
    """Return names as a row of CSV, in quotation marks: a name may be a number or have a comma.

    Examples
    --------
    >>> csv_row(["II", "V5, new"])
    '"II","V5, new"'
    """
    row = io.StringIO()
    csv.writer(row, quoting=csv.QUOTE_ALL, lineterminator="").writerow(names)
    return row.getvalue()


def _texts(values: np.ndarray) -> list[str]:
    """Return each float32 as the shortest text that gives it back."""
    with np.printoptions(legacy=False):  # whatever the caller has set for shell sessions
        return list(map(str, values))


def _checked(values, fs_hz: float, unit: str, lead_names: tuple[str, ...], name: str) -> Signal:
    check_option("unit", unit, UNITS)
    check_positive("fs_hz", fs_hz)
    values = np.atleast_2d(np.asarray(values, dtype=np.float32))
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"the signal has shape {values.shape}; expected (n_samples,) or (n_leads, n_samples) with "
            "at least one sample."
        )
    if len(values) != len(lead_names):
        raise DataError(
            f"the signal has {len(values)} leads and lead_names has {len(lead_names)}; give one name "
            "per lead, and the leads as rows."
        )
    if np.isinf(values).any():
        lead, at = (int(i) for i in np.argwhere(np.isinf(values))[0])
        raise DataError(
            f"sample {at} of lead {lead_names[lead]!r} is infinite; expected numbers, and NaN where "
            "nothing was measured."
        )
    return Signal(
        values=values, fs_hz=float(fs_hz), unit=unit, lead_names=lead_names, name=str(name)
    )
