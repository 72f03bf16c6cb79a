"""Tables are made from nothing, twice and by two processes at once, and are what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_cases import dump, fill

from metaecg.errors import ConfigError
from metaecg.serve import store_migrate, tables
from metaecg.serve.store import Store
from metaecg.serve.store_engine import parsed_url
from metaecg.serve.store_errors import StoreError

MIGRATE = """
import sys
from metaecg.serve.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
store.migrate()
store.ping()
"""


def test_the_tables_of_the_migrations_are_those_of_the_code(empty_url):
    store = Store(empty_url)
    store.migrate()
    with store.engine.connect() as connection:
        assert store_migrate.differences(connection) == []
        assert set(sa.inspect(connection).get_table_names()) == {
            *tables.metadata.tables,
            "alembic_version",
        }
    store.close()


def test_a_table_that_no_migration_makes_is_noticed(sqlite_url):
    store = Store(sqlite_url)
    store.migrate()
    with store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE labels DROP COLUMN updated_at")
        (found,) = store_migrate.differences(connection)
    assert found[0] == "add_column"
    store.close()


def test_migrating_again_changes_nothing(store):
    org_id = store.create_org("clinic").org_id
    fill(store, org_id, "s-1")
    before = dump(store)
    store.migrate()
    assert dump(store) == before


def test_processes_that_migrate_at_once_all_get_a_whole_store(empty_url):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, empty_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:  # all of them stand at the start now
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    store = Store(empty_url)
    assert store.list_orgs() == []
    store.close()


def test_a_store_that_was_not_migrated_says_so(empty_url):
    store = Store(empty_url)
    with pytest.raises(StoreError, match="lacks a table.*call Store.migrate"):
        store.ping()
    store.close()


def test_a_store_of_a_newer_metaecg_is_refused(empty_url):
    store = Store(empty_url)
    store.migrate()
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="9999.*a newer one has made them"):
        store.migrate()
    store.close()


def test_a_migration_that_fails_leaves_nothing_behind(empty_url, monkeypatch):
    def fails(connection, upgrade=store_migrate._upgrade):
        upgrade(connection)
        connection.exec_driver_sql("SELECT nonsense FROM nowhere")

    store = Store(empty_url)
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(store_migrate, "_upgrade", fails)
        store.migrate()
    with store.engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == []
    store.migrate()
    store.ping()
    store.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "without a file"),
        ("sqlite:///:memory:", "without a file"),
        ("mysql://root:hunter2@localhost/metaecg", "unknown kind 'mysql'"),
        ("nonsense", "can't be read"),
        ("sqlite:///file:x?mode=memory&uri=true", "with options"),
        ("postgresql+psycopg2://a:hunter2@b/c", "unknown kind"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        Store(url)
    assert "hunter2" not in str(error.value)
    assert "sqlite:///FILE" in str(error.value)


def test_plain_postgresql_means_psycopg_3():
    assert parsed_url("postgresql://a@b/c").drivername == "postgresql+psycopg"


def test_a_file_that_cannot_be_made_is_an_error_of_the_configuration(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be made: .*Name another with --store"):
        Store(f"sqlite:///{tmp_path}/file/metaecg.db")


def test_a_new_sqlite_file_and_its_log_are_for_the_eyes_of_their_owner_only(sqlite_url):
    store = Store(sqlite_url)
    store.migrate()
    store.create_org("clinic")
    path = Path(store.engine.url.database)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys([path.name, f"{path.name}-wal", f"{path.name}-shm"], 0o600)
    store.close()


def test_a_file_that_is_there_keeps_its_rights(tmp_path):
    (tmp_path / "metaecg.db").touch(mode=0o640)
    Store(f"sqlite:///{tmp_path}/metaecg.db").close()
    assert (tmp_path / "metaecg.db").stat().st_mode & 0o777 == 0o640
