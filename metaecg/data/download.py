"""Fetch databases from PhysioNet: resumed where they were cut, checked against its checksums."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event, Lock

import filelock
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from metaecg.checks import check_positive
from metaecg.data.databases import Database, get_database
from metaecg.data.files import file_sha256, sync_folder
from metaecg.data.transfer import Stopped, discard, fetch
from metaecg.errors import CacheError, ConfigError, DataError

PHYSIONET = "https://physionet.org/files/"
SUMS = "SHA256SUMS.txt"
RECORDS = "RECORDS"

_RETRY_STATUS = (429, 500, 502, 503, 504)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the download of one database is."""

    database: str
    n_files: int
    """Files that the database needs here."""
    n_done: int
    """Files that are in place and checked."""
    n_bytes: int
    """Bytes received by this call."""


def download(
    slugs: Iterable[str],
    root: str | Path,
    *,
    base_url: str = PHYSIONET,
    session: requests.Session | None = None,
    n_workers: int = 4,
    progress: Callable[[Progress], None] | None = None,
) -> list[Path]:
    """Fetch databases into ``root/slug/``; what is there already and whole is kept.

    Headers, signals and annotations of every record are fetched. A file has its own name only when
    its SHA-256 is the published one; until then it is ``NAME.part``, and a later call goes on where
    it ends. ``RECORDS`` comes last: where it is, the database is whole. Two processes may download
    at once; the second waits and then finds the files.

    Parameters
    ----------
    slugs
        Names in `metaecg.data.databases.DATABASES`.
    root
        Folder that holds one folder for each database; created if needed.
    base_url
        Where ``slug/version/`` lies: PhysioNet or a mirror of it.
    session
        By default one that retries connection errors and the answers 429 and 5xx, waiting longer
        each time. How often a body that ended early is resumed follows its retries too.
    n_workers
        Files fetched at the same time.
    progress
        Called with a `Progress` after every piece and every file, never twice at once.

    Returns
    -------
    list of pathlib.Path
        The databases' folders, in the order of `slugs`, each once.

    Raises
    ------
    DataError
        Unknown database, missing file, server without an answer, a published list that can't be
        used, or content that doesn't have the published checksum.
    CacheError
        The folder can't be written: disk full, no permission.
    ConfigError
        `base_url` isn't a web address.
    """
    slugs = [slugs] if isinstance(slugs, str) else list(dict.fromkeys(slugs))
    databases = [get_database(slug) for slug in slugs]
    base_url = _checked_base_url(base_url)
    check_positive("n_workers", n_workers)
    own_session = make_session(n_workers=n_workers) if session is None else None
    try:
        return [
            _download_database(
                database,
                Path(root) / database.slug,
                base_url=base_url,
                session=session or own_session,
                n_workers=n_workers,
                progress=progress or (lambda state: None),
            )
            for database in databases
        ]
    finally:
        if own_session is not None:
            own_session.close()


def make_session(*, n_workers: int = 4, n_retries: int = 5) -> requests.Session:
    """Return a session that retries what may pass, with growing pauses (0, 1, 2, 4, 8 seconds)."""
    retries = Retry(
        total=n_retries,
        backoff_factor=0.5,
        status_forcelist=_RETRY_STATUS,
        allowed_methods={"GET"},
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries, pool_maxsize=n_workers))
    return session


def _checked_base_url(base_url: str) -> str:
    if not base_url.startswith(("https://", "http://")):
        raise ConfigError(
            f"base_url is {base_url!r}; expected an address that starts with https:// or http://, "
            f"such as {PHYSIONET}."
        )
    return base_url.rstrip("/") + "/"


def _download_database(database: Database, folder: Path, *, base_url: str, **how) -> Path:
    """Fetch one database while no other process does; name folder and remedy if writing fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _fetch_all(database, folder, base_url + database.url_path, **how)
            sync_folder(folder)
    except CacheError:
        raise
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def _locked(folder: Path):
    """Take the folder's lock, saying so when that means waiting; use it in a ``with``."""
    lock = filelock.FileLock(folder / ".download.lock")
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning("%s: another process is downloading; waiting for it.", folder)
        return lock.acquire()


def _fetch_all(
    database: Database,
    folder: Path,
    url: str,
    *,
    session: requests.Session,
    n_workers: int,
    progress: Callable[[Progress], None],
) -> None:
    sums_part = folder / f"{SUMS}.part"
    discard(sums_part)  # there is no checksum of the checksums, so it is never resumed
    fetch(url + SUMS, sums_part, session=session)
    sums = parse_sums(sums_part.read_text(errors="replace"), where=url + SUMS)
    os.replace(sums_part, folder / SUMS)
    counter = _Counter(database.slug, progress)
    _fetch_verified(url, folder, RECORDS, sums, session=session, keep_part=True)
    records_part = folder / f"{RECORDS}.part"
    names = files_of(database, records_part.read_text(errors="replace").split(), sums, where=url)
    counter.start(len(names) + 1)
    _fetch_in_parallel(url, folder, names, sums, session, n_workers, counter)
    os.replace(records_part, folder / RECORDS)
    counter.file_done()


def _fetch_in_parallel(url, folder, names, sums, session, n_workers, counter) -> None:
    """Fetch the files; the first failure (or Ctrl-C) stops the others, which keep what they have."""
    stop = Event()
    with ThreadPoolExecutor(max_workers=n_workers) as pool:
        jobs = [
            pool.submit(
                _fetch_verified,
                url,
                folder,
                name,
                sums,
                session=session,
                stop=stop,
                counter=counter,
            )
            for name in names
        ]
        try:
            for job in as_completed(jobs):
                job.result()
                counter.file_done()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Counter:
    """Adds up what the workers report and passes it on, one report at a time."""

    def __init__(self, database: str, progress: Callable[[Progress], None]) -> None:
        self._database, self._progress = database, progress
        self._n_files = self._n_done = self._n_bytes = 0
        self._lock = Lock()

    def start(self, n_files: int) -> None:
        self._n_files = n_files
        self._report()

    def file_done(self) -> None:
        self._report(n_done=1)

    def received(self, n_bytes: int) -> None:
        self._report(n_bytes=n_bytes)

    def _report(self, *, n_done: int = 0, n_bytes: int = 0) -> None:
        with self._lock:
            self._n_done += n_done
            self._n_bytes += n_bytes
            self._progress(
                Progress(
                    database=self._database,
                    n_files=self._n_files,
                    n_done=self._n_done,
                    n_bytes=self._n_bytes,
                )
            )


def _fetch_verified(
    url: str,
    folder: Path,
    name: str,
    sums: dict[str, str],
    *,
    session: requests.Session,
    stop: Event | None = None,
    counter: _Counter | None = None,
    keep_part: bool = False,
) -> None:
    """Bring one file into place with the published content, or leave nothing under its name.

    With `keep_part` the content stays in ``NAME.part``; the caller renames it when the rest is there.
    """
    if stop is not None and stop.is_set():
        raise Stopped
    target, part, expected = folder / name, folder / f"{name}.part", _published(name, sums, url)
    if target.exists():
        if file_sha256(target) == expected:
            if keep_part:
                shutil.copyfile(target, part)
            return
        _log.info("%s isn't the published file; fetching it again.", target)
        target.unlink()
    resumed = part.exists()
    received = counter.received if counter else None
    if not (resumed and file_sha256(part) == expected):
        fetch(url + name, part, session=session, tag=expected, stop=stop, received=received)
    found = file_sha256(part)
    if found != expected and resumed:  # the old beginning may be to blame: once more, from zero
        discard(part)
        fetch(url + name, part, session=session, tag=expected, stop=stop, received=received)
        found = file_sha256(part)
    if found != expected:
        discard(part)
        raise DataError(
            f"{target}: the content fetched from {url + name} has the SHA-256 {found}; {SUMS} says "
            f"{expected}. Nothing was kept. Try again later, or another base_url."
        )
    if not keep_part:
        os.replace(part, target)
        discard(part)  # a note may be left beside a part that was whole already


def _published(name: str, sums: dict[str, str], url: str) -> str:
    if name not in sums:
        raise DataError(
            f"{url}{SUMS} has no checksum of {name}; without one the file can't be checked. "
            "Try another base_url."
        )
    return sums[name]


def parse_sums(text: str, *, where: str) -> dict[str, str]:
    """Return file name -> SHA-256 from the text of a SHA256SUMS file.

    Raises
    ------
    DataError
        A line isn't ``checksum  name``, or a name would leave the database's folder.
    """
    sums = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(\S.*)", line.rstrip())
        if match is None:
            raise DataError(
                f"{where}, line {number}: {line[:80]!r} isn't a SHA-256 and a file name. The "
                "address answers, but not with a list of checksums; check base_url."
            )
        _check_inside(match[2], where=f"{where}, line {number}")
        sums[match[2].removeprefix("./")] = match[1].lower()
    return sums


def _check_inside(name: str, *, where: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\x00-\x1f]", name):
        raise DataError(
            f"{where}: the file name {name!r} would leave the database's folder; expected a "
            "relative name. Nothing was fetched. Use a server you trust."
        )


def files_of(
    database: Database, records: list[str], sums: dict[str, str], *, where: str
) -> list[str]:
    """Return the files of the records: header and what is published of signal and annotations.

    Superseded revisions (``.hea-``, ``old/``) and unlisted files are left out.
    """
    if not records:
        raise DataError(f"{where}{RECORDS} is empty; expected the names of the records.")
    extensions = ("hea", "dat", database.annotation_extension)
    names = []
    for record in records:
        if not _PLAIN_NAME.fullmatch(record):
            raise DataError(
                f"{where}{RECORDS}: {record!r} isn't a plain record name; it could leave the "
                "database's folder. Nothing was fetched. Use a server you trust."
            )
        _published(f"{record}.hea", sums, where)
        names += [f"{record}.{ext}" for ext in extensions if f"{record}.{ext}" in sums]
    return list(dict.fromkeys(names))


def _cannot_write(folder: Path, error: OSError) -> CacheError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full. Free some space or choose another root"
    else:
        reason = f"{error}. Make the folder writable or choose another root"
    return CacheError(
        f"{folder} can't be written: {reason}, then run the download again; it goes on where it "
        "stopped."
    )
