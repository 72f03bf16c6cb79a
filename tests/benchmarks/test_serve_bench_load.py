"""The load of the server benchmark: a server that stands still is seen, and so is a lost answer.

The servers are this file's own, on free ports.
"""

import asyncio
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from serve_bench_load import http_request, percentile, poisson_times, send_all

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def toy_server(answer):
    """Give the port of a server that answers what ``answer(n, path)`` returns to its n-th request.

    An answer is bytes, or None to hang up; `answer` may sleep, and the whole server sleeps then.
    """
    count = iter(range(10**9))

    async def talk(reader, writer):
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            except asyncio.IncompleteReadError:
                break
            if "content-length: " in head:
                await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            found = answer(next(count), head.split(" ")[1])
            if found is None:
                break
            writer.write(found)
        writer.close()

    loop, ports, stop = asyncio.new_event_loop(), [], None

    async def serve():
        nonlocal stop
        stop = asyncio.Event()
        server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=512)
        ports.append(server.sockets[0].getsockname()[1])
        is_ready.set()
        await stop.wait()
        server.close()

    is_ready = threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert is_ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


def test_every_request_is_answered_and_in_its_turn():
    requests = [http_request("GET", f"/{i}") for i in range(3)]
    seen = []
    with toy_server(lambda _n, path: seen.append(path) or GOOD) as port:
        answers = send_all(port, requests, np.linspace(0.01, 0.2, 10), keep_bodies=True)
    assert sorted(seen) == sorted(["/0", "/1", "/2"] * 3 + ["/0"])
    assert answers.status.tolist() == [200] * 10
    assert answers.bodies == [b"ok"] * 10
    assert (answers.done_s >= answers.sent_s).all()
    assert answers.facts()["n_failed"] == 0


def test_a_server_that_stands_still_is_seen_in_all_that_came_due_meanwhile():
    def answer(n, _path):
        if n == 20:
            time.sleep(0.5)
        return GOOD

    with toy_server(answer) as port:
        answers = send_all(port, [http_request("GET", "/")], np.linspace(0.005, 1.0, 200))
    # 100 requests came due within the half second; the middle one of them waited half of it
    assert (answers.latency_s > 0.2).sum() >= 50
    assert answers.facts()["p50_s"] < answers.facts()["p90_s"]
    assert answers.facts()["p90_s"] > 0.2


def test_a_body_goes_along_with_its_length():
    request = http_request("POST", "/x", token="secret", body=b"{}")
    assert request.endswith(b"Content-Length: 2\r\n\r\n{}")
    assert b"Authorization: Bearer secret\r\n" in request
    with toy_server(lambda _n, path: GOOD if path == "/x" else None) as port:
        assert send_all(port, [request], np.array([0.01])).status.tolist() == [200]


def test_other_statuses_and_lost_answers_are_failures():
    def answer(n, _path):
        return GOOD.replace(b"200 OK", b"503 Away") if n == 1 else None if n == 2 else GOOD

    with toy_server(answer) as port:
        due_s = np.array([0.01, 0.1, 0.2, 0.3])
        answers = send_all(port, [http_request("GET", "/")], due_s)
    # the third is hung up on a connection that was good before, so it is sent once more
    assert answers.status.tolist() == [200, 503, 200, 200]
    assert answers.facts()["n_failed"] == 1
    assert answers.n_resent == 1


def test_nobody_at_the_port_is_a_failure_of_every_request():
    with toy_server(lambda *_: GOOD) as port:
        pass
    facts = send_all(port, [http_request("GET", "/")], np.array([0.01, 0.02])).facts()
    assert (facts["n_failed"], facts["p99_s"], facts["requests_per_s"]) == (2, None, 0.0)


def test_a_percentile_is_a_value_that_occurred():
    values = np.arange(1, 101) / 100
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (
        0.5,
        0.99,
        1.0,
    )
    assert percentile(np.array([0.1, np.inf]), 99) is None


def test_arrivals_are_fixed_by_the_seed_and_come_at_the_rate_that_was_asked_for():
    times = poisson_times(200.0, 50.0, np.random.default_rng(3))
    assert times.tolist() == poisson_times(200.0, 50.0, np.random.default_rng(3)).tolist()
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert (np.diff(times) >= 0).all()
    assert np.std(np.diff(times)) == pytest.approx(1 / 200, rel=0.1)  # as the mean: no clockwork
