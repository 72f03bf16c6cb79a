"""What the server says of a recording is what the library says of it offline."""

import numpy as np
import pytest

from metaecg import Personalizer, load_base
from metaecg.data.beats import cut_beats
from metaecg.data.demo_patients import FS_HZ, generate_patient
from metaecg.data.records import Record
from metaecg.errors import DataError
from metaecg.models.beat_detector import BeatDetector
from metaecg.serve.segment_probabilities import (
    default_rhythm_of,
    positive_class,
    probabilities,
    rhythms_of,
    threshold_of,
)
from metaecg.serve.segments import segmentation_of


@pytest.fixture(scope="module")
def record():
    patient = generate_patient(0, duration_s=180.0, seed=0)
    signal_mv = patient.signal_mv[None].astype(np.float32)
    signal_mv[:, 5000:5400] = np.nan
    return Record(
        record_id="own/r", subject_id="own/s", signal_mv=signal_mv, fs_hz=FS_HZ, lead_names=("II",)
    )


@pytest.fixture(scope="module")
def va():
    return load_base("va-base")


@pytest.fixture(scope="module")
def veb():
    return load_base("veb-base")


@pytest.fixture(scope="module")
def windows(va, record):
    return segmentation_of(va).inputs(record.signal_mv, record.fs_hz)


@pytest.fixture(scope="module")
def beats(veb, record):
    found = segmentation_of(veb)
    return found.inputs(record.signal_mv, record.fs_hz, found.peaks(record.signal_mv, record.fs_hz))


def fitted(base, inputs, start_s, rhythm):
    labels = [base.classes[i % 2] for i in range(20)]
    personal = Personalizer(base, method="head", n_steps=2, rhythm=rhythm)
    return personal.fit(inputs[:20], labels, time_s=start_s[:20])


@pytest.mark.parametrize("rhythm", ["none", "causal", "offline"])
def test_windows_are_judged_as_by_the_personalizer(va, windows, rhythm):
    segments, inputs = windows
    personal = fitted(va, inputs, segments.start_s, rhythm)
    expected = personal.predict_proba(inputs, time_s=segments.start_s)
    given = probabilities(va, personal, segments, inputs, rhythm)
    assert np.array_equal(given, expected)
    assert threshold_of(va, rhythm, personal) == personal.threshold


def test_the_base_judges_windows_by_its_own_rhythm(va, windows):
    segments, inputs = windows
    plain = probabilities(va, None, segments, inputs)
    assert np.array_equal(plain, va.predict_proba(inputs))
    logits = va.logits(inputs)
    log_odds = va.rhythm.posterior(logits[:, 1] - logits[:, 0], segments.start_s, mode="causal")
    given = probabilities(va, None, segments, inputs, "causal", logits=logits)
    np.testing.assert_allclose(given[:, 1], 1 / (1 + np.exp(-log_odds)), rtol=1e-12)


def test_a_detector_without_a_rhythm_is_followed_by_the_chain_of_the_base(va, windows):
    segments, inputs = windows
    personal = fitted(va, inputs, segments.start_s, "none")
    logits = personal.logits(inputs)
    log_odds = va.rhythm.posterior(logits[:, 1] - logits[:, 0], segments.start_s, mode="offline")
    given = probabilities(va, personal, segments, inputs, "offline")
    np.testing.assert_allclose(given[:, 1], 1 / (1 + np.exp(-log_odds)), rtol=1e-12)
    assert threshold_of(va, "offline", personal) == va.rhythm.threshold
    assert threshold_of(va, "none", personal) == 0.5


@pytest.mark.parametrize("rhythm", ["causal", "offline"])
@pytest.mark.parametrize("is_personal", [False, True])
def test_beats_are_judged_as_by_the_beat_detector(veb, record, beats, rhythm, is_personal):
    segments, inputs = beats
    personal = fitted(veb, inputs, segments.start_s, "none") if is_personal else None
    detector = BeatDetector(veb, personal)
    offline, _ = cut_beats(record, r_peaks="detected", **detector.cutting)
    expected = detector.predict_proba(offline, known={3: True, 9: False}, mode=rhythm)
    numbers = segments.index[[3, 9]].tolist()
    labels = {numbers[0]: "V", numbers[1]: "other", 10**6: "V"}
    given = probabilities(veb, personal, segments, inputs, rhythm, labels=labels)
    assert np.array_equal(given[:, veb.classes.index("V")], expected)
    np.testing.assert_allclose(given.sum(axis=1), 1.0)


def test_labels_of_beats_count_for_the_others(veb, beats):
    segments, inputs = beats
    every_second = {int(k): "V" for k in segments.index[::2]}
    told = probabilities(veb, None, segments, inputs, "causal", labels=every_second)
    plain = probabilities(veb, None, segments, inputs, "causal")
    assert told[1::2, 1].mean() > plain[1::2, 1].mean() + 0.1


def test_beats_by_themselves_are_judged_by_the_network_alone(veb, beats):
    segments, inputs = beats
    given = probabilities(veb, None, segments, inputs, "none")
    np.testing.assert_allclose(given, veb.predict_proba(inputs), atol=1e-12)


def test_a_rhythm_needs_the_whole_recording(va, windows):
    segments, inputs = windows
    some = segments.select(np.arange(5))
    with pytest.raises(DataError, match="rhythm is 'causal', which judges segments by their neigh"):
        probabilities(va, None, some, inputs[:5], "causal")
    assert len(probabilities(va, None, some, inputs[:5])) == 5


def test_what_a_base_is_made_for_is_said(va, veb):
    assert rhythms_of(va) == rhythms_of(veb) == ("none", "causal", "offline")
    assert (default_rhythm_of(va), default_rhythm_of(veb)) == ("none", "offline")
    assert (positive_class(va), positive_class(veb)) == ("va", "V")
    assert threshold_of(va, "causal") == va.rhythm.threshold
    assert threshold_of(veb, "causal") == threshold_of(va, "none") == 0.5
    with pytest.raises(ValueError, match="rhythm is 'caual'.*Did you mean 'causal'"):
        probabilities(va, None, None, None, "caual")


def test_a_recording_without_segments_has_no_probabilities(va, veb):
    for base in (va, veb):
        found = segmentation_of(base)
        silence = np.zeros((1, 300), dtype=np.float32)
        segments, inputs = found.inputs(silence, 250.0, found.peaks(silence, 250.0))
        for rhythm in rhythms_of(base):
            assert probabilities(base, None, segments, inputs, rhythm).shape == (0, 2)
