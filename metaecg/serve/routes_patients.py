"""Patients: create, list, look at, delete."""

from typing import Annotated

from fastapi import APIRouter, Query

from metaecg.serve.auth import OrgId
from metaecg.serve.routes_common import GUARDED, Subject, problems
from metaecg.serve.schemas import NewPatient, PatientOut, PatientPage
from metaecg.serve.state import Parts
from metaecg.serve.store_rows import Patient

router = APIRouter(prefix="/v1/patients", tags=["patients"])


@router.post("", status_code=201, responses=problems(401, 409, 413, 415, 422))
def create_patient(body: NewPatient, org_id: OrgId, services: Parts) -> PatientOut:
    """Create a patient under a name of your choice."""
    return patient_out(services.store.create_patient(org_id, body.subject_id, note=body.note))


@router.get("", responses=problems(401, 415, 422, 413))
def list_patients(
    org_id: OrgId,
    services: Parts,
    limit: Annotated[int, Query(ge=1, le=1000, description="Patients on a page.")] = 100,
    after: Annotated[
        str | None, Query(max_length=64, description="`next` of the page before.")
    ] = None,
) -> PatientPage:
    """List patients in the order of their names."""
    found = services.store.list_patients(org_id, limit=limit, after=after)
    is_last = len(found) < limit
    return PatientPage(
        patients=[patient_out(patient) for patient in found],
        next=None if is_last else found[-1].subject_id,
    )


@router.get("/{subject_id}", responses=problems(*GUARDED))
def get_patient(subject_id: Subject, org_id: OrgId, services: Parts) -> PatientOut:
    """Look at one patient."""
    return patient_out(services.store.get_patient(org_id, subject_id))


@router.delete("/{subject_id}", status_code=204, responses=problems(*GUARDED))
def delete_patient(subject_id: Subject, org_id: OrgId, services: Parts) -> None:
    """Delete a patient with everything that belongs to them: recordings, labels, detectors, jobs."""
    services.store.delete_patient(org_id, subject_id)
    services.forget(org_id, subject_id)


def patient_out(patient: Patient) -> PatientOut:
    """Return a patient as the API shows it."""
    return PatientOut(
        subject_id=patient.subject_id,
        created_at=patient.created_at,
        active_version=patient.active_version,
        n_recordings=patient.n_recordings,
        n_labels=patient.n_labels,
        note=patient.note,
    )
