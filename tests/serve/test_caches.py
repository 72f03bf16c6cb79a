"""What is remembered stays within its bound, and is made once however many ask for it at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from metaecg.serve.caches import ENTRY_BYTES, BoundedCache, SingleFlight

N = 4


class Work:
    """Counts how often it is done, and stays at work until `N` do it at a time or a while has gone."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.n_done = error, 0
        self._together = threading.Barrier(N)

    def __call__(self) -> np.ndarray:
        self.n_done += 1
        try:
            self._together.wait(timeout=0.5)
        except threading.BrokenBarrierError:
            pass
        if self.error is not None:
            raise self.error
        return np.zeros(10)


def at_once(call) -> list:
    """Return what `N` threads get that call at a time: results or errors."""
    begin = threading.Barrier(N)

    def one():
        begin.wait(timeout=30)
        try:
            return call()
        except KeyError as error:
            return error

    with ThreadPoolExecutor(N) as threads:
        return [future.result(30) for future in [threads.submit(one) for _ in range(N)]]


def cache_of(max_bytes: int) -> BoundedCache:
    return BoundedCache(max_bytes, size_of=lambda array: array.nbytes)


@pytest.mark.parametrize("max_bytes", [0, 10_000])
def test_a_result_is_made_once_for_all_who_ask_even_if_it_is_too_large_to_keep(max_bytes):
    cache, work = cache_of(max_bytes), Work()
    found = at_once(lambda: cache.get_or_make("key", work))
    assert work.n_done == 1
    assert all(other is found[0] for other in found)


def test_an_error_reaches_all_who_wait_and_the_next_one_tries_again():
    flight, work = SingleFlight(), Work(KeyError("gone"))
    assert at_once(lambda: flight.do("key", work)) == [work.error] * N
    assert work.n_done == 1
    assert flight.do("key", lambda: "new") == "new"


def test_different_keys_do_not_wait_for_each_other():
    flight, work, number = SingleFlight(), Work(), iter(range(N))
    at_once(lambda: flight.do(next(number), work))
    assert work.n_done == N


def test_the_last_used_results_are_kept_within_the_bound():
    cache = cache_of(3 * (80 + ENTRY_BYTES))
    for key in "abc":
        cache.get_or_make(key, lambda: np.zeros(10))
    cache.get("a")
    cache.get_or_make("d", lambda: np.zeros(10))
    cache.get_or_make("large", lambda: np.zeros(1000))
    assert [key for key in ("a", "b", "c", "d", "large") if cache.get(key) is not None] == [
        "a",
        "c",
        "d",
    ]
    assert cache.n_bytes == 3 * (80 + ENTRY_BYTES)


def test_a_result_that_is_known_is_not_made_again():
    cache = cache_of(10_000)
    first = cache.get_or_make("key", lambda: np.zeros(3))
    assert cache.get_or_make("key", lambda: pytest.fail("made again")) is first
