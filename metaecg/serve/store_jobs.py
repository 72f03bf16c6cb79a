"""The queue of jobs, in the database itself: it survives a crash and serves several processes.

queued -> running -> done | failed | cancelled
   ^---------'         (its worker was lost or hands it back)

Of one patient one job runs at a time, so that the newest one's detector is the one in use at the
end. A worker names the attempt that it was given with all that it writes: one that was taken for
lost, and only was slow, writes nothing any more.
"""

import uuid
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import check_json, check_made_id, check_text
from metaecg.serve.store_detectors import detector_row, insert_detector
from metaecg.serve.store_errors import ConflictError, NotFoundError, TooManyError
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

    def create_job(
        self,
        org_id: int,
        subject_id: str,
        kind: str,
        request: dict[str, Any],
        *,
        max_waiting: int | None = None,
        max_of_patient: int | None = None,
    ) -> Job:
        """Queue a job for a patient; `request` is what JSON can hold.

        Raises
        ------
        TooManyError
            `max_waiting` jobs wait already, or the patient has `max_of_patient` that wait or run.
            In PostgreSQL as many as come for different patients at the same moment may go beyond
            `max_waiting`.
        """
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
            _check_room(connection, max_waiting)
            _check_room_of_patient(connection, key, subject_id, max_of_patient)
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
        with self._read() as connection:
            return _count(connection, tables.jobs.c.state == "queued")

    def claim_job(self) -> tuple[int, Job] | None:
        """Take the job that waits longest and mark it running; each job is given to one caller.

        A job waits as long as another one of its patient runs.

        Returns
        -------
        claimed
            The organisation and the job, or None if there is none to take for now.
        """
        table, patients = tables.jobs, tables.patients
        waiting = sa.select(table.c.job_key).join_from(table, patients).where(_can_run())
        waiting = waiting.order_by(table.c.job_key).limit(1)
        with self._read() as connection:  # an idle worker that asks takes no lock
            if connection.scalar(waiting) is None:
                return None
        now = self._clock()
        begun = {"state": "running", "started_at": now, "heartbeat_at": now, "progress": 0.0}
        begun["attempts"] = table.c.attempts + 1
        with self._write() as connection:
            # Who holds the patient is the only one to take a job of that patient ...
            locking = waiting.with_for_update(of=patients, key_share=True, skip_locked=True)
            job_key = connection.scalar(locking)
            # ... and asks again, since another may have taken one just before that lock.
            taken = table.update().where(table.c.job_key == job_key, _can_run()).values(begun)
            if job_key is None or not connection.execute(taken).rowcount:
                return None
            query = _jobs(tables.patients.c.org_id).where(table.c.job_key == job_key)
            row = dict(connection.execute(query).mappings().one())
        return row.pop("org_id"), Job(**row)

    def update_job(self, job: Job, *, progress: float) -> bool:
        """Note how far a running job is, 0 to 1, and that its worker is alive.

        Parameters
        ----------
        job
            As `claim_job` gave it.

        Returns
        -------
        is_cancel_requested
            Whether its worker should end it as cancelled.

        Raises
        ------
        ConflictError
            Another worker has it, or it has ended. The caller's work is in vain.
        NotFoundError
            It was deleted with its patient.
        """
        values = {"progress": min(max(float(progress), 0.0), 1.0), "heartbeat_at": self._clock()}
        with self._write() as connection:
            return _change_running(connection, job, values)

    def release_job(self, job: Job) -> None:
        """Hand a running job back to the queue, as a server does that shuts down.

        It doesn't count as an attempt. Raises as `update_job` does.
        """
        table = tables.jobs
        with self._write() as connection:
            values = {"state": "queued", "progress": 0.0, "attempts": table.c.attempts - 1}
            _change_running(connection, job, values)
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

    def finish_job(
        self,
        job: Job,
        *,
        state: str,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        detector: tuple[bytes, dict[str, Any], str] | None = None,
        activate: bool = True,
    ) -> Job:
        """End a running job and keep the detector that it has made, both or neither.

        One that was asked to stop ends as cancelled and without a detector, whatever `state` says.

        Parameters
        ----------
        job
            As `claim_job` gave it.
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
            Another worker has the job, or it has ended. Nothing was kept.
        NotFoundError
            It was deleted with its patient. Nothing was kept.
        """
        if state not in ENDED:
            raise ValueError(f"state is {state!r}; expected one of {', '.join(ENDED)}.")
        now, table = self._clock(), tables.jobs
        check_json("result", result), check_json("error", error)
        with self._write() as connection:
            patient_key = _lock_patient_of(connection, job.job_id)
            # This change holds the job's row: a request to cancel is seen here or comes too late.
            if _change_running(connection, job, {"finished_at": now}):
                state, result, error, detector = "cancelled", None, None, None
            if detector is not None:
                row = detector_row(*detector, created_at=now)
                version = insert_detector(connection, patient_key, row, activate=activate)
                result = {**(result or {}), "version": version}
            values = {"state": state, "result": result, "error": error, "finished_at": now}
            if state == "done":
                values["progress"] = 1.0
            of_this = table.c.job_id == job.job_id
            connection.execute(table.update().where(of_this).values(values))
            query = _jobs().where(of_this)
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


def _can_run() -> sa.ColumnElement[bool]:
    """A job waits, and none of its patient's runs."""
    jobs, other = tables.jobs, tables.jobs.alias("other_jobs")
    of_patient = other.c.patient_key == jobs.c.patient_key
    runs = sa.select(other.c.job_key).where(of_patient, other.c.state == "running")
    return (jobs.c.state == "queued") & ~runs.correlate(jobs).exists()


def _count(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> int:
    query = sa.select(sa.func.count()).select_from(tables.jobs).where(*conditions)
    return connection.scalar(query)


def _check_room(connection: sa.Connection, most: int | None) -> None:
    if most is not None and _count(connection, tables.jobs.c.state == "queued") >= most:
        raise TooManyError(f"{most} jobs wait already. Try again later.")


def _check_room_of_patient(
    connection: sa.Connection, patient_key: int, subject_id: str, most: int | None
) -> None:
    """Count the jobs of a patient who is locked, so that no other can be made meanwhile."""
    table = tables.jobs
    not_ended = table.c.state.not_in(ENDED)
    if (
        most is not None
        and _count(connection, table.c.patient_key == patient_key, not_ended) >= most
    ):
        raise TooManyError(
            f"{most} jobs wait for patient {subject_id!r} already. Cancel some, or wait for them."
        )


def _change_running(connection: sa.Connection, job: Job, values: dict[str, Any]) -> bool:
    """Change a job that runs in the same attempt, or raise; return whether it should be cancelled."""
    table = tables.jobs
    of_this = table.c.job_id == job.job_id
    is_own = (table.c.state == "running") & (table.c.attempts == job.attempts)
    changed = table.update().where(of_this, is_own).values(values)
    row = connection.execute(changed.returning(table.c.is_cancel_requested)).one_or_none()
    if row is not None:
        return row.is_cancel_requested
    now = connection.execute(
        sa.select(table.c.state, table.c.attempts).where(of_this)
    ).one_or_none()
    if now is None:
        raise NotFoundError("job", job.job_id)
    stands = f"is {now.state}, not running"
    if now.state == "running":
        stands = f"runs in attempt {now.attempts}, not {job.attempts}"
    raise ConflictError(
        f"job {job.job_id!r} {stands}: another worker has it or it has ended. Drop this attempt."
    )


def _cancel_queued(connection: sa.Connection, now: Any) -> int:
    """End the waiting jobs that should be cancelled; return how many."""
    table = tables.jobs
    waiting = (table.c.state == "queued") & table.c.is_cancel_requested
    ended = {"state": "cancelled", "finished_at": now}
    return connection.execute(table.update().where(waiting).values(ended)).rowcount
