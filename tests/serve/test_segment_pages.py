"""A page of segments with their signal: what it shows, and how little is read for it."""

import numpy as np
import pytest
from inside_cases import app_in_process, small_recording

from metaecg.serve import store_recordings


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_in_process(tmp_path_factory.mktemp("pages")) as found:
        found.client.post("/v1/patients", json={"subject_id": "s-1"})
        yield found


@pytest.fixture
def n_unpacked(monkeypatch) -> list:
    """Grows by one for every chunk of a signal that is decompressed."""
    found, unpacked = [], store_recordings.unpacked
    monkeypatch.setattr(store_recordings, "unpacked", lambda *a: found.append(1) or unpacked(*a))
    return found


def uploaded(app, recording: dict) -> str:
    answer = app.client.post("/v1/patients/s-1/recordings", json=recording)
    assert answer.status_code == 201, answer.text
    return f"/v1/patients/s-1/recordings/{answer.json()['recording_id']}"


def shown(app, address: str, **query) -> list[dict]:
    return app.client.get(f"{address}/segments", params={"signal": True, **query}).json()[
        "segments"
    ]


def test_the_chunks_of_a_page_are_read_once(app, n_unpacked):
    recording = small_recording(300)
    address = uploaded(app, recording)
    app.client.get(f"{address}/segments")  # gaps are looked for once, here
    n_unpacked.clear()
    page = shown(app, address, start_s=30.0)
    assert [segment["index"] for segment in page] == list(range(30, 130))
    assert len(n_unpacked) == 3  # of a minute each
    for segment in page:
        start = 100 * segment["index"]
        np.testing.assert_allclose(
            segment["signal_mv"], recording["signal"][0][start : start + 100], atol=1e-5
        )


def test_what_lies_between_segments_that_are_far_apart_is_not_read(app, n_unpacked):
    recording = small_recording(1200, gap=slice(500, 110_000))
    address = uploaded(app, recording)
    app.client.get(f"{address}/segments")
    n_unpacked.clear()
    page = shown(app, address, limit=10)
    assert [segment["index"] for segment in page] == [*range(5), *range(1100, 1105)]
    assert len(n_unpacked) == 2
    for segment in page:
        start = 100 * segment["index"]
        np.testing.assert_allclose(
            segment["signal_mv"], recording["signal"][0][start : start + 100], atol=1e-5
        )
