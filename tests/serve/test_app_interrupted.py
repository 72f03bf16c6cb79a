"""Requests that end in the middle: the client leaves, the disk is full, the database is away."""

import errno
import logging
import re
import tempfile

import pytest
from inside_cases import app_in_process

from metaecg.serve.store import Store
from metaecg.serve.store_errors import StoreUnavailableError


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_in_process(tmp_path_factory.mktemp("interrupted")) as found:
        found.client.post("/v1/patients", json={"subject_id": "s"})
        yield found


def n_requests(app, status: str) -> float:
    """Return how many requests were answered so, by the server's own figures."""
    text = app.client.get("/metrics").text
    found = re.findall(rf'^metaecg_requests_total{{.*status="{status}".*}} (\S+)$', text, re.M)
    return sum(map(float, found))


def leave_in_the_middle(app, path: str, kind: str) -> list[dict]:
    """Send the beginning of a body and hang up; return what the server sends to nobody."""
    token = app.client.headers["Authorization"].encode()
    headers = [(b"authorization", token), (b"content-type", kind.encode())]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [*headers, (b"content-length", b"100000")],
        "server": ("testserver", 80),
        "client": ("testclient", 1),
    }
    body = b"--x\r\n" if "form" in kind else b'{"a'
    coming = [{"type": "http.request", "body": body, "more_body": True}]
    sent = []

    async def receive():
        return coming.pop() if coming else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    app.client.portal.call(app.client.app, scope, receive, send)
    return sent


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/patients", "application/json"),
        ("/v1/patients/s/recordings", "application/json"),
        ("/v1/patients/s/recordings/files", "multipart/form-data; boundary=x"),
        ("/v1/patients/s/detectors", "application/octet-stream"),
        ("/v1/patients/s/streams", "application/json"),
        ("/v1/predict", "application/json"),
    ],
)
def test_a_client_that_leaves_in_the_middle_is_no_bug(app, caplog, path, kind):
    caplog.set_level(logging.INFO, "metaecg")
    before = n_requests(app, "500"), n_requests(app, "499")
    sent = leave_in_the_middle(app, path, kind)
    assert [record.getMessage() for record in caplog.records if record.levelno > 20] == []
    assert (n_requests(app, "500"), n_requests(app, "499")) == (before[0], before[1] + 1)
    assert sent[0]["status"] == 499


def upload(app):
    files = {"files": ("a.csv", b"0.1\n" * 600_000)}  # more than is kept in memory
    form = {"format": "csv", "fs_hz": "250", "unit": "mV", "lead_names": "II"}
    return app.client.post("/v1/patients/s/recordings/files", files=files, data=form)


def test_no_room_for_a_body_while_it_comes_is_503_and_is_logged(app, caplog, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
        answer = upload(app)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"] == "2"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "No space left on device" in record.getMessage()
    assert upload(app).status_code == 201


def test_whoever_asks_learns_nothing_of_where_the_database_is(app, caplog, monkeypatch):
    store = Store("postgresql://somebody:secret@127.0.0.1:9/hidden")
    with pytest.raises(StoreUnavailableError, match="port 9"):
        store.ping()
    monkeypatch.setattr(app.services.store, "ping", store.ping)
    answer = app.client.get("/ready", headers={"Authorization": ""})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    for hidden in ("127.0.0.1", "port", "somebody", "hidden", "connection"):
        assert hidden not in answer.text
    assert "port 9" in caplog.text and "secret" not in caplog.text
    store.close()
