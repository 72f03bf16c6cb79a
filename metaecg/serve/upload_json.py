"""A recording as JSON: rate, unit, lead names and samples in one document."""

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np

from metaecg.errors import DataError
from metaecg.serve.units import mv_per_unit
from metaecg.serve.upload_checks import (
    Columns,
    UploadFacts,
    UploadLimits,
    agreed_rate,
    check_lead_names,
    check_lengths,
    check_same_unit,
    chosen_columns,
    quoted,
    single_file,
)

NEEDED = ("fs_hz", "unit", "lead_names", "signal")
ALLOWED = (*NEEDED, "name", "lead")


def read_json(files: Mapping[str, bytes], facts: UploadFacts, limits: UploadLimits) -> Columns:
    """Return the signals of a JSON document; what is missing, unknown or no number is a DataError."""
    _, content = single_file(files, "a JSON recording")
    document = _parsed(content)
    _check_keys(document)
    names = _lead_names(document["lead_names"])
    scale = mv_per_unit(document["unit"], where="the recording")
    check_same_unit(facts, scale, where="the recording")
    fs_hz = agreed_rate(facts, document["fs_hz"], limits)
    columns = chosen_columns(names, facts)
    signal = document["signal"]
    if not isinstance(signal, list) or len(signal) != len(names):
        n_found = len(signal) if isinstance(signal, list) else "no list of"
        raise DataError(
            f"signal has {n_found} leads and lead_names {len(names)}; expected one list of samples "
            "per name."
        )
    n_samples = _common_length(signal)
    check_lengths(n_samples, len(columns), fs_hz, limits)
    return Columns(
        signal_mv=millivolts([signal[i] for i in columns], scale),
        fs_hz=fs_hz,
        lead_names=tuple(names[i] for i in columns),
        name=_text(document.get("name")),
        lead=_whole(document.get("lead")),
    )


def millivolts(rows: list[list], scale: float) -> np.ndarray:
    """Return lists of numbers as float32 millivolts, shape ``(n_rows, n)``.

    Parameters
    ----------
    rows
        Lists of one length; ``None`` stands for a sample that was not measured.
    scale
        Millivolts of one unit.

    Raises
    ------
    DataError
        A row is no list of numbers and None, or the rows differ in length.
    """
    found = np.empty((len(rows), _common_length(rows)), dtype=np.float32)
    for i, row in enumerate(rows):
        strange = {*map(type, row)} - {float, int, type(None)}
        if strange:
            names = ", ".join(sorted(kind.__name__ for kind in strange))
            raise DataError(
                f"lead {i} of signal holds {names}; expected numbers, and null where nothing was "
                "measured."
            )
        with np.errstate(over="ignore"):  # what is beyond float32 is refused as infinite
            found[i] = _doubles(row, i) * scale
    return found


def _doubles(row: list, i: int) -> np.ndarray:
    try:
        values = np.array(row, dtype=np.float64)
    except OverflowError:
        values = np.array([np.inf])
    # None has become NaN; a NaN that was sent as a number is none the less a mistake.
    if np.isinf(values).any() or np.count_nonzero(np.isnan(values)) != row.count(None):
        raise DataError(
            f"lead {i} of signal holds a number that is not finite; expected finite numbers, and "
            "null where nothing was measured."
        )
    return values


def _parsed(content: bytes) -> dict:
    try:
        # Whole numbers too are read as floats: very long ones take no longer, and become infinite.
        document = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_without_doubles,
            parse_constant=_refuse_constant,
            parse_int=float,
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"the document is not UTF-8 at byte {error.start}; expected JSON in UTF-8."
        ) from None
    except RecursionError:
        raise DataError(
            "the document is nested too deeply; expected an object with lists of numbers."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"the document is no JSON: {error.msg} (line {error.lineno}, column {error.colno}). "
            "Expected an object with fs_hz, unit, lead_names and signal."
        ) from None
    if not isinstance(document, dict):
        raise DataError(
            f"the document is a {type(document).__name__}; expected an object with fs_hz, unit, "
            "lead_names and signal."
        )
    return document


def _without_doubles(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise DataError(f"the document has {quoted(twice)} twice; expected every name once.")
    return found


def _refuse_constant(name: str) -> None:
    raise DataError(f"the document holds {name}, which is no JSON; write null for not measured.")


def _check_keys(document: dict) -> None:
    missing = [name for name in NEEDED if name not in document]
    unknown = [name for name in document if name not in ALLOWED]
    if missing or unknown:
        parts = [f"it lacks {', '.join(missing)}"] * bool(missing)
        parts += [f"it has {', '.join(quoted(name) for name in unknown[:3])}"] * bool(unknown)
        raise DataError(
            f"the document doesn't describe a recording: {' and '.join(parts)}; expected "
            f"{', '.join(NEEDED)}, and if wanted name and lead."
        )


def _lead_names(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not names:
        raise DataError("lead_names is no list of names; expected one name per lead.")
    return check_lead_names(names[:1000])


def _common_length(rows: list) -> int:
    lengths = {len(row) if isinstance(row, list) else -1 for row in rows}
    if len(lengths) != 1 or -1 in lengths:
        raise DataError(
            "the leads of signal are not lists of one length; expected as many samples of every lead."
        )
    return lengths.pop()


def _text(value: object) -> str:
    if value is not None and not isinstance(value, str):
        raise DataError(f"name is a {type(value).__name__}; expected text.")
    return value or ""


def _whole(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise DataError(f"lead is {quoted(value)}; expected the number of a lead, from 0 on.")
    return int(value)
