"""A folder per content key, published whole or not at all; checksums remembered per file."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from metaecg.data.records import file_sha256
from metaecg.errors import CacheError

T = TypeVar("T")


def default_cache_root() -> Path:
    """Return the user's cache folder for prepared windows."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("metaecg")) / "prepared"


def load(root: Path, key: str, *, read: Callable[[Path], T]) -> T | None:
    """Return what `read` makes of the entry `key`, or None where there is no readable entry.

    An entry that can't be read (a damaged disk) is as good as none: it is removed and made anew.
    """
    folder = root / "windows" / key
    if not folder.is_dir():
        return None
    try:
        return read(folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def store(root: Path, key: str, *, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the final one, then publish it under `key` by renaming.

    If another process was first, its entry stays: the content is the same by construction.
    """
    parent = root / "windows"
    building = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=parent))
        write(building)
        for file in building.iterdir():
            _fsync(file)
        _publish(building, parent / key)
        _fsync(parent)
    except OSError as error:
        raise CacheError(
            f"the cache {parent} can't be written: {error}. Free some space there, or choose "
            "another folder with --cache DIR."
        ) from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def checksums(
    files: Iterable[Path], root: str | Path | None, *, n_workers: int = 2
) -> dict[Path, str]:
    """Return the SHA-256 of every file; unchanged files (path, size, time) are not read again."""
    files = list(dict.fromkeys(files))
    index_file = Path(root) / "checksums.json" if root is not None else None
    known = _read_index(index_file)
    marks = {file: _mark(file) for file in files}
    found = {file: known[str(file)][1] for file in files if known.get(str(file), [0])[0] == marks[file]}
    missing = [file for file in files if file not in found]
    if missing:
        with ThreadPoolExecutor(max_workers=n_workers) as pool:
            found.update(zip(missing, pool.map(file_sha256, missing), strict=True))
        if index_file is not None:
            known.update({str(file): [marks[file], found[file]] for file in missing})
            _write_index(index_file, known)
    return found


def _mark(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _read_index(file: Path | None) -> dict:
    """Return the remembered checksums; an unreadable index is as good as none."""
    try:
        return json.loads(file.read_text()) if file is not None and file.exists() else {}
    except (OSError, ValueError):
        return {}


def _write_index(file: Path, known: dict) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".checksums-", delete=False) as out:
            json.dump(known, out)
        os.replace(out.name, file)
    except OSError as error:
        raise CacheError(
            f"the cache {file.parent} can't be written: {error}. Free some space there, or choose "
            "another folder with --cache DIR."
        ) from error


def _publish(building: Path, final: Path) -> None:
    try:
        os.rename(building, final)
    except OSError:
        if not final.is_dir():  # nobody was first: a real failure
            raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
