"""Personalizations as jobs: what they fit, how they end, what a crash leaves behind."""

import time

import numpy as np
import pytest
from app_cases import (
    ended_job,
    first_of_each,
    recording_of,
    running_server,
    start_server,
    truth_of,
)
from inside_cases import app_in_process, small_recording

from metaecg.adapt.personalize import Personalizer
from metaecg.errors import AdaptationError
from metaecg.serve import jobs, personalizing
from metaecg.serve.adapter_file import adapter_bytes, load_adapter
from metaecg.serve.store import Store
from metaecg.serve.store_errors import StoreUnavailableError

LABELS = {**{str(i): "va" for i in (3, 7, 8, 20)}, **{str(i): "other" for i in (1, 9, 30, 31)}}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An application with a worker."""
    with app_in_process(tmp_path_factory.mktemp("jobs"), job_workers=1, job_poll_s=0.1) as found:
        yield found


@pytest.fixture
def patient(app, request):
    """The address of a patient of this test's own, with a labelled recording."""
    address = f"/v1/patients/s-{abs(hash(request.node.name))}"
    app.client.post("/v1/patients", json={"subject_id": address.rsplit("/", 1)[1]})
    labelled(app, address, LABELS)
    return address


def labelled(app, patient, labels, **recording) -> str:
    body = recording or small_recording()
    made = app.client.post(f"{patient}/recordings", json=body).json()
    address = f"{patient}/recordings/{made['recording_id']}"
    assert app.client.put(f"{address}/labels", json={"labels": labels}).status_code == 200
    return address


def started(app, patient, **request) -> str:
    answer = app.client.post(f"{patient}/personalizations", json={"method": "head", **request})
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def ended(app, job_id, seconds=90) -> dict:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = app.client.get(f"/v1/jobs/{job_id}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.01)
    raise TimeoutError(str(job))


def inputs_of(app, indices, *, seed=0):
    signal = np.array(small_recording(seed=seed)["signal"], dtype=np.float32)
    return app.services.segmentation.inputs(signal, 100.0, only=indices)[1]


def test_a_job_fits_what_personalizer_fits_to_the_same_windows(app, patient):
    job = ended(app, started(app, patient, method="lora", rhythm="causal"))
    assert (job["state"], job["progress"], job["error"]) == ("done", 1.0, None)
    order = sorted(LABELS, key=int)
    windows = inputs_of(app, [int(index) for index in order])
    names = [LABELS[index] for index in order]
    times = np.array([float(index) for index in order])
    personal = Personalizer(app.services.base, method="lora", rhythm="causal")
    personal.fit(windows, names, time_s=times)
    data = app.client.get(f"{patient}/detectors/1/adapter").content
    again = load_adapter(data, app.services.base)
    np.testing.assert_allclose(again.logits(windows), personal.logits(windows), atol=1e-4)
    assert again.chain_ == personal.chain_
    result = job["result"]
    assert (result["version"], result["n_support"]) == (1, {"other": 4, "va": 4})
    assert result["loss_first"] == pytest.approx(personal.loss_curve_[0], rel=1e-5)
    assert result["n_bytes"] == len(data)
    assert result["support"]["n"] == 8 and not result["refused"]
    assert app.client.get(patient).json()["active_version"] == 1


def test_the_earliest_labels_of_each_class_are_used_if_so_many_are_asked_for(app, patient):
    ended(app, started(app, patient, n_shots=2))
    data = app.client.get(f"{patient}/detectors/1/adapter").content
    windows = inputs_of(app, [1, 3, 7, 9])
    personal = Personalizer(app.services.base, method="head")
    personal.fit(windows, ["other", "va", "va", "other"])
    again = load_adapter(data, app.services.base)
    np.testing.assert_allclose(again.logits(windows), personal.logits(windows), atol=1e-4)


def test_recordings_of_one_patient_lie_end_to_end_in_the_order_of_their_upload(app, patient):
    labelled(app, patient, {"5": "va"}, **small_recording(30, seed=1))
    org_id = app.services.store.list_orgs()[0].org_id
    name = patient.rsplit("/", 1)[1]
    support = personalizing.gathered(app.services, org_id, name, lambda progress: None)
    assert support.time_s.tolist() == [1, 3, 7, 8, 9, 20, 30, 31, 65]
    np.testing.assert_allclose(support.inputs[-1:], inputs_of(app, [5], seed=1), atol=1e-6)


def test_a_new_detector_isnt_used_if_nobody_asked_for_that(app, patient):
    job = ended(app, started(app, patient, activate=False))
    assert job["result"]["version"] == 1
    found = app.client.get(f"{patient}/detectors").json()
    assert (found["active_version"], found["detectors"][0]["is_active"]) == (0, False)


def test_a_detector_that_its_own_labels_speak_against_is_kept_but_not_used(
    app, patient, monkeypatch
):
    errors = {"errors_base": 1, "errors_personal": 3, "n": 8}
    monkeypatch.setattr(personalizing, "support_errors", lambda *_: errors)
    result = ended(app, started(app, patient))["result"]
    assert result["refused"] and "names 3 wrongly, the base 1" in result["reasons"][0]
    found = app.client.get(f"{patient}/detectors").json()
    assert (found["active_version"], found["detectors"][0]["facts"]["refused"]) == (0, True)


def test_a_fit_that_fails_says_why_and_leaves_no_detector(app, patient, monkeypatch):
    def fails(*_, **__):
        raise AdaptationError("the loss is nan at step 3.")

    monkeypatch.setattr(personalizing.Personalizer, "fit", fails)
    job = ended(app, started(app, patient))
    assert (job["state"], job["result"]) == ("failed", None)
    expected = {"code": "adaptation_error", "message": "the loss is nan at step 3.", "detail": {}}
    assert job["error"] == expected
    assert app.client.get(f"{patient}/detectors").json()["detectors"] == []


def test_a_bug_in_a_fit_ends_the_job_but_not_the_worker(app, patient, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "personalize", lambda *_: 1 / 0)
        job = ended(app, started(app, patient))
    assert (job["state"], job["error"]["code"]) == ("failed", "internal")
    assert "division" not in str(job)
    assert ended(app, started(app, patient))["state"] == "done"


def slowly(monkeypatch):
    """Make every fit take steps until something ends it."""

    def fit(self, *_, on_step, **__):
        for _ in range(10_000):
            on_step(1, 10)
            time.sleep(0.01)
        raise AssertionError("nothing ended the fit")

    monkeypatch.setattr(personalizing.Personalizer, "fit", fit)


def running(app, job_id):
    while app.client.get(f"/v1/jobs/{job_id}").json()["state"] != "running":
        time.sleep(0.01)


def test_a_running_job_is_cancelled_within_a_step(app, patient, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "TOLD_EVERY_S", 1e9)  # the store isn't asked in time
        slowly(patch)
        job_id = started(app, patient)
        running(app, job_id)
        app.client.delete(f"/v1/jobs/{job_id}")
        job = ended(app, job_id)
    assert (job["state"], job["result"], job["error"]) == ("cancelled", None, None)
    assert app.client.get(f"{patient}/detectors").json()["detectors"] == []
    again = app.client.delete(f"/v1/jobs/{job_id}").json()
    assert again == job


def test_a_job_that_another_server_cancelled_ends_too(app, patient, monkeypatch):
    with monkeypatch.context() as patch:
        slowly(patch)
        job_id = started(app, patient)
        running(app, job_id)
        org_id = app.services.store.list_orgs()[0].org_id
        app.services.store.request_cancel(org_id, job_id)  # as that server does
        assert ended(app, job_id)["state"] == "cancelled"


def test_a_cancel_that_another_server_took_is_noticed_between_two_looks_at_the_store(
    app, patient, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "TOLD_EVERY_S", 1e9)
        often = app.services.settings.model_copy(update={"job_heartbeat_s": 0.05})
        patch.setattr(app.services, "settings", often)
        slowly(patch)
        job_id = started(app, patient)
        running(app, job_id)
        app.services.store.request_cancel(app.services.store.list_orgs()[0].org_id, job_id)
        assert ended(app, job_id)["state"] == "cancelled"


def test_a_cancel_after_the_last_step_leaves_no_detector(app, patient, monkeypatch):
    job_ids, personalize = [], jobs.personalize

    def then_cancelled(*arguments):
        outcome = personalize(*arguments)
        while not job_ids:  # the answer with its name is on its way
            time.sleep(0.01)
        answer = app.client.delete(f"/v1/jobs/{job_ids[0]}")
        assert (answer.status_code, answer.json()["state"]) == (200, "running")
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "personalize", then_cancelled)
        job_ids.append(started(app, patient))
        job = ended(app, job_ids[0])
    assert (job["state"], job["result"], job["error"]) == ("cancelled", None, None)
    found = app.client.get(f"{patient}/detectors").json()
    assert found == {"active_version": 0, "detectors": []}


@pytest.mark.parametrize("told_every_s", [0.0, 1e9])
def test_a_worker_whose_job_another_one_has_stops_and_writes_nothing(
    app, patient, monkeypatch, told_every_s
):
    lost = app.services.metrics.jobs.labels("lost")
    store, n_lost, taken = app.services.store, lost._value.get(), []

    def too_slow(services, org_id, subject_id, request, on_progress):
        store.requeue_lost_jobs(0.0)  # another server takes it for lost ...
        taken.append(store.claim_job()[1])  # ... and begins it anew
        on_progress(0.5)
        raise ValueError("a failure that is nobody's business any more")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "TOLD_EVERY_S", told_every_s)
        patch.setattr(jobs, "personalize", too_slow)
        job_id = started(app, patient)
        while lost._value.get() == n_lost:
            time.sleep(0.01)
    job = store.get_job(store.list_orgs()[0].org_id, job_id)
    assert (job.state, job.attempts, job.progress) == ("running", 2, 0.0)
    assert not job.is_cancel_requested
    store.finish_job(taken[0], state="failed", error={"code": "internal"})


def test_a_database_that_is_away_for_a_moment_doesnt_end_a_job(app, patient, monkeypatch):
    def away(*_, **__):
        raise StoreUnavailableError("locked.")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "TOLD_EVERY_S", 0.0)
        patch.setattr(app.services.store, "update_job", away)
        assert ended(app, started(app, patient))["state"] == "done"


def test_deleting_the_patient_ends_the_job_and_leaves_nothing(app, patient, monkeypatch):
    with monkeypatch.context() as patch:
        slowly(patch)
        job_id = started(app, patient)
        running(app, job_id)
        assert app.client.delete(patient).status_code == 204
        assert app.client.get(f"/v1/jobs/{job_id}").status_code == 404
    app.client.post("/v1/patients", json={"subject_id": patient.rsplit("/", 1)[1]})
    labelled(app, patient, LABELS)
    job = ended(app, started(app, patient))  # the worker goes on
    assert (job["state"], job["result"]["version"]) == ("done", 1)


def test_a_job_whose_end_cannot_be_written_is_run_again(app, patient, monkeypatch):
    finish, calls = app.services.store.finish_job, []

    def once_away(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise StoreUnavailableError("the disk is full.")
        return finish(*arguments, **options)

    monkeypatch.setattr(app.services.store, "finish_job", once_away)
    job_id = started(app, patient)
    while not calls:
        time.sleep(0.01)
    app.services.store.requeue_lost_jobs(0.0)  # what the worker does some seconds later
    app.services.worker.wake()
    assert ended(app, job_id)["state"] == "done"
    assert len(app.client.get(f"{patient}/detectors").json()["detectors"]) == 1


@pytest.mark.slow
def test_a_killed_server_loses_nothing_it_acknowledged_and_its_job_is_done_after_a_restart(
    tmp_path,
):
    labels = first_of_each(truth_of(), 60)
    server = start_server(tmp_path, "--job-lost-s", "3", "--job-heartbeat-s", "0.5")
    with server.session() as api:
        api.post("/v1/patients", json={"subject_id": "s"})
        made = api.post("/v1/patients/s/recordings", json=recording_of()).json()
        address = f"/v1/patients/s/recordings/{made['recording_id']}"
        assert api.put(f"{address}/labels", json={"labels": labels}).ok
        job_id = api.post("/v1/patients/s/personalizations", json={"method": "full"}).json()[
            "job_id"
        ]
        while api.get(f"/v1/jobs/{job_id}").json()["state"] != "running":
            time.sleep(0.005)
    server.kill()
    left, org_id = left_behind(tmp_path)
    assert left.get_job(org_id, job_id).state == "running"
    assert left.list_detectors(org_id, "s") == []
    left.close()
    options = ("--job-lost-s", "3")
    with running_server(tmp_path, *options, token=server.token) as server, server.session() as api:
        job = ended_job(api, job_id)
        assert (job["state"], job["result"]["n_support"]["va"]) == ("done", 27)
        assert api.get(f"{address}/labels").json()["labels"] == labels
        assert api.get("/v1/patients/s").json()["active_version"] == 1
        assert len(api.get("/v1/patients/s/detectors").json()["detectors"]) == 1
        stopped_in_the_middle(api, server, tmp_path)


def stopped_in_the_middle(api, server, folder):
    """A server that is told to stop hands its job back and ends in order."""
    job_id = api.post("/v1/patients/s/personalizations", json={"method": "full"}).json()["job_id"]
    while api.get(f"/v1/jobs/{job_id}").json()["state"] != "running":
        time.sleep(0.005)
    assert server.terminate() == 0
    left, org_id = left_behind(folder)
    job = left.get_job(org_id, job_id)
    assert (job.state, job.attempts) == ("queued", 0)
    assert len(left.list_detectors(org_id, "s")) == 1
    left.close()


def left_behind(folder):
    """Return the store of a server that has ended, and its organisation."""
    store = Store(f"sqlite:///{folder}/metaecg.db")
    return store, store.list_orgs()[0].org_id


def test_the_bytes_of_an_adapter_are_those_that_were_exported(app, patient):
    ended(app, started(app, patient))
    data = app.client.get(f"{patient}/detectors/1/adapter").content
    assert adapter_bytes(load_adapter(data, app.services.base)) == data
