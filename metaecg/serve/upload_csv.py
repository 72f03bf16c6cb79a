"""A recording as CSV: a row per sample, a column per lead, perhaps a row of lead names first.

Commas between the fields and decimal points within them. Rate and unit are stated beside the file.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping

import numpy as np

from metaecg.errors import DataError
from metaecg.serve.upload_checks import (
    MAX_CHANNELS,
    Columns,
    UploadFacts,
    UploadLimits,
    agreed_rate,
    check_lead_names,
    check_lengths,
    chosen_columns,
    quoted,
    single_file,
    stated_unit,
)

BLOCK_BYTES = 4 * 1024 * 1024
"""So much text is turned into numbers at once; bounds the memory beside the result."""
MAX_LINE_BYTES = 64 * 1024
CLOCKS = ("time", "time_s", "t", "t_s", "ms", "s", "sample", "samples", "index", "timestamp", "")
"""Names of columns that count instead of measure; none of them is taken for a lead."""
_HINT = (
    "Expected numbers with decimal points, commas between them, and an empty field or nan where nothing "
    "was measured."
)


def read_csv(files: Mapping[str, bytes], facts: UploadFacts, limits: UploadLimits) -> Columns:
    """Return the signals of a CSV file; a field that is no number, or a ragged row, is a DataError."""
    file_name, content = single_file(files, "a CSV recording")
    fs_hz, scale = agreed_rate(facts, None, limits), stated_unit(facts)
    body = _body(content)
    first = _first_row(body)
    if _is_of_samples(body, first, facts):
        names, columns, n_before = _stated_names(first, facts), list(range(len(first))), 0
    else:
        body, n_before = body[body.find(b"\n") + 1 :] if b"\n" in body else b"", 1
        names, columns = _named(first, facts)
    # An upper bound, so that a recording that is too long is refused before it is read.
    n_rows = body.count(b"\n") + (not body.endswith(b"\n") and bool(body))
    check_lengths(n_rows, len(columns), fs_hz, limits)
    signal_mv = _numbers(body, n_rows, len(first), columns, scale, n_before)
    return Columns(
        signal_mv=signal_mv, fs_hz=fs_hz, lead_names=names, name=file_name.rsplit(".", 1)[0]
    )


def _body(content: bytes) -> bytes:
    """Return the text with plain line ends, without a byte order mark and without empty last lines."""
    if b"\0" in content:
        raise DataError(
            f"the file has a zero byte at {content.index(0)}, so it is no CSV in UTF-8. Save it as "
            "CSV in UTF-8 (it may be UTF-16, or another format)."
        )
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    body = content.removeprefix(b"\xef\xbb\xbf").rstrip(b"\n")
    if not body.strip():
        raise DataError("the file is empty; expected a row per sample.")
    return body


def _first_row(body: bytes) -> list[str]:
    line = body[: MAX_LINE_BYTES + 1].split(b"\n", 1)[0]
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"the first line has more than {MAX_LINE_BYTES} bytes; expected a field per lead and a "
            "line per sample. Turn the table round if it has a row per lead."
        )
    if not line:
        raise DataError(
            "the first line is empty; expected names or samples. Write nan where a single lead was not "
            "measured."
        )
    if set(b";\t") & set(_IN_QUOTES.sub(b"", line)):
        raise DataError(
            "the fields are separated by semicolons or tabs; export with commas. " + _HINT
        )
    try:
        row = next(csv.reader([line.decode("utf-8")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        raise DataError(
            "the first line can't be read as fields in UTF-8 with commas between them. " + _HINT
        ) from None
    if len(row) > MAX_CHANNELS:
        raise DataError(
            f"the first line has {len(row)} fields; at most {MAX_CHANNELS} are read. Expected a field "
            "per lead and a line per sample."
        )
    return [field.strip() for field in row]


def _is_of_samples(body: bytes, row: list[str], facts: UploadFacts) -> bool:
    """Tell whether the first row holds samples, not names; a mixture, or what may be both, is a DataError.

    Leads may be called 1 and 2, and a row of empty fields is one of gaps.
    """
    numbers = [field for field in row if _NUMBER.fullmatch(field)]
    has_others = any(field not in numbers for field in row if field)
    has_stated = facts.lead_names is not None and set(facts.lead_names) <= set(row)
    if numbers and has_others and not has_stated:
        raise DataError(
            "the first line holds both numbers and names; expected one of them. " + _HINT
        )
    if has_others or not has_stated:
        return not has_others
    first, second = (*body.split(b"\n", 2), b"")[:2]
    if not _ALL_QUOTED.fullmatch(first) or b'"' in second:
        raise DataError(
            "the first line may be a row of names or of samples: lead_names are numbers and stand in it. Put "
            "the names in quotation marks and no sample, or call the leads otherwise."
        )
    return False


_IN_QUOTES = re.compile(rb'"[^"]*"')
_ALL_QUOTED = re.compile(rb'\s*"[^"]*"\s*(,\s*"[^"]*"\s*)*')
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I | re.A)


def _stated_names(first: list[str], facts: UploadFacts) -> tuple[str, ...]:
    if facts.lead_names is None:
        raise DataError(
            "lead_names are not stated and the file has no row of names; expected a name per "
            "column. State lead_names."
        )
    names = check_lead_names(facts.lead_names)
    if len(names) != len(first):
        raise DataError(
            f"the file has {len(first)} columns and no row of names, lead_names has {len(names)}; expected "
            "a name per column. Are decimal commas in it?"
        )
    return names


def _named(first: list[str], facts: UploadFacts) -> tuple[tuple[str, ...], list[int]]:
    """Return names and places of the wanted columns of a file with a row of names."""
    if facts.lead_names is None:
        clocks = [name for name in first if name.lower() in CLOCKS]
        if clocks:
            raise DataError(
                f"the column {quoted(clocks[0])} is no lead; expected leads only. Leave it out, or "
                "state the wanted columns as lead_names."
            )
        return check_lead_names(first), list(range(len(first)))
    columns = chosen_columns(first, facts)
    return tuple(first[i] for i in columns), columns


def _numbers(
    body: bytes, n_rows: int, n_fields: int, columns: list[int], scale: float, n_before: int
) -> np.ndarray:
    """Return the wanted columns in millivolts, float32, shape ``(n_leads, n_rows)``."""
    found = np.empty((len(columns), n_rows), dtype=np.float32)
    at = 0
    for block in _blocks(body):
        values = _parsed(block, n_fields, n_before + at + 1)
        if np.isinf(values).any():
            row = int(np.argmax(np.isinf(values).any(axis=1)))
            raise DataError(f"line {n_before + at + row + 1} holds an infinite number. " + _HINT)
        with np.errstate(over="ignore"):  # what is beyond float32 is refused as infinite
            found[:, at : at + len(values)] = (values[:, columns] * scale).T
        at += len(values)
    return found


def _blocks(body: bytes) -> Iterator[bytes]:
    """Yield the text in pieces of whole lines, without the last line end of each."""
    start = 0
    while start < len(body):
        stop = body.find(b"\n", start + BLOCK_BYTES)
        stop = len(body) if stop < 0 else stop
        yield body[start:stop]
        start = stop + 1


def _parsed(block: bytes, n_fields: int, line: int) -> np.ndarray:
    """Return the numbers of some lines, float64 ``(n_lines, n_fields)``; `line` is the first's number."""
    block = _with_gaps_named(block)
    n_lines = block.count(b"\n") + 1
    lengths = np.diff(np.flatnonzero(np.frombuffer(b"\n" + block + b"\n", np.uint8) == 10))
    if (empty := np.flatnonzero(lengths == 1)).size:
        raise DataError(f"line {line + int(empty[0])} is empty. " + _HINT)
    if (long := np.flatnonzero(lengths > MAX_LINE_BYTES)).size:
        raise DataError(f"line {line + int(long[0])} has over {MAX_LINE_BYTES} bytes. " + _HINT)
    try:
        values = np.loadtxt(
            io.StringIO(block.decode("ascii")),
            delimiter=",",
            comments=None,
            quotechar='"',
            ndmin=2,
            dtype=np.float64,
        )
    except UnicodeDecodeError:
        raise DataError(
            f"in the lines from {line} on is a character that is no digit. {_HINT}"
        ) from None
    except (ValueError, OverflowError) as error:
        raise DataError(_without_values(error, line)) from None
    if values.shape != (n_lines, n_fields):
        raise DataError(
            f"the lines from {line} on have {values.shape[1]} fields, the first line of the file has "
            f"{n_fields}; expected the same in every line. Are decimal commas in it?"
        )
    return values


def _with_gaps_named(block: bytes) -> bytes:
    """Return the block with ``nan`` in its empty fields; empty lines stay."""
    if b",," in block:  # twice, for every second one of several in a row is missed at first
        block = block.replace(b",,", b",nan,").replace(b",,", b",nan,")
    if b",\n" in block or b"\n," in block:
        block = block.replace(b",\n", b",nan\n").replace(b"\n,", b"\nnan,")
    block = b"nan" + block if block.startswith(b",") else block
    return block + b"nan" if block.endswith(b",") else block


def _without_values(error: Exception, line: int) -> str:
    """Say where numpy met something else than a number, without what it was."""
    if found := re.search(r"at row (\d+), column (\d+)", str(error)):
        row, column = (int(number) for number in found.groups())
        return f"field {column} of line {line + row} is no number. {_HINT}"
    if found := re.search(r"columns changed from (\d+) to (\d+) at row (\d+)", str(error)):
        before, after, row = (int(number) for number in found.groups())
        return (
            f"line {line + row - 1} has {after} fields and those before it {before}; expected as many "
            f"in every line. {_HINT}"
        )
    return f"the lines from {line} on can't be read as numbers. {_HINT}"
