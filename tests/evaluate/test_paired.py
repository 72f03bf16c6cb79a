"""Paired comparisons, against resamples and corrections that are done by hand here."""

import numpy as np
import pytest

from metaecg.evaluate.paired import MIN_SUBJECTS, holm, judge, paired_difference


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def by_subject(values) -> dict[str, float]:
    return {f"s{index:02d}": float(value) for index, value in enumerate(values)}


def found(mean: float, low: float, high: float, *, n: int = 25) -> dict:
    return {"mean": mean, "ci95": [low, high], "n": n}


def test_the_paired_difference_uses_shared_subjects_and_their_pairs():
    a = {"x": 0.9, "y": 0.6, "z": 0.3, "only-a": 1.0, "undefined": None}
    b = {"x": 0.8, "y": 0.5, "z": 0.2, "only-b": 0.0, "undefined": 0.5}
    found = paired_difference(a, b, rng=rng())
    assert (found["n"], found["mean"]) == (3, pytest.approx(0.1))
    assert found["ci95"] == pytest.approx([0.1, 0.1])  # far narrower than the spread of subjects


def test_the_interval_and_p_value_are_those_of_resamples_drawn_by_hand():
    """Other resamples of the same data: equal up to the noise of 20000 of them."""
    gains = rng(1).normal(0.02, 0.05, size=25)
    a, b = by_subject(0.9 + gains), by_subject(np.full(25, 0.9))
    found = paired_difference(a, b, rng=rng(2), n_resamples=20_000)
    means = gains[rng(3).integers(25, size=(20_000, 25))].mean(axis=1)
    assert found["ci95"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-3)
    expected = 2 * min((means <= 0).mean(), (means >= 0).mean())
    assert found["p_value"] == pytest.approx(expected, abs=0.01)
    assert 0.01 < found["p_value"] < 0.2


def test_turning_the_comparison_round_turns_the_sign_and_keeps_the_p_value():
    a, b = by_subject(rng(1).random(12)), by_subject(rng(2).random(12))
    forwards = paired_difference(a, b, rng=rng())
    backwards = paired_difference(b, a, rng=rng())
    assert backwards["mean"] == pytest.approx(-forwards["mean"])
    assert backwards["p_value"] == forwards["p_value"]


def test_a_p_value_is_never_zero_and_never_above_one():
    same = by_subject(np.full(8, 0.5))
    better = by_subject(np.full(8, 0.75))
    assert paired_difference(same, same, rng=rng(), n_resamples=99)["p_value"] == 1.0
    assert paired_difference(better, same, rng=rng(), n_resamples=99)["p_value"] == 2 / 100


def test_one_shared_subject_gives_a_mean_alone_and_none_gives_nothing():
    one = paired_difference({"x": 0.5, "y": None}, {"x": 0.25, "y": 1.0}, rng=rng())
    assert one == {"mean": 0.25, "ci95": None, "n": 1, "p_value": None}
    none = paired_difference({"x": 0.5}, {"y": 0.5}, rng=rng())
    assert none == {"mean": None, "ci95": None, "n": 0, "p_value": None}


def test_no_difference_is_found_where_there_is_none_in_about_nineteen_of_twenty_comparisons():
    """With 25 subjects the percentile interval is a little too narrow: 90 to 97 % are right."""
    gains = rng(5).normal(0, 0.05, size=(400, 25))
    zero = by_subject(np.zeros(25))
    found = [
        paired_difference(by_subject(each), zero, rng=rng(6), n_resamples=500) for each in gains
    ]
    right = np.mean([each["ci95"][0] <= 0 <= each["ci95"][1] for each in found])
    assert 0.90 <= right <= 0.97


def test_holms_correction_is_the_one_of_the_book():
    """Four tests: 4 * 0.01, 3 * 0.02, 2 * 0.03 and 0.04, each at least the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_a_single_test_needs_no_correction_and_one_that_was_impossible_is_not_counted():
    assert holm([0.03]) == [0.03]
    assert holm([None, 0.03, None]) == [None, 0.03, None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (found(0.02, 0.01, 0.03), "better"),
        (found(-0.02, -0.03, -0.01), "worse"),
        (found(0.02, -0.01, 0.03), "no difference"),
        (found(0.0, 0.0, 0.0), "no difference"),
        (found(0.02, 0.01, 0.03, n=MIN_SUBJECTS - 1), "too few subjects"),
        ({"mean": None, "ci95": None, "n": 0}, "too few subjects"),
    ],
)
def test_the_verdict_is_read_from_the_interval(difference, verdict):
    assert judge(difference, p_corrected=0.01, n_compared=1) == verdict


def test_fewer_false_alarms_are_better():
    fewer = found(-2.0, -3.0, -1.0)
    assert judge(fewer, p_corrected=0.01, n_compared=1, higher_is_better=False) == "better"


def test_a_difference_that_does_not_survive_the_correction_is_none():
    difference = found(0.02, 0.01, 0.03)
    assert judge(difference, p_corrected=0.06, n_compared=3) == "no difference"
    assert judge(difference, p_corrected=0.04, n_compared=3) == "better"
