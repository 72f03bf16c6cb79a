"""A process that is killed while it writes to a store; test_store_crash.py runs it.

`steps URL WHAT` does WHAT again and again, each time in a child that kills itself with SIGKILL
after one more statement, until a child gets through. `acknowledge URL WHAT` does it for ever and
prints a line for each that has returned. N in a name is the number of the attempt.
"""

import itertools
import os
import signal
import sys

import sqlalchemy as sa
from store_cases import GRID, add_recording, ramp

from metaecg.serve.store import Store

ORG_ID, SUBJECT_ID = 1, "s-1"
N_SAMPLES = 40_000


def write_recording(store: Store, n: int) -> str:
    """Keep a recording of two leads, whose name is the number."""
    signal_mv = ramp(N_SAMPLES, n_leads=2) + n
    return add_recording(store, ORG_ID, SUBJECT_ID, signal_mv=signal_mv, name=f"{n}").recording_id


def write_detector(store: Store, n: int) -> str:
    """Take a job, put a label, end the job with a detector that is in use at once."""
    _org_id, job = store.claim_job()
    adapter = f"adapter {job.job_id}".encode() * 1000
    facts = {"job_id": job.job_id}
    store.finish_job(job, state="done", result={}, detector=(adapter, facts, "base"))
    return job.job_id


def write_labels(store: Store, n: int) -> str:
    """Set ten labels of a recording at once."""
    (recording, *_) = store.list_recordings(ORG_ID, SUBJECT_ID)
    labels = {index: f"{n}" for index in range(10)}
    store.put_labels(ORG_ID, SUBJECT_ID, recording.recording_id, labels, segmentation=GRID)
    return f"{n}"


WRITES = {"recording": write_recording, "detector": write_detector, "labels": write_labels}


def kill_after(store: Store, n_statements: int) -> None:
    """Make this process kill itself after some statements; the commit counts as one."""
    left = itertools.count(n_statements - 1, -1)

    def step(*_arguments) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(store.engine, "after_cursor_execute", step)
    sa.event.listen(store.engine, "commit", step)


def run_steps(url: str, what: str) -> None:
    """Kill a child after 1, 2, ... statements; print how many children were killed."""
    for n in itertools.count(1):
        child = os.fork()
        if child == 0:
            store = Store(url)
            kill_after(store, n)
            WRITES[what](store, n)
            os._exit(0)
        _pid, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(n - 1, os.WEXITSTATUS(status), flush=True)
            return


def acknowledge(url: str, what: str) -> None:
    """Write for ever; print what the store has said that it holds."""
    store = Store(url)
    for n in itertools.count(1):
        print(WRITES[what](store, n), flush=True)


if __name__ == "__main__":
    {"steps": run_steps, "acknowledge": acknowledge}[sys.argv[1]](sys.argv[2], sys.argv[3])
