"""Connections of the store: SQLite or PostgreSQL, and what their errors mean."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from metaecg.errors import ConfigError, MissingDependencyError
from metaecg.serve.store_errors import StoreError, StoreUnavailableError

LOCKED_S = 15
"""How long a transaction waits for another one's lock before the store counts as unavailable."""
CONNECT_S = 5
POOL_SIZE, POOL_OVERFLOW = 8, 24
"""Connections kept open, and how many more there may be for a moment. FastAPI's pool of threads
has 40; a thread that finds none free waits `LOCKED_S`."""
SQLITE_SETTINGS = (
    "foreign_keys = ON",
    # What was acknowledged is on the disk, also after a power cut; WAL alone would risk the last
    # transactions.
    "synchronous = FULL",
    # A deleted patient's bytes are overwritten, not only forgotten.
    "secure_delete = ON",
    # The log of a large upload is cut back to this afterwards (64 MiB).
    "journal_size_limit = 67108864",
)
POSTGRESQL_ARGUMENTS = {
    "connect_timeout": CONNECT_S,
    "options": f"-c lock_timeout={LOCKED_S}s -c timezone=UTC",
    # A server that has vanished without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "metaecg",
}
SCHEMA_MISSING = ("no such table", "no such column", "UndefinedTable", "UndefinedColumn")


def open_engine(url: str) -> sa.Engine:
    """Return an engine for ``sqlite:///FILE`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Nothing is connected yet, but an SQLite file that isn't there is made, readable by its owner only.

    Raises
    ------
    ConfigError
        The address names no file or another kind of database, or the file can't be made.
    MissingDependencyError
        The driver of PostgreSQL is not installed.
    """
    place = parsed_url(url)
    # hide_parameters: an error's text must show no token, note or signal.
    options = {"hide_parameters": True, "pool_timeout": LOCKED_S}
    options |= {"pool_size": POOL_SIZE, "max_overflow": POOL_OVERFLOW}
    if place.drivername == "sqlite":
        _make_file(Path(place.database))
        engine = sa.create_engine(place, connect_args={"timeout": LOCKED_S}, **options)
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        # pool_pre_ping: a connection that died with its server is replaced unseen.
        return sa.create_engine(
            place, connect_args=POSTGRESQL_ARGUMENTS, pool_pre_ping=True, **options
        )
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the store is a PostgreSQL database, whose driver {error.name!r} is not installed; "
            "type pip install 'metaecg[postgresql]'."
        ) from error


def parsed_url(url: str) -> sa.URL:
    """Return the address of a store; plain ``postgresql://`` is taken as psycopg 3."""
    try:
        place = sa.make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigError(_wrong_url("that can't be read")) from error
    if place.drivername == "postgresql":
        place = place.set(drivername="postgresql+psycopg")
    if place.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(_wrong_url(f"of the unknown kind {place.drivername!r}"))
    if place.drivername == "sqlite" and place.database in (None, "", ":memory:"):
        raise ConfigError(_wrong_url("without a file: each connection would see its own"))
    if place.drivername == "sqlite" and (place.query or place.database.startswith("file:")):
        raise ConfigError(_wrong_url("with options, which an SQLite file can't have here"))
    return place


def _make_file(path: Path) -> None:
    """Make an empty SQLite file for its owner's eyes only; one that is there keeps its rights."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise ConfigError(
            f"the store's file {str(path)!r} can't be made: {error.strerror}. Name another with "
            "--store."
        ) from error


def _wrong_url(what: str) -> str:
    """Say what is expected; the address itself may hold a password and isn't shown."""
    return (
        f"the store has an address {what}. Expected sqlite:///FILE or "
        "postgresql://USER:PASSWORD@HOST/DATABASE; name one with --store."
    )


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """Make the driver leave BEGIN to us, and set what SQLite sets per connection."""
    connection.isolation_level = None
    for setting in SQLITE_SETTINGS:
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """Begin a transaction; one that will write takes the lock now, when waiting still helps.

    A transaction that reads first and writes later can't wait for a lock: another's write in
    between would have changed what it has read, and SQLite gives up at once.
    """
    is_write = connection.get_execution_options().get("is_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what a driver raises into one of the store's errors; its values are left out."""
    try:
        yield
    except exc.TimeoutError as error:
        raise StoreUnavailableError(
            "every connection of the store is in use. Try again in a moment."
        ) from error
    except exc.DBAPIError as error:
        is_away = isinstance(error, exc.OperationalError | exc.InterfaceError)
        raise _translated(error.orig, is_away or error.connection_invalidated) from error
    except sqlite3.Error as error:  # of a connection that SQLAlchemy doesn't stand before
        raise _translated(error, isinstance(error, sqlite3.OperationalError)) from error


def _translated(original: BaseException, is_away: bool) -> StoreError:
    words = f"{type(original).__name__}: {original}"
    if any(word in words for word in SCHEMA_MISSING):
        return StoreError(
            "the store lacks a table or column that this metaecg needs; call Store.migrate(), as "
            "python -m metaecg.serve does when it starts."
        )
    reason = (str(original).splitlines() or [words])[0].rstrip(".")[:300]
    if is_away:
        again = (
            "Nothing was written; the same request works once the database is back, has room on its "
            "disk and is not locked."
        )
        return StoreUnavailableError(
            f"the store's database can't be used: {reason}. {again}",
            answer=f"the store's database can't be used for now. {again}",
        )
    return StoreError(f"the store's database refuses: {reason}. If damaged, restore a backup.")
