"""Recordings: upload, list, look at, show, delete."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from starlette.concurrency import run_in_threadpool

from metaecg.errors import DataError
from metaecg.serve.auth import OrgId
from metaecg.serve.routes_common import (
    GUARDED,
    Recording,
    StartS,
    StopS,
    Subject,
    problems,
)
from metaecg.serve.schemas_recordings import NewRecording, RecordingList, RecordingOut, SignalOut
from metaecg.serve.signals import shown_signal
from metaecg.serve.state import Parts, Services
from metaecg.serve.store_rows import RecordingInfo
from metaecg.serve.uploading import stated_facts, store_upload

router = APIRouter(prefix="/v1/patients/{subject_id}/recordings", tags=["recordings"])
MAX_FILES = 32
"""Files of one upload: a WFDB header and the signal files that it names."""
JSON_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": NewRecording.model_json_schema()}},
    }
}


@router.post(
    "", status_code=201, responses=problems(401, 404, 413, 415, 422), openapi_extra=JSON_BODY
)
async def upload_json(
    subject_id: Subject, request: Request, org_id: OrgId, services: Parts
) -> RecordingOut:
    """Upload a recording as JSON: rate, unit and lead names are stated, never guessed."""
    body = await request.body()
    files, facts = {"recording.json": body}, stated_facts()
    return await _stored(services, org_id, subject_id, "json", files, facts)


@router.post("/files", status_code=201, responses=problems(401, 404, 413, 415, 422))
async def upload_files(
    subject_id: Subject,
    org_id: OrgId,
    services: Parts,
    format: Annotated[str, Form(description="wfdb, edf or csv.", examples=["wfdb"])],
    files: Annotated[
        list[UploadFile],
        File(
            min_length=1,
            max_length=MAX_FILES,
            description="wfdb: the .hea file and the .dat files that it names; edf and csv: one file.",
        ),
    ],
    fs_hz: Annotated[
        float | None,
        Form(gt=0, allow_inf_nan=False, description="Sampling rate, hertz; csv needs it."),
    ] = None,
    unit: Annotated[str | None, Form(description="mV, uV or V; csv needs it.")] = None,
    lead_names: Annotated[
        str | None,
        Form(
            max_length=2000,
            description="Separated by commas, as a row of CSV; csv without names needs it.",
        ),
    ] = None,
    lead: Annotated[
        int | None,
        Form(ge=0, le=1000, description="Which lead is judged, from 0; by default the usual one."),
    ] = None,
    name: Annotated[str, Form(max_length=200, description="Free text for people.")] = "",
    gain_per_mv: Annotated[
        float | None,
        Form(
            gt=0,
            allow_inf_nan=False,
            description="Steps per millivolt, for a WFDB header that says its leads aren't calibrated.",
        ),
    ] = None,
) -> RecordingOut:
    """Upload a recording as files. What a file states and the form states too must agree."""
    contents = await _read_all(files)
    facts = stated_facts(
        fs_hz=fs_hz, unit=unit, lead_names=lead_names, lead=lead, name=name, gain_per_mv=gain_per_mv
    )
    return await _stored(services, org_id, subject_id, format, contents, facts)


@router.get("", responses=problems(*GUARDED))
def list_recordings(subject_id: Subject, org_id: OrgId, services: Parts) -> RecordingList:
    """List a patient's recordings, the oldest first."""
    found = services.store.list_recordings(org_id, subject_id)
    return RecordingList(
        recordings=[recording_out(services, org_id, subject_id, info) for info in found]
    )


@router.get("/{recording_id}", responses=problems(*GUARDED))
def get_recording(
    subject_id: Subject, recording_id: Recording, org_id: OrgId, services: Parts
) -> RecordingOut:
    """Look at one recording, without its signal."""
    info = services.store.get_recording(org_id, subject_id, recording_id)
    return recording_out(services, org_id, subject_id, info)


@router.delete("/{recording_id}", status_code=204, responses=problems(*GUARDED))
def delete_recording(
    subject_id: Subject, recording_id: Recording, org_id: OrgId, services: Parts
) -> None:
    """Delete a recording with its labels. Detectors that were fitted to it stay."""
    services.store.delete_recording(org_id, subject_id, recording_id)


@router.get("/{recording_id}/signal", responses=problems(*GUARDED))
def get_signal(
    subject_id: Subject,
    recording_id: Recording,
    org_id: OrgId,
    services: Parts,
    start_s: StartS = None,
    stop_s: StopS = None,
    max_points: Annotated[
        int, Query(ge=2, le=20_000, description="Points at most; more samples give an envelope.")
    ] = 2000,
) -> SignalOut:
    """Get a stretch of the judged lead for display."""
    info = services.store.get_recording(org_id, subject_id, recording_id)
    start, stop = stretch(info, start_s, stop_s)
    where = (org_id, subject_id, recording_id)
    return SignalOut(**shown_signal(services.store, where, info, start, stop, max_points))


def stretch(info: RecordingInfo, start_s: float | None, stop_s: float | None) -> tuple[int, int]:
    """Return the samples of a recording between two times, half open; outside is left out."""
    first = 0.0 if start_s is None else min(start_s, info.duration_s)
    last = info.duration_s if stop_s is None else min(stop_s, info.duration_s)
    if last < first:
        raise DataError(f"stop_s is {stop_s:g}, before start_s, {first:g}. Give a later one.")
    start = int(np.floor(first * info.fs_hz + 1e-6))
    return start, max(start, min(int(np.ceil(last * info.fs_hz - 1e-6)), info.n_samples))


def recording_out(
    services: Services, org_id: int, subject_id: str, info: RecordingInfo
) -> RecordingOut:
    """Return a recording as the API shows it."""
    return RecordingOut(
        recording_id=info.recording_id,
        name=info.name,
        fs_hz=info.fs_hz,
        lead_names=list(info.lead_names),
        lead=info.lead,
        n_samples=info.n_samples,
        duration_s=info.duration_s,
        source_format=info.source_format,
        created_at=info.created_at,
        n_segments=_n_segments(services, org_id, subject_id, info),
    )


def _n_segments(services: Services, org_id: int, subject_id: str, info: RecordingInfo) -> int:
    segmentation = services.segmentation
    if segmentation.kind == "windows":
        return len(segmentation.segments(info.n_samples, info.fs_hz))
    name = segmentation.name
    peaks = services.store.read_peaks(org_id, subject_id, info.recording_id, name)
    return 0 if peaks is None else len(peaks)


async def _read_all(files: list[UploadFile]) -> dict[str, bytes]:
    """Return name to content; names are looked at by the parser and never become paths."""
    contents: dict[str, bytes] = {}
    for file in files:
        name = file.filename or ""
        if name in contents:
            raise DataError(f"two files are called {name[:100]!r}; send each file once.")
        contents[name] = await file.read()
    return contents


async def _stored(services: Services, org_id, subject_id, format, files, facts) -> RecordingOut:
    # A patient that isn't there is answered before minutes are spent on the signal.
    await run_in_threadpool(services.store.active_version, org_id, subject_id)
    work = (services, org_id, subject_id, format, files, facts)
    info = await services.heavily(store_upload, *work)
    return await run_in_threadpool(recording_out, services, org_id, subject_id, info)
