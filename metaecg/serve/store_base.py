"""What every part of the store stands on: transactions, and who may see what."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa

from metaecg.serve import store_engine, store_migrate, tables
from metaecg.serve.store_checks import check_made_id, is_subject_id
from metaecg.serve.store_errors import NotFoundError


def utc_now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)


class StoreBase:
    """Engine, clock and transactions; see `metaecg.serve.store.Store`."""

    def __init__(self, url: str, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.engine = store_engine.open_engine(url)
        self._clock = clock
        self._writer = self.engine.execution_options(is_write=True)
        self._reader = self.engine
        if self.engine.dialect.name == "postgresql":
            # Several reads of one call see one state, as they do in SQLite.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")

    def migrate(self) -> None:
        """Bring the tables up to date: from nothing, or from an older metaecg's.

        Call it once at start. It can be repeated, also by two processes at once.

        Raises
        ------
        StoreError
            A newer metaecg has made the store.
        StoreUnavailableError
            The database can't be reached or written to.
        """
        with store_engine.translated_errors():
            store_migrate.migrate(self.engine)

    def ping(self) -> None:
        """Raise StoreUnavailableError if the database doesn't answer, StoreError if not migrated."""
        with self._read() as connection:
            connection.execute(sa.select(tables.organisations.c.org_id).limit(1))

    def close(self) -> None:
        """Close every connection; a later call would open new ones."""
        self.engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with store_engine.translated_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """A transaction that is written whole when the block ends, and not at all if it raises."""
        with store_engine.translated_errors(), self._writer.begin() as connection:
            yield connection

    def _empty_log(self) -> None:
        """Let go of what SQLite's log still holds of deleted rows, unless others are at work.

        Then the log keeps them until it is next emptied, which SQLite does by itself.
        """
        if self.engine.dialect.name != "sqlite":
            return
        connection = self.engine.raw_connection()
        try:
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute(f"PRAGMA busy_timeout = {store_engine.LOCKED_S * 1000}")
        except sqlite3.OperationalError:
            connection.invalidate()  # the deletion itself is done
        finally:
            connection.close()

    # One place decides who sees what: every patient of every call is looked up here, by
    # organisation and name at once, so that another's patient and none are the same answer.

    def _patient_key(
        self, connection: sa.Connection, org_id: int, subject_id: str, *, lock: bool = False
    ) -> int:
        """Return the row number of an organisation's patient.

        With `lock`, other writers of this patient wait (PostgreSQL; SQLite has one writer anyway)
        and the patient can't be deleted until the transaction ends.
        """
        patients = tables.patients
        found = None
        if is_subject_id(subject_id):
            query = sa.select(patients.c.patient_key).where(
                patients.c.org_id == org_id, patients.c.subject_id == subject_id
            )
            if lock:
                query = query.with_for_update(key_share=True)
            found = connection.scalar(query)
        if found is None:
            raise NotFoundError("patient", subject_id)
        return found

    def _recording(
        self,
        connection: sa.Connection,
        org_id: int,
        subject_id: str,
        recording_id: str,
        *,
        lock: bool = False,
    ) -> sa.Row:
        """Return the row of a patient's recording."""
        patient_key = self._patient_key(connection, org_id, subject_id, lock=lock)
        check_made_id("recording", recording_id)
        recordings = tables.recordings
        row = connection.execute(
            sa.select(recordings).where(
                recordings.c.patient_key == patient_key,
                recordings.c.recording_id == recording_id,
            )
        ).one_or_none()
        if row is None:
            raise NotFoundError("recording", recording_id)
        return row
