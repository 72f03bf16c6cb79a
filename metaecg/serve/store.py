"""The store of the server: patients, recordings, labels, detectors and jobs in one database."""

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_detectors import DetectorStore
from metaecg.serve.store_jobs import STATES, JobStore
from metaecg.serve.store_labels import LabelStore
from metaecg.serve.store_patients import PatientStore
from metaecg.serve.store_recordings import RecordingStore
from metaecg.serve.store_streams import StreamStore
from metaecg.serve.tokens import TokenStore

COUNTED = ("organisations", "patients", "recordings", "labels", "detectors", "streams")


class Store(
    TokenStore, PatientStore, RecordingStore, LabelStore, DetectorStore, JobStore, StreamStore
):
    """Everything that the server keeps, in SQLite or PostgreSQL.

    Each call is one transaction: written whole, or not at all. What a call has returned is on the
    disk. Threads and processes may share a store. Every method that takes `org_id` sees that
    organisation alone: what belongs to another is not found, as what isn't there.

    Parameters
    ----------
    url
        ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.
    clock
        Returns the time, with its zone.

    Raises
    ------
    ConfigError, MissingDependencyError
        At once, if the address is none or its driver is not installed.
    StoreUnavailableError
        By any method: the database can't be reached, its disk is full, or it is locked for too
        long. The same call works again once it can.
    StoreError
        By any method: the store was not migrated, or is damaged.
    DataError
        By methods that write: a name or a number that can't be kept.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = Store(f"sqlite:///{folder.name}/metaecg.db")
    >>> store.migrate()
    >>> org = store.create_org("clinic")
    >>> store.create_patient(org.org_id, "s-1").active_version
    0
    >>> store.close(); folder.cleanup()
    """

    def counts(self) -> dict[str, int]:
        """Return how many rows of each kind there are, for metrics; jobs by their state."""
        selected = [
            sa.select(sa.func.count()).select_from(tables.metadata.tables[name]).scalar_subquery()
            for name in COUNTED
        ]
        state = tables.jobs.c.state
        with self._read() as connection:
            found = dict(zip(COUNTED, connection.execute(sa.select(*selected)).one(), strict=True))
            by_state = connection.execute(sa.select(state, sa.func.count()).group_by(state))
            n_jobs = {name: n for name, n in by_state}
        return found | {f"jobs_{name}": n_jobs.get(name, 0) for name in STATES}
