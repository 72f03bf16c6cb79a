"""The endpoints over a small base: what they give back, and what they refuse in words."""

import json

import numpy as np
import pytest
from inside_cases import app_in_process, small_recording
from serve_cases import personal_of

from metaecg.models.inference import softmax
from metaecg.serve.adapter_file import adapter_bytes

JSON = {"Content-Type": "application/json"}
BYTES = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An application that the tests of this file share; each makes its own patients."""
    with app_in_process(tmp_path_factory.mktemp("app")) as found:
        yield found


@pytest.fixture
def patient(app, request):
    """The address of a patient of this test's own."""
    name = f"s-{abs(hash(request.node.name))}"
    assert app.client.post("/v1/patients", json={"subject_id": name}).status_code == 201
    return f"/v1/patients/{name}"


def uploaded(app, patient, **recording) -> str:
    """Return the address of a new recording of a patient."""
    answer = app.client.post(f"{patient}/recordings", json=recording or small_recording())
    assert answer.status_code == 201, answer.text
    return f"{patient}/recordings/{answer.json()['recording_id']}"


def imported(app, patient, *, seed=1, activate=True, **fit) -> int:
    """Give a patient a detector of their own; return its version."""
    data = adapter_bytes(personal_of(app.services.base, "head", seed=seed, **fit))
    query = f"?activate={str(activate).lower()}"
    answer = app.client.post(f"{patient}/detectors{query}", content=data, headers=BYTES)
    assert answer.status_code == 201, answer.text
    return answer.json()["version"]


def test_the_model_is_described(app):
    found = app.client.get("/v1/model").json()
    assert (found["kind"], found["classes"], found["positive"]) == (
        "windows",
        ["other", "va"],
        "va",
    )
    assert found["thresholds"] == {"none": 0.5, "causal": 0.4, "offline": 0.4}
    assert (found["n_shots"], found["default_method"]) == (10, "lora")
    assert found["fingerprint"] == app.services.base.fingerprint


def test_a_patient_can_be_made_once_looked_at_and_deleted(app, patient):
    name = patient.rsplit("/", 1)[1]
    again = app.client.post("/v1/patients", json={"subject_id": name})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    found = app.client.get(patient).json()
    assert (found["subject_id"], found["active_version"], found["n_labels"]) == (name, 0, 0)
    assert found["created_at"].endswith("Z")
    assert app.client.delete(patient).status_code == 204
    gone = app.client.get(patient)
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


def test_pages_of_patients_hold_everybody_once(app):
    for number in range(5):
        app.client.post("/v1/patients", json={"subject_id": f"page-{number}"})
    found, after = [], ""
    while after is not None:
        query = f"?limit=2&after={after}" if after else "?limit=2"
        page = app.client.get(f"/v1/patients{query}").json()
        found += [patient["subject_id"] for patient in page["patients"]]
        after = page["next"]
    assert found == sorted(set(found))
    assert {f"page-{number}" for number in range(5)} <= set(found)


def test_a_recording_comes_back_sample_by_sample_with_its_gaps(app, patient):
    body = small_recording(gap=slice(100, 103))
    recording = uploaded(app, patient, **body)
    info = app.client.get(recording).json()
    assert (info["fs_hz"], info["n_samples"], info["n_segments"]) == (100.0, 6000, 60)
    shown = app.client.get(f"{recording}/signal?start_s=0.99&stop_s=1.05").json()
    assert shown["kind"] == "samples"
    assert shown["time_s"] == [0.99, 1.0, 1.01, 1.02, 1.03, 1.04]
    assert shown["value_mv"] == pytest.approx(body["signal"][0][99:105], abs=1e-5)
    assert shown["value_mv"][1:4] == [None, None, None]


@pytest.mark.parametrize("max_points", [2, 7, 50, 1000, 5999])
def test_an_envelope_has_at_most_the_points_asked_for_and_holds_every_sample(
    app, patient, max_points
):
    body = small_recording()
    recording = uploaded(app, patient, **body)
    shown = app.client.get(f"{recording}/signal?max_points={max_points}").json()
    assert shown["kind"] == "envelope"
    n_points = len(shown["time_s"])
    assert n_points == len(shown["minimum_mv"]) == len(shown["maximum_mv"]) <= max_points
    signal = np.array(body["signal"][0])
    assert min(shown["minimum_mv"]) == pytest.approx(signal.min(), abs=1e-5)
    assert max(shown["maximum_mv"]) == pytest.approx(signal.max(), abs=1e-5)
    starts = [round(t * 100) for t in shown["time_s"]]
    for start, stop, low, high in zip(
        starts, [*starts[1:], 6000], shown["minimum_mv"], shown["maximum_mv"], strict=True
    ):
        assert low == pytest.approx(signal[start:stop].min(), abs=1e-5)
        assert high == pytest.approx(signal[start:stop].max(), abs=1e-5)


def test_segments_leave_out_what_was_not_measured_and_come_in_pages(app, patient):
    recording = uploaded(app, patient, **small_recording(10, gap=slice(250, 251)))
    first = app.client.get(f"{recording}/segments?limit=4").json()
    assert [s["index"] for s in first["segments"]] == [0, 1, 3, 4]
    assert first["next"] == 4
    rest = app.client.get(f"{recording}/segments?after=4").json()
    assert [s["index"] for s in rest["segments"]] == [5, 6, 7, 8, 9]
    assert rest["next"] is None
    part = app.client.get(f"{recording}/segments?start_s=5&stop_s=7&signal=true").json()["segments"]
    assert [(s["start_s"], s["stop_s"], len(s["signal_mv"])) for s in part] == [
        (5.0, 6.0, 100),
        (6.0, 7.0, 100),
    ]


def test_labels_are_put_counted_changed_and_removed(app, patient):
    recording = uploaded(app, patient)
    put = app.client.put(
        f"{recording}/labels", json={"labels": {"3": "va", "4": "other", "5": "va"}}
    )
    assert put.json() == {"n_shots": 10, "counts": {"other": 1, "va": 2}}
    app.client.put(f"{recording}/labels", json={"labels": {"3": None, "5": "other"}})
    assert app.client.get(f"{recording}/labels").json() == {"labels": {"4": "other", "5": "other"}}
    assert app.client.get(f"{patient}/labels/counts").json()["counts"] == {"other": 2, "va": 0}
    shown = app.client.get(f"{recording}/segments?start_s=4&stop_s=5").json()["segments"]
    assert shown[0]["label"] == "other"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"3": "VT"}, "'VT' is no class"),
        ({"60": "va"}, "no segment 60"),
        ({"3": "va", "2": "va"}, "no segment 2"),
        ({"03": "va"}, "'03'"),
        ({"-1": "va"}, "'-1'"),
        ({"١": "va"}, "the number of a segment"),
        ({"9" * 5000: "va"}, "the number of a segment"),
    ],
)
def test_a_label_that_cannot_be_is_refused_and_none_of_its_request_is_kept(
    app, patient, labels, words
):
    recording = uploaded(app, patient, **small_recording(gap=slice(250, 251)))
    answer = app.client.put(f"{recording}/labels", json={"labels": {"7": "va", **labels}})
    assert (answer.status_code, answer.json()["code"]) == (422, "data_error")
    assert words in answer.json()["message"]
    assert app.client.get(f"{recording}/labels").json() == {"labels": {}}


def test_proposals_are_unlabelled_segments_with_a_reason(app, patient):
    recording = uploaded(app, patient, **small_recording(gap=slice(250, 251)))
    app.client.put(f"{recording}/labels", json={"labels": {str(i): "va" for i in range(3, 33)}})
    found = app.client.get(f"{recording}/proposals?n=6").json()["proposals"]
    indices = [proposal["index"] for proposal in found]
    assert len(set(indices)) == 6 and not {2, *range(3, 33)} & set(indices)
    told = app.client.get(f"{recording}/predictions?rhythm=none").json()
    probability = dict(zip(told["index"], told["probability"], strict=True))
    for proposal in found:
        assert proposal["reason"] and proposal["start_s"] == proposal["index"]
        assert proposal["probability"]["va"] == pytest.approx(probability[proposal["index"]])
        assert sum(proposal["probability"].values()) == pytest.approx(1)


def test_predictions_equal_those_of_the_base_and_of_the_personal_detector(app, patient):
    base = app.services.base
    recording = uploaded(app, patient)
    _, inputs = app.services.segmentation.inputs(
        np.array(small_recording()["signal"], dtype=np.float32), 100.0
    )
    version = imported(app, patient)
    personal = personal_of(base, "head", seed=1)
    for asked, model in ((0, base), (version, personal), ("active", personal)):
        found = app.client.get(f"{recording}/predictions?version={asked}&rhythm=none").json()
        expected = softmax(model.logits(inputs))[:, 1]
        np.testing.assert_allclose(found["probability"], expected, atol=1e-5)
        assert found["index"] == list(range(60))
        assert found["label"] == ["va" if p >= 0.5 else "other" for p in found["probability"]]
    assert found["version"] == version


def test_a_part_of_the_predictions_is_a_part_of_the_whole_and_its_episodes_too(app, patient):
    recording = uploaded(app, patient)
    whole = app.client.get(f"{recording}/predictions?rhythm=offline").json()
    part = app.client.get(f"{recording}/predictions?rhythm=offline&start_s=10.5&stop_s=20").json()
    assert part["index"] == list(range(10, 20))
    assert part["probability"] == whole["probability"][10:20]
    touching = [e for e in whole["episodes"] if e["stop_s"] > 10.5 and e["start_s"] < 20]
    assert part["episodes"] == touching
    assert whole["threshold"] == 0.4


def test_episodes_are_the_runs_of_positive_segments(app, patient):
    found = app.client.get(f"{uploaded(app, patient)}/predictions?rhythm=none").json()
    from_labels, run = [], None
    for index, label in zip(found["index"], found["label"], strict=True):
        if label == "va" and run and index == run[1] + 1:
            run[1] = index
        elif label == "va":
            run = [index, index]
            from_labels.append(run)
    assert [[e["start_s"], e["stop_s"]] for e in found["episodes"]] == [
        [first, last + 1] for first, last in from_labels
    ]
    assert sum(e["n_segments"] for e in found["episodes"]) == found["label"].count("va")


def test_a_window_at_hand_is_judged_as_the_same_window_of_a_recording(app, patient):
    imported(app, patient)
    body = small_recording(3)
    recording = uploaded(app, patient, **body)
    stored = app.client.get(f"{recording}/predictions?rhythm=none").json()
    at_once = app.client.post(
        f"{patient}/predict", json={**body, "signal": body["signal"][0]}
    ).json()
    assert at_once["version"] == stored["version"] == 1
    probability = [window["probability"] for window in at_once["windows"]]
    np.testing.assert_allclose(probability, stored["probability"], atol=1e-5)
    assert [window["start_s"] for window in at_once["windows"]] == [0.0, 1.0, 2.0]


def test_the_unit_counts(app, patient):
    body = {**small_recording(1), "unit": "mV"}
    body["signal"] = body["signal"][0]
    micro = {**body, "unit": "uV", "signal": [1000 * v for v in body["signal"]]}
    answers = [app.client.post(f"{patient}/predict", json=b).json() for b in (body, micro)]
    first, second = (answer["windows"][0]["probability"] for answer in answers)
    assert first == pytest.approx(second, abs=1e-6)


def test_windows_of_several_patients_are_each_judged_by_their_own_detector(app, patient):
    base, other = app.services.base, f"{patient}-b"
    app.client.post("/v1/patients", json={"subject_id": other.rsplit("/", 1)[1]})
    imported(app, patient, seed=1)
    imported(app, other, seed=2)
    signal = small_recording(1)["signal"][0]
    names = [patient.rsplit("/", 1)[1], other.rsplit("/", 1)[1]]
    items = [{"subject_id": name, "signal": signal} for name in names]
    found = app.client.post(
        "/v1/predict", json={"fs_hz": 100.0, "unit": "mV", "items": items}
    ).json()["windows"]
    assert [window["subject_id"] for window in found] == names
    _, inputs = app.services.segmentation.inputs(np.array([signal], dtype=np.float32), 100.0)
    for seed, window in zip((1, 2), found, strict=True):
        expected = softmax(personal_of(base, "head", seed=seed).logits(inputs))[0, 1]
        assert window["probability"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signal": [0.0] * 50}, "no window"),
        ({"signal": [0.0] * 99 + [None]}, "no window"),
        ({"signal": [2e4] * 100}, "no ECG"),
        ({"unit": "mmHg"}, "mmHg"),
        ({"signal": [0.0] * 200_000}, "at most 1024 windows"),
        ({"fs_hz": 7.0}, "7"),
    ],
)
def test_a_stretch_that_cannot_be_judged_is_refused_in_words(app, patient, change, words):
    body = {"fs_hz": 100.0, "unit": "mV", "lead_names": ["II"], "signal": [0.0] * 100, **change}
    answer = app.client.post(f"{patient}/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "data_error")
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    "sample", ["NaN", "Infinity", '"1"', "true", "[1]", "1e999", "1" + "0" * 400]
)
def test_a_sample_is_a_finite_number_or_null(app, patient, sample):
    signal = f"[{sample}, {', '.join(['0.0'] * 99)}]"
    text = f'{{"fs_hz": 100, "unit": "mV", "lead_names": ["II"], "signal": {signal}}}'
    answer = app.client.post(f"{patient}/predict", content=text, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_versions_are_listed_rolled_back_exported_and_imported(app, patient):
    first, second = imported(app, patient, seed=1), imported(app, patient, seed=2)
    found = app.client.get(f"{patient}/detectors").json()
    assert (found["active_version"], [d["version"] for d in found["detectors"]]) == (2, [1, 2])
    assert found["detectors"][1]["method"] == "head"
    back = app.client.post(f"{patient}/detectors/{first}/activate").json()
    assert [d["is_active"] for d in back["detectors"]] == [True, False]
    base = app.client.post(f"{patient}/detectors/0/activate").json()
    assert base["active_version"] == 0
    data = app.client.get(f"{patient}/detectors/{second}/adapter")
    assert data.headers["content-type"] == "application/octet-stream"
    again = app.client.post(
        f"{patient}/detectors?activate=false", content=data.content, headers=BYTES
    ).json()
    assert (again["version"], again["is_active"]) == (3, False)
    assert app.client.get(f"{patient}/detectors/0/adapter").status_code == 404
    assert app.client.post(f"{patient}/detectors/9/activate").status_code == 404


def test_a_new_active_version_is_used_at_once(app, patient):
    signal = small_recording(1)["signal"][0]
    body = {"fs_hz": 100.0, "unit": "mV", "lead_names": ["II"], "signal": signal}
    versions = []
    for change in (lambda: None, lambda: imported(app, patient), lambda: imported(app, patient)):
        change()
        versions.append(app.client.post(f"{patient}/predict", json=body).json()["version"])
    app.client.post(f"{patient}/detectors/1/activate")
    versions.append(app.client.post(f"{patient}/predict", json=body).json()["version"])
    assert versions == [0, 1, 2, 1]


def test_what_is_no_adapter_is_refused_and_not_stored(app, patient):
    data = adapter_bytes(personal_of(app.services.base, "head"))
    for wrong in (b"", b"\x80\x04K\x01.", data[:-1], data[:100]):
        answer = app.client.post(f"{patient}/detectors", content=wrong, headers=BYTES)
        assert (answer.status_code, answer.json()["code"]) == (422, "checkpoint_error")
    assert app.client.get(f"{patient}/detectors").json()["detectors"] == []


def test_a_stream_gives_what_the_whole_recording_gives_causally(app, patient):
    imported(app, patient)
    body = small_recording(20)
    recording = uploaded(app, patient, **body)
    whole = app.client.get(f"{recording}/predictions?rhythm=causal").json()
    stream = app.client.post(
        f"{patient}/streams", json={"fs_hz": 100.0, "unit": "mV", "lead_name": "II"}
    ).json()
    address, signal, windows = f"/v1/streams/{stream['stream_id']}", body["signal"][0], []
    for sequence, start in enumerate(range(0, 2000, 370)):
        chunk = {"sequence": sequence, "signal": signal[start : start + 370]}
        answers = [app.client.post(f"{address}/chunks", json=chunk).json() for _ in range(2)]
        assert answers[0] == answers[1]  # the same chunk again
        windows += answers[0]["windows"]
    windows += app.client.post(f"{address}/close").json()["windows"]
    assert [window["index"] for window in windows] == whole["index"]
    probability = [window["probability"] for window in windows]
    np.testing.assert_allclose(probability, whole["probability"], atol=1e-5)
    assert [window["label"] for window in windows] == whole["label"]


def test_chunks_come_in_their_order_and_not_after_the_end(app, patient):
    stream = app.client.post(
        f"{patient}/streams", json={"fs_hz": 100.0, "unit": "mV", "lead_name": "II"}
    ).json()
    address = f"/v1/streams/{stream['stream_id']}"
    skipped = app.client.post(f"{address}/chunks", json={"sequence": 1, "signal": [0.0]})
    assert (skipped.status_code, skipped.json()["detail"]) == (409, {"next_sequence": 0})
    first = {"sequence": 0, "signal": [0.0]}
    assert app.client.post(f"{address}/chunks", json=first).status_code == 200
    differs = app.client.post(f"{address}/chunks", json={**first, "signal": [0.1]})
    assert (differs.status_code, differs.json()["code"]) == (409, "conflict")
    end = [app.client.post(f"{address}/close").json() for _ in range(2)]
    assert end[0] == end[1]
    late = app.client.post(f"{address}/chunks", json={"sequence": 0, "signal": [0.0]})
    assert (late.status_code, late.json()["code"]) == (409, "conflict")


def test_the_stream_keeps_its_version_when_another_one_comes_into_use(app, patient):
    imported(app, patient, seed=1)
    stream = app.client.post(
        f"{patient}/streams", json={"fs_hz": 100.0, "unit": "mV", "lead_name": "II"}
    ).json()
    imported(app, patient, seed=2)
    signal = small_recording(6)["signal"][0]
    found = app.client.post(
        f"/v1/streams/{stream['stream_id']}/chunks", json={"sequence": 0, "signal": signal}
    ).json()
    recording = uploaded(app, patient, **small_recording(6))
    own = app.client.get(f"{recording}/predictions?version=1&rhythm=causal").json()
    # Not the last ones: the stream doesn't know that it ends there.
    np.testing.assert_allclose(
        [w["probability"] for w in found["windows"]][:4], own["probability"][:4], atol=1e-5
    )


def test_too_few_labels_are_told_before_a_job_is_made(app, patient):
    recording = uploaded(app, patient)
    app.client.put(f"{recording}/labels", json={"labels": {"1": "va", "2": "va", "3": "other"}})
    name = patient.rsplit("/", 1)[1]
    answer = app.client.post(f"{patient}/personalizations", json={"n_shots": 2})
    assert (answer.status_code, answer.json()["code"]) == (422, "not_enough_windows")
    assert answer.json()["detail"] == {
        "subject_id": name,
        "label": "other",
        "n_found": 1,
        "n_needed": 2,
    }
    app.client.put(f"{recording}/labels", json={"labels": {"3": None}})
    answer = app.client.post(f"{patient}/personalizations", json={})
    assert answer.json()["detail"]["label"] == "other"
    assert app.client.get(f"{patient}/jobs").json() == {"jobs": []}


def test_a_job_waits_where_no_worker_is_and_can_be_cancelled(app, patient):
    recording = uploaded(app, patient)
    app.client.put(f"{recording}/labels", json={"labels": {"1": "va", "3": "other"}})
    started = app.client.post(f"{patient}/personalizations", json={"method": "head"})
    assert (started.status_code, started.json()["state"]) == (202, "queued")
    job = started.json()["job_id"]
    assert app.client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert app.client.get(f"/v1/jobs/{job}").json()["finished_at"] is not None
    assert len(app.client.get(f"{patient}/jobs").json()["jobs"]) == 1


def test_a_patient_has_so_many_jobs_at_once_and_no_more(app, patient):
    recording = uploaded(app, patient)
    app.client.put(f"{recording}/labels", json={"labels": {"1": "va", "3": "other"}})
    most = app.services.settings.max_jobs_per_patient
    answers = [app.client.post(f"{patient}/personalizations", json={}) for _ in range(most + 1)]
    assert [a.status_code for a in answers] == [202] * most + [429]
    assert (answers[-1].json()["code"], answers[-1].headers["Retry-After"]) == ("too_many", "2")
    for answer in answers[:-1]:
        app.client.delete(f"/v1/jobs/{answer.json()['job_id']}")


def test_files_are_uploaded_as_a_form(app, patient):
    rows = "\n".join(f"{value:.3f}" for value in small_recording(5)["signal"][0])
    form = {"format": "csv", "fs_hz": "100", "unit": "mV", "lead_names": "II", "name": "night"}
    files = {"files": ("a.csv", rows, "text/csv")}
    answer = app.client.post(f"{patient}/recordings/files", data=form, files=files)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["name"], found["lead_names"], found["n_samples"]) == ("night", ["II"], 500)
    del form["unit"]
    answer = app.client.post(f"{patient}/recordings/files", data=form, files=files)
    assert (answer.status_code, answer.json()["code"]) == (422, "data_error")
    assert "unit" in answer.json()["message"]


def test_the_description_of_the_api_is_complete(app):
    description = app.client.get("/openapi.json").json()
    operations = [
        (path, method, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(set(ids)) == len(ids)
    for path, method, operation in operations:
        where = f"{method} {path}"
        assert operation["summary"] and operation["description"] and operation["tags"], where
        if path.startswith("/v1"):
            assert operation["security"] == [{"token": []}], where
            assert {"401", "500", "503"} <= set(operation["responses"]), where
        for status, answer in operation["responses"].items():
            if status != "204":
                assert answer["content"], (where, status)
    assert description["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in json.dumps(description)


def test_the_page_and_no_other_file_is_served(app):
    page = app.client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for name in ("nothing.js", "..%2f__init__.py", "%2e%2e", "index.html%00", "__init__.py"):
        assert app.client.get(f"/pages/{name}").status_code in (404, 405), name


def test_health_and_readiness_need_no_token(app):
    headers = {"Authorization": ""}
    assert app.client.get("/health", headers=headers).json() == {"status": "ok"}
    assert app.client.get("/ready", headers=headers).json() == {"status": "ready"}


def test_metrics_count_routes_and_name_nobody(app, patient):
    app.client.get(patient)
    text = app.client.get("/metrics").text
    assert 'route="/v1/patients/{subject_id}"' in text
    assert "metaecg_store_up 1.0" in text
    assert "metaecg_store_patients" in text
    for secret in (patient.rsplit("/", 1)[1], "clinic", "other"):
        assert secret not in text.replace("other windows", "")
