"""The queue of jobs when several ask at the same moment: processes, threads, a cancel in between."""

import collections
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from metaecg.serve.store import Store
from metaecg.serve.store_errors import TooManyError
from metaecg.serve.store_rows import Job

PATIENTS = ("s-1", "s-2", "s-3")
DETECTOR = (b"adapter", {"method": "lora"}, "base")


@pytest.fixture
def queue(store):
    """A store with some patients."""
    store.create_org("clinic")
    for name in PATIENTS:
        store.create_patient(1, name)
    return store


def new_job(queue: Store, subject_id: str = "s-1") -> str:
    return queue.create_job(1, subject_id, "personalize", {}).job_id


def claimed(queue: Store) -> Job:
    return queue.claim_job()[1]


def state_of(queue: Store, job_id: str) -> str:
    return queue.get_job(1, job_id).state


CLAIM = """
import sys
from metaecg.serve.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while store.queue_length():
    if claimed := store.claim_job():
        job = claimed[1]
        n_running = sum(other.state == "running" for other in store.list_jobs(1, job.subject_id))
        print(job.job_id, n_running, flush=True)
        store.finish_job(job, state="done", detector=(b"a", {}, "base"))
"""


def test_several_processes_take_each_job_once_and_one_of_a_patient_at_a_time(queue, store_url):
    made = [new_job(queue, PATIENTS[n % 2]) for n in range(60)]
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
    assert collections.Counter(sum((found[::2] for found in taken), [])) == dict.fromkeys(made, 1)
    assert {n for found in taken for n in found[1::2]} == {"1"}
    assert sum(map(bool, taken)) > 1  # more than one of them got something
    for name in PATIENTS[:2]:
        versions = [job.result["version"] for job in queue.list_jobs(1, name)]
        assert versions == list(range(1, 31))  # in the order of their making


def meanwhile(queue: Store, statement: str, call) -> threading.Thread:
    """Call something in another thread when the queue's store is about to run such a statement."""
    thread = threading.Thread(target=call)

    def begin(connection, cursor, said, *_arguments) -> None:
        if said.startswith(statement) and thread.ident is None:
            thread.start()
            thread.join(0.3)  # it gets through, or waits for the end of this transaction

    sa.event.listen(queue.engine, "before_cursor_execute", begin)
    return thread


def test_while_one_worker_takes_a_job_no_other_takes_one_of_the_same_patient(queue, store_url):
    first, second = new_job(queue), new_job(queue)
    other, found = Store(store_url), []
    thread = meanwhile(queue, "UPDATE jobs", lambda: found.append(other.claim_job()))
    assert claimed(queue).job_id == first
    thread.join()
    assert found == [None]
    assert state_of(queue, second) == "queued"
    other.close()


def test_a_job_that_is_cancelled_while_it_is_taken_stays_cancelled_or_is_told_so(queue, store_url):
    job_id = new_job(queue)
    other, answers = Store(store_url), []
    thread = meanwhile(
        queue, "UPDATE jobs", lambda: answers.append(other.request_cancel(1, job_id))
    )
    found = queue.claim_job()
    thread.join()
    expected = "cancelled" if found is None else "running"
    assert [(job.state, job.is_cancel_requested) for job in answers] == [(expected, True)]
    assert state_of(queue, job_id) == expected
    other.close()


def test_a_cancel_during_the_end_of_a_job_waits_for_it_and_says_how_it_ended(queue, store_url):
    job_id = new_job(queue)
    running = claimed(queue)
    other, answers = Store(store_url), []
    thread = meanwhile(
        queue, "INSERT INTO detectors", lambda: answers.append(other.request_cancel(1, job_id))
    )
    done = queue.finish_job(running, state="done", detector=DETECTOR)
    thread.join()
    assert done.state == "done" and answers == [done]
    other.close()


def test_so_many_jobs_may_wait_and_no_more_even_if_all_ask_at_once(queue):
    limits = {"max_waiting": 5, "max_of_patient": 2}
    refused = []

    def ask(name: str) -> None:
        try:
            queue.create_job(1, name, "personalize", {}, **limits)
        except TooManyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask, args=("s-1",)) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(queue.list_jobs(1, "s-1")) == 2
    assert len(refused) == 6 and "2 jobs wait for patient 's-1' already" in refused[0]
    claimed(queue)
    with pytest.raises(TooManyError):  # one that runs counts for its patient
        queue.create_job(1, "s-1", "personalize", {}, **limits)
    for name in ("s-2", "s-2", "s-3", "s-3"):  # but doesn't wait any more
        queue.create_job(1, name, "personalize", {}, **limits)
    assert queue.queue_length() == 5
    queue.create_patient(1, "s-4")
    with pytest.raises(TooManyError, match="5 jobs wait already"):
        queue.create_job(1, "s-4", "personalize", {}, **limits)
    queue.create_job(1, "s-4", "personalize", {})
