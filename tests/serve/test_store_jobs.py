"""The queue of jobs: each is given to one worker, lost ones come back, an end is an end."""

import collections
import subprocess
import sys

import pytest
from store_cases import Clock, dump

from metaecg.errors import DataError
from metaecg.serve.store import Store
from metaecg.serve.store_errors import ConflictError, NotFoundError
from metaecg.serve.store_jobs import MAX_ATTEMPTS

DETECTOR = (b"adapter", {"method": "lora"}, "base")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(store_url, clock):
    """A store with one patient, whose clock a test moves on."""
    store = Store(store_url, clock=clock)
    store.create_org("clinic")
    store.create_patient(1, "s-1")
    yield store
    store.close()


def new_job(queue: Store, **request) -> str:
    return queue.create_job(1, "s-1", "personalize", request).job_id


def state_of(queue: Store, job_id: str) -> str:
    return queue.get_job(1, job_id).state


def test_a_job_goes_from_the_queue_through_a_worker_to_its_end(queue, clock):
    made = queue.create_job(1, "s-1", "personalize", {"method": "lora", "n_shots": None})
    assert (made.state, made.progress, made.attempts, made.started_at) == ("queued", 0.0, 0, None)
    assert queue.get_job(1, made.job_id) == made
    clock.go_on(1)
    org_id, running = queue.claim_job()
    assert (org_id, running.subject_id, running.request) == (1, "s-1", made.request)
    assert (running.state, running.attempts, running.started_at) == ("running", 1, clock.now)
    queue.update_job(made.job_id, progress=0.25)
    assert queue.get_job(1, made.job_id).progress == 0.25
    clock.go_on(1)
    done = queue.finish_job(made.job_id, state="done", result={"loss": 0.5}, detector=DETECTOR)
    assert (done.state, done.progress, done.finished_at) == ("done", 1.0, clock.now)
    assert done.result == {"loss": 0.5, "version": 1}
    assert queue.get_job(1, made.job_id) == done
    assert queue.active_version(1, "s-1") == 1


def test_jobs_are_taken_in_the_order_of_their_making(queue):
    made = [new_job(queue) for _ in range(3)]
    assert queue.queue_length() == 3
    assert [queue.claim_job()[1].job_id for _ in made] == made
    assert queue.claim_job() is None
    assert queue.queue_length() == 0
    assert [job.job_id for job in queue.list_jobs(1, "s-1")] == made


CLAIM = """
import sys
from metaecg.serve.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while claimed := store.claim_job():
    print(claimed[1].job_id, flush=True)
    store.finish_job(claimed[1].job_id, state="done", detector=(b"a", {}, "base"))
"""


def test_several_processes_take_each_job_once(queue, store_url):
    made = [new_job(queue) for _ in range(60)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, store_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:  # all of them stand at the start now
        process.stdin.write("\n")
        process.stdin.flush()
    taken = []
    for process in started:
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        taken.append(said.split())
    assert collections.Counter(sum(taken, [])) == dict.fromkeys(made, 1)
    assert sum(map(bool, taken)) > 1  # more than one of them got something
    versions = [job.result["version"] for job in queue.list_jobs(1, "s-1")]
    assert sorted(versions) == list(range(1, 61))


def test_a_detector_may_be_kept_without_being_used(queue):
    new_job(queue)
    _, job = queue.claim_job()
    done = queue.finish_job(
        job.job_id, state="done", result={"refused": True}, detector=DETECTOR, activate=False
    )
    assert done.result == {"refused": True, "version": 1}
    assert queue.active_version(1, "s-1") == 0
    assert queue.read_adapter(1, "s-1", 1) == b"adapter"


def test_a_failed_job_has_an_error_and_no_detector(queue):
    new_job(queue)
    _, job = queue.claim_job()
    queue.update_job(job.job_id, progress=0.5)
    error = {"code": "not_enough_windows", "message": "words", "detail": {"n_found": 3}}
    failed = queue.finish_job(job.job_id, state="failed", error=error)
    assert (failed.state, failed.error, failed.result, failed.progress) == (
        "failed",
        error,
        None,
        0.5,
    )
    assert queue.list_detectors(1, "s-1") == []


# --- cancelling ----------------------------------------------------------------------------------


def test_a_waiting_job_is_cancelled_at_once_and_given_to_nobody(queue, clock):
    job_id = new_job(queue)
    cancelled = queue.request_cancel(1, job_id)
    assert (cancelled.state, cancelled.finished_at) == ("cancelled", clock.now)
    assert queue.claim_job() is None


def test_a_running_job_is_asked_to_stop_and_ends_when_its_worker_says_so(queue):
    job_id = new_job(queue)
    queue.claim_job()
    assert not queue.is_cancelled(job_id)
    asked = queue.request_cancel(1, job_id)
    assert (asked.state, asked.is_cancel_requested) == ("running", True)
    assert queue.is_cancelled(job_id)
    queue.update_job(job_id, progress=0.5)  # the worker hasn't looked yet
    assert queue.finish_job(job_id, state="cancelled").state == "cancelled"


def test_an_ended_job_stays_as_it_ended(queue):
    job_id = new_job(queue)
    queue.claim_job()
    done = queue.finish_job(job_id, state="done", detector=DETECTOR)
    assert queue.request_cancel(1, job_id) == done
    assert queue.requeue_lost_jobs(0) == 0
    before = dump(queue)
    for call in (
        lambda: queue.finish_job(job_id, state="done", detector=DETECTOR),
        lambda: queue.update_job(job_id, progress=0.1),
        lambda: queue.release_job(job_id),
    ):
        with pytest.raises(ConflictError, match="is done, not running.*Drop this attempt"):
            call()
    assert dump(queue) == before


def test_a_job_of_a_deleted_patient_is_cancelled_and_can_not_be_ended(queue):
    job_id = new_job(queue)
    queue.claim_job()
    queue.delete_patient(1, "s-1")
    assert queue.is_cancelled(job_id)
    for call in (
        lambda: queue.finish_job(job_id, state="done", detector=DETECTOR),
        lambda: queue.update_job(job_id, progress=0.1),
        lambda: queue.request_cancel(1, job_id),
    ):
        with pytest.raises(NotFoundError, match="there is no job"):
            call()
    assert dump(queue)["detectors"] == []


# --- lost workers --------------------------------------------------------------------------------


def test_a_job_whose_worker_is_silent_waits_again_and_one_whose_worker_works_does_not(queue, clock):
    silent, working = new_job(queue), new_job(queue)
    queue.claim_job(), queue.claim_job()
    clock.go_on(50)
    queue.update_job(working, progress=0.5)
    clock.go_on(15)
    assert queue.requeue_lost_jobs(older_than_s=60) == 1
    assert (state_of(queue, silent), state_of(queue, working)) == ("queued", "running")
    assert queue.get_job(1, silent).progress == 0.0
    _, again = queue.claim_job()
    assert (again.job_id, again.attempts) == (silent, 2)


def test_of_two_workers_at_one_job_only_the_first_to_end_it_counts(queue):
    job_id = new_job(queue)
    queue.claim_job()
    queue.requeue_lost_jobs(0)  # the first worker was only slow
    with pytest.raises(ConflictError, match="is queued, not running"):
        queue.finish_job(job_id, state="done", detector=DETECTOR)
    assert queue.is_cancelled(job_id)
    queue.claim_job()
    queue.finish_job(job_id, state="done", detector=DETECTOR)
    with pytest.raises(ConflictError, match="is done"):
        queue.finish_job(job_id, state="done", detector=DETECTOR)
    assert [detector.version for detector in queue.list_detectors(1, "s-1")] == [1]


def test_a_job_that_loses_every_worker_is_given_up(queue, clock):
    job_id = new_job(queue)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert queue.claim_job()[1].attempts == attempt
        n_requeued = queue.requeue_lost_jobs(0)
        assert n_requeued == (1 if attempt < MAX_ATTEMPTS else 0)
    failed = queue.get_job(1, job_id)
    assert (failed.state, failed.error["code"], failed.finished_at) == (
        "failed",
        "internal",
        clock.now,
    )
    assert "begun 3 times" in failed.error["message"]


def test_a_job_that_a_worker_hands_back_waits_again_without_counting(queue):
    job_id = new_job(queue)
    for _ in range(2 * MAX_ATTEMPTS):
        assert queue.claim_job()[1].attempts == 1
        queue.release_job(job_id)
    assert state_of(queue, job_id) == "queued"


def test_a_lost_or_handed_back_job_that_should_be_cancelled_is(queue):
    lost, handed_back = new_job(queue), new_job(queue)
    for job_id in (lost, handed_back):
        queue.claim_job()
        queue.request_cancel(1, job_id)
    queue.release_job(handed_back)
    assert state_of(queue, handed_back) == "cancelled"
    assert queue.requeue_lost_jobs(0) == 0
    assert state_of(queue, lost) == "cancelled"
    assert queue.claim_job() is None


# --- the door ------------------------------------------------------------------------------------


def test_an_end_that_is_none_is_refused(queue):
    job_id = new_job(queue)
    queue.claim_job()
    with pytest.raises(ValueError, match="state is 'running'; expected one of done, failed"):
        queue.finish_job(job_id, state="running")


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_refused(queue, value):
    with pytest.raises(DataError, match="request can't be written as JSON"):
        queue.create_job(1, "s-1", "personalize", {"value": value})
    with pytest.raises(DataError, match="facts can't be written as JSON"):
        queue.add_detector(1, "s-1", adapter=b"", facts={"value": value}, base_fingerprint="f")
    job_id = new_job(queue)
    queue.claim_job()
    with pytest.raises(DataError, match="result can't be written as JSON"):
        queue.finish_job(job_id, state="done", result={"value": value}, detector=DETECTOR)
    assert state_of(queue, job_id) == "running"


@pytest.mark.parametrize(("given", "kept"), [(-1, 0.0), (0.5, 0.5), (7, 1.0)])
def test_progress_stays_between_nothing_and_all(queue, given, kept):
    job_id = new_job(queue)
    queue.claim_job()
    queue.update_job(job_id, progress=given)
    assert queue.get_job(1, job_id).progress == kept


def test_an_idle_worker_writes_nothing(queue):
    new_job(queue)
    queue.claim_job()
    with queue._write():  # someone writes: an idle worker doesn't wait for the lock
        assert queue.claim_job() is None
