"""The client's requests: tried again or not, errors as exceptions, the token for one server alone.

The other side is a server of this file's own on a free port, which answers what it is told to.
"""

import json
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from metaecg.client import (
    Client,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    UnauthorizedError,
    UnavailableError,
)
from metaecg.client.errors import exception_of
from metaecg.client.http import address_and_token
from metaecg.errors import AdaptationError, CheckpointError, DataError, NotEnoughWindowsError

TOKEN = "metaecg_" + "t" * 43
PATIENT = {
    "subject_id": "s-1",
    "created_at": "2026-01-02T03:04:05.000Z",
    "active_version": 0,
    "n_recordings": 0,
    "n_labels": 0,
    "note": "",
}
LATER = (503, {"code": "unavailable", "message": "the store is away."}, {"Retry-After": "0"})


class Told(BaseHTTPRequestHandler):
    """Answers what stands in `server.answers`, one after another, and notes what was asked."""

    protocol_version = "HTTP/1.1"

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        told = self.server.answers.pop(0)
        if told == "hang up":
            self.close_connection = True
            return
        status, content, headers = told
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_):
        pass


@contextmanager
def told_server(*answers):
    """Give a client of a server that answers `answers`, and the list of what it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Told)
    server.answers, server.asked = list(answers), []
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with Client(
            f"http://127.0.0.1:{server.server_port}", TOKEN, timeout_s=5, n_retries=2
        ) as client:
            yield client, server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_token_goes_with_every_request():
    with told_server((200, PATIENT, {})) as (client, asked):
        client.patient("s-1")
    assert asked[0][:2] == ("GET", "/v1/patients/s-1")
    assert asked[0][2]["Authorization"] == f"Bearer {TOKEN}"


def test_a_netrc_file_does_not_replace_the_token(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with told_server((200, PATIENT, {})) as (client, asked):
        client.patient("s-1")
    assert asked[0][2]["Authorization"] == f"Bearer {TOKEN}"


def test_a_question_is_asked_again_when_the_server_says_not_now_or_hangs_up():
    with told_server(LATER, "hang up", (200, PATIENT, {})) as (client, asked):
        assert client.patient("s-1").subject_id == "s-1"
    assert len(asked) == 3


def test_after_the_last_try_the_servers_own_words_are_raised():
    with told_server(*[LATER] * 3) as (client, asked):
        with pytest.raises(UnavailableError, match="the store is away") as caught:
            client.patient("s-1")
    assert len(asked) == 3
    assert (caught.value.code, caught.value.status) == ("unavailable", 503)


@pytest.mark.parametrize("answer", [LATER, "hang up"])
def test_what_would_happen_twice_is_sent_once(answer):
    with told_server(answer) as (client, asked):
        with pytest.raises(UnavailableError):
            client.create_patient("s-1")
    assert [(method, path) for method, path, *_ in asked] == [("POST", "/v1/patients")]


def test_labels_and_chunks_of_a_stream_are_sent_again():
    counts = {"n_shots": 10, "counts": {"va": 1}}
    chunk = {"next_sequence": 4, "windows": []}
    with told_server("hang up", (200, counts, {}), LATER, (200, chunk, {})) as (client, asked):
        client.put_labels("s-1", "r1", {3: "va", 4: None})
        stream = client.resume_stream("st1", fs_hz=250.0, next_sequence=3)
        assert len(stream.push([0.5, float("nan")])) == 0
        assert stream.next_sequence == 4
    assert json.loads(asked[0][3]) == {"labels": {"3": "va", "4": None}}
    assert asked[0][3] == asked[1][3]
    assert json.loads(asked[3][3]) == {"sequence": 3, "signal": [0.5, None]}


def test_a_patient_that_is_gone_at_the_second_try_was_deleted_by_the_first():
    missing = (404, {"code": "not_found", "message": "there is no patient 's-1'."}, {})
    with told_server("hang up", missing, missing) as (client, _):
        client.delete_patient("s-1")
        with pytest.raises(NotFoundError, match="no patient 's-1'"):
            client.delete_patient("s-1")


def test_nobody_at_the_address_is_said_with_what_to_do():
    with told_server() as (client, _):
        pass
    with Client(client._http.url, TOKEN, n_retries=0) as client:
        with pytest.raises(UnavailableError, match="can't be reached.*python -m metaecg.serve"):
            client.patient("s-1")


def test_the_token_follows_no_redirection():
    moved = (302, b"", {"Location": "http://127.0.0.1:9/elsewhere"})
    with told_server(moved) as (client, _):
        with pytest.raises(ServerError, match="sends requests elsewhere"):
            client.patient("s-1")


def test_an_answer_that_is_not_the_apis_is_a_server_error():
    with told_server((200, b"<html>", {}), (200, {"subject_id": "s-1"}, {})) as (client, _):
        with pytest.raises(ServerError, match="without a JSON object"):
            client.patient("s-1")
        with pytest.raises(ServerError, match="no Patient: created_at"):
            client.patient("s-1")


def test_a_newer_server_may_say_more():
    with told_server((200, {**PATIENT, "hair": "grey"}, {})) as (client, _):
        assert client.patient("s-1").active_version == 0


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("data_error", 422, DataError),
        ("adaptation_error", 422, AdaptationError),
        ("checkpoint_error", 422, CheckpointError),
        ("not_enough_windows", 422, DataError),
        ("invalid", 422, InvalidRequestError),
        ("too_large", 413, InvalidRequestError),
        ("unsupported_media", 415, InvalidRequestError),
        ("unauthorized", 401, UnauthorizedError),
        ("not_found", 404, NotFoundError),
        ("conflict", 409, ConflictError),
        ("queue_full", 429, UnavailableError),
        ("unavailable", 503, UnavailableError),
        ("internal", 500, ServerError),
    ],
)
def test_a_code_becomes_its_exception(code, status, kind):
    error = exception_of({"code": code, "message": "words.", "detail": {}}, status)
    assert (type(error), str(error)) == (kind, "words.")


def test_too_few_windows_have_their_numbers():
    detail = {"subject_id": "s-1", "label": "va", "n_found": 6, "n_needed": 10}
    error = exception_of({"code": "not_enough_windows", "message": "m", "detail": detail}, 422)
    assert isinstance(error, NotEnoughWindowsError)
    assert (error.subject_id, error.label, error.n_found, error.n_needed) == ("s-1", "va", 6, 10)


def test_a_proxys_page_is_no_bug_of_the_client():
    error = exception_of(None, 502)
    assert isinstance(error, UnavailableError)
    assert "status 502" in str(error)


def test_the_line_that_the_server_prints_is_enough():
    line = f"http://127.0.0.1:8000/#token={TOKEN}"
    assert address_and_token(line, None) == ("http://127.0.0.1:8000", TOKEN)
    assert address_and_token("https://h/ecg/", "abc") == ("https://h/ecg", "abc")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h", ""])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="the server's address was expected"):
        Client(url, TOKEN)


@pytest.mark.parametrize("token", [None, "", "two words", "line\nbreak"])
def test_a_token_that_is_none_is_refused_without_showing_it(token):
    with pytest.raises(ValueError, match="the token is empty or isn't one") as caught:
        Client("http://127.0.0.1:8000", token)
    assert token is None or not token or token not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../s-2", "a/b", "a?b", "-x", "ä", "x" * 65, None])
def test_a_name_that_would_mean_something_in_an_address_is_refused(name):
    with told_server() as (client, asked):
        with pytest.raises(ValueError, match="subject_id is"):
            client.patient(name)
    assert asked == []


def test_the_token_is_in_no_representation_and_in_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    with told_server((401, {"code": "unauthorized", "message": "no."}, {})) as (client, _):
        with pytest.raises(UnauthorizedError) as caught:
            client.patient("s-1")
        shown = [repr(client), repr(client._http._sessions[True].auth), repr(caught.value)]
    assert all(TOKEN not in text for text in [*shown, caplog.text])
