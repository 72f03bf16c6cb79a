"""What a running server holds: the base, the store, the caches. Made once, handed to every part."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import anyio
from fastapi import Depends, Request
from starlette.responses import Response

from metaecg.serve.api_errors import code_and_status, error_response
from metaecg.serve.auth import Remembered
from metaecg.serve.batcher import Batcher
from metaecg.serve.caches import BoundedCache
from metaecg.serve.detectors import DetectorCache
from metaecg.serve.metrics import Metrics
from metaecg.serve.recordings import GapCache
from metaecg.serve.segments import Segmentation, segmentation_of
from metaecg.serve.settings import MIB, Settings
from metaecg.serve.store import Store

LOG = logging.getLogger("metaecg.serve")
BRIEF_WORKERS = 4
"""Short computations at a time: what they hold in memory stays small, and none waits for long."""


@dataclass(kw_only=True)
class Services:
    """Everything that endpoints and jobs share. Its parts are safe between threads."""

    settings: Settings
    base: Any
    store: Store
    segmentation: Segmentation
    detectors: DetectorCache
    batcher: Batcher
    probabilities: BoundedCache
    """What detectors said of whole recordings lately."""
    gaps: GapCache = field(default_factory=GapCache)
    metrics: Metrics = field(default_factory=Metrics)
    tokens: Remembered
    """Secret to organisation."""
    active: Remembered
    """Organisation and patient to the detector in use."""
    worker: Any = None
    """Runs the jobs; see `metaecg.serve.jobs`."""
    heavy: anyio.CapacityLimiter | None = None
    """Lets only so many long computations over whole recordings run at a time."""
    brief: anyio.CapacityLimiter | None = None
    """The same for short ones, which never wait for the long."""

    async def heavily(self, work: Callable, *arguments):
        """Run `work` in a thread, few such at a time: it may need much memory and a whole core."""
        if self.heavy is None:
            self.heavy = anyio.CapacityLimiter(self.settings.long_workers)
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self.heavy)

    async def briefly(self, work: Callable, *arguments):
        """Run `work`, which takes a fraction of a second, in a thread."""
        if self.brief is None:
            self.brief = anyio.CapacityLimiter(BRIEF_WORKERS)
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self.brief)

    def forget(self, org_id: int, subject_id: str) -> None:
        """Forget which detector a patient uses: it has just changed."""
        self.active.forget((org_id, subject_id))
        self.detectors.forget(org_id, subject_id)

    def answer_error(self, error: BaseException) -> Response:
        """Return the answer for an exception, and log what is no fault of the client."""
        _, status = code_and_status(error)
        if status == 503:
            self.metrics.store_errors.inc()
            LOG.warning("unavailable: %s", error)
        elif status == 500:
            LOG.error("a request met a bug", exc_info=without_values(error))
        return error_response(error)

    async def shut_down(self) -> None:
        """Hand back running jobs, end the threads and let go of the database."""
        if self.worker is not None:
            await anyio.to_thread.run_sync(self.worker.stop)
        await anyio.to_thread.run_sync(self.batcher.close)
        self.store.close()


def open_services(settings: Settings) -> Services:
    """Load the base, open the store and bring its tables up to date.

    Raises
    ------
    CheckpointError
        There is no such base.
    ConfigError
        The store's address can't be used.
    StoreUnavailableError
        The store's database doesn't answer.
    """
    import torch

    from metaecg.models.checkpoints import load_base

    torch.set_num_threads(settings.torch_threads)
    base = load_base(settings.model)
    store = Store(settings.store)
    store.migrate()
    seconds = settings.memory_of_tokens_s
    detectors = DetectorCache(base, store, max_bytes=int(settings.cache_mb * MIB))
    return Services(
        settings=settings,
        base=base,
        store=store,
        segmentation=segmentation_of(base),
        detectors=detectors,
        batcher=Batcher(detectors.mixed, settings.max_batch, settings.max_wait_ms),
        probabilities=BoundedCache(int(settings.prediction_cache_mb * MIB)),
        tokens=Remembered(seconds),
        active=Remembered(seconds),
    )


def without_values(error: BaseException) -> tuple:
    """Return an exception for a log's ``exc_info`` with its place and kind, but without its words.

    The words of an unforeseen error may hold what a client has sent.
    """
    kind = type(error)
    return (
        RuntimeError,
        RuntimeError(f"{kind.__module__}.{kind.__qualname__}"),
        error.__traceback__,
    )


async def services_of(request: Request) -> Services:
    """Return the services of the app that a request came to."""
    return request.app.state.services


Parts = Annotated[Services, Depends(services_of)]
