"""A folder per content key, published whole or not at all; checksums remembered per file."""

import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from metaecg.data.files import file_sha256
from metaecg.errors import CacheError

T = TypeVar("T")

LEFTOVER_AGE_S = 86_400
"""What a killed builder left behind is removed by the next one once it is this old."""

_UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError),
    zipfile.BadZipFile,
)


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
    except _UNREADABLE:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def store(root: Path, key: str, *, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the final one, then publish it under `key` by renaming.

    If another process was first, its entry stays: the content is the same by construction. A killed
    process leaves its unfinished folder, which is never read and goes after `LEFTOVER_AGE_S`.

    Raises
    ------
    CacheError
        The folder can't be written: no space, no permission, not a folder.
    """
    parent = root / "windows"
    building = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(parent)
        building = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", dir=parent))
        write(building)
        for file in building.iterdir():
            _fsync(file)
        _publish(building, parent / key)
        _fsync(parent)
    except OSError as error:
        raise _cant_write(parent, error) from error
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
    found = {
        file: known[str(file)][1] for file in files if known.get(str(file), [0])[0] == marks[file]
    }
    missing = [file for file in files if file not in found]
    if missing:
        with ThreadPoolExecutor(max_workers=n_workers) as pool:
            found.update(zip(missing, pool.map(file_sha256, missing), strict=True))
        if index_file is not None:
            known.update({str(file): [marks[file], found[file]] for file in missing})
            _write_index(index_file, known)
    return found


def _mark(file: Path) -> list[int]:
    # The time of change can't be set back, as the time of modification can.
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_index(file: Path | None) -> dict:
    """Return the remembered checksums; an unreadable index, or entry, is as good as none."""
    try:
        content = json.loads(file.read_text()) if file is not None and file.exists() else {}
    except (OSError, ValueError):
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: entry for name, entry in items if isinstance(entry, list) and len(entry) == 2}


def _write_index(file: Path, known: dict) -> None:
    written = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, prefix=".checksums-", delete=False
        ) as out:
            written = Path(out.name)
            json.dump(known, out)
        os.replace(written, file)
    except OSError as error:
        if written is not None:
            written.unlink(missing_ok=True)
        raise _cant_write(file.parent, error) from error


def _cant_write(folder: Path, error: OSError) -> CacheError:
    return CacheError(
        f"the cache {folder} can't be written: {error}. Free some space there, or choose another "
        "folder with --cache DIR."
    )


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(".*-*"):
        try:
            if time.time() - folder.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # somebody else removed it
            continue


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
