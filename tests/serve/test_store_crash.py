"""A process that is killed loses nothing that it acknowledged and leaves nothing half written."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from store_cases import GRID, add_recording, dump, ramp
from store_crash import N_SAMPLES, ORG_ID, SUBJECT_ID

SCRIPT = Path(__file__).parent / "store_crash.py"


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), *arguments]


def killed_at_every_step(url: str, what: str) -> int:
    """Kill a process after each statement of a write in turn; return at how many it was killed."""
    done = subprocess.run(
        command("steps", url, what), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    n_killed, exit_code = map(int, done.stdout.split())
    assert exit_code == 0, done.stderr
    return n_killed


@contextmanager
def killed_after(url: str, what: str, n_acknowledged: int):
    """Kill a process that writes for ever; give what it had acknowledged."""
    process = subprocess.Popen(
        command("acknowledge", url, what), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        lines = [process.stdout.readline() for _ in range(n_acknowledged)]
        os.kill(process.pid, signal.SIGKILL)
        rest, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, said
        # A last line without an end was not yet said.
        acknowledged = "".join([*lines, rest]).split("\n")[:-1]
        assert len(acknowledged) >= n_acknowledged
        yield acknowledged
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def patient(store):
    """A store with the patient that the killed processes write to."""
    assert store.create_org("clinic").org_id == ORG_ID
    store.create_patient(ORG_ID, SUBJECT_ID)
    return store


def whole(store, recording) -> bool:
    """Whether a recording of `store_crash` has all that belongs to it."""
    at = (ORG_ID, SUBJECT_ID, recording.recording_id)
    signal_mv = store.read_signal(*at)
    minimum, _ = store.read_overview(*at, lead=1)
    expected = ramp(N_SAMPLES, n_leads=2) + int(recording.name)
    return (
        np.array_equal(signal_mv, expected)
        and len(minimum) == N_SAMPLES // 64
        and store.read_peaks(*at, "beats:test") is not None
    )


def test_a_recording_is_there_whole_or_not_at_all_wherever_its_process_is_killed(
    patient, store_url
):
    n_killed = killed_at_every_step(store_url, "recording")
    assert n_killed >= 5  # patient, recording, chunks, beats, commit at least
    (only,) = patient.list_recordings(ORG_ID, SUBJECT_ID)
    assert only.name == str(n_killed + 1)
    assert whole(patient, only)
    assert len(dump(patient)["signal_chunks"]) == 2 * 3  # two leads of three chunks


def test_a_job_ends_with_its_detector_or_runs_on_without_wherever_it_is_killed(patient, store_url):
    names = [
        f"s-{n}" for n in range(2, 42)
    ]  # a job that is left running holds its patient's others up
    for name in names:
        patient.create_patient(ORG_ID, name)
        patient.create_job(ORG_ID, name, "personalize", {})
    n_killed = killed_at_every_step(store_url, "detector")
    assert n_killed >= 8
    jobs = [patient.list_jobs(ORG_ID, name)[0] for name in names]
    (done,) = [job for job in jobs if job.state == "done"]
    kept = [(name, x) for name in names for x in patient.list_detectors(ORG_ID, name)]
    assert [(name, x.facts["job_id"]) for name, x in kept] == [(done.subject_id, done.job_id)]
    assert done.result == {"version": 1}
    active = [patient.active_version(ORG_ID, name) for name in names]
    assert active == [int(name == done.subject_id) for name in names]
    adapter = patient.read_adapter(ORG_ID, done.subject_id, 1)
    assert adapter == f"adapter {done.job_id}".encode() * 1000
    # What was running when its process was killed is found again and can be done.
    n_running = sum(job.state == "running" for job in jobs)
    assert n_running > 0
    assert patient.requeue_lost_jobs(0) == n_running
    assert patient.queue_length() == len(jobs) - 1


def test_labels_are_set_all_or_none_wherever_the_process_is_killed(patient, store_url):
    recording = add_recording(patient, ORG_ID, SUBJECT_ID)
    before = {index: "before" for index in range(10)}
    patient.put_labels(ORG_ID, SUBJECT_ID, recording.recording_id, before, segmentation=GRID)
    n_killed = killed_at_every_step(store_url, "labels")
    assert n_killed >= 4
    found = [x.label for x in patient.labels_of(ORG_ID, SUBJECT_ID, segmentation=GRID)]
    assert found == [str(n_killed + 1)] * 10


@pytest.mark.parametrize("n_acknowledged", [1, 4])
def test_a_recording_that_was_acknowledged_survives(patient, store_url, n_acknowledged):
    with killed_after(store_url, "recording", n_acknowledged) as acknowledged:
        found = patient.list_recordings(ORG_ID, SUBJECT_ID)
    assert set(acknowledged) <= {recording.recording_id for recording in found}
    assert all(whole(patient, recording) for recording in found)
    rows = dump(patient)  # PostgreSQL may end what it was told to commit after the process's end
    assert len(rows["signal_chunks"]) == 6 * len(rows["recordings"])


def test_a_detector_that_was_acknowledged_survives(patient, store_url):
    for _ in range(400):
        patient.create_job(ORG_ID, SUBJECT_ID, "personalize", {})
    with killed_after(store_url, "detector", 5) as acknowledged:
        rows = dump(patient)
    of_job = {row["facts"]["job_id"]: row["version"] for row in rows["detectors"]}
    assert set(acknowledged) <= set(of_job)
    done = [row for row in rows["jobs"] if row["state"] == "done"]
    assert {row["job_id"]: row["result"]["version"] for row in done} == of_job
    for job_id, version in of_job.items():
        adapter = patient.read_adapter(ORG_ID, SUBJECT_ID, version)
        assert adapter == f"adapter {job_id}".encode() * 1000
