"""The pieces that the client sends a long chunk in are those that the server takes."""

import json

import numpy as np
import pytest

from metaecg.client import streams
from metaecg.client.streams import Stream
from metaecg.serve import limits
from metaecg.serve.routes_streams import MAX_CHUNK_S


class Answer:
    def __init__(self, next_sequence: int) -> None:
        self.content = json.dumps({"next_sequence": next_sequence, "windows": []}).encode()

    def json(self):
        return json.loads(self.content)


class Server:
    """Notes how many samples come at once."""

    def __init__(self) -> None:
        self.lengths = []

    def ask(self, method, path, *, data, **options):
        body = json.loads(data)
        self.lengths.append(len(body["signal"]))
        return Answer(body["sequence"] + 1)


@pytest.mark.parametrize(
    ("fs_hz", "n_seconds", "lengths"),
    [(100.0, 150, [6000, 6000, 3000]), (10_000.0, 60, [300_000, 300_000])],
)
def test_a_long_chunk_goes_in_pieces_of_a_minute_and_of_what_a_body_holds(
    fs_hz, n_seconds, lengths
):
    server = Server()
    stream = Stream(server, stream_id="0" * 32, fs_hz=fs_hz)
    stream.push(np.zeros(round(fs_hz * n_seconds), dtype=np.float32))
    assert server.lengths == lengths


def test_client_and_server_name_the_same_limits():
    assert (streams.CHUNK_S, streams.CHUNK_SAMPLES) == (MAX_CHUNK_S, limits.CHUNK_SAMPLES)
