"""Who gets in, what one organisation can know of another, what is refused before it is read, what
stays out of the log."""

import logging
import re

import anyio
import pytest
from app_cases import ended_job as wait_for
from app_cases import first_of_each, recording_of, running_server, truth_of
from inside_cases import app_in_process, small_recording
from serve_cases import personal_of

from metaecg.serve.adapter_file import adapter_bytes
from metaecg.serve.auth import Remembered

BYTES = {"Content-Type": "application/octet-stream"}
SUBJECT, NOTE = "secret-name-4711", "note-of-the-patient"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_in_process(tmp_path_factory.mktemp("security")) as found:
        yield found


def operations(app) -> list[tuple[str, str, dict]]:
    """Return method, path and description of every endpoint, from the API's own description."""
    paths = app.client.get("/openapi.json").json()["paths"]
    return [(m.upper(), path, found) for path, of in paths.items() for m, found in of.items()]


def filled(app) -> dict[str, str]:
    """Make a patient of ``clinic`` with one of everything; return the names in addresses."""
    client = app.client
    client.post("/v1/patients", json={"subject_id": SUBJECT, "note": NOTE})
    patient = f"/v1/patients/{SUBJECT}"
    recording = client.post(f"{patient}/recordings", json=small_recording()).json()
    address = f"{patient}/recordings/{recording['recording_id']}"
    client.put(f"{address}/labels", json={"labels": {"1": "va", "2": "other"}})
    data = adapter_bytes(personal_of(app.services.base, "head"))
    client.post(f"{patient}/detectors", content=data, headers=BYTES)
    job = client.post(f"{patient}/personalizations", json={}).json()
    stream = client.post(
        f"{patient}/streams", json={"fs_hz": 100.0, "unit": "mV", "lead_name": "II"}
    ).json()
    return {
        "subject_id": SUBJECT,
        "recording_id": recording["recording_id"],
        "version": "1",
        "job_id": job["job_id"],
        "stream_id": stream["stream_id"],
    }


UNKNOWN = {
    "subject_id": "nobody-0815",
    "recording_id": "0" * 32,
    "version": "1",
    "job_id": "0" * 32,
    "stream_id": "0" * 32,
}
SIGNAL = small_recording(1)["signal"][0]
BODIES = {
    "create_patient": {"json": {"subject_id": "of-another"}},
    "upload_json": {"json": small_recording(2)},
    "upload_files": {
        "data": {"format": "csv", "fs_hz": "100", "unit": "mV", "lead_names": "II"},
        "files": {"files": ("a.csv", "\n".join(["0.1"] * 200), "text/csv")},
    },
    "put_labels": {"json": {"labels": {"1": "other"}}},
    "start_personalization": {"json": {}},
    "import_adapter": {"content": b"adapter", "headers": BYTES},
    "predict_windows": {
        "json": {"fs_hz": 100.0, "unit": "mV", "lead_names": ["II"], "signal": SIGNAL}
    },
    "open_stream": {"json": {"fs_hz": 100.0, "unit": "mV", "lead_name": "II"}},
    "push_chunk": {"json": {"sequence": 0, "signal": SIGNAL}},
}
"""A body that would be accepted, for every endpoint that takes one."""


def sent(client, method, path, operation, names):
    """Send a request that would be right for an organisation that has these names."""
    address = path.format(**names)
    return client.request(method, address, **BODIES.get(operation["operationId"], {}))


def test_every_endpoint_below_v1_wants_a_token_and_none_other_does(app):
    for method, path, _ in operations(app):
        answers = [
            app.client.request(method, path.format(**UNKNOWN), headers={"Authorization": value})
            for value in ("", "Bearer", "Bearer x", "Basic eA==", f"Bearer metaecg_{'A' * 43}")
        ]
        if path.startswith("/v1"):
            for answer in answers:
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        else:
            assert {answer.status_code for answer in answers} == {200}, path


def test_every_endpoint_with_a_body_has_one_here(app):
    takes = {o["operationId"] for _, _, o in operations(app) if "requestBody" in o}
    assert takes - {"predict_many"} == set(BODIES)


def test_of_another_organisation_every_endpoint_knows_nothing(app):
    names, before = filled(app), None
    try:
        before = everything(app)
        n_tried = 0
        for method, path, operation in operations(app):
            if "{" not in path or not path.startswith("/v1"):
                continue
            theirs = sent(app.other, method, path, operation, names)
            nobodys = sent(app.other, method, path, operation, UNKNOWN)
            assert (theirs.status_code, nobodys.status_code) == (404, 404), (method, path)
            assert theirs.json()["code"] == "not_found"
            assert stripped(theirs, names) == stripped(nobodys, UNKNOWN), (method, path)
            n_tried += 1
        assert n_tried >= 20
        assert everything(app) == before
    finally:
        app.client.delete(f"/v1/patients/{SUBJECT}")


def test_windows_of_another_organisations_patient_are_not_judged(app):
    filled(app)
    try:
        for name in (SUBJECT, UNKNOWN["subject_id"]):
            items = [{"subject_id": name, "signal": SIGNAL}]
            body = {"fs_hz": 100.0, "unit": "mV", "items": items}
            assert app.other.post("/v1/predict", json=body).status_code == 404
        assert app.other.get("/v1/patients").json()["patients"] == []
    finally:
        app.client.delete(f"/v1/patients/{SUBJECT}")


def test_two_organisations_may_have_patients_of_one_name(app):
    names = filled(app)
    try:
        assert app.other.post("/v1/patients", json={"subject_id": SUBJECT}).status_code == 201
        address = f"/v1/patients/{SUBJECT}/recordings/{names['recording_id']}"
        assert app.other.get(address).status_code == 404
        assert app.other.get(f"/v1/patients/{SUBJECT}").json()["n_recordings"] == 0
        body = {"fs_hz": 100.0, "unit": "mV", "lead_names": ["II"], "signal": SIGNAL}
        versions = [
            client.post(f"/v1/patients/{SUBJECT}/predict", json=body).json()["version"]
            for client in (app.client, app.other, app.client)
        ]
        assert versions == [1, 0, 1]
        app.other.delete(f"/v1/patients/{SUBJECT}")
        assert app.client.get(f"/v1/patients/{SUBJECT}").json()["n_recordings"] == 1
    finally:
        app.client.delete(f"/v1/patients/{SUBJECT}")


def everything(app) -> list:
    """Return all that ``clinic`` can see of its patient."""
    patient = f"/v1/patients/{SUBJECT}"
    (recording,) = app.client.get(f"{patient}/recordings").json()["recordings"]
    addresses = [
        patient,
        f"{patient}/recordings/{recording['recording_id']}/labels",
        f"{patient}/detectors",
        f"{patient}/jobs",
    ]
    return [app.client.get(address).json() for address in addresses]


def stripped(answer, names) -> str:
    """Return an answer's body without the names that stood in the address."""
    text = answer.text
    for name in sorted(names.values(), key=len, reverse=True):
        text = text.replace(name, "*") if len(name) > 1 else text
    return text


def test_a_revoked_token_stops_working(app):
    store = app.services.store
    org = store.create_org("short-lived")
    info, secret = store.create_token(org.org_id, "test")
    headers = {"Authorization": f"Bearer {secret}"}
    assert app.client.get("/v1/model", headers=headers).status_code == 200
    store.revoke_token(org.org_id, info.token_id)
    app.services.tokens.forget(secret)  # as some seconds later
    assert app.client.get("/v1/model", headers=headers).status_code == 401


def test_what_is_remembered_is_forgotten_after_its_time_and_when_it_changes():
    now = [0.0]
    known = Remembered(5, clock=lambda: now[0])
    known.put("a", 1, generation=known.generation)
    now[0] = 4.9
    assert known.get("a") == 1
    now[0] = 5.1
    assert known.get("a") is None
    looked_up_before = known.generation
    known.forget("b")
    known.put("b", "of before the change", generation=looked_up_before)
    assert known.get("b") is None


def test_every_answer_keeps_a_browser_from_foreign_things(app):
    for path, headers in (("/", {}), ("/v1/patients", {}), ("/v1/nothing", {"Authorization": ""})):
        found = app.client.get(path, headers=headers).headers
        policy = found["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert found["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in found
    cross = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
    preflight = app.client.options("/v1/patients", headers=cross)
    assert "access-control-allow-origin" not in preflight.headers


@pytest.fixture(scope="module")
def tight(tmp_path_factory):
    """An application that takes little at once."""
    folder = tmp_path_factory.mktemp("tight")
    with app_in_process(folder, json_mb=0.01, upload_mb=0.02, duration_days=0.0001) as found:
        found.client.post("/v1/patients", json={"subject_id": "s"})
        yield found


def endless(n_most: int, taken: list[int]):
    """Give a body of unknown length in pieces; note how many were taken."""
    for _ in range(n_most):
        taken.append(1)
        yield b" " * 1000


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/patients/s/recordings", "application/json"),
        ("/v1/patients/s/recordings/files", "multipart/form-data; boundary=x"),
        ("/v1/patients/s/predict", "application/json"),
        ("/v1/patients", "application/json"),
    ],
)
def test_a_body_that_is_too_large_is_refused_whether_announced_or_not(tight, path, kind):
    headers = {"Content-Type": kind}
    announced = tight.client.post(path, content=b" " * 2_000_000, headers=headers)
    assert (announced.status_code, announced.json()["code"]) == (413, "too_large")
    unannounced = tight.client.post(path, content=endless(2000, []), headers=headers)
    assert (unannounced.status_code, unannounced.json()["code"]) == (413, "too_large")


def test_a_recording_that_is_too_long_is_refused(tight):
    answer = tight.client.post("/v1/patients/s/recordings", json=small_recording(12))
    assert (answer.status_code, answer.json()["code"]) == (422, "data_error")


def unread(app, path: str, **headers: str) -> int:
    """Send the head of a request; return the status that comes before anything of its body is read."""
    found = []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        found.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "query_string": b""}
    anyio.run(app.client.app, scope, receive, send)
    return found[0]["status"]


def test_a_body_is_not_even_read_without_a_token_or_where_it_is_announced_as_too_large(app):
    path, kind = "/v1/patients", "application/json"
    token = app.client.headers["Authorization"]
    assert unread(app, path, content_type=kind, content_length="10") == 401
    huge = str(2**40)
    status = unread(app, path, authorization=token, content_type=kind, content_length=huge)
    assert status == 413
    assert unread(app, path, authorization=token, content_type="x", content_length="10") == 415


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/patients", "text/plain"),
        ("/v1/patients/s/recordings/files", "application/json"),
        ("/v1/patients/s/detectors", "application/json"),
    ],
)
def test_a_body_of_another_type_is_refused(app, path, kind):
    answer = app.client.post(path, content=b"{}", headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")


def test_an_invalid_request_is_not_echoed(app):
    answer = app.client.post("/v1/patients", json={"subject_id": "!", "note": {"x": NOTE}})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert NOTE not in answer.text


def test_a_bug_is_answered_without_its_words_and_logged_without_them(app, caplog, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError(NOTE)

    monkeypatch.setattr(app.services.store, "list_patients", broken)
    with caplog.at_level(logging.DEBUG):
        answer = app.client.get("/v1/patients?limit=3")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert NOTE not in answer.text + caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_log_holds_no_token_no_name_no_note_and_no_signal(tmp_path):
    options = ("--log-level", "debug", "--access-log")
    file_name = "name-of-the-file.csv"
    with running_server(tmp_path, *options) as server:
        api, recording = server.session(), recording_of(duration_s=300)
        api.post("/v1/patients", json={"subject_id": SUBJECT, "note": NOTE})
        patient = f"/v1/patients/{SUBJECT}"
        made = api.post(f"{patient}/recordings", json=recording).json()
        address = f"{patient}/recordings/{made['recording_id']}"
        form = {"format": "csv", "fs_hz": "250", "unit": "mV", "lead_names": "LEADNAME"}
        rows = "\n".join(["1.2345678"] * 1000)
        files = {"files": (file_name, rows, "text/csv")}
        assert api.post(f"{patient}/recordings/files", data=form, files=files).ok
        assert not api.post(
            f"{patient}/recordings/files", data=form, files={"files": (file_name, "x")}
        ).ok
        labels = first_of_each(truth_of(duration_s=300), 5)
        assert api.put(f"{address}/labels", json={"labels": labels}).ok
        job = api.post(f"{patient}/personalizations", json={"method": "head"}).json()
        assert wait_for(api, job["job_id"])["state"] == "done"
        assert api.get(f"{address}/predictions").ok
        assert api.get(patient).ok
        assert api.get(f"{patient}?token=in-the-query").status_code == 422
        api.get("/v1/model", headers={"Authorization": "Bearer metaecg_wrong"})
        api.post(
            "/v1/patients", data=f'{{"note": "{NOTE}"', headers={"Content-Type": "application/json"}
        )
        api.delete(patient)
        token = server.token
    log = server.log
    assert re.search(r"GET /v1/patients/{subject_id} 200", log)
    samples = [f"{value}" for value in recording["signal"][0][1000:1010] if value]
    for secret in (
        token,
        "metaecg_wrong",
        SUBJECT,
        NOTE,
        file_name,
        "LEADNAME",
        "1.2345678",
        *samples,
    ):
        assert secret not in log, secret
