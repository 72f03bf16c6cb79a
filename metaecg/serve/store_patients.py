"""Patients of an organisation."""

from collections.abc import Iterable

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import (
    MAX_NOTE_CHARACTERS,
    check_range,
    check_subject_id,
    check_text,
    is_subject_id,
)
from metaecg.serve.store_errors import ConflictError, NotFoundError
from metaecg.serve.store_rows import ActiveDetector, Patient

MAX_PAGE = 1000
BATCH = 500
"""Names in one question; databases bound the number of values in a statement."""


class PatientStore(StoreBase):
    """Part of the store: patients."""

    def create_patient(self, org_id: int, subject_id: str, note: str = "") -> Patient:
        """Make a patient; ConflictError if the organisation has one of this name."""
        check_subject_id(subject_id)
        check_text("note", note, longest=MAX_NOTE_CHARACTERS, shortest=0)
        row = {"subject_id": subject_id, "note": note, "active_version": 0}
        row["created_at"] = self._clock()
        with self._write() as connection:
            orgs = tables.organisations
            if connection.scalar(sa.select(orgs.c.org_id).where(orgs.c.org_id == org_id)) is None:
                raise NotFoundError("organisation", org_id)
            try:
                connection.execute(tables.patients.insert().values(org_id=org_id, **row))
            except sa.exc.IntegrityError as error:
                raise ConflictError(
                    f"there is a patient {subject_id!r} already. Use that one, or choose another "
                    "subject_id."
                ) from error
        return Patient(n_recordings=0, n_labels=0, **row)

    def get_patient(self, org_id: int, subject_id: str) -> Patient:
        """Return a patient with counts of recordings and labels."""
        with self._read() as connection:
            key = self._patient_key(connection, org_id, subject_id)
            query = _patients_with_counts().where(tables.patients.c.patient_key == key)
            return Patient(**connection.execute(query).mappings().one())

    def list_patients(
        self, org_id: int, *, limit: int = 100, after: str | None = None
    ) -> list[Patient]:
        """Return a page of an organisation's patients, sorted by `subject_id` as bytes.

        Parameters
        ----------
        limit
            Length of the page, 1 to `MAX_PAGE`; a shorter one is the last.
        after
            Last `subject_id` of the page before; None for the first page.
        """
        table = tables.patients
        limit = check_range("limit", limit, lowest=1, highest=MAX_PAGE)
        query = _patients_with_counts().where(table.c.org_id == org_id)
        if after is not None:
            query = query.where(table.c.subject_id > check_subject_id(after))
        query = query.order_by(table.c.subject_id).limit(limit)
        with self._read() as connection:
            return [Patient(**row) for row in connection.execute(query).mappings()]

    def delete_patient(self, org_id: int, subject_id: str) -> None:
        """Delete a patient with recordings, signals, labels, detectors, jobs and streams, at once.

        In SQLite the bytes are overwritten, in the file and in its log. The worker of a running job
        of the patient finds it gone.
        """
        table = tables.patients
        with self._write() as connection:
            key = self._patient_key(connection, org_id, subject_id, lock=True)
            connection.execute(table.delete().where(table.c.patient_key == key))
        self._empty_log()

    def active_version(self, org_id: int, subject_id: str) -> int:
        """Return the version of the patient's detector in use, 0 for the base."""
        table, found = tables.patients, None
        if is_subject_id(subject_id):
            query = sa.select(table.c.active_version).where(
                table.c.org_id == org_id, table.c.subject_id == subject_id
            )
            with self._read() as connection:
                found = connection.scalar(query)
        if found is None:
            raise NotFoundError("patient", subject_id)
        return found

    def active_detectors(
        self, org_id: int, subject_ids: Iterable[str]
    ) -> dict[str, ActiveDetector]:
        """Return which detectors many patients use now, in few questions.

        Raises
        ------
        NotFoundError
            The organisation lacks one of the patients; the error names the first.
        """
        asked = list(dict.fromkeys(subject_ids))
        known = [subject_id for subject_id in asked if is_subject_id(subject_id)]
        found = {}
        with self._read() as connection:
            for start in range(0, len(known), BATCH):
                query = _active_detectors(org_id, known[start : start + BATCH])
                for subject_id, version, digest in connection.execute(query):
                    found[subject_id] = ActiveDetector(version=version, digest=digest or "")
        for subject_id in asked:
            if subject_id not in found:
                raise NotFoundError("patient", subject_id)
        return {subject_id: found[subject_id] for subject_id in asked}


def _patients_with_counts() -> sa.Select:
    patients, recordings, labels = tables.patients, tables.recordings, tables.labels
    of_patient = recordings.c.patient_key == patients.c.patient_key
    n_recordings = sa.select(sa.func.count()).select_from(recordings).where(of_patient)
    n_labels = sa.select(sa.func.count()).select_from(recordings.join(labels)).where(of_patient)
    return sa.select(
        patients.c.subject_id,
        patients.c.created_at,
        patients.c.active_version,
        patients.c.note,
        n_recordings.scalar_subquery().label("n_recordings"),
        n_labels.scalar_subquery().label("n_labels"),
    )


def _active_detectors(org_id: int, subject_ids: list[str]) -> sa.Select:
    patients, detectors = tables.patients, tables.detectors
    is_active = (detectors.c.patient_key == patients.c.patient_key) & (
        detectors.c.version == patients.c.active_version
    )
    return (
        sa.select(patients.c.subject_id, patients.c.active_version, detectors.c.digest)
        .select_from(patients.outerjoin(detectors, is_active))
        .where(patients.c.org_id == org_id, patients.c.subject_id.in_(subject_ids))
    )
