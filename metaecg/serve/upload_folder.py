"""A private folder for files that have to lie on the disk for a moment; a killed server leaves none for good.

Each folder has a lock that its process holds and that ends with it, however it ends. So whoever starts
next knows an abandoned folder from one that another server on the machine is using.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

PREFIX = "metaecg-upload-"
LOCK = "lock"


@contextmanager
def private_folder() -> Iterator[Path]:
    """Give a folder in that for temporary files which its owner alone can read, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, FileLock(Path(folder) / LOCK):
        yield Path(folder)


def remove_abandoned() -> None:
    """Remove the folders whose process was killed; those in use, and other users', stay."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        try:
            with FileLock(lock).acquire(blocking=False):
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # held (filelock's Timeout is one), another user's, or gone meanwhile
            continue
