"""Send what runs could not: the journals below their output folders, to MLflow."""

from collections.abc import Iterable
from pathlib import Path

from metaecg.errors import ConfigError
from metaecg.experiments.tracking_journal import (
    CALLS,
    WRITER_LOCK,
    JournalReader,
    find_journals,
    lock_of,
)
from metaecg.models.registry_uri import http_limits


def replay(outs: Iterable[Path], *, uri: str | None, tell) -> None:
    """Send every journal below `outs`, the oldest run first; each is removed once it has arrived.

    It can be stopped at any moment and given again: nothing is lost, and nothing arrives twice.

    Parameters
    ----------
    outs
        Output folders of runs, or folders above them.
    uri
        Where to; None: where each run was to go.
    tell
        Called with each line of text for the user.

    Raises
    ------
    ConfigError
        A folder isn't there.
    ConnectionError
        Something is still missing; the message says what and why.
    """
    outs = list(outs)
    _check_folders(outs)
    journals = {folder: _first(folder) for out in outs for folder in find_journals(out)}
    unreadable = [folder for folder, run in journals.items() if run is None]
    waiting = sorted((f for f in journals if journals[f]), key=lambda f: journals[f]["time_ms"])
    if not journals:
        tell(f"nothing is missing below {', '.join(map(str, outs))}")
    problems = [f"{folder}: its first line can't be read" for folder in unreadable]
    stores: dict[str, object] = {}
    with http_limits():
        for folder in waiting:
            run = journals[folder]
            problem = _send(folder, run, uri or run["uri"], stores, tell)
            if problem:
                problems.append(f"run {run['name']!r} ({folder}): {problem}")
    if problems:
        raise ConnectionError(
            f"{len(problems)} of {len(journals)} run(s) not sent: {'; '.join(problems)}. Give the "
            "same command again when that is mended; --uri names another store."
        )


def _check_folders(outs: list[Path]) -> None:
    missing = [str(out) for out in outs if not out.is_dir()]
    if missing:
        raise ConfigError(
            [f"{out} is no folder; expected the output folder of a run." for out in missing]
        )


def _first(folder: Path) -> dict | None:
    """Return the entry with which the run began."""
    return next((e for e in JournalReader(folder / CALLS).entries() if e["call"] == "run"), None)


def _send(folder: Path, run: dict, uri: str, stores: dict, tell) -> str | None:
    """Send one journal; return why it is not whole, if so."""
    from metaecg.experiments.tracking_mlflow import Store, first_line
    from metaecg.experiments.tracking_outbox import Outbox

    rejected: list[str] = []

    def say(event: str, text: str) -> None:
        if event == "told":
            tell(text)
        elif event == "rejected":
            rejected.append(text)

    writer = lock_of(folder, WRITER_LOCK)
    if writer is None:
        return "it is still going on; replay it when it has ended"
    outbox = Outbox(folder, say=say)
    try:
        if outbox.is_taken:
            return "another process is sending it"
        if uri not in stores:
            stores[uri] = Store(uri)
        is_whole = outbox.close(stores[uri])
    except Exception as error:  # whatever a store, a network or a database raises
        return first_line(error)
    finally:
        outbox.release()
        writer.release()
    tell(f"run {run['name']!r} sent: {outbox.run_id}")
    if is_whole:
        return None
    what = "; ".join(rejected) or "some of its lines are damaged"
    return f"{what}. All else arrived: remove the folder if you can do without"
