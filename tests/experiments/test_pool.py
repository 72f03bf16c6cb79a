"""Jobs in processes: results, progress and errors come back; a stop ends the others."""

import os
import signal
import time

import pytest

from metaecg.errors import AdaptationError, NotEnoughWindowsError
from metaecg.experiments import pool


def square(job: int, report) -> int:
    for _ in range(job):
        report(2)
    return job * job


def fail(job: int, report) -> None:
    raise NotEnoughWindowsError(subject_id="s-1", label="va", n_found=job, n_needed=10)


def die(job: int, report) -> None:
    os._exit(9)


def be_terminated(job: int, report) -> None:
    """The first job's process gets a SIGTERM; the other job goes on until it is told to stop."""
    if job == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    while True:
        report(1)
        time.sleep(0.01)


def collect(jobs, work, n_workers):
    done, units = {}, []
    pool.run_all(
        jobs, work, n_workers=n_workers, on_progress=units.append, on_done=done.__setitem__
    )
    return done, sum(units)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_every_job_is_done_once_and_all_progress_is_told(n_workers):
    done, n_units = collect([1, 2, 3], square, n_workers)
    assert done == {1: 1, 2: 4, 3: 9}
    if n_workers == 1:
        assert n_units == 12
    else:
        assert n_units <= 12  # what is said at the very end may come too late to be shown


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_error_of_a_job_comes_back_with_its_facts(n_workers):
    with pytest.raises(NotEnoughWindowsError, match="'s-1' has 3 windows of class 'va'") as caught:
        collect([3, 3], fail, n_workers)
    assert (caught.value.n_found, caught.value.n_needed) == (3, 10)


def test_a_process_that_is_killed_is_told_with_what_to_do():
    with pytest.raises(AdaptationError, match="killed from outside.*--workers 1"):
        collect([1, 2], die, 2)


def test_one_process_that_is_terminated_while_it_works_ends_the_run_with_what_to_do():
    with pytest.raises(AdaptationError, match="killed from outside.*--workers 1"):
        collect([0, 1], be_terminated, 2)
