"""Bring recordings to the server: from memory as JSON or CSV, from files as they are."""

import json
from collections.abc import Sequence
from pathlib import Path

from metaecg.client.http import Http, json_of, patient_path
from metaecg.client.results import Recording, read
from metaecg.client.signals import Signal, csv_row, csv_signal, json_signal
from metaecg.errors import DataError

MAX_JSON_SAMPLES = 500_000
"""Longer signals go as a CSV file, which the server takes in larger sizes and reads with less memory."""
FORMATS = {".hea": "wfdb", ".edf": "edf", ".csv": "csv", ".json": "json"}
"""Suffix of the first file -> format."""


def send_signal(
    http: Http, subject_id: str, signal: Signal, *, lead: int | None, name: str | None
) -> Recording:
    """Upload a signal that is in memory; float32 arrives as it is."""
    name = signal.name if name is None else name
    if signal.values.size > MAX_JSON_SAMPLES:
        facts = {
            "fs_hz": repr(signal.fs_hz),
            "unit": signal.unit,
            "lead_names": csv_row(signal.lead_names),
        }
        files = [("signal.csv", csv_signal(signal))]
        return _send_files(http, subject_id, "csv", files, facts, lead=lead, name=name)
    facts = {**signal.facts(), "name": name} | ({} if lead is None else {"lead": lead})
    body = f'{json.dumps(facts)[:-1]}, "signal": {json_signal(signal)}}}'
    answer = http.ask(
        "POST",
        f"{patient_path(subject_id)}/recordings",
        repeat=False,  # sent twice it would be two recordings
        data=body.encode(),
        headers={"Content-Type": "application/json"},
    )
    return read(Recording, json_of(answer))


def send_files(
    http: Http,
    subject_id: str,
    paths: Sequence[str | Path],
    *,
    file_format: str | None,
    facts: dict,
    lead: int | None,
    name: str | None,
) -> Recording:
    """Upload the files of one recording."""
    paths = [Path(path) for path in paths]
    file_format = file_format or format_of(paths)
    try:
        files = [(path.name, path.read_bytes()) for path in paths]
    except OSError as error:
        raise DataError(
            f"{error.filename} can't be read ({error.strerror}); a file of a recording was expected."
        ) from error
    facts = {key: value for key, value in facts.items() if value is not None}
    return _send_files(http, subject_id, file_format, files, facts, lead=lead, name=name)


def format_of(paths: Sequence[Path]) -> str:
    """Return the format that the files' suffixes stand for.

    Raises
    ------
    DataError
        None of them stands for a format.

    Examples
    --------
    >>> format_of([Path("418.dat"), Path("418.hea")])
    'wfdb'
    """
    for path in paths:
        if path.suffix.lower() in FORMATS:
            return FORMATS[path.suffix.lower()]
    raise DataError(
        f"the files {', '.join(path.name for path in paths) or '(none)'} have no suffix of a format; "
        f"expected one of {', '.join(FORMATS)}. Give the format, and of WFDB the .hea file as well."
    )


def _send_files(
    http: Http,
    subject_id: str,
    file_format: str,
    files: Sequence[tuple[str, bytes]],
    facts: dict,
    *,
    lead: int | None,
    name: str | None,
) -> Recording:
    fields = {"format": file_format, "lead": lead, "name": name, **facts}
    answer = http.ask(
        "POST",
        f"{patient_path(subject_id)}/recordings/files",
        repeat=False,
        data={key: value for key, value in fields.items() if value is not None},
        files=[("files", (file, content, "application/octet-stream")) for file, content in files],
    )
    return read(Recording, json_of(answer))
