"""Bring the tables of a store up to date."""

import sqlite3
import time
from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from metaecg.serve.store_engine import LOCKED_S
from metaecg.serve.store_errors import StoreError
from metaecg.serve.tables import metadata

FOLDER = Path(__file__).parent / "migrations"
LOCK = 0x6D657461_65636700
"""Number of the lock in PostgreSQL that only one process can hold while it migrates."""
PAUSE_S = 0.05


def scripts() -> ScriptDirectory:
    """Return the migrations in their order; they stand beside this file, without an env.py."""
    return ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])


def migrate(engine: sa.Engine) -> None:
    """Run the migrations that a store lacks, in one transaction; two processes may try at once.

    Raises
    ------
    StoreError
        A newer metaecg has made the store.
    """
    if engine.dialect.name == "sqlite":
        _let_readers_go_on(engine)
    with engine.execution_options(is_write=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        _upgrade(connection)


def _upgrade(connection: sa.Connection) -> None:
    directory = scripts()

    def missing(revisions, _context):
        return directory._upgrade_revs("head", revisions)

    context = EnvironmentContext(Config(), directory, fn=missing)
    context.configure(connection=connection, target_metadata=metadata)
    try:
        with context:
            context.run_migrations()
    except CommandError as error:
        raise StoreError(
            f"the store's tables are unknown to this metaecg ({error}): a newer one has made them. "
            "Update metaecg, or name another store with --store."
        ) from error


def differences(connection: sa.Connection) -> list:
    """Return what the tables of a migrated store lack or have too much against `tables`."""
    from alembic.autogenerate import compare_metadata

    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return compare_metadata(context, metadata)


def _let_readers_go_on(engine: sa.Engine) -> None:
    """Switch an SQLite file to a write-ahead log, for good: readers and a writer don't wait.

    The switch needs the file for itself for a moment and doesn't wait by itself.
    """
    until = time.monotonic() + LOCKED_S
    while True:
        connection = engine.raw_connection()
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        finally:
            connection.close()
        time.sleep(PAUSE_S)
