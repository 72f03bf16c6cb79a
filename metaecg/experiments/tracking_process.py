"""The process that sends journals to MLflow, seen from the run: start it, tell it, hear from it.

It is a process of its own so that neither the seconds of importing mlflow nor a server that hangs
ever hold up training, and so that nothing imports beside the training in a thread.
"""

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
from pathlib import Path

import metaecg
from metaecg.models.registry_uri import LIMITS

PROGRAM = "metaecg.experiments.tracking_sender"
HTTP_LIMITS = {
    **LIMITS,
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
STALL_S = 120.0
"""Silence after which the process is given up, unless it was at work meanwhile: it has a word for
every entry that it sent, but on a busy machine importing mlflow alone can take minutes."""
AT_WORK_S = 0.05
"""Processor seconds within the silence from which on it was at work; waiting takes next to none."""
CLOSE_S = 10.0


class SendingProcess:
    """A child process that sends the journals it is told of; see `tracking_sender`.

    What it says is kept in `said`: run key to the messages about that run. `warned` has the stores
    of which the user has been told that they can't be used.
    """

    def __init__(self) -> None:
        self.said: dict[str, dict[str, str]] = {}
        self.users: set[str] = set()
        self.warned: set[str] = set()
        self._owner = os.getpid()
        self._unread = b""
        environment = {**HTTP_LIMITS, **os.environ, "PYTHONPATH": _python_path()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        os.set_blocking(self._process.stdout.fileno(), False)

    @property
    def is_usable(self) -> bool:
        """Whether it runs, and is this process's own rather than one from before a fork."""
        return self._owner == os.getpid() and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **message: object) -> None:
        """Send a message; a process that is gone hears nothing."""
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def wait_for(self, key: str, events: set[str]) -> dict[str, str]:
        """Return what was said of a run, as soon as one of `events` is among it.

        Ends without any of them if the process ends or is silent for `STALL_S`; in that case it is
        killed, since nobody can know what it is waiting for.
        """
        while not events & self.said.get(key, {}).keys():
            used_s = self._processor_s()
            if not self._hear(STALL_S):
                if self._processor_s() - used_s > AT_WORK_S:
                    continue
                if self._process.poll() is None:
                    self.kill()
                self.said.setdefault(key, {})["failed"] = (
                    f"the process that sends to it ended or said nothing for {STALL_S:g} s"
                )
        return self.said[key]

    def hear(self) -> None:
        """Take in what it has said by now."""
        self._hear(0)

    def close(self, *, wait: bool = True) -> None:
        """Let it finish what it is at, and end it."""
        if self._owner != os.getpid():
            return
        self._process.stdin.close()
        if not wait:
            return
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def _processor_s(self) -> float:
        """Return the processor seconds that it has used; 0 if it is gone."""
        import psutil

        try:
            return sum(psutil.Process(self.pid).cpu_times()[:2])
        except psutil.Error:
            return 0.0

    def _hear(self, timeout_s: float) -> bool:
        """Wait for the next words and take them in; False if there are none."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return False
        found = self._process.stdout.read(1 << 16)
        if not found:
            return False
        *lines, self._unread = (self._unread + found).split(b"\n")
        for line in lines:
            message = json.loads(line)
            about = self.said.setdefault(message["key"], {})
            about[message["event"]] = message["text"]
        return True


_lock = threading.RLock()
_current: SendingProcess | None = None


def take(key: str | None) -> SendingProcess:
    """Return this process's sending process for the run `key`; it is started if there is none.

    With None it is only started.

    Raises
    ------
    OSError
        It can't be started.
    """
    global _current
    with _lock:
        if _current is None or not _current.is_usable:
            _current = SendingProcess()
        if key is not None:
            _current.users.add(key)
        return _current


def give_back(sender: SendingProcess, key: str, *, may_idle: bool) -> None:
    """Say that the run `key` has ended; with the last one the process ends too.

    With `may_idle` it stays until the program ends: another trial will want it in a moment.
    """
    global _current
    with _lock:
        sender.users.discard(key)
        if sender.users or (may_idle and sender.is_usable):
            return
        sender.close()
        if _current is sender:
            _current = None


lock = _lock
"""Held around what a thread does with the process."""


@atexit.register
def _close() -> None:
    if _current is not None:
        _current.close(wait=bool(_current.users))  # one that was only warmed up ends by itself


def _python_path() -> str:
    """Return a search path with which the child finds the same metaecg."""
    mine = str(Path(metaecg.__file__).parent.parent)
    return os.pathsep.join([mine, *filter(None, [os.environ.get("PYTHONPATH")])])
