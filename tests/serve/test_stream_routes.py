"""Chunks over HTTP: the same one twice at once, ones that are too long."""

import numpy as np
import pytest
from inside_cases import app_in_process


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An application that the tests of this file share; each opens its own stream."""
    with app_in_process(tmp_path_factory.mktemp("streams")) as found:
        found.client.post("/v1/patients", json={"subject_id": "s-1"})
        yield found


@pytest.fixture
def stream(app):
    """The address of an open stream at 100 Hz."""
    body = {"fs_hz": 100.0, "unit": "mV", "lead_name": "II"}
    answer = app.client.post("/v1/patients/s-1/streams", json=body)
    return f"/v1/streams/{answer.json()['stream_id']}"


def chunk(sequence: int, n_seconds: int = 10) -> dict:
    """Return noise as the body of a chunk."""
    noise = np.random.default_rng(sequence).normal(size=100 * n_seconds).round(3)
    return {"sequence": sequence, "signal": noise.tolist()}


def first_to_arrive(app, monkeypatch, send) -> list:
    """Let `send` be answered in full while the next request that changes a stream is at work."""
    store, answers = app.services.store, []
    put_stream = store.put_stream

    def late(*arguments, **options):
        monkeypatch.setattr(store, "put_stream", put_stream)
        answers.append(send())
        return put_stream(*arguments, **options)

    monkeypatch.setattr(store, "put_stream", late)
    return answers


def n_judged(app) -> float:
    return app.services.metrics.windows._value.get()


def test_a_chunk_that_comes_again_while_it_is_at_work_is_answered_the_same(
    app, stream, monkeypatch
):
    def send():
        return app.client.post(f"{stream}/chunks", json=chunk(0))

    before = n_judged(app)
    others = first_to_arrive(app, monkeypatch, send)
    answer = send()
    assert (answer.status_code, others[0].status_code) == (200, 200), answer.text
    assert answer.json() == others[0].json()
    windows = answer.json()["windows"]
    assert [window["index"] for window in windows] == list(range(8))
    assert n_judged(app) == before + 8  # what was thrown away isn't counted
    following = app.client.post(f"{stream}/chunks", json=chunk(1))
    assert following.json()["windows"][0]["index"] == 8


def test_another_chunk_of_the_same_number_at_the_same_time_is_a_conflict(app, stream, monkeypatch):
    others = first_to_arrive(
        app, monkeypatch, lambda: app.client.post(f"{stream}/chunks", json=chunk(0))
    )
    answer = app.client.post(f"{stream}/chunks", json={**chunk(0), "signal": [0.5] * 100})
    assert (answer.status_code, others[0].status_code) == (409, 200)
    assert "chunk 0 was sent before with other samples" in answer.json()["message"]


def test_a_stream_that_is_closed_twice_at_once_gives_both_its_last_windows(
    app, stream, monkeypatch
):
    app.client.post(f"{stream}/chunks", json=chunk(0))
    others = first_to_arrive(app, monkeypatch, lambda: app.client.post(f"{stream}/close"))
    answer = app.client.post(f"{stream}/close")
    assert (answer.status_code, others[0].status_code) == (200, 200), answer.text
    assert answer.json() == others[0].json()
    assert [window["index"] for window in answer.json()["windows"]] == [8, 9]


def test_a_stream_is_not_closed_by_who_has_not_seen_its_last_chunk(app, stream, monkeypatch):
    others = first_to_arrive(
        app, monkeypatch, lambda: app.client.post(f"{stream}/chunks", json=chunk(0))
    )
    answer = app.client.post(f"{stream}/close")
    assert (answer.status_code, others[0].status_code) == (409, 200)
    assert "another request was first" in answer.json()["message"]
    assert len(app.client.post(f"{stream}/close").json()["windows"]) == 2


def test_a_chunk_of_more_than_a_minute_is_refused_and_may_come_in_parts(app, stream):
    signal = [0.0] * 6001
    refused = app.client.post(f"{stream}/chunks", json={"sequence": 0, "signal": signal})
    assert refused.status_code == 422
    assert "lasts 60.01 s; at most 60 s" in refused.json()["message"]
    whole = app.client.post(f"{stream}/chunks", json={"sequence": 0, "signal": signal[:6000]})
    assert whole.status_code == 200, whole.text
    rest = app.client.post(f"{stream}/chunks", json={"sequence": 1, "signal": signal[6000:]})
    assert rest.json()["next_sequence"] == 2
