"""Windows of requests that come at the same time go through the network together."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from metaecg.models.base_windows import windows_for
from metaecg.serve.mixed import MixedBatch
from metaecg.serve.mixed_adapters import LoadedAdapter


@dataclass(eq=False)
class _Request:
    """Windows that one caller waits for, and how far they are."""

    windows: np.ndarray
    adapters: Sequence[LoadedAdapter | None]
    future: asyncio.Future
    logits: list[np.ndarray] = field(default_factory=list)
    n_begun: int = 0

    @property
    def n_left(self) -> int:
        return len(self.windows) - self.n_begun


_Piece = tuple[_Request, slice]


class Batcher:
    """Gathers what is asked for while the network is busy; one thread runs the network.

    A window that comes while nothing runs doesn't wait for others, unless `max_wait_ms` says so.
    Every waiting request has its share of a batch, so that a long one doesn't hold up the short. An
    error reaches the request that it belongs to; who has gone is left out.

    Parameters
    ----------
    mixed
        What judges the windows.
    max_batch
        Windows per pass, at most.
    max_wait_ms
        How long a first window waits for others, milliseconds.
    """

    def __init__(self, mixed: MixedBatch, max_batch: int = 64, max_wait_ms: float = 0.0) -> None:
        self._mixed = mixed
        self._max_batch = max_batch
        self._max_wait_s = max_wait_ms / 1000
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metaecg-torch")
        self._waiting: deque[_Request] = deque()
        self._task: asyncio.Task | None = None
        self._is_full: asyncio.Event | None = None

    @property
    def n_waiting(self) -> int:
        """Windows that wait for a pass."""
        return sum(request.n_left for request in self._waiting)

    async def logits(self, window: np.ndarray, adapter: LoadedAdapter | None) -> np.ndarray:
        """Return the logits ``(n_classes,)`` of one window ``(n_leads, n_samples)``.

        Raises
        ------
        DataError
            If the window has another shape, or samples that aren't finite.
        """
        return (await self.logits_many(np.asarray(window)[None], [adapter]))[0]

    async def logits_many(
        self, windows: np.ndarray, adapters: Sequence[LoadedAdapter | None]
    ) -> np.ndarray:
        """Return the logits ``(n, n_classes)`` of windows, each by its own adapter; see `MixedBatch`.

        Raises
        ------
        DataError
            If the windows have another shape, or samples that aren't finite.
        ValueError
            If there are more or fewer adapters than windows.
        """
        windows = windows_for(self._mixed.base, windows)
        if len(adapters) != len(windows):
            raise ValueError(f"there are {len(adapters)} adapters for {len(windows)} windows.")
        if not len(windows):
            return np.empty((0, len(self._mixed.base.classes)))
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._waiting.clear()  # of a loop that has ended, if there are any
            self._is_full = asyncio.Event()
            self._task = loop.create_task(self._run())
        request = _Request(windows, adapters, loop.create_future())
        self._waiting.append(request)
        if self.n_waiting >= self._max_batch:
            self._is_full.set()
        return await request.future

    def close(self) -> None:
        """End the thread when its pass is done; what waits then is never answered."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self) -> None:
        """Run passes until nothing waits."""
        loop = asyncio.get_running_loop()
        await self._gather()
        while pieces := self._next_pieces():
            parts = await loop.run_in_executor(self._thread, self._judge, pieces)
            for (request, _), part in zip(pieces, parts, strict=True):
                _answer(request, part)
            self._is_full.clear()

    async def _gather(self) -> None:
        if self._max_wait_s > 0:
            try:
                await asyncio.wait_for(self._is_full.wait(), self._max_wait_s)
            except TimeoutError:
                pass

    def _next_pieces(self) -> list[_Piece]:
        """Take an equal share of each waiting request, and the rest in their order."""
        alive = [request for request in self._waiting if not request.future.done()]
        share = max(1, self._max_batch // max(1, len(alive)))
        room, taken = self._max_batch, dict.fromkeys(alive, 0)
        for limit in (share, self._max_batch):
            for request in alive:
                n = min(room, request.n_left - taken[request], limit)
                taken[request] += n
                room -= n
        pieces = []
        for request, n in taken.items():
            if n:
                pieces.append((request, slice(request.n_begun, request.n_begun + n)))
                request.n_begun += n
        # Who had no place this time is first the next time.
        left = [request for request in alive if request.n_left]
        self._waiting = deque(sorted(left, key=lambda request: taken[request] > 0))
        return pieces

    def _judge(self, pieces: list[_Piece]) -> list[np.ndarray | Exception]:
        """Return the logits of each piece; if the pass fails, of each by itself or its error."""
        try:
            windows = np.concatenate([request.windows[part] for request, part in pieces])
            adapters = [a for request, part in pieces for a in request.adapters[part]]
            found = self._mixed.logits(windows, adapters)
        except Exception as error:
            if len(pieces) == 1:
                return [error]
            return [part for piece in pieces for part in self._judge([piece])]
        ends = np.cumsum([part.stop - part.start for _, part in pieces])
        return np.split(found, ends[:-1])


def _answer(request: _Request, part: np.ndarray | Exception) -> None:
    """Give a request what was found for it, once all of it is there."""
    if request.future.done():
        return
    if isinstance(part, Exception):
        request.future.set_exception(part)
        return
    request.logits.append(part)
    if sum(map(len, request.logits)) == len(request.windows):
        request.future.set_result(np.concatenate(request.logits))
