"""Paired comparisons, against resamples and corrections that are done by hand here."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from metaecg.evaluate.paired import (
    LEVEL,
    N_FLIPS,
    holm,
    judge,
    min_subjects,
    paired_difference,
    paired_test,
)


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def by_subject(values) -> dict[str, float]:
    return {f"s{index:02d}": float(value) for index, value in enumerate(values)}


def against_zero(gains, **options) -> dict:
    """Return the test of differences to 0."""
    return paired_test(by_subject(gains), by_subject(np.zeros(len(gains))), rng=rng(6), **options)


def found(mean: float, low: float, high: float, *, n: int = 25) -> dict:
    return {"mean": mean, "ci95": [low, high], "n": n}


def test_the_paired_difference_uses_shared_subjects_and_their_pairs():
    a = {"x": 0.9, "y": 0.6, "z": 0.3, "only-a": 1.0, "undefined": None}
    b = {"x": 0.8, "y": 0.5, "z": 0.2, "only-b": 0.0, "undefined": 0.5}
    for found in (paired_difference(a, b, rng=rng()), paired_test(a, b, rng=rng())):
        assert (found["n"], found["mean"]) == (3, pytest.approx(0.1))
        assert found["ci95"] == pytest.approx(
            [0.1, 0.1]
        )  # far narrower than the spread of subjects


def test_the_plain_interval_is_that_of_resamples_drawn_by_hand():
    """Other resamples of the same data: equal up to the noise of 20000 of them."""
    gains = rng(1).normal(0.02, 0.05, size=25)
    a, b = by_subject(0.9 + gains), by_subject(np.full(25, 0.9))
    found = paired_difference(a, b, rng=rng(2), n_resamples=20_000)
    means = gains[rng(3).integers(25, size=(20_000, 25))].mean(axis=1)
    assert found["ci95"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-3)


@pytest.mark.parametrize(("n", "tail"), [(10, 0.0086), (25, 0.0176)])
def test_the_interval_goes_further_out_by_what_the_book_says_for_so_many_subjects(n, tail):
    """Hesterberg 2015: instead of 2.5 % at each end 0.86 % with 10 subjects, 1.76 % with 25."""
    gains = rng(1).normal(0.02, 0.05, size=n)
    found = against_zero(gains, n_resamples=20_000)
    means = gains[rng(3).integers(n, size=(20_000, n))].mean(axis=1)
    assert found["ci95"] == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=2.5e-3)
    plain = paired_difference(by_subject(gains), by_subject(np.zeros(n)), rng=rng(6))["ci95"]
    assert found["ci95"][0] < plain[0] < plain[1] < found["ci95"][1]


def test_the_p_value_counts_all_ways_to_flip_the_signs():
    gains = np.array([0.3, -0.1, 0.2, 0.05, 0.4, -0.15, 0.25, 0.1])
    sums = [np.dot(signs, gains) for signs in itertools.product((1, -1), repeat=8)]
    as_far = np.mean(np.abs(sums) >= abs(gains.sum()) - 1e-12)
    assert against_zero(gains)["p_value"] == pytest.approx(as_far)
    assert against_zero(gains, n_flips=256) == against_zero(
        gains, n_flips=5000
    )  # both count all 256


def test_the_p_value_of_many_subjects_is_near_that_of_the_t_test():
    """Where the differences are normal, both ask the same."""
    for seed in range(5):
        gains = rng(seed).normal(0.02, 0.05, size=25)
        assert against_zero(gains)["p_value"] == pytest.approx(
            ttest_1samp(gains, 0).pvalue, abs=0.02
        )


def test_turning_the_comparison_round_turns_the_sign_and_keeps_the_p_value():
    a, b = by_subject(rng(1).random(20)), by_subject(rng(2).random(20))
    forwards = paired_test(a, b, rng=rng())
    backwards = paired_test(b, a, rng=rng())
    assert backwards["mean"] == pytest.approx(-forwards["mean"])
    assert backwards["p_value"] == pytest.approx(forwards["p_value"])


def test_a_p_value_is_never_zero_and_never_above_one():
    assert against_zero(np.zeros(8))["p_value"] == 1.0
    assert against_zero(np.full(8, 0.25))["p_value"] == 2 / 2**8
    assert against_zero(np.full(25, 0.25))["p_value"] == pytest.approx(2 / (N_FLIPS + 1))


def test_one_shared_subject_gives_a_mean_alone_and_none_gives_nothing():
    arguments = {"x": 0.5, "y": None}, {"x": 0.25, "y": 1.0}
    one = {"mean": 0.25, "ci95": None, "n": 1}
    assert paired_difference(*arguments, rng=rng()) == one
    assert paired_test(*arguments, rng=rng()) == one | {"p_value": None}
    arguments = {"x": 0.5}, {"y": 0.5}
    none = {"mean": None, "ci95": None, "n": 0}
    assert paired_difference(*arguments, rng=rng()) == none
    assert paired_test(*arguments, rng=rng()) == none | {"p_value": None}


def at_most(share: float, n: int) -> float:
    """Return what a true `share` exceeds in `n` trials by chance once in a thousand times."""
    return binom.ppf(0.999, n, share) / n


@pytest.mark.parametrize("n", [6, 10, 25])
def test_where_nothing_differs_one_family_in_twenty_has_a_verdict_and_intervals_hold_the_truth(n):
    """1800 comparisons, by themselves and nine at once, of normal differences around 0.

    Such intervals miss 5 to 7 %; plain percentiles miss 13 % with 6 subjects and 10 % with 10.
    """
    gains = rng(n).normal(0, 0.05, size=(1800, n))
    every = [against_zero(each, n_flips=1023) for each in gains]
    missed = np.mean([not each["ci95"][0] <= 0 <= each["ci95"][1] for each in every])
    assert 0.03 <= missed <= at_most(0.07, 1800)
    for together in (1, 9):
        families = [every[start : start + together] for start in range(0, 1800, together)]
        wrong = np.mean([any(verdicts(family)) for family in families])
        assert wrong <= at_most(LEVEL, len(families))


def verdicts(family: list[dict]) -> list[bool]:
    """Return which comparisons of a family are called real."""
    corrected = holm([each["p_value"] for each in family])
    return [
        judge(each, p_corrected=p, n_compared=len(family)) in ("better", "worse")
        for each, p in zip(family, corrected, strict=True)
    ]


def test_a_difference_that_is_there_is_found():
    """25 subjects, a mean of 0.8 of the spread: the t-test would find 97 %."""
    gains = rng(1).normal(0.04, 0.05, size=(100, 25))
    every = [against_zero(each, n_resamples=400, n_flips=1023) for each in gains]
    assert np.mean([verdicts([each]) for each in every]) > 0.9


def test_holms_correction_is_the_one_of_the_book():
    """Four tests: 4 * 0.01, 3 * 0.02, 2 * 0.03 and 0.04, each at least the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_a_single_test_needs_no_correction_and_one_that_was_impossible_is_not_counted():
    assert holm([0.03]) == [0.03]
    assert holm([None, 0.03, None]) == [None, 0.03, None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("n_compared", "n"), [(0, 6), (1, 6), (2, 7), (9, 9), (13, 10)])
def test_fewer_subjects_than_asked_for_could_show_nothing_and_so_many_can(n_compared, n):
    assert min_subjects(n_compared) == n
    for subjects, can in ((n - 1, False), (n, True)):
        family = [against_zero(np.full(subjects, 0.1))] * max(n_compared, 1)
        assert any(verdicts(family)) is can


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (found(0.02, 0.01, 0.03), "better"),
        (found(-0.02, -0.03, -0.01), "worse"),
        (found(0.02, -0.01, 0.03), "no difference"),
        (found(0.0, 0.0, 0.0), "no difference"),
    ],
)
def test_the_verdict_is_read_from_the_interval_where_the_p_value_is_small(difference, verdict):
    assert judge(difference, p_corrected=0.01, n_compared=1) == verdict
    assert judge(difference, p_corrected=0.06, n_compared=1) == "no difference"


def test_too_few_subjects_are_said_in_place_of_no_difference():
    assert judge(found(0.02, 0.01, 0.03, n=5), p_corrected=0.0625, n_compared=1) == VERY_FEW
    assert judge(found(0.02, 0.01, 0.03, n=6), p_corrected=0.28, n_compared=9) == VERY_FEW
    assert judge({"mean": None, "ci95": None, "n": 0}, p_corrected=None, n_compared=0) == VERY_FEW
    assert judge({"mean": 0.1, "ci95": None, "n": 1}, p_corrected=None, n_compared=1) == VERY_FEW


VERY_FEW = "too few subjects"


def test_fewer_false_alarms_are_better():
    fewer = found(-2.0, -3.0, -1.0)
    assert judge(fewer, p_corrected=0.01, n_compared=1, higher_is_better=False) == "better"


def test_a_difference_that_does_not_survive_the_correction_is_none():
    difference = found(0.02, 0.01, 0.03)
    assert judge(difference, p_corrected=0.06, n_compared=3) == "no difference"
    assert judge(difference, p_corrected=0.04, n_compared=3) == "better"
