"""What a run has to tell MLflow, on the disk until it has arrived.

    OUT/tracking-missing/KEY/
        calls.jsonl      what the run recorded, a complete JSON line each, in order
        system.jsonl     load of the machine while it ran, written by the process that sends
        files/SHA256     copies of files that could not be sent, for a later run in OUT replaces them

One folder per run, so a study and its trials can share OUT. The journal holds the whole run, from
its creation on, and is removed as soon as everything has arrived. Sending it again changes nothing,
which is why nothing needs to remember how far it got.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from metaecg.data.files import file_sha256

FOLDER = "tracking-missing"
KEY_PREFIX = "offline-"
"""Begins the name of a run that a store has not seen yet; MLflow's own have no such thing."""
CALLS, SYSTEM, FILES = "calls.jsonl", "system.jsonl", "files"
WRITER_LOCK, SENDER_LOCK = "writer.lock", "sender.lock"
SYNC_EVERY_S = 2.0


class JournalFile:
    """A file of JSON lines that is only ever added to."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
        self._last_sync = 0.0

    def add(self, entry: dict, *, sync: bool = False) -> None:
        """Write one line in one call; it is brought to the disk every `SYNC_EVERY_S`, or now.

        Raises
        ------
        OSError
            It can't be written whole; then nothing of it is in the file.
        """
        line, size = json.dumps(entry).encode() + b"\n", os.fstat(self._file.fileno()).st_size
        if self._file.write(line) != len(line):  # a nearly full disk takes a part
            os.ftruncate(self._file.fileno(), size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync or time.monotonic() - self._last_sync > SYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._last_sync = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JournalReader:
    """Reads the complete lines of a journal file, from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.n_damaged = 0

    def entries(self) -> Iterator[dict]:
        """Yield what is new; a last line that is not whole yet waits for the next look.

        A complete line that is no JSON (a damaged disk) is counted in `n_damaged` and left out.
        """
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        for line in new[: new.rfind(b"\n") + 1].splitlines(keepends=True):
            self._offset += len(line)
            try:
                yield json.loads(line)
            except ValueError:
                self.n_damaged += 1


def journal_folder(out: Path, key: str) -> Path:
    """Return the folder of the run `key` in the output folder `out`."""
    return out.resolve() / FOLDER / key


def output_folder(folder: Path) -> Path:
    """Return the output folder that a journal belongs to."""
    return folder.parent.parent


def find_journals(out: Path) -> list[Path]:
    """Return the folders of all runs below `out` that have something missing."""
    return sorted(path.parent for path in out.rglob(f"{FOLDER}/*/{CALLS}"))


def lock_of(folder: Path, name: str) -> FileLock | None:
    """Take a lock of a journal; None if somebody else holds it. It ends with the process."""
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def remove(folder: Path) -> None:
    """Remove the journal of a run that has arrived, and the folder above if it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.rmdir()
    except OSError:
        return  # another run's journal is in it


def now_ms() -> int:
    """Return the time as MLflow writes it, milliseconds since 1970."""
    return int(time.time() * 1000)


# --- files ---------------------------------------------------------------------------------------


def file_entry(path: Path, out: Path, *, to: str = "") -> dict:
    """Return the reference to a file: where it lies below `out`, its checksum and its destination."""
    return {
        "path": os.path.relpath(path.resolve(), out.resolve()),
        "sha256": file_sha256(path),
        "to": to,
    }


def folder_entries(folder: Path, out: Path, *, to: str) -> list[dict]:
    """Return the references to all files of a folder, below the destination `to`."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            inner = path.parent.relative_to(folder).as_posix()
            found.append(file_entry(path, out, to=to if inner == "." else f"{to}/{inner}"))
    return found


def find_file(folder: Path, entry: dict) -> Path | None:
    """Return the file that an entry means, the kept copy or the original; None if it changed."""
    for path in (folder / FILES / entry["sha256"], output_folder(folder) / entry["path"]):
        if path.is_file() and file_sha256(path) == entry["sha256"]:
            return path
    return None


def keep_files(folder: Path) -> None:
    """Copy every file that the journal refers to into it."""
    (folder / FILES).mkdir(exist_ok=True)
    for entry in JournalReader(folder / CALLS).entries():
        for file in entry.get("files", ()):
            copy = folder / FILES / file["sha256"]
            source = output_folder(folder) / file["path"]
            if not copy.exists() and source.is_file():
                beside = copy.with_suffix(".new")
                shutil.copyfile(source, beside)
                os.replace(beside, copy)
