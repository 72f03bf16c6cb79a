"""The process that sends journals to MLflow while their runs go on.

Started by `tracking_process`, never by hand. Lines of JSON come in: ``{"warm": URI}``, ``{"watch":
FOLDER, "uri": URI, "system": BOOL}`` and ``{"end": KEY}``. Lines ``{"key", "event", "text"}`` go out: the events of
`tracking_outbox.Outbox`, and ``failed``. After the first failure of a store nothing more is sent
there; the journals stay, for ``replay``. When the input ends, so does the process: a run whose own
process was killed is closed as KILLED.
"""

import gc
import json
import os
import select
import selectors
import signal
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from metaecg.experiments.tracking_journal import SYSTEM, JournalFile, keep_files
from metaecg.experiments.tracking_system import Sampler
from metaecg.models.registry_uri import without_password

LOOK_EVERY_S = 0.5
"""How soon a new line is sent; a run's end is sent at once."""
NICENESS = 15
"""Training goes first: while it keeps all cores busy, this process gets 3.4 percent of one (the
weights of Linux's scheduler, 36 against 1024). Less would hide a run of minutes from MLflow's page."""


class Watched:
    """A run that is sent, and what the machine does meanwhile."""

    def __init__(self, folder: Path, *, uri: str, with_system: bool, say) -> None:
        from metaecg.experiments.tracking_outbox import Outbox

        self.uri = uri
        self.has_failed = False
        self.outbox = Outbox(folder, say=partial(say, folder.name))
        self._say = partial(say, folder.name)
        self.sampler = Sampler(JournalFile(folder / SYSTEM)) if with_system else None

    def sample(self, take) -> None:
        """Call the sampler, if there is one; a sampler that fails is called no more."""
        if self.sampler is None:
            return
        try:
            take(self.sampler)
        except Exception as error:  # a full disk, or what the driver of a GPU raises
            self.sampler = None
            self._say("told", f"the load of the machine is not recorded any more: {error}")

    def fail(self, reason: str) -> None:
        """Send nothing more, and say so once."""
        if not self.has_failed:
            self.has_failed = True
            self._say("failed", reason)


class Sender:
    """All runs that are watched, and the stores that they go to."""

    def __init__(self, say, scratch: Path) -> None:
        self._say, self._scratch = say, scratch
        self._watched: dict[str, Watched] = {}
        self._stores: dict[str, object] = {}
        self._failures: dict[str, str] = {}
        self._template: Path | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no run is watched."""
        return not self._watched

    def obey(self, message: dict) -> None:
        """Do what a line of the input says."""
        if "end" in message:
            self._finish(message["end"])
            return
        if "warm" in message:
            self._warm_up(message["warm"])
            return
        folder = Path(message["watch"])
        self._watched[folder.name] = Watched(
            folder, uri=message["uri"], with_system=message["system"], say=self._say
        )

    def look(self) -> None:
        """Send what is new of every run."""
        for watched in self._watched.values():
            watched.sample(Sampler.sample_if_due)
            self._guarded(watched, watched.outbox.send)

    def finish(self) -> None:
        """Close every run that is left: nobody can add to it any more."""
        for key, watched in list(self._watched.items()):
            self._finish(key)
            if watched.has_failed:  # its own process was killed and can't keep them any more
                with suppress(OSError):
                    keep_files(watched.outbox.folder)

    def _finish(self, key: str) -> None:
        watched = self._watched.pop(key, None)
        if watched is None:
            return
        watched.sample(Sampler.finish)
        self._guarded(watched, watched.outbox.close)
        watched.outbox.release()

    def _guarded(self, watched: Watched, action) -> None:
        """Call `action` with the run's store, unless that or the run has failed before."""
        if watched.uri in self._failures:
            watched.fail(self._failures[watched.uri])
        if watched.has_failed:
            return
        try:
            action(self._store(watched.uri))
        except Exception as error:  # whatever a store, a network or a database raises
            from metaecg.experiments.tracking_mlflow import FilesMissing, ParentMissing, first_line

            if not isinstance(error, (FilesMissing, ParentMissing)):
                self._failures[watched.uri] = first_line(error)
            watched.fail(first_line(error))

    def _warm_up(self, uri: str) -> None:
        """Import what will be needed, and make the tables of a new SQLite store, not yet in place.

        A run that is refused before it begins leaves no store behind.
        """
        from metaecg.experiments.tracking_mlflow import Store, import_pyfunc

        import_pyfunc()
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            template = self._scratch / "empty.db"
            Store(f"sqlite:///{template}")
            self._template = template

    def _store(self, uri: str):
        from metaecg.experiments.tracking_mlflow import Store

        if uri not in self._stores:
            self._stores[uri] = Store(uri, template=self._template)
        return self._stores[uri]


def main() -> None:
    """Send until the input ends, and end the process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the run decides when it is over
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    gc.disable()  # importing takes less so; almost nothing of it is garbage
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no message

    def say(key: str, event: str, text: str) -> None:
        if event == "sent" and not select.select([], [out], [], 0)[1]:
            return  # nobody has read for long; this only says that something goes on
        try:
            print(json.dumps({"key": key, "event": event, "text": text}), file=out, flush=True)
        except OSError:
            return  # the run was killed; the journal is sent all the same

    with tempfile.TemporaryDirectory(prefix="metaecg-tracking-") as scratch:
        sender = Sender(say, Path(scratch))
        for line in _lines(sys.stdin.fileno(), sender):
            try:
                sender.obey(json.loads(line))
            except Exception as error:  # such as a folder that was removed: the run goes on without
                print(f"not done: {without_password(str(error))}", file=sys.stderr)
            sender.look()
            gc.enable()  # with the first message everything was imported
        sender.finish()
    os._exit(0)  # the run waits for it, and taking mlflow down takes a moment


def _lines(handle: int, sender: Sender):
    """Yield the lines of the input; in between let `sender` look at its runs."""
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        while True:
            if not selector.select(None if sender.is_idle else LOOK_EVERY_S):
                sender.look()
                continue
            found = os.read(handle, 1 << 16)
            if not found:
                return
            *lines, unread = (unread + found).split(b"\n")
            yield from lines


if __name__ == "__main__":
    main()
