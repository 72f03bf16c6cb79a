"""The worker threads of a server: they claim jobs from the store, run them, and see to lost ones.

A job is fitted in one of these threads and its detector written together with its end, in one
transaction. Whatever happens before that leaves nothing behind but a job that will be run again.
"""

import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from metaecg.adapt.methods import import_peft
from metaecg.errors import MetaECGError
from metaecg.serve.api_errors import code_and_status, error_body
from metaecg.serve.personalizing import personalize
from metaecg.serve.state import Services, without_values
from metaecg.serve.store_errors import ConflictError, NotFoundError, StoreUnavailableError
from metaecg.serve.store_rows import Job

LOG = logging.getLogger("metaecg.serve.jobs")
PERSONALIZE = "personalize"
BEFORE_IMPORT_S = 0.5
STOP_S = 8
TOLD_EVERY_S = 0.25
"""How often progress is written: each write waits for the disk."""


class _Stopped(Exception):
    """Ends the work on a job from within; which of the three it is decides what is written."""


class _Cancelled(_Stopped):
    """The user has asked for it."""


class _HandedBack(_Stopped):
    """The server shuts down."""


class _Lost(_Stopped):
    """The job is no longer this worker's: deleted with its patient, or another has it."""


class JobWorkers:
    """Threads that run jobs until they are stopped.

    Parameters
    ----------
    services
        The server's parts.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self._stop = threading.Event()
        self._wake = threading.Condition()
        self._n_told = 0
        self._running: set[str] = set()
        self._cancelled: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._looked_for_lost = -float("inf")
        self._looking = threading.Lock()

    def start(self) -> None:
        """Start the threads; jobs that were lost with another server are looked for at once."""
        for number in range(self.services.settings.job_workers):
            name = f"metaecg-job-{number}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Hand running jobs back to the queue at their next step and wait for the threads.

        A step that takes longer than `STOP_S` isn't waited for; its job is found as lost later.
        """
        self._stop.set()
        self.wake()
        until = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._threads.clear()

    def wake(self) -> None:
        """Say that there may be a job."""
        with self._wake:
            self._n_told += 1
            self._wake.notify_all()

    def cancel(self, job_id: str) -> None:
        """Tell the thread that runs a job to end at its next step; other servers ask the store."""
        if job_id in self._running:
            self._cancelled.add(job_id)

    def _run(self) -> None:
        # What a first request or fit would load takes seconds; neither it nor the start should wait.
        if self._stop.wait(BEFORE_IMPORT_S):
            return
        self._warm_up()
        while not self._stop.is_set():
            n_told = self._n_told
            try:
                self._look_after()
                claimed = self.services.store.claim_job()
            except MetaECGError as error:
                LOG.warning("no job can be claimed: %s", error)
                claimed = None
            except Exception as error:
                LOG.error("claiming a job met a bug", exc_info=without_values(error))
                claimed = None
            if claimed is not None:
                self._work(*claimed)
            else:
                self._rest(n_told)

    def _warm_up(self) -> None:
        import_peft()
        base = self.services.base
        window = np.zeros((1, base.n_leads, base.preprocessing.n_samples), dtype=np.float32)
        self.services.detectors.mixed.logits(window, [None])

    def _rest(self, n_told: int) -> None:
        with self._wake:
            self._wake.wait_for(
                lambda: self._stop.is_set() or self._n_told != n_told,
                timeout=self.services.settings.job_poll_s,
            )

    def _look_after(self) -> None:
        """Queue lost jobs again and forget streams that nobody feeds, from time to time."""
        settings = self.services.settings
        with self._looking:
            now = time.monotonic()
            if now - self._looked_for_lost < min(settings.job_lost_s / 3, 10):
                return
            self._looked_for_lost = now
        self.services.store.delete_old_streams(3600 * settings.stream_hours)
        n_requeued = self.services.store.requeue_lost_jobs(settings.job_lost_s)
        if n_requeued:
            self.services.metrics.requeued.inc(n_requeued)
            LOG.warning("%d jobs had lost their server and are queued again", n_requeued)

    def _work(self, org_id: int, job: Job) -> None:
        begin = time.perf_counter()
        self._running.add(job.job_id)
        watch = _Watch(self.services, job, self._stop, self._cancelled)
        try:
            with watch:
                state = self._ended(org_id, job, watch.step)
        except (_Lost, ConflictError, NotFoundError):
            state = "lost"
        except StoreUnavailableError as error:
            # The job stays as it is in the store and is found by `requeue_lost_jobs` later.
            LOG.warning("a job ended, but the store can't take it: %s", error)
            state = "lost"
        except Exception as error:
            LOG.error("ending a job met a bug", exc_info=without_values(error))
            state = "lost"
        finally:
            self._running.discard(job.job_id)
            self._cancelled.discard(job.job_id)
        self.services.metrics.jobs.labels(state).inc()
        self.services.metrics.fit_seconds.observe(time.perf_counter() - begin)
        LOG.info("a job is %s after %.2f s", state, time.perf_counter() - begin)

    def _ended(self, org_id: int, job: Job, on_progress: Callable[[float], None]) -> str:
        """Run a job, write its end and return the state that it ended in."""
        store = self.services.store
        try:
            found = personalize(self.services, org_id, job.subject_id, job.request, on_progress)
        except _Cancelled:
            return store.finish_job(job, state="cancelled").state
        except _HandedBack:
            store.release_job(job)
            return "handed back"
        except (_Lost, StoreUnavailableError):
            raise
        except Exception as error:
            if code_and_status(error)[1] == 500:
                LOG.error("a job met a bug", exc_info=without_values(error))
            return store.finish_job(job, state="failed", error=error_body(error)).state
        ended = store.finish_job(
            job,
            state="done",
            result=found.result,
            detector=found.detector,
            activate=found.activate,
        )
        self.services.forget(org_id, job.subject_id)
        return ended.state


class _Watch:
    """Keeps a running job's heart beating and ends it when it must.

    While steps are taken, each may write; between steps, such as while a long recording is read, a
    thread does.
    """

    def __init__(
        self, services: Services, job: Job, stop: threading.Event, cancelled: set[str]
    ) -> None:
        self._store, self._job = services.store, job
        self._beat_s = services.settings.job_heartbeat_s
        self._stop, self._cancelled = stop, cancelled
        self._progress, self._told_at = 0.0, time.monotonic()
        self._is_lost = False
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="metaecg-heart", daemon=True)

    def __enter__(self) -> "_Watch":
        self._heart.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._heart.join()

    def step(self, progress: float) -> None:
        """Note the progress, and raise what ends the job if something does."""
        if self._job.job_id in self._cancelled:
            raise _Cancelled
        if self._stop.is_set():
            raise _HandedBack
        if self._is_lost:
            raise _Lost
        self._progress = progress
        if time.monotonic() - self._told_at >= TOLD_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        try:
            if self._store.update_job(self._job, progress=self._progress):
                raise _Cancelled  # through another server
        except (ConflictError, NotFoundError) as error:
            raise _Lost from error
        except StoreUnavailableError as error:
            LOG.warning("a job's progress can't be written: %s", error)

    def _beat(self) -> None:
        while not self._over.wait(self._beat_s):
            try:
                if self._store.update_job(self._job, progress=self._progress):
                    self._cancelled.add(self._job.job_id)
            except (ConflictError, NotFoundError):
                self._is_lost = True
                return
            except MetaECGError as error:
                LOG.warning("a job's heartbeat can't be written: %s", error)
