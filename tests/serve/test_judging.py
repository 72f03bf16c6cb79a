"""A recording goes through the network once, however often and by how many it is asked for."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from inside_cases import app_in_process

from metaecg.data.demo_patients import generate_patient
from metaecg.models.checkpoints import load_base
from metaecg.serve import predicting
from metaecg.serve.predicting import predictions_for
from metaecg.serve.recordings import open_recording
from metaecg.serve.segment_probabilities import probabilities

N = 4


def stored(services, signal_mv: np.ndarray, fs_hz: float) -> tuple[int, str, str]:
    """Return where a new recording of a new patient is."""
    store = services.store
    org_id = next(org.org_id for org in store.list_orgs() if org.name == "clinic")
    store.create_patient(org_id, "s-1")
    info = store.add_recording(
        org_id,
        "s-1",
        signal_mv=signal_mv[None].astype(np.float32),
        fs_hz=fs_hz,
        lead_names=["II"],
        lead=0,
        name="",
        source_format="json",
        digest="",
    )
    return org_id, "s-1", info.recording_id


def predictions(services, where, rhythm=None) -> dict:
    return predictions_for(services, *where, None, rhythm, (None, None))


def test_equal_requests_at_once_let_the_network_see_a_recording_once(tmp_path, monkeypatch):
    """Also without room to remember it: then the others still wait for the first one's result."""
    together, n_seen, see = threading.Barrier(N), [], predicting.see

    def slow(*arguments):
        n_seen.append(1)
        try:
            together.wait(timeout=0.5)
        except threading.BrokenBarrierError:
            pass
        return see(*arguments)

    with app_in_process(tmp_path, prediction_cache_mb=0) as app, ThreadPoolExecutor(N) as threads:
        where = stored(app.services, np.random.default_rng(0).normal(size=6000), 100.0)
        begin = threading.Barrier(N)
        monkeypatch.setattr(predicting, "see", slow)

        def ask():
            begin.wait(timeout=30)
            return predictions(app.services, where, "causal")

        found = [f.result(60) for f in [threads.submit(ask) for _ in range(N)]]
    assert sum(n_seen) == 1
    assert all(other == found[0] for other in found)
    assert len(found[0]["index"]) == 60


@pytest.fixture(scope="module")
def beats(tmp_path_factory):
    """An application that judges beats, and a recording of a generated patient."""
    with app_in_process(tmp_path_factory.mktemp("beats"), load_base("veb-base")) as app:
        signal = generate_patient(0, duration_s=120.0, seed=1).signal_mv
        yield app.services, stored(app.services, signal, 250.0)


def test_a_new_label_does_not_send_the_beats_through_the_network_again(beats, monkeypatch):
    services, where = beats
    before, n_seen, n_cut = predictions(services, where), [], []
    logits, inputs = services.detectors.mixed.logits, services.segmentation.inputs
    monkeypatch.setattr(
        services.detectors.mixed, "logits", lambda *a: n_seen.append(1) or logits(*a)
    )
    monkeypatch.setattr(
        services.segmentation, "inputs", lambda *a, **k: n_cut.append(1) or inputs(*a, **k)
    )
    label(services, where, {10: "V", 11: "other"})
    after = predictions(services, where)
    assert (len(n_seen), len(n_cut)) == (0, 0)
    assert before["index"] == after["index"] and before["probability"] != after["probability"]
    label(services, where, {10: None, 11: None})
    assert predictions(services, where) == before


@pytest.mark.parametrize("rhythm", ["none", "causal", "offline"])
@pytest.mark.parametrize("labels", [{}, {5: "V", 6: "other", 40: "V"}])
def test_remembered_beats_are_judged_as_those_that_are_cut_anew(beats, rhythm, labels):
    services, where = beats
    label(services, where, {index: labels.get(index) for index in (5, 6, 10, 11, 40)})
    found = predictions(services, where, rhythm)
    opened = open_recording(services.store, services.segmentation, *where)
    signal = opened.read(0, opened.info.n_samples)
    segments, inputs = services.segmentation.inputs(signal, 250.0, opened.peaks)
    expected = probabilities(services.base, None, segments, inputs, rhythm, labels=labels)
    assert found["index"] == segments.index.tolist()
    column = services.base.classes.index("V")
    np.testing.assert_allclose(found["probability"], expected[:, column], rtol=1e-6, atol=1e-9)


def label(services, where, labels: dict[int, str | None]) -> None:
    services.store.put_labels(*where, labels, segmentation=services.segmentation.name)
