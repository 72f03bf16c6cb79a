"""The journal of one run on its way into a store, live or in a replay."""

from collections.abc import Callable
from pathlib import Path

from metaecg.experiments.tracking_journal import (
    CALLS,
    SENDER_LOCK,
    SYSTEM,
    JournalFile,
    JournalReader,
    lock_of,
    now_ms,
    remove,
)
from metaecg.experiments.tracking_mlflow import FilesMissing, Rejected, Store, first_line

Say = Callable[[str, str], None]
LATER = ("files", "model")
"""What goes to an artifact store, which may be away when the rest is not: that goes on then."""


class Outbox:
    """What a run recorded, sent in order.

    Parameters
    ----------
    folder
        The journal's. Nobody else may be sending it: `is_taken`.
    say
        Called with an event and a text: ``created`` with the run's id, ``sent`` after every entry,
        ``told`` with what the user should know, ``rejected`` with an entry that the store will
        never take (it is left out, and the journal stays), ``done`` at the end.
    """

    def __init__(self, folder: Path, *, say: Say) -> None:
        self.folder = folder.resolve()  # links and addresses are made of it
        self.run_id: str | None = None
        self._say = say
        self._lock = lock_of(folder, SENDER_LOCK)
        self._readers = [JournalReader(folder / name) for name in (CALLS, SYSTEM)]
        self._end: dict | None = None
        self._late: list[dict] = []
        self._n_rejected = 0

    @property
    def is_taken(self) -> bool:
        """Whether another process is sending it."""
        return self._lock is None

    def send(self, store: Store) -> None:
        """Send what is new; the run's end is kept for `close`.

        Raises
        ------
        Exception
            Whatever a store, a network or a database raises. Then `send` isn't called again.
        """
        for reader in self._readers:
            for entry in reader.entries():
                if entry["call"] == "end":
                    self._end = entry
                elif entry["call"] == "run":
                    self.run_id = store.begin(entry, self.folder)
                    self._say("created", self.run_id)
                else:
                    self._send_one(store, entry)

    def close(self, store: Store) -> bool:
        """Send the rest and the end; remove the journal if everything arrived, and say whether.

        A run without an end was killed, and is closed so.

        Raises
        ------
        FilesMissing
            All but files has arrived, the end too; the journal stays.
        Exception
            As `send` does.
        """
        self.send(store)
        if self._end is None:
            file = JournalFile(self.folder / SYSTEM)
            file.add({"call": "end", "status": "KILLED", "time_ms": now_ms()}, sync=True)
            file.close()
            self.send(store)
        problem = self._send_late(store)
        if self.run_id is not None:
            store.write(self.run_id, self._end, self.folder)
        if problem is not None:
            raise FilesMissing(f"its files can't be stored: {first_line(problem)}")
        is_whole = not self._n_rejected and not any(reader.n_damaged for reader in self._readers)
        self.release()
        if is_whole:
            remove(self.folder)
        self._say("done", "")
        return is_whole

    def release(self) -> None:
        """Let others send the journal."""
        if self._lock is not None:
            self._lock.release()

    def _send_late(self, store: Store) -> Exception | None:
        """Try again what an artifact store did not take; return why it doesn't, if so."""
        try:
            for entry in self._late:
                self._send_one(store, entry, is_last_try=True)
        except Exception as error:  # whatever a store or a network raises
            return error
        return None

    def _send_one(self, store: Store, entry: dict, *, is_last_try: bool = False) -> None:
        try:
            told = store.write(self.run_id, entry, self.folder)
        except Rejected as error:
            self._n_rejected += 1
            self._say("rejected", str(error))
            return
        except Exception:
            if entry["call"] not in LATER or is_last_try:
                raise
            self._late.append(entry)  # if the whole store is away, the next entry says so
            return
        self._say("sent", entry["call"])
        if told:
            self._say("told", told)
