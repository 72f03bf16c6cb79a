"""The queue of jobs: each is given to one worker, lost ones come back, an end is an end."""

import pytest
from store_cases import Clock, dump

from metaecg.errors import DataError
from metaecg.serve.store import Store
from metaecg.serve.store_errors import ConflictError, NotFoundError
from metaecg.serve.store_jobs import MAX_ATTEMPTS
from metaecg.serve.store_rows import Job

PATIENTS = ("s-1", "s-2", "s-3")
DETECTOR = (b"adapter", {"method": "lora"}, "base")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(store_url, clock):
    """A store with some patients, whose clock a test moves on."""
    store = Store(store_url, clock=clock)
    store.create_org("clinic")
    for name in PATIENTS:
        store.create_patient(1, name)
    yield store
    store.close()


def new_job(queue: Store, subject_id: str = "s-1") -> str:
    return queue.create_job(1, subject_id, "personalize", {}).job_id


def claimed(queue: Store) -> Job:
    return queue.claim_job()[1]


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
    queue.update_job(running, progress=0.25)
    assert queue.get_job(1, made.job_id).progress == 0.25
    clock.go_on(1)
    done = queue.finish_job(running, state="done", result={"loss": 0.5}, detector=DETECTOR)
    assert (done.state, done.progress, done.finished_at) == ("done", 1.0, clock.now)
    assert done.result == {"loss": 0.5, "version": 1}
    assert queue.get_job(1, made.job_id) == done
    assert queue.active_version(1, "s-1") == 1


def test_jobs_are_taken_in_the_order_of_their_making(queue):
    made = [new_job(queue, name) for name in PATIENTS]
    assert queue.queue_length() == 3
    assert [claimed(queue).job_id for _ in made] == made
    assert queue.claim_job() is None
    assert queue.queue_length() == 0


def test_of_one_patient_one_job_runs_at_a_time_and_the_newest_ends_last(queue):
    first, second, third = new_job(queue), new_job(queue), new_job(queue)
    other = new_job(queue, "s-2")
    assert [job.job_id for job in queue.list_jobs(1, "s-1")] == [first, second, third]
    running = claimed(queue)
    assert running.job_id == first
    of_other = claimed(queue)  # nobody waits for another's patient
    assert of_other.job_id == other
    assert queue.claim_job() is None
    queue.finish_job(of_other, state="cancelled")
    queue.finish_job(running, state="failed", error={"code": "internal"})
    running = claimed(queue)
    assert running.job_id == second
    queue.release_job(running)
    assert claimed(queue).job_id == second
    queue.requeue_lost_jobs(0)
    assert claimed(queue).job_id == second  # a lost one isn't overtaken either
    assert queue.claim_job() is None
    assert state_of(queue, third) == "queued"


def test_a_detector_may_be_kept_without_being_used(queue):
    new_job(queue)
    done = queue.finish_job(
        claimed(queue), state="done", result={"refused": True}, detector=DETECTOR, activate=False
    )
    assert done.result == {"refused": True, "version": 1}
    assert queue.active_version(1, "s-1") == 0
    assert queue.read_adapter(1, "s-1", 1) == b"adapter"


def test_a_failed_job_has_an_error_and_no_detector(queue):
    new_job(queue)
    job = claimed(queue)
    queue.update_job(job, progress=0.5)
    error = {"code": "not_enough_windows", "message": "words", "detail": {"n_found": 3}}
    failed = queue.finish_job(job, state="failed", error=error)
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
    running = claimed(queue)
    assert not queue.update_job(running, progress=0.25)
    asked = queue.request_cancel(1, job_id)
    assert (asked.state, asked.is_cancel_requested) == ("running", True)
    assert queue.update_job(running, progress=0.5)  # so its worker learns of it
    assert state_of(queue, job_id) == "running"
    assert queue.finish_job(running, state="cancelled").state == "cancelled"


@pytest.mark.parametrize(
    "end",
    [
        {"state": "done", "result": {"loss": 0.5}, "detector": DETECTOR},
        {"state": "failed", "error": {"code": "internal"}},
    ],
)
def test_a_cancel_that_was_acknowledged_holds_whatever_the_worker_ends_with(queue, clock, end):
    job_id = new_job(queue)
    running = claimed(queue)
    assert queue.request_cancel(1, job_id).is_cancel_requested
    ended = queue.finish_job(running, **end)  # the worker was past its last look
    assert (ended.state, ended.result, ended.error) == ("cancelled", None, None)
    assert ended.finished_at == clock.now
    assert queue.get_job(1, job_id) == ended
    assert queue.list_detectors(1, "s-1") == []
    assert queue.active_version(1, "s-1") == 0


def test_an_ended_job_stays_as_it_ended(queue):
    job_id = new_job(queue)
    running = claimed(queue)
    done = queue.finish_job(running, state="done", detector=DETECTOR)
    assert queue.request_cancel(1, job_id) == done
    assert queue.requeue_lost_jobs(0) == 0
    before = dump(queue)
    for call in (
        lambda: queue.finish_job(running, state="done", detector=DETECTOR),
        lambda: queue.update_job(running, progress=0.1),
        lambda: queue.release_job(running),
    ):
        with pytest.raises(ConflictError, match="is done, not running.*Drop this attempt"):
            call()
    assert dump(queue) == before


def test_a_job_of_a_deleted_patient_is_gone_and_can_not_be_ended(queue):
    job_id = new_job(queue)
    running = claimed(queue)
    queue.delete_patient(1, "s-1")
    for call in (
        lambda: queue.finish_job(running, state="done", detector=DETECTOR),
        lambda: queue.update_job(running, progress=0.1),
        lambda: queue.release_job(running),
        lambda: queue.request_cancel(1, job_id),
    ):
        with pytest.raises(NotFoundError, match="there is no job"):
            call()
    assert dump(queue)["detectors"] == []


# --- lost workers --------------------------------------------------------------------------------


def test_a_job_whose_worker_is_silent_waits_again_and_one_whose_worker_works_does_not(queue, clock):
    silent, working = new_job(queue), new_job(queue, "s-2")
    _, at_work = claimed(queue), claimed(queue)
    clock.go_on(50)
    queue.update_job(at_work, progress=0.5)
    clock.go_on(15)
    assert queue.requeue_lost_jobs(older_than_s=60) == 1
    assert (state_of(queue, silent), state_of(queue, working)) == ("queued", "running")
    assert queue.get_job(1, silent).progress == 0.0
    again = claimed(queue)
    assert (again.job_id, again.attempts) == (silent, 2)


def test_of_two_workers_at_one_job_only_the_one_who_has_it_counts(queue):
    new_job(queue)
    slow = claimed(queue)
    queue.requeue_lost_jobs(0)  # the first worker was only slow
    calls = (
        lambda: queue.finish_job(slow, state="done", detector=DETECTOR),
        lambda: queue.finish_job(slow, state="cancelled"),
        lambda: queue.update_job(slow, progress=0.9),
        lambda: queue.release_job(slow),
    )
    for call in calls:
        with pytest.raises(ConflictError, match="is queued, not running"):
            call()
    second = claimed(queue)
    before = dump(queue)
    for call in calls:
        with pytest.raises(ConflictError, match="runs in attempt 2, not 1.*Drop this attempt"):
            call()
    assert dump(queue) == before
    queue.finish_job(second, state="done", detector=DETECTOR)
    for call in calls:
        with pytest.raises(ConflictError, match="is done"):
            call()
    assert [detector.version for detector in queue.list_detectors(1, "s-1")] == [1]


def test_a_job_that_loses_every_worker_is_given_up(queue, clock):
    job_id = new_job(queue)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert claimed(queue).attempts == attempt
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
        running = claimed(queue)
        assert running.attempts == 1
        queue.release_job(running)
    assert state_of(queue, job_id) == "queued"


def test_a_lost_or_handed_back_job_that_should_be_cancelled_is(queue):
    lost, handed_back = new_job(queue), new_job(queue, "s-2")
    _, running = claimed(queue), claimed(queue)
    for job_id in (lost, handed_back):
        queue.request_cancel(1, job_id)
    queue.release_job(running)
    assert state_of(queue, handed_back) == "cancelled"
    assert queue.requeue_lost_jobs(0) == 0
    assert state_of(queue, lost) == "cancelled"
    assert queue.claim_job() is None


# --- the door ------------------------------------------------------------------------------------


def test_an_end_that_is_none_is_refused(queue):
    new_job(queue)
    running = claimed(queue)
    with pytest.raises(ValueError, match="state is 'running'; expected one of done, failed"):
        queue.finish_job(running, state="running")


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_refused(queue, value):
    with pytest.raises(DataError, match="request can't be written as JSON"):
        queue.create_job(1, "s-1", "personalize", {"value": value})
    with pytest.raises(DataError, match="facts can't be written as JSON"):
        queue.add_detector(1, "s-1", adapter=b"", facts={"value": value}, base_fingerprint="f")
    job_id = new_job(queue)
    running = claimed(queue)
    with pytest.raises(DataError, match="result can't be written as JSON"):
        queue.finish_job(running, state="done", result={"value": value}, detector=DETECTOR)
    assert state_of(queue, job_id) == "running"


@pytest.mark.parametrize(("given", "kept"), [(-1, 0.0), (0.5, 0.5), (7, 1.0)])
def test_progress_stays_between_nothing_and_all(queue, given, kept):
    job_id = new_job(queue)
    queue.update_job(claimed(queue), progress=given)
    assert queue.get_job(1, job_id).progress == kept


def test_an_idle_worker_writes_nothing(queue):
    new_job(queue)
    queue.claim_job()
    with queue._write():  # someone writes: an idle worker doesn't wait for the lock
        assert queue.claim_job() is None
