"""Versions of a patient's detector. Version 0 is the base itself and has no row."""

import hashlib
from typing import Any

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import MAX_INTEGER, check_json, check_text
from metaecg.serve.store_errors import NotFoundError, StoreError
from metaecg.serve.store_rows import DetectorInfo

COLUMNS = [column for column in tables.detectors.c if column.name not in ("patient_key", "adapter")]


class DetectorStore(StoreBase):
    """Part of the store: detectors."""

    def add_detector(
        self,
        org_id: int,
        subject_id: str,
        *,
        adapter: bytes,
        facts: dict[str, Any],
        base_fingerprint: str,
        activate: bool = True,
    ) -> DetectorInfo:
        """Keep an adapter as the patient's next version, all of it or nothing.

        Parameters
        ----------
        adapter
            The bytes of one adapter file; kept as they are.
        facts
            What JSON can hold: method, support, losses.
        activate
            Whether it is in use from now on.
        """
        row = detector_row(adapter, facts, base_fingerprint, created_at=self._clock())
        with self._write() as connection:
            key = self._patient_key(connection, org_id, subject_id, lock=True)
            version = insert_detector(connection, key, row, activate=activate)
        del row["adapter"]
        return DetectorInfo(version=version, is_active=activate, **row)

    def list_detectors(self, org_id: int, subject_id: str) -> list[DetectorInfo]:
        """Return all versions of a patient's detector, the oldest first; the base isn't among them."""
        table = tables.detectors
        with self._read() as connection:
            key = self._patient_key(connection, org_id, subject_id)
            active = _active_version(connection, key)
            query = sa.select(*COLUMNS).where(table.c.patient_key == key).order_by(table.c.version)
            rows = connection.execute(query).mappings()
            return [DetectorInfo(is_active=row["version"] == active, **row) for row in rows]

    def get_detector(self, org_id: int, subject_id: str, version: int) -> DetectorInfo:
        """Return what is known of one version, 1 or later, its adapter left out."""
        with self._read() as connection:
            key = self._patient_key(connection, org_id, subject_id)
            row = _one(connection, key, version, COLUMNS)
            active = _active_version(connection, key)
        return DetectorInfo(is_active=row.version == active, **row._mapping)

    def read_adapter(self, org_id: int, subject_id: str, version: int) -> bytes:
        """Return the bytes of one version's adapter, as they were handed in.

        Raises
        ------
        StoreError
            They aren't what was handed in: the database is damaged.
        """
        table = tables.detectors
        with self._read() as connection:
            key = self._patient_key(connection, org_id, subject_id)
            row = _one(connection, key, version, [table.c.adapter, table.c.digest])
        if hashlib.sha256(row.adapter).hexdigest() != row.digest:
            raise StoreError(
                f"the adapter of version {version} of patient {subject_id!r} doesn't fit its digest: "
                "the database is damaged. Restore it from a backup or personalize again."
            )
        return bytes(row.adapter)

    def activate(self, org_id: int, subject_id: str, version: int) -> None:
        """Use a version from now on; 0 is the base."""
        table = tables.patients
        with self._write() as connection:
            key = self._patient_key(connection, org_id, subject_id, lock=True)
            if version != 0:
                _one(connection, key, version, [tables.detectors.c.version])
            connection.execute(
                table.update().where(table.c.patient_key == key).values(active_version=version)
            )


def detector_row(
    adapter: bytes, facts: dict[str, Any], base_fingerprint: str, *, created_at: Any
) -> dict[str, Any]:
    """Return the row of a new detector, without patient and version."""
    longest = tables.NAME_CHARACTERS
    return {
        "base_fingerprint": check_text("base_fingerprint", base_fingerprint, longest=longest),
        "digest": hashlib.sha256(adapter).hexdigest(),
        "n_bytes": len(adapter),
        "facts": check_json("facts", facts),
        "created_at": created_at,
        "adapter": bytes(adapter),
    }


def insert_detector(
    connection: sa.Connection, patient_key: int, row: dict[str, Any], *, activate: bool
) -> int:
    """Write a detector as the next version of a patient who is locked; return the version."""
    table, patients = tables.detectors, tables.patients
    newest = sa.select(sa.func.max(table.c.version)).where(table.c.patient_key == patient_key)
    version = (connection.scalar(newest) or 0) + 1
    connection.execute(table.insert().values(patient_key=patient_key, version=version, **row))
    if activate:
        of_this = patients.c.patient_key == patient_key
        connection.execute(patients.update().where(of_this).values(active_version=version))
    return version


def _active_version(connection: sa.Connection, patient_key: int) -> int:
    patients = tables.patients
    query = sa.select(patients.c.active_version).where(patients.c.patient_key == patient_key)
    return connection.scalar(query)


def _one(connection: sa.Connection, patient_key: int, version: int, columns: list) -> sa.Row:
    """Return columns of one version, or raise NotFoundError."""
    table, row = tables.detectors, None
    is_whole = isinstance(version, int) and not isinstance(version, bool)
    if is_whole and 1 <= version <= MAX_INTEGER:
        query = sa.select(*columns).where(
            table.c.patient_key == patient_key, table.c.version == version
        )
        row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("detector version", version)
    return row
