"""Every figure against scikit-learn or an answer worked out by hand, undefined cases included."""

import numpy as np
import pytest
from sklearn import metrics as sk

from metaecg.errors import DataError
from metaecg.evaluate.metrics import (
    aami_counts,
    episode_metrics,
    f1,
    false_alarm_episodes,
    ppv,
    roc_auc,
    sensitivity,
    subject_metrics,
    summary,
)


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_windows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with many ties (one decimal)."""
    draw = rng(seed)
    labels = draw.integers(0, 2, size=200)
    return labels, np.round(np.clip(draw.normal(0.4 + 0.2 * labels, 0.3), 0, 1), 1)


@pytest.mark.parametrize("seed", range(5))
def test_window_figures_equal_scikit_learn_with_ties(seed):
    labels, probabilities = random_windows(seed)
    flagged = probabilities >= 0.5
    assert roc_auc(labels, probabilities) == pytest.approx(sk.roc_auc_score(labels, probabilities))
    for ours, theirs in ((f1, sk.f1_score), (sensitivity, sk.recall_score)):
        assert ours(labels, probabilities, threshold=0.5) == pytest.approx(theirs(labels, flagged))
    assert ppv(labels, probabilities, threshold=0.5) == pytest.approx(
        sk.precision_score(labels, flagged)
    )


def test_a_window_at_the_threshold_is_flagged():
    assert sensitivity([1, 1], [0.7, 0.6999], threshold=0.7) == 0.5


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_the_auc_of_one_class_is_undefined(labels):
    assert roc_auc(labels, [0.1, 0.9][: len(labels)]) is None


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([0, 0], [0.1, 0.2], {"f1": None, "sensitivity": None, "ppv": None}),
        ([0, 0], [0.9, 0.2], {"f1": 0.0, "sensitivity": None, "ppv": 0.0}),
        ([1, 0], [0.1, 0.2], {"f1": 0.0, "sensitivity": 0.0, "ppv": None}),
        ([1, 0], [0.1, 0.9], {"f1": 0.0, "sensitivity": 0.0, "ppv": 0.0}),
    ],
)
def test_undefined_figures_are_none_and_bad_ones_zero(labels, probabilities, expected):
    figures = subject_metrics(labels, probabilities, threshold=0.5, window_s=2.0)
    assert {name: figures[name] for name in expected} == expected


def test_subject_metrics_of_six_windows_worked_out_by_hand():
    figures = subject_metrics(
        [1, 1, 0, 0, 0, 0], [0.9, 0.2, 0.8, 0.1, 0.1, 0.3], threshold=0.5, window_s=2.0
    )
    assert figures == pytest.approx(
        {
            "auc": (4 + 2) / 8,  # 0.9 beats all four negatives, 0.2 beats two
            "f1": 0.5,
            "sensitivity": 0.5,
            "ppv": 0.5,
            "specificity": 0.75,
            "false_alarms_per_hour": 1 / (8 / 3600),  # one in 8 s labelled other
            "n_va": 2,
            "n_other": 4,
        }
    )


def test_false_alarms_per_hour_are_undefined_without_rhythm_labelled_other():
    figures = subject_metrics([1, 1], [0.9, 0.2], threshold=0.5, window_s=2.0)
    assert figures["false_alarms_per_hour"] is None
    assert figures["specificity"] is None


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.1, 0.9], [0.2, 0.8]], r"\(2, 2\).*probability of 'va' alone"),
        ([0, 1], [0.1, np.nan], r"probabilities\[1\] is nan"),
        ([0, 2], [0.1, 0.2], "labels holds .*2.*expected 0"),
    ],
)
def test_windows_that_cannot_be_counted_are_refused(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        roc_auc(labels, probabilities)


def test_a_zero_window_length_is_refused():
    with pytest.raises(ValueError, match="window_s is 0"):
        subject_metrics([0, 1], [0.1, 0.9], threshold=0.5, window_s=0)


def alarms(start_s, flagged, *, labels=None, records=None, window_s=2.0):
    labels = [0] * len(start_s) if labels is None else labels
    records = ["a"] * len(start_s) if records is None else records
    return false_alarm_episodes(start_s, records, labels, flagged, window_s)


def test_touching_flagged_windows_are_one_false_alarm():
    assert alarms([0, 2, 4, 6], [1, 1, 0, 1]) == [("a", 0.0, 4.0), ("a", 6.0, 8.0)]


def test_a_gap_between_windows_ends_a_false_alarm():
    assert alarms([0, 2.5], [1, 1]) == [("a", 0.0, 2.0), ("a", 2.5, 4.5)]


def test_rounding_of_the_start_times_ends_no_false_alarm():
    assert len(alarms(np.arange(300) * 0.1, [1] * 300, window_s=0.1)) == 1


def test_an_unflagged_window_ends_a_false_alarm_even_where_windows_overlap():
    assert len(alarms([0, 0.5, 1.0], [1, 0, 1])) == 2


def test_another_recording_ends_a_false_alarm():
    found = alarms([0, 2], [1, 1], records=["a", "b"])
    assert found == [("a", 0.0, 2.0), ("b", 2.0, 4.0)]


def test_a_run_that_touches_true_va_is_no_false_alarm():
    assert alarms([0, 2, 4, 8], [1, 1, 1, 1], labels=[0, 1, 0, 0]) == [("a", 8.0, 10.0)]


def test_the_order_of_the_windows_does_not_change_the_false_alarms():
    assert alarms([4, 0, 2], [1, 1, 1]) == [("a", 0.0, 6.0)]


def test_columns_of_different_length_are_refused_by_name():
    with pytest.raises(DataError, match=r"labels \(1,\)"):
        alarms([0, 2], [1, 1], labels=[0])


def watched(episodes, flagged, *, labels=(0, 1, 1, 0, 1), lookahead_s=0.5):
    return episode_metrics(
        episodes,
        [10, 12, 14, 16, 18],
        ["a"] * 5,
        list(labels),
        flagged,
        window_s=2.0,
        lookahead_s=lookahead_s,
    )


def test_the_delay_runs_from_onset_to_the_end_of_the_first_flagged_window_and_its_lookahead():
    found = watched([("a", 11.5, 15.5)], [0, 0, 1, 0, 0])
    assert found == {"n_episodes": 1, "n_found": 1, "delays_s": [16 + 0.5 - 11.5]}


def test_a_missed_episode_counts_and_has_no_delay():
    found = watched([("a", 11.5, 15.5), ("a", 18.0, 20.0)], [0, 0, 0, 0, 1])
    assert found == {"n_episodes": 2, "n_found": 1, "delays_s": [2.5]}


def test_a_flagged_window_labelled_other_finds_nothing():
    found = watched([("a", 11.5, 15.5)], [1, 0, 0, 1, 0])
    assert found["n_found"] == 0


@pytest.mark.parametrize(
    "episode",
    [("a", 16.5, 17.0), ("b", 12.0, 16.0), ("a", 20.0, 22.0), ("a", 11.0, 12.0)],
    ids=["labelled other", "another recording", "starts as a window stops", "stops as one starts"],
)
def test_an_episode_without_an_overlapping_va_window_does_not_count(episode):
    found = watched([episode], [1, 1, 1, 1, 1])
    assert found == {"n_episodes": 0, "n_found": 0, "delays_s": []}


def test_an_episode_that_began_before_the_test_part_has_no_delay():
    found = watched([("a", 9.0, 15.0)], [0, 1, 0, 0, 0])
    assert found == {"n_episodes": 1, "n_found": 1, "delays_s": []}


def test_the_summary_of_three_subjects_worked_out_by_hand():
    figures = summary({"a": 0.5, "b": 0.7, "c": 0.9, "d": None}, rng=rng())
    assert figures["mean"] == pytest.approx(0.7)
    assert figures["std"] == pytest.approx(0.2)
    assert (figures["worst"], figures["n"]) == (0.5, 3)
    low, high = figures["ci95"]
    assert 0.5 <= low < 0.7 < high <= 0.9


def test_the_interval_is_near_the_normal_one_for_many_subjects():
    values = dict(enumerate(rng().normal(0.8, 0.1, size=400)))
    figures = summary({str(key): value for key, value in values.items()}, rng=rng())
    half = 1.96 * figures["std"] / 20
    expected = [figures["mean"] - half, figures["mean"] + half]
    assert figures["ci95"] == pytest.approx(expected, abs=0.15 * half)


def test_the_summary_of_nobody_is_undefined_and_of_one_has_no_spread():
    assert summary({"a": None}, rng=rng()) == {
        "mean": None, "std": None, "worst": None, "ci95": None, "n": 0
    }  # fmt: skip
    assert summary({"a": 0.5}, rng=rng()) == {
        "mean": 0.5, "std": None, "worst": 0.5, "ci95": None, "n": 1
    }  # fmt: skip


def test_equal_values_give_an_interval_of_no_width():
    assert summary({"a": 0.5, "b": 0.5}, rng=rng())["ci95"] == [0.5, 0.5]


def test_the_same_generator_gives_the_same_interval_in_any_order_of_subjects():
    values = dict(zip("abcdefg", rng().random(7).tolist(), strict=True))
    backwards = dict(reversed(values.items()))
    assert summary(values, rng=rng(3)) == summary(backwards, rng=rng(3))
    assert summary(values, rng=rng(3))["ci95"] != summary({**values, "c": 0.9}, rng=rng(3))["ci95"]


def test_aami_counting_leaves_fusion_and_unknown_beats_out_of_ventricular_false_positives():
    counts = aami_counts(list("VVVNSFQ"), list("VNFVVVV"))["V"]
    assert (counts["tp"], counts["fn"], counts["fp"]) == (1, 2, 2)
    assert counts["sensitivity"] == pytest.approx(1 / 3)
    assert counts["ppv"] == pytest.approx(1 / 3)
    assert counts["f1"] == pytest.approx(2 / 6)


def test_aami_counting_leaves_only_unknown_beats_out_of_supraventricular_false_positives():
    counts = aami_counts(list("SSNVFQ"), list("SNSSSS"))["S"]
    assert (counts["tp"], counts["fn"], counts["fp"]) == (1, 1, 3)


def test_aami_counting_of_the_other_classes_equals_scikit_learn():
    true, predicted = rng().choice(list("NSVFQ"), size=(2, 300))
    counts = aami_counts(true, predicted)
    for name in "NFQ":
        assert counts[name]["f1"] == pytest.approx(
            sk.f1_score(true, predicted, labels=[name], average=None)[0]
        )


def test_a_false_detection_is_a_false_positive_of_whatever_it_is_called():
    """EC57: Ov and Os count; nothing that was annotated is missed by it."""
    counts = aami_counts(list("NVOOOO"), list("NVNSVF"))
    assert {name: counts[name]["fp"] for name in "NSVFQ"} == dict.fromkeys("NSVF", 1) | {"Q": 0}
    assert {name: counts[name]["fn"] for name in "NSVFQ"} == dict.fromkeys("NSVFQ", 0)
    with pytest.raises(DataError, match=r"predicted\[0\] is 'O'"):
        aami_counts(["N"], ["O"])


def test_a_class_without_beats_is_undefined():
    assert aami_counts(["N"], ["N"])["V"] == {
        "tp": 0, "fn": 0, "fp": 0, "sensitivity": None, "ppv": None, "f1": None
    }  # fmt: skip


def test_beats_that_cannot_be_counted_are_refused():
    with pytest.raises(DataError, match=r"predicted\[1\] is 'L'"):
        aami_counts(["N", "N"], ["N", "L"])
    with pytest.raises(DataError, match="true has 2 beats and predicted has 1"):
        aami_counts(["N", "N"], ["N"])
