"""Remember what was costly to make, within a bound of bytes, and make it once if several ask at a time."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

from cachetools import LRUCache

ENTRY_BYTES = 200
"""What the key and the place of an entry take, roughly: empty ones aren't free."""


class SingleFlight:
    """Lets one thread do a piece of work that several ask for at a time; the others wait for it.

    An error reaches all of them. Nothing is remembered: who asks after the end starts anew.
    """

    def __init__(self) -> None:
        self._at_work: dict[Hashable, Future] = {}
        self._lock = threading.Lock()

    def do(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, or what the same work under `key` returns that is going on."""
        with self._lock:
            waiting = self._at_work.get(key)
            if waiting is None:
                future = self._at_work[key] = Future()
        if waiting is not None:
            return waiting.result()
        try:
            found = work()
        except BaseException as error:
            future.set_exception(error)
            raise
        else:
            future.set_result(found)
            return found
        finally:
            with self._lock:
                del self._at_work[key]


class BoundedCache:
    """The last used results, bounded in bytes; safe between threads.

    Parameters
    ----------
    max_bytes
        Memory of all results together; one that is larger is handed out, but not kept.
    size_of
        Gives the bytes of a result, by default its `n_bytes`.
    """

    def __init__(
        self, max_bytes: int, size_of: Callable[[Any], int] = lambda found: found.n_bytes
    ) -> None:
        self._known = LRUCache(
            max(max_bytes, 1), getsizeof=lambda found: ENTRY_BYTES + size_of(found)
        )
        self._lock = threading.Lock()
        self._making = SingleFlight()

    def get(self, key: Hashable) -> Any | None:
        """Return what is known under `key`."""
        with self._lock:
            return self._known.get(key)

    def get_or_make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what is known under `key`; else make it, once for all who ask meanwhile."""
        found = self.get(key)
        return self._making.do(key, lambda: self._made(key, make)) if found is None else found

    @property
    def n_bytes(self) -> int:
        """How much memory it holds."""
        return int(self._known.currsize)

    def _made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        found = self.get(key)  # somebody may have ended making it just now
        if found is None:
            found = make()
            with self._lock:
                if self._known.getsizeof(found) <= self._known.maxsize:
                    self._known[key] = found
        return found
