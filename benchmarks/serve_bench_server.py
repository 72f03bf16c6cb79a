"""A server process for the benchmark: started for real, measured from outside, ended by its id."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil
import requests

READY_S = 120.0
"""Longest wait for a server to be ready."""


@dataclass(eq=False)
class Server:
    """A running server process."""

    process: psutil.Popen
    port: int
    start_s: float
    """From the start of the process to the first good answer of ``/ready``."""
    start_processor_s: float = 0.0
    """Processor time until then: what a start takes on a machine that has other things to do."""
    log: list[str] = field(default_factory=list, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rss_bytes(self) -> int:
        """Return the resident memory of the process and those that it started."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family)

    def processor_s(self) -> float:
        """Return the processor time that it has used."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(member.cpu_times()[:2]) for member in family)


@contextmanager
def running(command: list[str], environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Start a server that prints ``NAME: http://127.0.0.1:PORT/`` and end it by its process id."""
    begin = time.perf_counter()
    process = psutil.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    server, reader = Server(process=process, port=0, start_s=0.0), None
    try:
        server.port = _port_of(process, server.log)
        # Somebody has to read what it says, or it stops when the pipe is full.
        reader = threading.Thread(target=_drain, args=(process, server.log), daemon=True)
        reader.start()
        _wait_until_ready(server)
        server.start_s = time.perf_counter() - begin
        server.start_processor_s = server.processor_s()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(30)
        if reader is not None:
            reader.join(5)
        process.stdout.close()


def metaecg_server(store_url: str, *options: str, model: str = "va-base"):
    """Return a context manager of ``python -m metaecg.serve`` on a free port."""
    command = [sys.executable, "-m", "metaecg.serve", "--model", model, "--store", store_url]
    return running([*command, "--port", "0", *options])


class MemoryWatch:
    """Notes the memory of a server once a second, in a thread of its own."""

    def __init__(self, server: Server, every_s: float = 1.0) -> None:
        self.server, self.every_s = server, every_s
        self.time_s: list[float] = []
        self.rss_bytes: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._begin = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.time_s.append(time.perf_counter() - self._begin)
            self.rss_bytes.append(self.server.rss_bytes())
            if self._stop.wait(self.every_s):
                return


def growth(time_s, rss_bytes) -> dict:
    """Return how memory grew: from the median of the second minute to that of the last one.

    The first minute fills caches and pools. A shorter soak is cut into thirds instead: the first is
    left out. `slope_bytes_per_minute` is that of a line through everything after the first part.
    """
    time_s, rss_bytes = np.asarray(time_s, float), np.asarray(rss_bytes, float)
    part_s = min(60.0, float(time_s[-1]) / 3)
    is_early = (time_s >= part_s) & (time_s < 2 * part_s)
    is_late = time_s >= time_s[-1] - part_s
    settled = time_s >= part_s
    slope = np.polyfit(time_s[settled] / 60, rss_bytes[settled], 1)[0] if settled.sum() > 2 else 0.0
    early, late = (float(np.median(rss_bytes[part])) for part in (is_early, is_late))
    return {
        "rss_early_bytes": int(early),
        "rss_late_bytes": int(late),
        "rss_max_bytes": int(rss_bytes.max()),
        "rss_growth_bytes": int(late - early),
        "slope_bytes_per_minute": float(slope),
    }


def _port_of(process: psutil.Popen, log: list[str]) -> int:
    for line in process.stdout:
        log.append(line)
        name, _, address = line.strip().partition(": http://127.0.0.1:")
        if address and " " not in name:
            return int(address.rstrip("/"))
    raise SystemExit(f"the server ended before it listened:\n{''.join(log)}")


def _drain(process: psutil.Popen, log: list[str]) -> None:
    for line in process.stdout:
        if len(log) < 1000:
            log.append(line)


def _wait_until_ready(server: Server) -> None:
    deadline = time.perf_counter() + READY_S
    while time.perf_counter() < deadline:
        try:
            if requests.get(f"{server.url}/ready", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.01)
    raise SystemExit(f"the server was not ready within {READY_S:g} s:\n{''.join(server.log)}")
