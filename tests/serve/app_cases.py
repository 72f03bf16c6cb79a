"""A real server for tests: a process of its own on a free port of 127.0.0.1, ended by its number."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import requests

from metaecg.data.demo_patients import generate_patient

START_S = 180
"""How long a start may take on a machine that is busy with other tests."""
STOP_S = 60
FS_HZ = 250.0
VA = ("VT", "VF", "VFL")


@dataclass
class Server:
    """A server that runs."""

    url: str
    """Without a slash at the end."""
    token: str
    """Of the organisation ``default``."""
    process: subprocess.Popen = field(repr=False)
    folder: Path
    """Holds its store ``metaecg.db`` and its log ``server.log``."""

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        return (self.folder / "server.log").read_text(encoding="utf-8")

    def session(self, token: str | None = None) -> "Api":
        """Return what sends requests with a token, by default the server's own."""
        return Api(self.url, token or self.token)

    def kill(self) -> None:
        """End the process as a power cut would."""
        self.process.kill()
        self.process.wait(STOP_S)

    def terminate(self) -> int:
        """Ask the process to end, as a service manager does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


class Api(requests.Session):
    """Requests to one server, with a token; addresses are given without the server's."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self.url = url
        self.headers["Authorization"] = f"Bearer {token}"
        self.trust_env = False  # no proxy between a test and its server

    def request(self, method, path, **options):
        """Send a request to `path`, such as ``"/v1/patients"``."""
        options.setdefault("timeout", 120)
        return super().request(method, self.url + path, **options)


@contextmanager
def running_server(folder: Path, *options: str, token: str = "") -> Iterator[Server]:
    """Run a server for the time of the block.

    Parameters
    ----------
    folder
        Gets the store and the log; a server that is started there again goes on with the store.
    options
        Of the command line, such as ``"--model", "veb-base"``; ``--store`` may be among them.
    token
        The one to use, if the store isn't new: a server shows it at its first start alone.
    """
    server = start_server(folder, *options, token=token)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()


def start_server(folder: Path, *options: str, token: str = "") -> Server:
    """Start a server and return it once it listens; see `running_server`."""
    store = () if "--store" in options else ("--store", f"sqlite:///{folder}/metaecg.db")
    command = [sys.executable, "-m", "metaecg.serve", "--port", "0", *store, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = folder / "server.out"
    with open(said, "wb") as out, open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command, stdout=out, stderr=log, stdin=subprocess.DEVNULL, env=environment
        )
    server = Server(url="", token=token, process=process, folder=folder)
    try:
        text = _said(server, said)
    except BaseException:
        process.kill()
        process.wait()
        raise
    server.url = re.search(r"^metaecg: (http://\S+)/$", text, re.M)[1]
    found = re.search(r"#token=(\S+)$", text, re.M)
    server.token = token or (found[1] if found else "")
    return server


def _said(server: Server, said: Path) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        text = said.read_text(encoding="utf-8")
        if re.search(r"^metaecg: \S+\n", text, re.M) and _answers(text):
            return text
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}: {server.log}")
        time.sleep(0.05)
    raise RuntimeError(f"the server didn't start: {server.log}")


def _answers(text: str) -> bool:
    url = re.search(r"^metaecg: (\S+)/\n", text, re.M)[1]
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(f"{url}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


def recording_of(index: int = 0, *, duration_s: float = 600.0, seed: int = 3) -> dict:
    """Return a generated patient's recording as the body of an upload."""
    patient = generate_patient(index, duration_s=duration_s, seed=seed)
    signal = np.round(patient.signal_mv, 4).tolist()
    return {"fs_hz": FS_HZ, "unit": "mV", "lead_names": ["ECG"], "signal": [signal]}


def truth_of(index: int = 0, *, duration_s: float = 600.0, seed: int = 3) -> dict[int, str]:
    """Return the class of every two-second window that lies in one rhythm, by its number."""
    found = {}
    for part in generate_patient(index, duration_s=duration_s, seed=seed).segments:
        name = "va" if part.rhythm in VA else "other"
        first, stop = math.ceil(part.start_s / 2), math.floor(part.stop_s / 2)
        found |= dict.fromkeys(range(first, stop), name)
    return found


def first_of_each(truth: dict[int, str], n: int) -> dict[str, str]:
    """Return the first `n` windows of each class as the body of a request that labels them."""
    found: dict[str, str] = {}
    for name in ("other", "va"):
        of_class = sorted(index for index, label in truth.items() if label == name)
        found |= {str(index): name for index in of_class[:n]}
    return found


def ended_job(api: Api, job_id: str, *, seconds: float = 120) -> dict:
    """Return a job once it has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = api.get(f"/v1/jobs/{job_id}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.02)
    raise TimeoutError(f"job {job_id} hasn't ended: {job}")
