"""A request with signal is refused before it is parsed if it holds more than its endpoint takes."""

import pytest
from inside_cases import app_in_process

from metaecg.serve import limits

JSON = {"Content-Type": "application/json"}
MIB = 2**20


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_in_process(tmp_path_factory.mktemp("limits")) as found:
        found.client.post("/v1/patients", json={"subject_id": "s-1"})
        yield found


@pytest.fixture
def chunks(app) -> str:
    """The address for the chunks of an open stream at 5,000 Hz."""
    body = {"fs_hz": 5000.0, "unit": "mV", "lead_name": "II"}
    stream = app.client.post("/v1/patients/s-1/streams", json=body).json()["stream_id"]
    return f"/v1/streams/{stream}/chunks"


def never_parsed(monkeypatch) -> None:
    """Let a test fail whose request's body is parsed."""
    monkeypatch.setattr(
        "starlette.requests.Request.json", lambda self: pytest.fail("the body was parsed")
    )


@pytest.mark.parametrize(
    ("path", "n_mib"),
    [
        ("/v1/streams/0/chunks", 6),
        ("/v1/patients/s-1/predict", 18),
        ("/v1/predict", 18),
        ("/v1/patients/s-1/streams", 2),
    ],
)
def test_more_bytes_than_the_longest_signal_takes_are_refused(app, monkeypatch, path, n_mib):
    never_parsed(monkeypatch)
    answer = app.client.post(path, content=b" " * (n_mib * MIB), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert answer.json()["detail"]["limit_bytes"] < n_mib * MIB


@pytest.mark.parametrize(
    "path", ["/v1/streams/0/chunks", "/v1/patients/s-1/predict", "/v1/predict"]
)
def test_more_numbers_than_the_longest_signal_has_are_refused(app, monkeypatch, path):
    """Short numbers would fit by the millions, and every one takes time to parse."""
    never_parsed(monkeypatch)
    n = 310_000 if path.endswith("chunks") else 1_100_000
    body = b'{"sequence": 0, "signal": [' + b"0," * n + b"0]}"
    answer = app.client.post(path, content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert n > answer.json()["detail"]["limit_values"] > 0.9 * n
    assert "Send less at once" in answer.json()["message"]


def test_a_minute_at_a_high_rate_written_at_length_is_taken(app, chunks):
    body = '{"sequence": 0, "signal": [' + ",".join(["-0.01234567890"] * 300_000) + "]}"
    answer = app.client.post(chunks, content=body, headers=JSON)
    assert len(body) > 4 * MIB
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["windows"]) == 58


def test_as_many_windows_as_are_taken_fit_at_a_high_rate():
    door = limits.BodyDoor(None, upload_bytes=1, json_bytes=64 * MIB)
    found = door.expected("POST", "/v1/predict")
    n_samples = 1024 * 2 * 500  # windows of two seconds at 500 Hz
    items = 1024 * len('{"subject_id": "s-0123456789", "signal": []},')
    assert found.n_values >= n_samples + 1024
    assert found.n_bytes >= n_samples * len("-0.012345678,") + items


def test_the_settings_can_allow_less_but_not_more():
    for json_bytes in (1000, 1000 * MIB):
        door = limits.BodyDoor(None, upload_bytes=1, json_bytes=json_bytes)
        assert door.expected("POST", "/v1/patients/s/recordings").n_bytes == json_bytes
        assert door.expected("POST", "/v1/predict").n_bytes == min(json_bytes, MIB + 16_384_000)
