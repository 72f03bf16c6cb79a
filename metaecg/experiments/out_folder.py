"""The folder that a run writes to: one run at a time, and no folder of somebody else's is replaced."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metaecg.errors import ConfigError

LOCK = ".run.lock"
OF_A_BASE = {"base.json", "weights.safetensors"}
OF_A_JOB = "--seed-"
"""Part of the name of every job, and so of what it leaves."""


@contextmanager
def run_folder(out: Path, *, base: str | None) -> Iterator[None]:
    """Keep `out` for one run; the lock ends with its process, however that ends.

    Parameters
    ----------
    out
        Made if it isn't there, and removed again if nothing was written.
    base
        Name of the folder in it that gets the run's base; None: there is none.

    Raises
    ------
    ConfigError
        Another run writes to `out`, or a folder in it that the run would replace holds anything but
        what a run leaves.
    """
    from filelock import FileLock, Timeout

    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"out is {str(out)!r}, and another run writes to it at the moment; expected a folder that "
            "no run writes to. Wait for that run, or name another folder with --out."
        ) from None
    try:
        _refuse_foreign(out, base)
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            (out / LOCK).unlink()
        lock.release()
        if is_new:
            with suppress(OSError):  # it holds what the run wrote
                out.rmdir()


def _refuse_foreign(out: Path, base: str | None) -> None:
    problems = [
        f"{out / name} is not what a run of this recipe leaves, and the run would replace it; expected "
        f"none, or {words}. Name another folder with --out, or move it away."
        for name, words, is_ours in (
            (base, "a base (base.json, weights.safetensors)", _is_base),
            ("jobs", "finished jobs alone", _are_jobs),
        )
        if name and (out / name).exists() and not is_ours(out / name)
    ]
    if problems:
        raise ConfigError(problems)


def _is_base(folder: Path) -> bool:
    """Whether a folder holds a base of ours and nothing else; an empty one does no harm."""
    if not folder.is_dir():
        return False
    found = {path.name for path in folder.iterdir()}
    if not found:
        return True
    try:
        document = json.loads((folder / "base.json").read_bytes())
        return found <= OF_A_BASE and document["format"].startswith("metaecg-")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _are_jobs(folder: Path) -> bool:
    """Whether a folder holds nothing but jobs: finished, half-written (hidden) or under way."""
    return folder.is_dir() and all(
        OF_A_JOB in path.name
        and (
            path.name.startswith(".")
            or path.suffix == ".safetensors"
            or (path / "job.json").exists()
        )
        for path in folder.iterdir()
    )
