"""Take an upload: parse it within the settings' limits, find its beats, store it whole."""

import csv
from collections.abc import Mapping

from metaecg.errors import DataError
from metaecg.serve.settings import Settings
from metaecg.serve.state import Services
from metaecg.serve.store_errors import StoreUnavailableError
from metaecg.serve.store_rows import RecordingInfo
from metaecg.serve.uploads import UploadFacts, UploadLimits, parse_upload


def stated_facts(
    *,
    fs_hz: float | None = None,
    unit: str | None = None,
    lead_names: str | None = None,
    lead: int | None = None,
    name: str = "",
    gain_per_mv: float | None = None,
) -> UploadFacts:
    """Return what was stated beside the files; empty is not stated.

    Names are separated by commas; one that has a comma itself stands in quotation marks, as in CSV.

    Examples
    --------
    >>> stated_facts(lead_names="MLII, V5").lead_names
    ('MLII', 'V5')
    """
    names = None
    if lead_names is not None and lead_names.strip():
        names = _names(lead_names)
    return UploadFacts(
        fs_hz=fs_hz,
        unit=unit or None,
        lead_names=names,
        lead=lead,
        name=name or None,
        gain_per_mv=gain_per_mv,
    )


def _names(text: str) -> tuple[str, ...]:
    try:
        (row,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise DataError(
            "lead_names can't be read; expected names with commas between them, in quotation marks where a "
            "name has a comma itself."
        ) from None
    return tuple(name.strip() for name in row)


def upload_limits(settings: Settings) -> UploadLimits:
    """Return what an upload may be at most."""
    return UploadLimits(
        n_bytes=settings.upload_bytes, duration_s=settings.duration_s, n_leads=settings.n_leads
    )


def store_upload(
    services: Services,
    org_id: int,
    subject_id: str,
    format: str,
    files: Mapping[str, bytes],
    facts: UploadFacts,
) -> RecordingInfo:
    """Parse an upload and store it; the whole recording is there afterwards, or nothing.

    Raises
    ------
    DataError
        Something is wrong with the upload.
    NotFoundError
        There is no such patient.
    StoreUnavailableError
        The database, or the folder for temporary files, can't be written.
    """
    try:
        found = parse_upload(format, files, facts, upload_limits(services.settings))
    except DataError:
        raise
    except OSError as error:
        raise StoreUnavailableError(
            "the server has no room to unpack the upload. Nothing was stored; try again later."
        ) from error
    segmentation = services.segmentation
    segmentation.check_rate(found.fs_hz)
    peaks = segmentation.peaks(found.signal_mv[found.lead][None], found.fs_hz)
    return services.store.add_recording(
        org_id,
        subject_id,
        signal_mv=found.signal_mv,
        fs_hz=found.fs_hz,
        lead_names=found.lead_names,
        lead=found.lead,
        name=found.name,
        source_format=found.source_format,
        digest=found.digest,
        peaks=peaks,
        segmentation=None if peaks is None else segmentation.name,
    )
