"""Judging windows at hand: never behind long computations, never on the event loop, filtered together."""

import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import numpy as np
import pytest
from inside_cases import app_in_process

from metaecg.serve import routes_predictions, segments
from metaecg.serve.predicting import single_windows

FACTS = {"fs_hz": 100.0, "unit": "mV"}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with app_in_process(tmp_path_factory.mktemp("short")) as found:
        found.client.post("/v1/patients", json={"subject_id": "s-1"})
        yield found


@pytest.fixture
def all_busy(app):
    """Long computations take every place that there is for them; gives what lets them go."""
    services, holder = app.services, object()
    limiter = services.heavy = anyio.CapacityLimiter(1)
    app.client.portal.call(limiter.acquire_on_behalf_of, holder)

    async def let_go():
        limiter.release_on_behalf_of(holder)

    yield lambda: app.client.portal.call(let_go)
    services.heavy = None


def noise(n: int, *, seed: int = 0, gap: slice | None = None) -> np.ndarray:
    signal = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    if gap is not None:
        signal[gap] = np.nan
    return signal


@pytest.mark.parametrize("n_windows", [1, 500])
def test_windows_at_hand_do_not_wait_for_long_computations(app, all_busy, n_windows):
    signal = noise(100 * n_windows).tolist()
    items = [{"subject_id": "s-1", "signal": signal[:100]}] * n_windows
    with ThreadPoolExecutor(2) as threads:
        answers = [
            threads.submit(app.client.post, "/v1/predict", json={**FACTS, "items": items}),
            threads.submit(
                app.client.post,
                "/v1/patients/s-1/predict",
                json={**FACTS, "lead_names": ["II"], "signal": signal},
            ),
        ]
        try:
            for answer in answers:
                assert len(answer.result(20).json()["windows"]) == n_windows
        finally:  # else a request that waits would be waited for
            all_busy()


@pytest.mark.parametrize(("n_windows", "is_aside"), [(1, False), (1000, True)])
def test_a_long_stretch_is_filtered_beside_the_event_loop(app, monkeypatch, n_windows, is_aside):
    """A thread for a single window would take longer than its filter."""
    at_work, windows_of = [], routes_predictions.windows_of

    def noted(*arguments, **options):
        at_work.append(threading.get_ident())
        return windows_of(*arguments, **options)

    monkeypatch.setattr(routes_predictions, "windows_of", noted)
    body = {**FACTS, "lead_names": ["II"], "signal": noise(100 * n_windows).tolist()}
    answer = app.client.post("/v1/patients/s-1/predict", json=body)
    assert len(answer.json()["windows"]) == n_windows
    loop = app.client.portal.call(threading.get_ident)
    assert [place != loop for place in at_work] == [is_aside]


@pytest.mark.parametrize("fs_hz", [100.0, 250.0, 360.0])
def test_windows_of_many_patients_are_those_that_are_cut_one_by_one(app, fs_hz):
    n = round(fs_hz)
    lengths = [n, n, n + 3, n, n + 3, n + 20, n, n]
    signals = [noise(length, seed=seed) for seed, length in enumerate(lengths)]
    # Gaps behind the window, which are of one length with others.
    signals[4][-1], signals[5][-9:-4] = np.nan, np.nan
    found = single_windows(app.services, signals, fs_hz=fs_hz, unit="mV")
    for place, signal in enumerate(signals):
        _, alone = app.services.segmentation.inputs(signal[None], fs_hz)
        assert alone.shape == (1, 1, 100)
        np.testing.assert_allclose(found[place], alone[0], atol=1e-5)


def test_windows_of_one_length_are_filtered_once(app, monkeypatch):
    n_cut, cut_at = [], segments.cut_at
    monkeypatch.setattr(segments, "cut_at", lambda *a: n_cut.append(1) or cut_at(*a))
    signals = [noise(100, seed=seed) for seed in range(200)]
    assert single_windows(app.services, signals, fs_hz=100.0, unit="mV").shape == (200, 1, 100)
    assert sum(n_cut) == 1


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (noise(99), r"items\[2\] holds 0 windows; exactly one"),
        (noise(250), r"items\[2\] holds 2 windows; exactly one"),
        (noise(100, gap=slice(50, 51)), r"items\[2\] holds 0 windows; exactly one"),
        (np.full(100, 2e4, np.float32), r"items\[2\]: the signal goes beyond"),
    ],
)
def test_an_item_that_is_not_one_window_is_named(app, signal, words):
    items = [noise(100), noise(100, seed=1), signal, noise(100, seed=2)]
    with pytest.raises(ValueError, match=words):  # DataError is one
        single_windows(app.services, items, **FACTS)
