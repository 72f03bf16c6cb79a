"""The queue of jobs, in the database itself: it survives a crash and serves several processes.

queued -> running -> done | failed | cancelled
   ^---------'         (its worker was lost or hands it back)
"""

import uuid
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import check_json, check_made_id, check_text
from metaecg.serve.store_detectors import detector_row, insert_detector
from metaecg.serve.store_errors import ConflictError, NotFoundError
from metaecg.serve.store_rows import Job

STATES = ("queued", "running", "done", "failed", "cancelled")
ENDED = STATES[2:]
MAX_ATTEMPTS = 3
"""How often a job may lose its worker; it may be the job that kills it."""
GIVEN_UP = {
    "code": "internal",
    "message": f"the job was begun {MAX_ATTEMPTS} times and each time its worker was lost. Look "
    "into the server's log, then start it again.",
    "detail": {},
}
INTERNAL = ("job_key", "patient_key", "heartbeat_at")
COLUMNS = [column for column in tables.jobs.c if column.name not in INTERNAL]


class JobStore(StoreBase):
    """Part of the store: jobs."""

    def create_job(self, org_id: int, subject_id: str, kind: str, request: dict[str, Any]) -> Job:
        """Queue a job for a patient; `request` is what JSON can hold."""
        row = {
            "job_id": uuid.uuid4().hex,
            "kind": check_text("kind", kind, longest=32),
            "state": "queued",
            "progress": 0.0,
            "request": check_json("request", request),
            "result": None,
            "error": None,
            "is_cancel_requested": False,
            "attempts": 0,
            "created_at": self._clock(),
            "started_at": None,
            "finished_at": None,
        }
        with self._write() as connection:
            key = self._patient_key(connection, org_id, subject_id, lock=True)
            connection.execute(tables.jobs.insert().values(patient_key=key, **row))
        return Job(subject_id=subject_id, **row)

    def get_job(self, org_id: int, job_id: str) -> Job:
        """Return a job of one of the organisation's patients."""
        with self._read() as connection:
            return _job_of_org(connection, org_id, job_id)

    def list_jobs(self, org_id: int, subject_id: str) -> list[Job]:
        """Return a patient's jobs, the oldest first."""
        table = tables.jobs
        with self._read() as connection:
            key = self._patient_key(connection, org_id, subject_id)
            query = _jobs().where(table.c.patient_key == key).order_by(table.c.job_key)
            return [Job(**row) for row in connection.execute(query).mappings()]

    def queue_length(self) -> int:
        """Return how many jobs wait, over all organisations."""
        table = tables.jobs
        query = sa.select(sa.func.count()).where(table.c.state == "queued")
        with self._read() as connection:
            return connection.scalar(query)

    def claim_job(self) -> tuple[int, Job] | None:
        """Take the job that waits longest and mark it running; each job is given to one caller.

        Returns
        -------
        claimed
            The organisation and the job, or None if none waits.
        """
        table = tables.jobs
        waiting = sa.select(table.c.job_key).where(table.c.state == "queued")
        waiting = waiting.order_by(table.c.job_key).limit(1)
        with self._read() as connection:  # an idle worker that asks takes no lock
            if connection.scalar(waiting) is None:
                return None
        now = self._clock()
        with self._write() as connection:
            job_key = connection.scalar(waiting.with_for_update(skip_locked=True))
            if job_key is None:
                return None
            begun = {"state": "running", "started_at": now, "heartbeat_at": now, "progress": 0.0}
            begun["attempts"] = table.c.attempts + 1
            connection.execute(table.update().where(table.c.job_key == job_key).values(begun))
            query = _jobs(tables.patients.c.org_id).where(table.c.job_key == job_key)
            row = dict(connection.execute(query).mappings().one())
        return row.pop("org_id"), Job(**row)

    def update_job(self, job_id: str, *, progress: float) -> None:
        """Note how far a running job is, 0 to 1, and that its worker is alive.

        Raises
        ------
        ConflictError
            It doesn't run: another worker has it, or it has ended. The caller's work is in vain.
        NotFoundError
            It was deleted with its patient.
        """
        values = {"progress": min(max(float(progress), 0.0), 1.0), "heartbeat_at": self._clock()}
        with self._write() as connection:
            _change_running(connection, job_id, values)

    def release_job(self, job_id: str) -> None:
        """Hand a running job back to the queue, as a server does that shuts down.

        It doesn't count as an attempt. Raises as `update_job` does.
        """
        table = tables.jobs
        with self._write() as connection:
            values = {"state": "queued", "progress": 0.0, "attempts": table.c.attempts - 1}
            _change_running(connection, job_id, values)
            _cancel_queued(connection, self._clock())

    def request_cancel(self, org_id: int, job_id: str) -> Job:
        """Cancel a waiting job at once, ask a running one to stop, leave an ended one as it is."""
        table = tables.jobs
        with self._write() as connection:
            _job_of_org(connection, org_id, job_id)
            of_this = table.c.job_id == job_id
            asked = table.update().where(of_this, table.c.state.not_in(ENDED))
            connection.execute(asked.values(is_cancel_requested=True))
            _cancel_queued(connection, self._clock())
            return _job_of_org(connection, org_id, job_id)

    def is_cancelled(self, job_id: str) -> bool:
        """Whether a worker should stop: cancelled, ended by another, or gone with its patient."""
        table = tables.jobs
        query = sa.select(table.c.is_cancel_requested, table.c.state)
        with self._read() as connection:
            row = connection.execute(query.where(table.c.job_id == job_id)).one_or_none()
        return row is None or row.is_cancel_requested or row.state != "running"

    def finish_job(
        self,
        job_id: str,
        *,
        state: str,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        detector: tuple[bytes, dict[str, Any], str] | None = None,
        activate: bool = True,
    ) -> Job:
        """End a running job and keep the detector that it has made, both or neither.

        Parameters
        ----------
        state
            "done", "failed" or "cancelled".
        detector
            Adapter, facts and fingerprint of the base, as `add_detector` takes them. The new
            version stands in the job's ``result["version"]``.
        activate
            Whether that detector is in use from now on.

        Raises
        ------
        ConflictError
            The job doesn't run: another worker has it, or it has ended. Nothing was kept.
        NotFoundError
            It was deleted with its patient. Nothing was kept.
        """
        if state not in ENDED:
            raise ValueError(f"state is {state!r}; expected one of {', '.join(ENDED)}.")
        now, table = self._clock(), tables.jobs
        check_json("result", result), check_json("error", error)
        with self._write() as connection:
            patient_key = _lock_patient_of(connection, job_id)
            if detector is not None:
                row = detector_row(*detector, created_at=now)
                version = insert_detector(connection, patient_key, row, activate=activate)
                result = {**(result or {}), "version": version}
            values = {"state": state, "result": result, "error": error, "finished_at": now}
            if state == "done":
                values["progress"] = 1.0
            _change_running(connection, job_id, values)
            query = _jobs().where(table.c.job_id == job_id)
            return Job(**connection.execute(query).mappings().one())

    def requeue_lost_jobs(self, older_than_s: float) -> int:
        """Queue running jobs again whose worker has been silent for `older_than_s` seconds.

        One that should be cancelled is; one that has lost `MAX_ATTEMPTS` workers has failed.

        Returns
        -------
        n_requeued
            How many wait again.
        """
        table, now = tables.jobs, self._clock()
        is_lost = (table.c.state == "running") & (
            table.c.heartbeat_at <= now - timedelta(seconds=older_than_s)
        )
        with self._write() as connection:
            hopeless = is_lost & (table.c.attempts >= MAX_ATTEMPTS) & ~table.c.is_cancel_requested
            ended = {"state": "failed", "error": GIVEN_UP, "finished_at": now}
            connection.execute(table.update().where(hopeless).values(ended))
            waits = {"state": "queued", "progress": 0.0}
            done = connection.execute(table.update().where(is_lost).values(waits))
            return done.rowcount - _cancel_queued(connection, now)


def _jobs(*more: sa.Column) -> sa.Select:
    """Select jobs with the name of their patient."""
    patients = tables.patients
    return sa.select(*COLUMNS, patients.c.subject_id, *more).join_from(tables.jobs, patients)


def _job_of_org(connection: sa.Connection, org_id: int, job_id: str) -> Job:
    check_made_id("job", job_id)
    query = _jobs().where(tables.jobs.c.job_id == job_id, tables.patients.c.org_id == org_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError("job", job_id)
    return Job(**row)


def _lock_patient_of(connection: sa.Connection, job_id: str) -> int:
    """Lock the patient before the job, as deleting a patient does: neither waits in a circle."""
    jobs, patients = tables.jobs, tables.patients
    key = connection.scalar(sa.select(jobs.c.patient_key).where(jobs.c.job_id == job_id))
    query = sa.select(patients.c.patient_key).where(patients.c.patient_key == key)
    if key is None or connection.scalar(query.with_for_update(key_share=True)) is None:
        raise NotFoundError("job", job_id)
    return key


def _change_running(connection: sa.Connection, job_id: str, values: dict[str, Any]) -> None:
    """Change a job that runs, or raise."""
    table = tables.jobs
    of_this = table.c.job_id == job_id
    changed = table.update().where(of_this, table.c.state == "running").values(values)
    if connection.execute(changed).rowcount:
        return
    state = connection.scalar(sa.select(table.c.state).where(of_this))
    if state is None:
        raise NotFoundError("job", job_id)
    raise ConflictError(
        f"job {job_id!r} is {state}, not running: another worker has it or it has ended. Drop this "
        "attempt."
    )


def _cancel_queued(connection: sa.Connection, now: Any) -> int:
    """End the waiting jobs that should be cancelled; return how many."""
    table = tables.jobs
    waiting = (table.c.state == "queued") & table.c.is_cancel_requested
    ended = {"state": "cancelled", "finished_at": now}
    return connection.execute(table.update().where(waiting).values(ended)).rowcount
