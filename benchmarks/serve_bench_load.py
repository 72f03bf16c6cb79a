"""An open-loop load over HTTP/1.1: requests leave when their time has come, whatever the server does.

The times of all requests are fixed before the first one is sent, and a request's latency is counted
from its time, not from when it could be sent. A server that stands still for half a second is seen
in all the requests that came due meanwhile; a generator that waits for answers before it asks
again would hide it ("coordinated omission").
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import httptools
import numpy as np
import uvloop

MAX_CONNECTIONS = 256
DRAIN_S = 30.0
"""Longest wait for answers after the last request was due."""
NO_ANSWER = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What became of every request, in the order in which they were due."""

    due_s: np.ndarray
    """When each was due, seconds from the start, shape ``(n,)``."""
    sent_s: np.ndarray
    done_s: np.ndarray
    """When its answer was whole; NaN without one."""
    status: np.ndarray
    """HTTP status; 0 without an answer."""
    bodies: list[bytes] = field(repr=False)
    n_resent: int
    """Requests that were sent again because the server closed an idle connection at that moment."""
    processor_s: float
    """Processor time of this process meanwhile."""

    @property
    def latency_s(self) -> np.ndarray:
        """Seconds from when a request was due to its whole answer; infinite without one."""
        return np.where(np.isfinite(self.done_s), self.done_s - self.due_s, np.inf)

    @property
    def span_s(self) -> float:
        """Seconds from the start to the last answer, or to when the last request was due."""
        return max(float(np.nanmax(self.done_s, initial=0.0)), float(self.due_s[-1]))

    def facts(self) -> dict:
        """Return rates and latencies as JSON values."""
        latency_s, is_good = self.latency_s, self.status == 200
        late_s = self.sent_s - self.due_s
        return {
            "n_requests": len(self.due_s),
            "offered_per_s": len(self.due_s) / float(self.due_s[-1]),
            "requests_per_s": float(is_good.sum()) / self.span_s,
            "n_failed": int((~is_good).sum()),
            "p50_s": percentile(latency_s, 50),
            "p90_s": percentile(latency_s, 90),
            "p99_s": percentile(latency_s, 99),
            "p999_s": percentile(latency_s, 99.9),
            "max_s": percentile(latency_s, 100),
            "sent_late_p99_s": percentile(late_s, 99),
            "n_resent": self.n_resent,
            "load_processor_share": self.processor_s / self.span_s,
        }


def percentile(values: np.ndarray, q: float) -> float | None:
    """Return the smallest value that `q` percent don't exceed; ``None`` if that isn't finite."""
    found = float(np.percentile(values, q, method="inverted_cdf"))
    return found if np.isfinite(found) else None


def poisson_times(rate: float, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Return sorted times of independent arrivals, `rate` per second on average, at least one."""
    n = max(1, rng.poisson(rate * duration_s))
    return np.sort(rng.uniform(0.0, duration_s, n))


def http_request(
    method: str, path: str, *, token: str = "", body: bytes = b"", kind: str = "application/json"
) -> bytes:
    """Return the bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def send_all(
    port: int, requests: Sequence[bytes], due_s: np.ndarray, *, keep_bodies: bool = False
) -> Answers:
    """Send ``requests[i % len(requests)]`` at ``due_s[i]`` to 127.0.0.1 and wait for the answers."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send_all_async(port, requests, due_s, keep_bodies=keep_bodies))


async def send_all_async(
    port: int, requests: Sequence[bytes], due_s: np.ndarray, *, keep_bodies: bool = False
) -> Answers:
    """`send_all` on a running event loop."""
    processor_s = time.process_time()
    load = _Load(port, requests, due_s, keep_bodies)
    await load.run()
    return Answers(
        due_s=due_s,
        sent_s=load.sent_s,
        done_s=load.done_s,
        status=load.status,
        bodies=load.bodies,
        n_resent=load.n_resent,
        processor_s=time.process_time() - processor_s,
    )


class _Load:
    """The state of one load; all times are seconds since its start."""

    def __init__(self, port, requests, due_s, keep_bodies: bool) -> None:
        n = len(due_s)
        self.port, self.requests, self.due_s = port, requests, due_s
        self.sent_s, self.done_s = np.full(n, np.nan), np.full(n, np.nan)
        self.status = np.zeros(n, dtype=np.int64)
        self.bodies: list[bytes] = [b""] * n if keep_bodies else []
        self.n_resent = 0
        self._n_left = n
        self._idle: list[_Connection] = []
        self._waiting: deque[int] = deque()
        self._n_open = 0
        self._n_opening = 0
        self._tasks: set[asyncio.Task] = set()
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._begin = self.loop.time()
        self._send_due(0)
        try:
            async with asyncio.timeout(float(self.due_s[-1]) + DRAIN_S):
                await self._is_over.wait()
        except TimeoutError:
            pass  # what has no answer by now never counts as answered
        for task in self._tasks:
            task.cancel()
        for connection in [*self._idle]:
            connection.transport.close()

    def now(self) -> float:
        return self.loop.time() - self._begin

    def _send_due(self, i: int) -> None:
        """Send what is due, from request `i` on, and come back when the next one is."""
        now = self.now()
        while i < len(self.due_s) and self.due_s[i] <= now:
            self.send(i)
            i += 1
        if i < len(self.due_s):
            self.loop.call_at(self._begin + float(self.due_s[i]), self._send_due, i)

    def send(self, i: int) -> None:
        if self._idle:
            self._idle.pop().start(i)  # the one used last: the server closes those that rest
            return
        self._waiting.append(i)
        n_connections = self._n_open + self._n_opening
        if len(self._waiting) > self._n_opening and n_connections < MAX_CONNECTIONS:
            self._n_opening += 1
            task = self.loop.create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            await self.loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.port)
        except OSError:
            self._n_opening -= 1
            while self._waiting and not (self._n_open or self._n_opening):
                self.finish(self._waiting.popleft(), NO_ANSWER, b"")

    def opened(self, connection: "_Connection") -> None:
        self._n_opening -= 1
        self._n_open += 1
        self.ready(connection)

    def ready(self, connection: "_Connection") -> None:
        """Take the next waiting request, or rest."""
        if self._waiting:
            connection.start(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def closed(self, connection: "_Connection", i: int | None, *, had_answered: bool) -> None:
        self._n_open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if i is None:
            return
        if had_answered:  # it was good until it rested: closed as the request was on its way
            self.n_resent += 1
            self.send(i)
        else:
            self.finish(i, NO_ANSWER, b"")

    def finish(self, i: int, status: int, body: bytes) -> None:
        self.status[i] = status
        if status != NO_ANSWER:
            self.done_s[i] = self.now()
        if self.bodies:
            self.bodies[i] = body
        self._n_left -= 1
        if not self._n_left:
            self._is_over.set()


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, load: _Load) -> None:
        self.load = load
        self.request: int | None = None
        self.n_answered = 0
        self.parts: list[bytes] = []

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.load.opened(self)

    def start(self, i: int) -> None:
        self.request, self.parts = i, []
        self.parser = httptools.HttpResponseParser(self)
        self.load.sent_s[i] = self.load.now()
        self.transport.write(self.load.requests[i % len(self.load.requests)])

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        i, self.request = self.request, None
        self.n_answered += 1
        self.load.finish(i, self.parser.get_status_code(), b"".join(self.parts))
        if self.parser.should_keep_alive():
            self.load.ready(self)
        else:
            self.transport.close()

    def connection_lost(self, _error) -> None:
        self.load.closed(self, self.request, had_answered=self.n_answered > 0)
