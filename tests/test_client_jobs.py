"""Waiting for a job: progress, time limits, and what its end becomes."""

import pytest

from metaecg.client import JobCancelledError, JobTimeoutError, ServerError
from metaecg.client.jobs import outcome, wait_for
from metaecg.client.results import Job, read
from metaecg.errors import AdaptationError, NotEnoughWindowsError, PersonalizationRefusedWarning

RESULT = {
    "version": 2,
    "n_support": {"other": 10, "va": 10},
    "fit_seconds": 0.3,
    "loss_first": 0.9,
    "loss_last": 0.1,
    "n_bytes": 42_000,
    "support": {"errors_base": 3, "errors_personal": 0, "n": 20},
    "refused": False,
    "reasons": [],
}


def answer(**changes) -> dict:
    """Return a job as the server tells it."""
    return {
        "job_id": "a" * 32,
        "subject_id": "s-1",
        "kind": "personalize",
        "state": "running",
        "progress": 0.0,
        "request": {"method": "lora"},
        "result": None,
        "error": None,
        "created_at": "2026-01-02T03:04:05.000Z",
        "started_at": None,
        "finished_at": None,
        **changes,
    }


def job(**changes) -> Job:
    return read(Job, answer(**changes))


class Answers:
    """Stands where the connection does; only what a job looks like over time is made up."""

    def __init__(self, *answers: dict) -> None:
        self.answers = list(answers)

    def get(self, path: str) -> dict:
        assert path == f"/v1/jobs/{'a' * 32}"
        return self.answers.pop(0)


def test_progress_is_told_when_it_changes():
    told = []
    answers = [answer(progress=p) for p in (0.0, 0.4, 0.4)]
    answers.append(answer(progress=1.0, state="done", result=RESULT))
    found = wait_for(Answers(*answers), job(state="queued"), progress=told.append, timeout_s=None)
    assert told == [0.0, 0.4, 1.0]
    assert found.is_over


def test_the_result_of_a_done_job_is_typed():
    found = outcome(job(state="done", result=RESULT))
    assert (found.version, found.n_support["va"], found.support.errors_base) == (2, 10, 3)


def test_after_the_longest_wait_the_job_goes_on_and_is_named():
    with pytest.raises(JobTimeoutError, match="is 'running' after 0 s; it goes on") as caught:
        wait_for(Answers(), job(), progress=None, timeout_s=0)
    assert caught.value.job_id == "a" * 32
    assert isinstance(caught.value, TimeoutError)


def test_a_failed_job_raises_what_the_library_would():
    detail = {"subject_id": "s-1", "label": "va", "n_found": 3, "n_needed": 10}
    error = {"code": "not_enough_windows", "message": "m", "detail": detail}
    with pytest.raises(NotEnoughWindowsError, match="'s-1' has 3 windows of class 'va'"):
        outcome(job(state="failed", error=error))
    error = {"code": "adaptation_error", "message": "the loss is nan.", "detail": {}}
    with pytest.raises(AdaptationError, match="the loss is nan"):
        outcome(job(state="failed", error=error))


def test_a_bug_of_the_server_stays_one():
    error = {"code": "internal", "message": "the server has met a bug.", "detail": {}}
    with pytest.raises(ServerError, match="has met a bug"):
        outcome(job(state="failed", error=error))


def test_a_cancelled_job_is_named():
    with pytest.raises(JobCancelledError, match="was cancelled") as caught:
        outcome(job(state="cancelled"))
    assert caught.value.job_id == "a" * 32


def test_a_refused_personalization_warns_as_the_library_does():
    refused = {**RESULT, "refused": True, "reasons": ["it gets 4 wrong, the base 2."]}
    with pytest.warns(PersonalizationRefusedWarning, match="'s-1' is refused.*it gets 4 wrong"):
        assert outcome(job(state="done", result=refused)).refused
