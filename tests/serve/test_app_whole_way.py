"""The whole way with the published bases: from an upload to predictions of a personal detector."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
from app_cases import FS_HZ, ended_job, first_of_each, recording_of, running_server, truth_of
from inside_cases import app_in_process

from metaecg.adapt.personalize import Personalizer
from metaecg.data.beat_input import beat_inputs
from metaecg.data.beats import cut_beats
from metaecg.data.demo_patients import generate_patient
from metaecg.data.records import Record
from metaecg.data.rpeaks import detect_r_peaks
from metaecg.models.beat_detector import BeatDetector
from metaecg.models.checkpoints import load_base
from metaecg.serve.personalizing import personalize


@pytest.fixture(scope="module")
def beats_app(tmp_path_factory):
    """An application with the base for ventricular beats, and a patient with a recording."""
    folder = tmp_path_factory.mktemp("beats")
    with app_in_process(folder, load_base("veb-base")) as found:
        found.client.post("/v1/patients", json={"subject_id": "s"})
        made = found.client.post("/v1/patients/s/recordings", json=recording_of()).json()
        found.recording = f"/v1/patients/s/recordings/{made['recording_id']}"
        found.n_segments = made["n_segments"]
        yield found


def offline_beats(base):
    signal = np.array(recording_of()["signal"], dtype=np.float32)
    record = Record(
        record_id="r",
        subject_id="s",
        signal_mv=signal,
        fs_hz=FS_HZ,
        lead_names=("ECG",),
        annotations=None,
    )
    peaks = detect_r_peaks(signal, fs_hz=FS_HZ)
    beats, _ = cut_beats(record, r_peaks=peaks, **BeatDetector(base).cutting)
    return peaks, beats


def test_beats_are_found_once_and_judged_as_offline(beats_app):
    base = beats_app.services.base
    peaks, beats = offline_beats(base)
    assert beats_app.n_segments == len(peaks)
    found = beats_app.client.get(f"{beats_app.recording}/predictions").json()
    expected = BeatDetector(base).predict_proba(beats)
    np.testing.assert_allclose(found["probability"], expected, atol=1e-5)
    assert (found["rhythm"], found["positive"]) == ("offline", "V")
    assert np.isin(peaks[found["index"]], beats.sample).all()


def test_labelled_beats_personalize_and_count_for_beats_like_them(beats_app):
    client, services = beats_app.client, beats_app.services
    marks = dict(generate_patient(0, duration_s=600, seed=3).beats)
    peaks, beats = offline_beats(services.base)
    found = client.get(f"{beats_app.recording}/predictions").json()
    index = np.array(found["index"])
    nearest = np.array(sorted(marks))
    symbol = [marks[int(nearest[np.abs(nearest - peaks[i]).argmin()])] for i in index]
    labels = {}
    for name, wanted in (("V", "V"), ("other", "N")):
        rows = [int(i) for i, s in zip(index, symbol, strict=True) if s == wanted][:10]
        labels |= {str(i): name for i in rows}
    put = client.put(f"{beats_app.recording}/labels", json={"labels": labels})
    assert put.json()["counts"] == {"other": 10, "V": 10}
    outcome = personalize(services, 1, "s", {"method": "head", "rhythm": "causal"}, lambda p: None)
    services.store.add_detector(
        1, "s", adapter=outcome.detector[0], facts=outcome.detector[1],
        base_fingerprint=outcome.detector[2],
    )  # fmt: skip
    services.forget(1, "s")
    after = client.get(f"{beats_app.recording}/predictions").json()
    inputs = beat_inputs(beats)
    row_of = {int(i): row for row, i in enumerate(index)}
    order = sorted(labels, key=int)
    rows = [row_of[int(i)] for i in order]
    personal = Personalizer(services.base, method="head").fit(
        inputs[rows], [labels[i] for i in order]
    )
    known = {row_of[int(i)]: labels[i] == "V" for i in order}
    expected = BeatDetector(services.base, personal).predict_proba(beats, known=known)
    np.testing.assert_allclose(after["probability"], expected, atol=1e-4)
    assert after["version"] == 1 and after["probability"] != found["probability"]


def test_where_beats_are_judged_single_windows_and_streams_are_refused(beats_app):
    body = {"fs_hz": 250.0, "unit": "mV", "lead_names": ["II"], "signal": [0.0] * 2000}
    answer = beats_app.client.post("/v1/patients/s/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "streams_need_windows")
    stream = {"fs_hz": 250.0, "unit": "mV", "lead_name": "II"}
    answer = beats_app.client.post("/v1/patients/s/streams", json=stream)
    assert (answer.status_code, answer.json()["code"]) == (422, "streams_need_windows")


def test_proposals_among_beats(beats_app):
    found = beats_app.client.get(f"{beats_app.recording}/proposals?n=5").json()["proposals"]
    assert len({proposal["index"] for proposal in found}) == 5


@pytest.mark.slow
def test_from_upload_to_a_personal_detector_on_a_real_postgresql(
    tmp_path, postgresql_url, postgresql_server
):
    truth = truth_of()
    with running_server(tmp_path, "--store", postgresql_url) as server, server.session() as api:
        assert api.post("/v1/patients", json={"subject_id": "s"}).status_code == 201
        made = api.post("/v1/patients/s/recordings", json=recording_of()).json()
        address = f"/v1/patients/s/recordings/{made['recording_id']}"
        api.put(f"{address}/labels", json={"labels": first_of_each(truth, 10)})
        body = {"method": "lora", "rhythm": "offline"}
        job = api.post("/v1/patients/s/personalizations", json=body).json()
        job = ended_job(api, job["job_id"])
        assert (job["state"], job["result"]["n_support"]) == ("done", {"other": 10, "va": 10})
        after = api.get(f"{address}/predictions").json()
        assert (after["version"], after["rhythm"]) == (1, "offline")
        assert n_wrong(after, truth) < 0.1 * len(truth)
        with database_away(postgresql_server, postgresql_url):
            for path in ("/v1/patients", f"{address}/signal", "/ready"):
                answer = api.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert int(answer.headers["Retry-After"]) > 0
        assert api.get(f"{address}/labels").ok and api.get("/ready").ok
        again = api.post("/v1/patients/s/personalizations", json={"method": "head"}).json()
        assert ended_job(api, again["job_id"])["result"]["version"] == 2
        assert api.delete("/v1/patients/s").status_code == 204
        assert api.get("/v1/patients").json()["patients"] == []
        assert server.terminate() == 0


@contextmanager
def database_away(server, url: str):
    """Let nobody into a database for the time of the block, and throw out who is in it."""
    name = re.search(r"test_[0-9a-f]{32}|test_metaecg", url)[0]
    server.psql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false;")
    server.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}';")
    yield
    server.psql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true;")


def n_wrong(found: dict, truth: dict) -> int:
    told = dict(zip(found["index"], found["label"], strict=True))
    return sum(told[index] != name for index, name in truth.items() if index in told)
