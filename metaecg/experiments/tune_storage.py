"""Where a study is kept: SQLite or a journal file on one machine, PostgreSQL for several."""

import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from metaecg.errors import ConfigError, DataError, MissingDependencyError
from metaecg.models.registry_uri import without_password

HEARTBEAT_S, GRACE_S = 15, 90
"""How often a running trial of a database says that it is alive, and after how long a silence it
counts as dead: another machine has no other way to know. On one machine the process is looked up."""
LOCKED_S = 60
"""How long a process waits for another that writes to the same SQLite file."""
ATTEMPTS, PAUSE_S = 8, 0.5
RACES = ("already exists", "unique", "duplicate", "locked")
"""Two processes may set up an empty database at once; then one of them tries again. These words of
the database say so, in small or in capital letters."""


class StorageAwayError(DataError):
    """The storage of a study hasn't answered for longer than one waits for it."""


@contextmanager
def opened_storage(url: str) -> Iterator[Any]:
    """Open the optuna storage that a `url` names, and close its connections at the end.

    Once it is open, a call that fails is tried again for a minute (`tune_patience`); then it
    raises StorageAwayError.

    Parameters
    ----------
    url
        ``sqlite:///FILE``, ``journal:FILE``, or ``postgresql://USER@HOST/DATABASE``.

    Raises
    ------
    ConfigError
        It can't be opened; the message doesn't show its password.
    MissingDependencyError
        The driver of PostgreSQL is not installed.
    """
    storage = _open(url)
    try:
        yield storage
    finally:
        if hasattr(storage, "engine"):
            storage.remove_session()
            storage.engine.dispose()


def _open(url: str):
    """Open a storage; whatever is wrong with it is one error."""
    kind, _, rest = url.partition(":")
    try:
        if kind == "journal":
            return _journal(Path(rest))
        if kind == "sqlite":
            return _sqlite(url)
        options = {"pool_pre_ping": True}
        return _with_attempts(lambda: _database(_with_driver(url), options, shown(url)))
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"storage is {shown(url)}, whose driver {error.name!r} is not installed; type "
            "pip install 'metaecg[postgresql]'."
        ) from error
    except ImportError:
        raise
    except Exception as error:  # whatever a driver, a database or a file system raises
        raise ConfigError(
            f"storage is {shown(url)}, which can't be opened: {first_line(error)}. Expected a place "
            "that can be reached and written to; check the address, or name another with --storage."
        ) from error


def shown(url: str) -> str:
    """Return a storage's address without its user and password."""
    return repr(without_password(url))


def worker_name() -> str:
    """Return who runs a trial: this machine and this process, as long as it lives."""
    return f"{_machine()}|{os.getpid()}|{_began(os.getpid())}"


def describe_worker(worker: str) -> str:
    """Return a worker's name in words."""
    machine, _, process = worker.partition("|")
    return f"process {process.partition('|')[0]} on {machine.partition(' ')[0]}"


def is_here(worker: str) -> bool:
    """Whether a worker runs, or ran, where its process can be looked up from here."""
    return worker.partition("|")[0] == _machine()


def was_restarted(worker: str) -> bool:
    """Whether a machine of this one's name has been started anew since that worker ran on it."""
    theirs, ours = worker.partition("|")[0].split(" "), _machine().split(" ")
    return theirs[0] == ours[0] and theirs[1:2] != ours[1:2]


def is_dead(worker: str) -> bool:
    """Whether a process of this machine has ended; of another machine's that can't be told."""
    import psutil

    number, _, began = worker.partition("|")[2].partition("|")
    try:
        return is_here(worker) and abs(_began(int(number)) - float(began)) > 1
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, ValueError):
        return True


def _began(number: int) -> float:
    """Return when a process began; of its number, one process alone began then.

    On Linux in ticks since the machine was started: psutil's time moves when the clock is set.
    """
    import psutil

    process = psutil.Process(number)
    if process.status() == psutil.STATUS_ZOMBIE:  # killed, and nobody has asked how it ended
        raise psutil.ZombieProcess(number)
    if not psutil.LINUX:
        return round(process.create_time(), 2)
    return float(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])


def _machine() -> str:
    """Name this machine; two containers are two, since neither sees the other's processes."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8],
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:  # not Linux
            continue
    return " ".join(parts)


def _journal(path: Path):
    from filelock import FileLock
    from optuna.storages import JournalStorage

    from metaecg.experiments.tune_patience import PatientJournal

    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock that ends with its process; optuna's own ones outlive it for half a minute.
    lock = FileLock(f"{path}.lock")
    return JournalStorage(PatientJournal(path, lock=lock, shown=shown(f"journal:{path}")))


def _sqlite(url: str):
    """Open an SQLite file; it lets readers go on while another process writes (WAL)."""
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"connect_args": {"timeout": LOCKED_S}}

    def build():
        _let_readers_go_on(path)
        return _database(url, options, shown(url))

    return _with_attempts(build)


def _let_readers_go_on(path: Path) -> None:
    import sqlite3

    with closing(sqlite3.connect(path, timeout=LOCKED_S)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode=WAL")


def _database(url: str, options: dict, name: str):
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage

    from metaecg.experiments.tune_patience import be_patient

    with warnings.catch_warnings():
        # The heartbeat is called experimental since 2021; without it a dead machine's trial
        # would run for ever.
        warnings.simplefilter("ignore", ExperimentalWarning)
        database = RDBStorage(
            url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S
        )
    return be_patient(database, name)


def _with_driver(url: str) -> str:
    """Name psycopg 3 where no driver is named: SQLAlchemy would take psycopg2."""
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _with_attempts(build):
    """Call `build`, again if another process sets up the same tables at this moment."""
    import sqlite3

    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    races = (IntegrityError, OperationalError, ProgrammingError, sqlite3.OperationalError)
    for left in reversed(range(ATTEMPTS)):
        try:
            return build()
        except races as error:
            is_race = any(word in str(error).lower() for word in RACES)
            if not left or not is_race:
                raise
            time.sleep(PAUSE_S)
    raise AssertionError("unreachable")


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
