"""Storages whose calls are tried again: a database that starts anew ends no study."""

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from metaecg.experiments.tune_storage import StorageAwayError, first_line

PATIENCE_S = 60
"""How long one waits for a storage that doesn't answer."""
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between two tries; the last one is repeated."""
FAILURES = (StorageInternalError, SQLAlchemyError, OSError)
"""What a storage raises when it can't do what it is asked to: optuna's own, the database's, the
file system's. Answers such as "there is no such study" are none of them."""
CALLS = tuple(n for n in vars(BaseStorage) if n[0] != "_" and n != "remove_session") + (
    "_create_new_trial",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "_get_trials",
    "_set_trial_param",
)
"""What optuna asks of a database: the interface of a storage, and what its cache calls directly."""


class Patience:
    """Tries again, for a while, what a storage can't do now.

    The time is spent once: after it, and until the storage answers, every call is tried once.

    Parameters
    ----------
    shown
        The storage's address as users may see it.
    """

    def __init__(self, shown: str) -> None:
        self._shown, self._has_given_up = shown, False

    def of(self, call: Callable) -> Callable:
        """Return `call`, which raises StorageAwayError if it fails for too long."""

        @functools.wraps(call)
        def tried(*arguments, **options):
            return self._try(lambda: call(*arguments, **options))

        return tried

    def _try(self, call: Callable[[], Any]) -> Any:
        until = time.monotonic() + (0 if self._has_given_up else PATIENCE_S)
        for n_failed in itertools.count():
            try:
                found = call()
            except FAILURES as error:
                self._pause(n_failed, until, error)
            else:
                self._has_given_up = False
                return found

    def _pause(self, n_failed: int, until: float, error: Exception) -> None:
        """Wait before the next try, unless there was time enough."""
        why = first_line(error.__cause__ or error)  # optuna's own text is the same for everything
        pause = PAUSES_S[min(n_failed, len(PAUSES_S) - 1)]
        if time.monotonic() + pause > until:
            self._has_given_up = True
            raise StorageAwayError(
                f"the study's storage {self._shown} didn't answer for {PATIENCE_S} s ({why}). "
                "Finished trials are kept in it: see that it can be reached and written to, and give "
                "the same command again."
            ) from error
        if n_failed == 1:
            print(
                f"warning: the study's storage {self._shown} doesn't answer ({why}); trying again.",
                file=sys.stderr,
            )
        time.sleep(pause)


def be_patient(database: RDBStorage, shown: str) -> RDBStorage:
    """Let the calls of a database be tried again; return it."""
    patience = Patience(shown)
    for name in CALLS:
        setattr(database, name, patience.of(getattr(database, name)))
    database.record_heartbeat = _forgiving(database.record_heartbeat)
    return database


def _forgiving(beat: Callable[[int], None]) -> Callable[[int], None]:
    """Leave out a heartbeat that fails: the next one comes soon, and an error would be the last."""

    def record_heartbeat(trial_id: int) -> None:
        with suppress(*FAILURES):
            beat(trial_id)

    return record_heartbeat


class PatientJournal(JournalFileBackend):
    """A journal file that waits until it can be written, and never keeps half a line.

    Parameters
    ----------
    path
        The file.
    lock
        Held while a line is written; its owner may take it again.
    shown
        As of `Patience`.
    """

    def __init__(self, path: Path, *, lock, shown: str) -> None:
        super().__init__(str(path), lock_obj=lock)
        patience = Patience(shown)
        self.append_logs = patience.of(self.append_logs)
        self.read_logs = patience.of(self.read_logs)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, all of them or none."""
        with self._lock:
            size = os.stat(self._file_path).st_size
            try:
                super().append_logs(logs)
            except OSError:
                os.truncate(self._file_path, size)  # behind half a line, nothing could be read
                raise

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the lines from a number on; read whole, so that reading can be tried again."""
        return list(super().read_logs(log_number_from))
