"""A chunk of a stream that fails on its way: pushed again, it goes on where the server stands."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from metaecg.client import Client, UnavailableError
from metaecg.errors import DataError

FS_HZ = 10.0
PIECE = 600
"""Samples of a minute, the most that the server takes at once."""
AWAY = (503, {"code": "unavailable", "message": "the store is away."})


class Counting(BaseHTTPRequestHandler):
    """Takes chunks in their order and answers each with a window; fails where it is told to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        n, fails = len(self.server.taken), self.server.fails
        if "sequence" not in body:
            return self._say(200, {"windows": [_window(n)]})
        if fails.get("before") == body["sequence"]:
            fails.clear()
            return self._say(*AWAY)
        assert body["sequence"] in (n, n - 1)
        if body["sequence"] == n:
            self.server.taken.append(body["signal"])
        assert body["signal"] == self.server.taken[body["sequence"]]
        if fails.get("after") == body["sequence"]:
            fails.clear()
            return self._say(*AWAY)  # taken, and the answer is lost
        found = {"next_sequence": body["sequence"] + 1, "windows": [_window(body["sequence"])]}
        return self._say(200, found)

    def _say(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def _window(index: int) -> dict:
    return {
        "index": index,
        "start_s": index,
        "stop_s": index + 1,
        "probability": 0.5,
        "label": "va",
    }


@contextmanager
def counting_server(**fails):
    """Give a stream to a server that fails at a chunk, ``before`` or ``after`` it took it, and its list."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.taken, server.fails, server.daemon_threads = [], fails, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", "t" * 40, n_retries=0) as client:
            yield client.resume_stream("s1", fs_hz=FS_HZ, next_sequence=0), server.taken
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def joined(taken: list[list]) -> list:
    return [sample for piece in taken for sample in piece]


@pytest.mark.parametrize("fails", [{"before": 1}, {"after": 1}, {"before": 0}, {"after": 2}])
def test_a_long_chunk_that_failed_is_pushed_again_and_counts_once_with_all_windows(fails):
    values = np.arange(3 * PIECE, dtype=np.float32)
    values[5] = np.nan
    with counting_server(**fails) as (stream, taken):
        with pytest.raises(UnavailableError):
            stream.push(values)
        assert stream.push(values).index.tolist() == [0, 1, 2]
        assert stream.push(values[:7]).index.tolist() == [3]
    expected = [None if np.isnan(v) else v for v in [*values.tolist(), *values[:7].tolist()]]
    assert joined(taken) == expected


def test_an_array_that_is_filled_anew_after_a_failure_is_not_taken_for_the_old_one():
    values = np.arange(2 * PIECE, dtype=np.float32)
    with counting_server(before=1) as (stream, taken):
        with pytest.raises(UnavailableError):
            stream.push(values)
        values += 1
        with pytest.raises(
            DataError, match="the first 600 samples of the chunk before .*same chunk"
        ):
            stream.push(values)
        values -= 1
        assert stream.push(values).index.tolist() == [0, 1]
    assert joined(taken) == list(range(2 * PIECE))


def test_a_chunk_of_which_nothing_was_taken_may_be_left_out():
    with counting_server(before=0) as (stream, taken):
        with pytest.raises(UnavailableError):
            stream.push([1.0, 2.0])
        assert stream.push([3.0]).index.tolist() == [0]
    assert taken == [[3.0]]


def test_windows_of_a_chunk_that_failed_come_with_the_end_of_the_stream():
    with counting_server(before=1) as (stream, _):
        with pytest.raises(UnavailableError):
            stream.push(np.zeros(2 * PIECE))
        assert stream.close().index.tolist() == [0, 1]
        assert stream.close().index.tolist() == [0, 1]
