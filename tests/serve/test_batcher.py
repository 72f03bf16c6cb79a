"""Requests that come together are judged together, and none pays for another's mistakes."""

import asyncio
import threading

import numpy as np
import pytest
from serve_cases import make_base, personal_of, windows_like

from metaecg.errors import DataError
from metaecg.serve.batcher import Batcher
from metaecg.serve.mixed import MixedBatch


@pytest.fixture(scope="module")
def base():
    return make_base(width=8)


class SlowMixed(MixedBatch):
    """Notes the size of each pass; a pass waits until it may go on."""

    def __init__(self, base):
        super().__init__(base)
        self.sizes, self.threads = [], set()
        self.may_run = threading.Event()
        self.may_run.set()
        self.fails_on = None

    def logits(self, windows, adapters):
        assert self.may_run.wait(30)
        self.sizes.append(len(windows))
        self.threads.add(threading.current_thread())
        if self.fails_on is not None and self.fails_on in adapters:
            raise MemoryError("no room for this one")
        return super().logits(windows, adapters)


@pytest.fixture
def mixed(base):
    return SlowMixed(base)


@pytest.fixture
def make_batcher(mixed):
    made = []

    def make(*arguments, **options):
        made.append(Batcher(mixed, *arguments, **options))
        return made[-1]

    yield make
    mixed.may_run.set()
    for batcher in made:
        batcher.close()


async def begun(batcher, mixed, windows, adapter=None):
    """Start a pass of one window that is held up; return its task."""
    mixed.may_run.clear()
    task = asyncio.create_task(batcher.logits(windows[0], adapter))
    while batcher.n_waiting or not batcher._task:
        await asyncio.sleep(0)
    return task


def test_each_request_gets_its_own_answer(base, mixed, make_batcher):
    windows = windows_like(base, 40)
    adapters = [mixed.reader.of(personal_of(base, seed=seed)) for seed in range(3)] + [None]
    adapters = [adapters[i % 4] for i in range(40)]
    expected = MixedBatch(base).logits(windows, adapters)

    async def ask():
        batcher = make_batcher(16)
        pairs = zip(windows, adapters, strict=True)
        return await asyncio.gather(*[batcher.logits(w, a) for w, a in pairs])

    np.testing.assert_allclose(asyncio.run(ask()), expected, atol=1e-6)
    assert max(mixed.sizes) > 1 and len(mixed.threads) == 1


def test_what_comes_while_the_network_is_busy_is_one_pass(base, mixed, make_batcher):
    windows = windows_like(base, 8)

    async def ask():
        batcher = make_batcher(64)
        first = await begun(batcher, mixed, windows)
        others = [asyncio.create_task(batcher.logits(w, None)) for w in windows[1:]]
        await asyncio.sleep(0.01)
        assert batcher.n_waiting == 7
        mixed.may_run.set()
        await asyncio.gather(first, *others)
        assert batcher.n_waiting == 0

    asyncio.run(ask())
    assert mixed.sizes == [1, 7]


def test_a_long_request_does_not_hold_up_a_short_one(base, mixed, make_batcher):
    windows, finished = windows_like(base, 100), []

    async def note(name, waiting):
        await waiting
        finished.append(name)

    async def ask():
        batcher = make_batcher(10)
        first = await begun(batcher, mixed, windows)
        many = note("many", batcher.logits_many(windows, [None] * 100))
        tasks = [asyncio.create_task(many)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(note("one", batcher.logits(w, None))) for w in windows[:3]]
        await asyncio.sleep(0.01)
        mixed.may_run.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(ask())
    assert finished == ["one"] * 3 + ["many"]
    assert mixed.sizes == [1] + [10] * 10 + [3]


def test_more_requests_than_a_batch_holds_take_turns(base, mixed, make_batcher):
    windows = windows_like(base, 30)

    async def ask():
        batcher = make_batcher(4)
        first = await begun(batcher, mixed, windows)
        parts = [windows[i : i + 5] for i in range(0, 30, 5)]
        tasks = [asyncio.create_task(batcher.logits_many(p, [None] * 5)) for p in parts]
        await asyncio.sleep(0.01)
        mixed.may_run.set()
        return await asyncio.gather(first, *tasks)

    found = asyncio.run(ask())
    np.testing.assert_allclose(np.concatenate(found[1:]), base.logits(windows), atol=1e-6)
    assert mixed.sizes == [1, 4, 4, 4, 4, 4, 4, 4, 2]


def test_an_error_reaches_its_own_request_alone(base, mixed, make_batcher):
    windows = windows_like(base, 5)
    bad = mixed.reader.of(personal_of(base))
    mixed.fails_on = bad

    async def ask():
        batcher = make_batcher(64)
        first = await begun(batcher, mixed, windows)
        tasks = [batcher.logits(w, bad if i == 2 else None) for i, w in enumerate(windows)]
        tasks = [asyncio.create_task(task) for task in tasks]
        await asyncio.sleep(0.01)
        mixed.may_run.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(ask())
    assert isinstance(found[2], MemoryError)
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose([found[i] for i in kept], base.logits(windows[kept]), atol=1e-6)


def test_who_has_gone_is_left_out(base, mixed, make_batcher):
    windows = windows_like(base, 5)

    async def ask():
        batcher = make_batcher(64)
        first = await begun(batcher, mixed, windows)
        tasks = [asyncio.create_task(batcher.logits(w, None)) for w in windows]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        tasks[3].cancel()
        await asyncio.sleep(0)
        mixed.may_run.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(ask())
    assert [isinstance(f, asyncio.CancelledError) for f in found] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert mixed.sizes == [1, 3]


def test_who_goes_during_the_pass_harms_nobody(base, mixed, make_batcher):
    windows = windows_like(base, 2)

    async def ask():
        batcher = make_batcher(64)
        first = await begun(batcher, mixed, windows)
        second = asyncio.create_task(batcher.logits(windows[1], None))
        await asyncio.sleep(0)
        first.cancel()
        mixed.may_run.set()
        return await second

    np.testing.assert_allclose(asyncio.run(ask()), base.logits(windows)[1], atol=1e-6)


@pytest.mark.parametrize(
    ("window", "message"),
    [(np.zeros((1, 99)), r"\(1, 1, 99\)"), (np.full((1, 100), np.nan), "NaN")],
)
def test_a_window_that_cannot_be_used_is_refused_before_it_waits(
    base, mixed, make_batcher, window, message
):
    with pytest.raises(DataError, match=message):
        asyncio.run(make_batcher().logits(window, None))
    assert mixed.sizes == []


def test_a_first_window_waits_for_others_if_it_is_asked_to(base, mixed, make_batcher):
    windows = windows_like(base, 4)

    async def ask():
        batcher = make_batcher(4, max_wait_ms=60_000)
        return await asyncio.gather(*[batcher.logits(w, None) for w in windows])

    asyncio.run(asyncio.wait_for(ask(), 30))  # a full batch goes at once
    assert mixed.sizes == [4]


def test_another_event_loop_can_go_on_with_it(base, make_batcher):
    batcher, windows = make_batcher(), windows_like(base, 1)
    for _ in range(2):
        found = asyncio.run(batcher.logits(windows[0], None))
        np.testing.assert_allclose(found, base.logits(windows)[0], atol=1e-6)


def test_no_window_at_all_has_no_logits(base, mixed, make_batcher):
    found = asyncio.run(make_batcher().logits_many(windows_like(base, 0), []))
    assert found.shape == (0, 2) and mixed.sizes == []
    with pytest.raises(ValueError, match="1 adapters for 2 windows"):
        asyncio.run(make_batcher().logits_many(windows_like(base, 2), [None]))
