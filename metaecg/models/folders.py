"""Write a file, or a folder of a few small files, so that a reader never sees half of it."""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from metaecg.data.files import sync_folder
from metaecg.errors import CheckpointError

N_TRIES = 5  # another process may replace the same folder at the same moment


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Write `files` as the folder `folder`, replacing one that holds the same file names.

    The files go into a new folder beside it, are brought to the disk, and the folder is renamed:
    whoever opens `folder` finds all of the old files, all of the new ones or, for the moment
    between two renames, no folder; never half-written or mixed files. Parent folders are made.

    Parameters
    ----------
    folder
        Where to write.
    files
        File name to content.

    Raises
    ------
    CheckpointError
        If `folder` is a file or holds anything that isn't one of `files`; nothing is removed then.
    """
    folder = Path(os.path.abspath(folder))
    _refuse_foreign(folder, files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.new"
    beside.mkdir()
    try:
        for name, content in files.items():
            _write_synced(beside / name, content)
        sync_folder(beside)
        _move_into_place(beside, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_file(path: str | Path, content: bytes) -> None:
    """Write `content` as the file `path`, replacing one that is there; parent folders are made.

    It is written beside its place, brought to the disk and renamed: whoever opens `path` finds all
    of the old file or all of the new one.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex}.new"
    try:
        _write_synced(beside, content)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _refuse_foreign(folder: Path, files: Mapping[str, bytes]) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a folder to write to was expected.")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(found - set(files))
    if foreign:
        raise CheckpointError(
            f"{folder} holds {foreign[0]!r}, which does not belong to what is saved there "
            f"({', '.join(files)}); it would be lost. Give a new or an empty folder."
        )


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move_into_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is first moved aside, then removed."""
    for left in reversed(range(N_TRIES)):
        aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.old"
        try:
            folder.rename(aside)
        except FileNotFoundError:
            aside = None
        try:
            new.rename(folder)
        except OSError:
            if aside is not None and not folder.exists():
                aside.rename(folder)
            elif aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            if not left:
                raise
            continue
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        return
