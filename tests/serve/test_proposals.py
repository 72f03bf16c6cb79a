"""What is proposed for labelling: three reasons, never labelled segments, spread in time."""

from collections import Counter

import numpy as np
import pytest

from metaecg import load_base
from metaecg.data.demo_patients import FS_HZ, generate_patient
from metaecg.errors import DataError
from metaecg.serve.proposals import N_SHOTS, OTHER_KIND, UNCERTAIN, propose, segment_features
from metaecg.serve.segment_probabilities import probabilities
from metaecg.serve.segments import Segments, segmentation_of

CLASSES = ("other", "va")


def made(n=120, *, step_s=2.0, seed=0):
    """Windows of three kinds: slow waves, fast waves, and from row 100 on something else."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(400) / 200.0
    hz = np.where(np.arange(n) % 10 == 3, 6.0, 1.5)
    hz[100:] = 20.0
    phase = rng.uniform(0, 2 * np.pi, (n, 1))
    windows = np.sin(2 * np.pi * hz[:, None] * time_s + phase) + 0.1 * rng.standard_normal((n, 400))
    va = np.where(hz == 6.0, 0.9, 0.02) + 0.001 * rng.random(n)
    va[[7, 51, 90]] = [0.51, 0.48, 0.55]
    index = np.arange(n)
    segments = Segments(index=index, start_s=index * step_s, stop_s=index * step_s + 2)
    return windows[:, None].astype(np.float32), segments, np.stack([1 - va, va], axis=1)


def proposed(labels=None, n=9, **options):
    inputs, segments, probability = made(**options)
    return propose(inputs, segments, labels or {}, probability, n, classes=CLASSES)


def test_the_reasons_take_turns_and_say_what_they_say():
    found = proposed()
    turns = ["probably va", UNCERTAIN, OTHER_KIND, "probably other"]
    assert [reason for _, reason in found] == [*turns, *turns[1:3], *turns[:3]]
    by_reason = {reason: [k for k, r in found if r == reason] for _, reason in found}
    assert all(k % 10 == 3 and k < 100 for k in by_reason["probably va"])
    assert set(by_reason[UNCERTAIN]) <= {7, 51, 90}
    assert any(k >= 100 for k in by_reason[OTHER_KIND])


def test_the_class_with_the_fewest_labels_is_looked_for():
    labels = {3: "va", 13: "va", 23: "va", 0: "other"}
    reasons = Counter(reason for _, reason in proposed(labels))
    assert reasons["probably other"] > 0
    assert reasons["probably va"] < reasons["probably other"] + 1


def test_classes_with_enough_labels_are_looked_for_no_more():
    labels = {k: "va" for k in range(3, 100, 10)} | {k: "other" for k in range(60, 72)}
    assert min(Counter(labels.values()).values()) >= N_SHOTS - 1
    assert "probably va" in {reason for _, reason in proposed(labels)}
    labels |= {99: "va"}
    assert {reason for _, reason in proposed(labels)} <= {UNCERTAIN, OTHER_KIND}


def test_what_has_a_label_is_never_proposed_and_nothing_twice():
    labels = {k: "other" for k in range(0, 120, 3)}
    found = [k for k, _ in proposed(labels, n=50)]
    assert len(found) == 50 == len(set(found))
    assert not set(found) & set(labels)


def test_all_that_is_left_is_proposed_when_more_is_asked_for():
    labels = {k: "other" for k in range(115)}
    assert sorted(k for k, _ in proposed(labels, n=10)) == [115, 116, 117, 118, 119]
    assert proposed({k: "other" for k in range(120)}) == []
    assert proposed(n=0) == []


def test_proposals_lie_apart_in_time():
    inputs, segments, probability = made()
    probability[:] = 0.5
    probability[40:46] = [0.02, 0.98]  # an episode: its windows are alike and side by side
    found = propose(inputs, segments, {}, probability, 6, classes=CLASSES)
    times_s = np.sort([segments.start_s[k] for k, reason in found if reason != OTHER_KIND])
    assert np.diff(times_s).min() >= 238 / (4 * 6)


def test_a_new_kind_of_segment_is_found_though_the_detector_is_sure_of_it():
    inputs, segments, probability = made()
    rows = np.arange(105)  # five of the new kind
    labels = {k: "other" for k in range(0, 100, 25)} | {3: "va", 43: "va"}
    some = (inputs[rows], segments.select(rows), labels, probability[rows], 6)
    found = propose(*some, classes=CLASSES)
    assert next(k for k, reason in found if reason == OTHER_KIND) >= 100


def test_the_same_labels_give_the_same_proposals():
    assert proposed({3: "va"}) == proposed({3: "va"})


def test_some_of_a_recording_are_enough_and_keep_their_numbers():
    inputs, segments, probability = made()
    rows = np.arange(30, 60)
    part = segments.select(rows)
    found = propose(inputs[rows], part, {31: "other", 2: "va"}, probability[rows], 5)
    assert all(30 <= k < 60 and k != 31 for k, _ in found)
    assert {r for _, r in found} <= {"probably 1", "probably 0", UNCERTAIN, OTHER_KIND}


@pytest.mark.parametrize("n_segments", [1, 2, 3])
def test_very_short_recordings_work(n_segments):
    inputs, segments, probability = made()
    rows = np.arange(n_segments)
    found = propose(inputs[rows], segments.select(rows), {}, probability[rows], 10)
    assert sorted(k for k, _ in found) == rows.tolist()


def test_equal_segments_work():
    inputs, segments, probability = made()
    inputs[:], probability[:] = inputs[0], 0.5
    assert len(propose(inputs, segments, {0: "va"}, probability, 10, classes=CLASSES)) == 10


def test_arrays_that_don_t_line_up_are_refused():
    inputs, segments, probability = made()
    with pytest.raises(DataError, match="there are 5 inputs, 120 segments"):
        propose(inputs[:5], segments, {}, probability, 3)
    probability[4] = np.nan
    with pytest.raises(DataError, match="a probability is not finite"):
        propose(inputs, segments, {}, probability, 3)


def test_the_start_of_a_window_within_a_beat_changes_its_features_little():
    t = np.arange(1000) / 200.0
    wave = np.sin(2 * np.pi * 1.5 * t) + 0.3 * np.sin(2 * np.pi * 12 * t)
    fast = np.sin(2 * np.pi * 5 * t)
    windows = np.stack([wave[:400], wave[37:437], wave[80:480], fast[:400], fast[20:420]])[:, None]
    features = segment_features(windows)
    within = np.linalg.norm(features[0] - features[2])
    assert within < 0.2 * np.linalg.norm(features[0] - features[3])


@pytest.mark.parametrize("name", ["va-base", "veb-base"])
def test_a_generated_patient_s_rare_class_is_found_sooner_than_in_time(name):
    base = load_base(name)
    segmentation = segmentation_of(base)
    patient = generate_patient(0, duration_s=400.0, seed=0)
    signal_mv = patient.signal_mv[None].astype(np.float32)
    peaks = segmentation.peaks(signal_mv, FS_HZ)
    segments, inputs = segmentation.inputs(signal_mv, FS_HZ, peaks)
    truth = np.zeros(len(segments), dtype=bool)
    for part in patient.segments:
        if part.rhythm == "VT":
            middle_s = (segments.start_s + segments.stop_s) / 2
            truth |= (middle_s > part.start_s) & (middle_s < part.stop_s)
    judged = probabilities(base, None, segments, inputs)
    labels: dict[int, str] = {}
    while sum(name != "other" for name in labels.values()) < 5:
        for k, _ in propose(inputs, segments, labels, judged, 10, classes=base.classes):
            row = int(segments.rows_of([k])[0])
            labels[k] = base.classes[1] if truth[row] else "other"
    assert len(labels) < np.flatnonzero(truth)[4] / 2
