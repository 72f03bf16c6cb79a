"""Personalizations as jobs, and the versions of a patient's detector."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from metaecg.errors import CheckpointError
from metaecg.serve.auth import OrgId
from metaecg.serve.jobs import PERSONALIZE
from metaecg.serve.personalizing import check_request, facts_of
from metaecg.serve.routes_common import GUARDED, JobId, Subject, Version, problems
from metaecg.serve.schemas_detectors import (
    DetectorList,
    DetectorOut,
    JobList,
    JobOut,
    NewPersonalization,
)
from metaecg.serve.state import Parts, Services
from metaecg.serve.store_rows import DetectorInfo, Job

router = APIRouter(prefix="/v1", tags=["detectors"])
BYTES = {"type": "string", "format": "binary"}
ADAPTER_FILE = {"content": {"application/octet-stream": {"schema": BYTES}}}
ADAPTER_BODY = {"requestBody": {"required": True, **ADAPTER_FILE}}
WAITING = ("queued", "running")


@router.post(
    "/patients/{subject_id}/personalizations",
    status_code=202,
    responses=problems(*GUARDED, 429),
)
def start_personalization(
    subject_id: Subject, body: NewPersonalization, org_id: OrgId, services: Parts
) -> JobOut:
    """Fit the patient's own detector to the labels, as a job."""
    request = check_request(services, org_id, subject_id, body.model_dump())
    settings = services.settings
    job = services.store.create_job(
        org_id,
        subject_id,
        PERSONALIZE,
        request,
        max_waiting=settings.max_jobs,
        max_of_patient=settings.max_jobs_per_patient,
    )
    services.worker.wake()
    return job_out(job)


@router.get("/jobs/{job_id}", responses=problems(*GUARDED))
def get_job(job_id: JobId, org_id: OrgId, services: Parts) -> JobOut:
    """Look at a job."""
    return job_out(services.store.get_job(org_id, job_id))


@router.get("/patients/{subject_id}/jobs", responses=problems(*GUARDED))
def list_jobs(subject_id: Subject, org_id: OrgId, services: Parts) -> JobList:
    """List a patient's jobs, the oldest first."""
    found = services.store.list_jobs(org_id, subject_id)
    return JobList(jobs=[job_out(job) for job in found])


@router.delete("/jobs/{job_id}", responses=problems(*GUARDED))
def cancel_job(job_id: JobId, org_id: OrgId, services: Parts) -> JobOut:
    """Cancel a job; one that has ended stays as it is."""
    job = services.store.request_cancel(org_id, job_id)
    if job.state in WAITING:
        services.worker.cancel(job_id)
    return job_out(job)


@router.get("/patients/{subject_id}/detectors", responses=problems(*GUARDED))
def list_detectors(subject_id: Subject, org_id: OrgId, services: Parts) -> DetectorList:
    """List the versions of a patient's detector."""
    return _versions(services, org_id, subject_id)


@router.post("/patients/{subject_id}/detectors/{version}/activate", responses=problems(*GUARDED))
def activate_detector(
    subject_id: Subject, version: Version, org_id: OrgId, services: Parts
) -> DetectorList:
    """Bring a version into use, such as an older one; 0 is the base itself.

    One that was fitted on another base than this server's is refused.
    """
    if version != 0:
        _check_base(services, services.store.get_detector(org_id, subject_id, version))
    services.store.activate(org_id, subject_id, version)
    services.forget(org_id, subject_id)
    return _versions(services, org_id, subject_id)


@router.get(
    "/patients/{subject_id}/detectors/{version}/adapter",
    response_class=Response,
    responses={200: {**ADAPTER_FILE, "description": "The adapter."}, **problems(*GUARDED)},
)
def export_adapter(
    subject_id: Subject, version: Version, org_id: OrgId, services: Parts
) -> Response:
    """Get a version as one safetensors file, to be imported elsewhere beside the same base."""
    data = services.store.read_adapter(org_id, subject_id, version)
    name = f'attachment; filename="adapter-{version}.safetensors"'
    headers = {"Content-Disposition": name}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.post(
    "/patients/{subject_id}/detectors",
    status_code=201,
    responses=problems(*GUARDED),
    openapi_extra=ADAPTER_BODY,
)
async def import_adapter(
    subject_id: Subject,
    request: Request,
    org_id: OrgId,
    services: Parts,
    activate: Annotated[bool, Query(description="Whether it comes into use.")] = True,
) -> DetectorOut:
    """Store an adapter that was exported, as a new version. It must belong to this server's base."""
    data = await request.body()
    await run_in_threadpool(services.store.active_version, org_id, subject_id)
    work = (services, org_id, subject_id, data, activate)
    return detector_out(await services.heavily(_imported, *work))


def job_out(job: Job) -> JobOut:
    """Return a job as the API shows it."""
    return JobOut(
        job_id=job.job_id,
        subject_id=job.subject_id,
        kind=job.kind,
        state=job.state,
        progress=job.progress,
        request=job.request,
        result=job.result,
        error=job.error,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def detector_out(info: DetectorInfo) -> DetectorOut:
    """Return a version of a detector as the API shows it."""
    facts = dict(info.facts)
    return DetectorOut(
        version=info.version,
        created_at=info.created_at,
        is_active=info.is_active,
        base_fingerprint=info.base_fingerprint,
        method=facts.pop("method", None),
        rhythm=facts.pop("rhythm", None),
        n_support=facts.pop("n_support", {}),
        n_bytes=info.n_bytes,
        facts=facts,
    )


def _versions(services: Services, org_id: int, subject_id: str) -> DetectorList:
    active = services.store.active_version(org_id, subject_id)
    found = services.store.list_detectors(org_id, subject_id)
    return DetectorList(active_version=active, detectors=[detector_out(info) for info in found])


def _imported(
    services: Services, org_id: int, subject_id: str, data: bytes, activate: bool
) -> DetectorInfo:
    from metaecg.serve.adapter_file import load_adapter

    personal = load_adapter(data, services.base)
    services.detectors.mixed.reader.read(data)  # it is what judges: it must be able to, too
    facts = facts_of(personal, personal.fitted_params_["rhythm"], "import")
    info = services.store.add_detector(
        org_id,
        subject_id,
        adapter=data,
        facts=facts,
        base_fingerprint=services.base.fingerprint,
        activate=activate,
    )
    services.forget(org_id, subject_id)
    return info


def _check_base(services: Services, info: DetectorInfo) -> None:
    """Refuse a version that this server couldn't judge with."""
    own = services.base.fingerprint
    if info.base_fingerprint != own:
        raise CheckpointError(
            f"version {info.version} belongs to the base {info.base_fingerprint}; this server's is "
            f"{own}. Activate a version of this base or 0, or personalize again."
        )
