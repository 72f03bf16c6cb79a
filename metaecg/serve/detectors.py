"""Loaded adapters of the patients who are being judged, bounded in memory."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cachetools import LRUCache, TTLCache

from metaecg.serve.caches import SingleFlight
from metaecg.serve.mixed import MixedBatch
from metaecg.serve.mixed_adapters import LoadedAdapter

if TYPE_CHECKING:
    from metaecg.models.checkpoints import BaseModel
    from metaecg.serve.store import Store

KNOWN_FOR_S = 0.5
"""So long a patient's version isn't looked up again. Another process may have changed it."""
MAX_VERSIONS = 20_000
"""Versions that are remembered so long, at most."""

Key = tuple[int, str, int, str]
"""Organisation, patient, version, digest. A patient who was deleted and made anew may have the same
names and versions again, but not the digest."""


class DetectorCache:
    """Patients' adapters out of the store, the last used ones kept in memory.

    Safe between threads. An adapter that several ask for at once is read once.

    Parameters
    ----------
    base
        The base that the adapters were fitted on.
    store
        Where they are kept.
    max_bytes
        Memory of the loaded adapters, all together; one that is larger is not kept.
    known_for_s
        How long a version counts as known before the store is asked again.
    clock
        Gives seconds that never go back.
    """

    def __init__(
        self,
        base: "BaseModel",
        store: "Store",
        *,
        max_bytes: int,
        known_for_s: float = KNOWN_FOR_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mixed = MixedBatch(base)
        self.n_hits = 0
        self.n_misses = 0
        self._store = store
        self._lock = threading.Lock()
        self._adapters: LRUCache[Key, LoadedAdapter] = LRUCache(
            max_bytes, getsizeof=lambda adapter: adapter.n_bytes
        )
        self._versions = TTLCache(MAX_VERSIONS, known_for_s, timer=clock)
        self._loading = SingleFlight()
        self._n_forgotten = 0

    @property
    def n_adapters(self) -> int:
        """Adapters in memory."""
        return len(self._adapters)

    @property
    def n_bytes(self) -> int:
        """Memory that they take."""
        return int(self._adapters.currsize)

    def get(self, org_id: int, subject_id: str, version: int | None = None) -> LoadedAdapter | None:
        """Return a patient's adapter; ``None`` is the base itself (version 0).

        Parameters
        ----------
        version
            ``None``: the active one.

        Raises
        ------
        NotFoundError
            If the organisation has no such patient, or the patient no such version.
        CheckpointError
            If the adapter belongs to another base, or is damaged.
        StoreUnavailableError
            If the database doesn't answer.
        """
        number, digest = self._version(org_id, subject_id, version)
        return self.load(org_id, subject_id, number, digest)

    def load(self, org_id: int, subject_id: str, version: int, digest: str) -> LoadedAdapter | None:
        """Return the adapter of a version whose digest is known; the store isn't asked at a hit.

        Raises as `get`.
        """
        if version == 0:
            return None
        key = (org_id, subject_id, version, digest)
        with self._lock:
            found = self._adapters.get(key)
            if found is not None:
                self.n_hits += 1
                return found
            self.n_misses += 1
        return self._loading.do(key, lambda: self._load(key))

    def peek(self, org_id: int, subject_id: str, version: int, digest: str) -> LoadedAdapter | None:
        """Return the adapter if it is in memory, at once; ``None`` says nothing of the store."""
        with self._lock:
            found = self._adapters.get((org_id, subject_id, version, digest))
            self.n_hits += found is not None
            return found

    def forget(self, org_id: int, subject_id: str) -> None:
        """Ask the store anew for a patient; to be called when the active version has changed."""
        with self._lock:
            self._n_forgotten += 1  # what is being looked up now may be of before
            for cache in (self._versions, self._adapters):
                for key in [key for key in cache if key[:2] == (org_id, subject_id)]:
                    cache.pop(key, None)

    def _load(self, key: Key) -> LoadedAdapter:
        org_id, subject_id, version, digest = key
        with self._lock:
            found, n_forgotten = self._adapters.get(key), self._n_forgotten
        if found is not None:  # somebody has ended reading it just now
            return found
        data = self._store.read_adapter(org_id, subject_id, version)
        adapter = self.mixed.reader.read(data, version=version, digest=digest)
        with self._lock:
            if adapter.n_bytes <= self._adapters.maxsize and n_forgotten == self._n_forgotten:
                self._adapters[key] = adapter
        return adapter

    def _version(self, org_id: int, subject_id: str, version: int | None) -> tuple[int, str]:
        """Return number and digest, from the store if they aren't known."""
        key = (org_id, subject_id, version)
        with self._lock:
            found, n_forgotten = self._versions.get(key), self._n_forgotten
        if found is not None:
            return found
        if version is None:
            active = self._store.active_detectors(org_id, [subject_id])[subject_id]
            found = (active.version, active.digest)
        elif version == 0:
            self._store.active_version(org_id, subject_id)  # the patient has to be there
            found = (0, "")
        else:
            found = (version, self._store.get_detector(org_id, subject_id, version).digest)
        with self._lock:
            if n_forgotten == self._n_forgotten:
                self._versions[key] = found
        return found
