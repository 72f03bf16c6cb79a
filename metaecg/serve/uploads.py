"""From uploaded files to a recording in millivolts, or to a sentence of what is wrong with them.

Nothing is guessed: sampling rate, unit and lead names are in the files or are stated beside them.
No name in an upload becomes a path, nothing is unpickled, and the time is linear in the size.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from metaecg.checks import did_you_mean
from metaecg.errors import DataError
from metaecg.serve.upload_checks import (
    Columns,
    UploadFacts,
    UploadLimits,
    check_file_name,
    check_lead_names,
    check_lengths,
    check_rate,
    check_signal,
    title_of,
)
from metaecg.serve.upload_csv import read_csv
from metaecg.serve.upload_edf import read_edf
from metaecg.serve.upload_json import read_json
from metaecg.serve.upload_wfdb import read_wfdb

PREFERRED_LEADS = ("MLII", "II", "ECG1", "ECG", "V5")
"""The judged lead is the first of these that a recording has, else its first lead: the leads of the
databases that the published bases were trained on (`metaecg.data.databases`)."""

_READERS: dict[str, Callable[[Mapping[str, bytes], UploadFacts, UploadLimits], Columns]] = {
    "wfdb": read_wfdb,
    "edf": read_edf,
    "csv": read_csv,
    "json": read_json,
}
FORMATS = tuple(_READERS)


@dataclass(frozen=True, kw_only=True, eq=False)
class ParsedRecording:
    """A recording that can be stored: checked, in millivolts."""

    signal_mv: np.ndarray = field(repr=False)
    """Shape ``(n_leads, n_samples)``, float32, finite or NaN where nothing was measured."""
    fs_hz: float
    lead_names: tuple[str, ...]
    """All different."""
    lead: int
    """Index of the lead that is judged."""
    name: str
    """What people call it; may be empty. Never a path."""
    source_format: str
    """One of `FORMATS`."""
    digest: str
    """SHA-256 (hex) of signal, rate and lead names: equal recordings have equal ones, whatever the
    format they came in."""


def parse_upload(
    format: str,
    files: Mapping[str, bytes],
    facts: UploadFacts | None = None,
    limits: UploadLimits | None = None,
) -> ParsedRecording:
    """Return the recording in uploaded files.

    Parameters
    ----------
    format
        ``"wfdb"``: one ``.hea`` of a record of one segment, and the signal files that it names.
        ``"edf"``: EDF or EDF+C. ``"csv"``: a row per sample, commas, decimal points, a row of lead
        names first or none; an empty field or ``nan`` where nothing was measured. ``"json"``:
        ``fs_hz``, ``unit``, ``lead_names``, ``signal`` (a list per lead, null where nothing was
        measured), and if wanted ``name`` and ``lead``.
    files
        Name to content. Names tell WFDB's files apart; they are never paths.
    facts
        What is stated beside the files.
    limits
        What is taken at most; checked before the signal is unpacked.

    Returns
    -------
    ParsedRecording
        The leads that were wanted, by default all.

    Raises
    ------
    DataError
        Anything is wrong with the upload; the message says what and never holds signal values.
    OSError
        The private folder that WFDB files are unpacked in can't be written, such as on a full disk.
    """
    facts, limits = facts or UploadFacts(), limits or UploadLimits()
    if format not in _READERS:
        raise DataError(f"the format is {format!r}; expected {did_you_mean(format, FORMATS)}")
    _check_files(files, limits)
    found = _READERS[format](files, facts, limits)
    check_rate(found.fs_hz, limits)
    names = check_lead_names(found.lead_names)
    check_lengths(found.signal_mv.shape[1], len(names), found.fs_hz, limits)
    check_signal(found)
    return ParsedRecording(
        signal_mv=found.signal_mv,
        fs_hz=found.fs_hz,
        lead_names=names,
        lead=_judged_lead(facts, found),
        name=title_of(facts, found.name),
        source_format=format,
        digest=digest_of(found.signal_mv, found.fs_hz, names),
    )


def preferred_lead(lead_names: tuple[str, ...]) -> int:
    """Return which lead is judged if nobody says: the first of `PREFERRED_LEADS`, else the first.

    Examples
    --------
    >>> preferred_lead(("V5", "MLII")), preferred_lead(("ECG V1", "ECG II")), preferred_lead(("x",))
    (1, 1, 0)
    """
    names = [name.upper().removeprefix("ECG ").removeprefix("LEAD ") for name in lead_names]
    for wanted in PREFERRED_LEADS:
        if wanted in names:
            return names.index(wanted)
    return 0


def digest_of(signal_mv: np.ndarray, fs_hz: float, lead_names: tuple[str, ...]) -> str:
    """Return the SHA-256 (hex) of a recording's signal, rate and lead names."""
    shape = "x".join(str(n) for n in signal_mv.shape)
    head = "\x1f".join(["metaecg recording 1", shape, repr(float(fs_hz)), *lead_names])
    digest = hashlib.sha256(head.encode() + b"\0")
    for row in signal_mv:
        # One bit pattern for "not measured", whatever the reader's NaN looked like.
        digest.update(np.where(np.isnan(row), np.float32(np.nan), row).astype("<f4").tobytes())
    return digest.hexdigest()


def _check_files(files: Mapping[str, bytes], limits: UploadLimits) -> None:
    if not files:
        raise DataError("no file was sent; expected at least one. Choose the recording's files.")
    if len(files) > limits.n_files:
        raise DataError(
            f"{len(files)} files were sent; at most {limits.n_files} are taken. Send each recording by "
            "itself."
        )
    n_bytes = sum(len(content) for content in files.values())
    if n_bytes > limits.n_bytes:
        raise DataError(
            f"the files have {n_bytes} bytes; at most {limits.n_bytes} are taken. Send the recording "
            "in parts."
        )
    for name in files:
        check_file_name(name)


def _judged_lead(facts: UploadFacts, found: Columns) -> int:
    lead = found.lead if facts.lead is None else facts.lead
    if lead is None:
        return preferred_lead(found.lead_names)
    n_leads = len(found.lead_names)
    if isinstance(lead, bool) or not isinstance(lead, int) or not 0 <= lead < n_leads:
        raise DataError(
            f"lead is {lead!r}; the recording has {n_leads} leads, so 0 to {n_leads - 1} was expected."
        )
    return lead
