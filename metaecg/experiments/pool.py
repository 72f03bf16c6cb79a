"""Run jobs in a few processes of one thread each, with progress, resumption and a clean stop."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from queue import Empty

from metaecg.errors import AdaptationError

REPORT_EVERY_S = 0.2
"""Seconds between two messages of a worker: more of them would cost more than they tell."""

# Set in worker processes only, by their initializer and their signal handler.
_channel = None
_is_working = False
_is_terminated = False


class Stopped(Exception):
    """Raised inside a worker whose run was interrupted, or that was told to end (SIGTERM)."""


def run_all(
    jobs: list,
    work: Callable,
    *,
    n_workers: int,
    on_progress: Callable[[int], None],
    on_done: Callable,
) -> None:
    """Call ``work(job, report)`` for every job and ``on_done(job, result)`` as each ends.

    Parameters
    ----------
    jobs
        Any picklable objects; started in this order.
    work
        A picklable function. It calls ``report(n)`` after every n units of progress.
    n_workers
        1 runs the jobs here, one after the other.
    on_progress
        Called here with the number of units done since the last call.
    on_done
        Called here with the job and what `work` returned.

    Notes
    -----
    An exception of a job, and Ctrl-C, stop the others at their next report and are raised here.
    """
    if n_workers == 1 or len(jobs) == 1:
        limit_threads()
        for job in jobs:
            on_done(job, work(job, on_progress))
        return
    context = multiprocessing.get_context("spawn")
    queue, stop = context.Queue(), context.Event()
    pool = ProcessPoolExecutor(n_workers, context, _start_worker, (queue, stop))
    try:
        futures = {pool.submit(_in_worker, work, job): job for job in jobs}
        _collect(futures, queue, on_progress, on_done)
    except (BrokenProcessPool, Stopped) as error:  # SIGKILL, or SIGTERM to one of them alone
        stop.set()
        raise AdaptationError(
            "a worker process was killed from outside, most likely for want of memory. Finished "
            "parts are kept: run the same command again, with --workers 1."
        ) from error
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def limit_threads() -> None:
    """One torch thread: figures don't depend on the number of cores, and processes don't compete."""
    import torch

    torch.set_num_threads(1)


def _collect(futures: dict[Future, object], queue, on_progress, on_done) -> None:
    waiting = set(futures)
    while waiting:
        finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        on_progress(_drain(queue))
        for future in finished:
            on_done(futures[future], future.result())


def _drain(queue) -> int:
    n_units = 0
    while True:
        try:
            n_units += queue.get_nowait()
        except Empty:
            return n_units


def _start_worker(queue, stop) -> None:
    global _channel
    # The parent decides when to stop, and says so through `stop`: a terminal and a service manager
    # send their signals to every process of a group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    queue.cancel_join_thread()  # progress that nobody reads any more must not hold up the end
    _channel = (queue, stop)
    limit_threads()


def _terminate(number, frame) -> None:
    """End an idle worker at once, a working one at its next report."""
    global _is_terminated
    _is_terminated = True
    if not _is_working:
        os._exit(128 + number)


def _in_worker(work: Callable, job):
    global _is_working
    queue, stop = _channel
    unsaid, last = 0, time.monotonic()

    def report(n_units: int) -> None:
        nonlocal unsaid, last
        unsaid += n_units
        if _is_terminated or time.monotonic() - last > REPORT_EVERY_S:
            queue.put(unsaid)
            unsaid, last = 0, time.monotonic()
            if _is_terminated or stop.is_set():
                raise Stopped

    _is_working = True
    try:
        result = work(job, report)
    finally:
        _is_working = False
    queue.put(unsaid)
    return result
