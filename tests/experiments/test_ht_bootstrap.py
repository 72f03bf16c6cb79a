"""Resampled figures agree with `multilabel_metrics` on the records that were drawn, and are paired."""

import numpy as np
import pytest

from metaecg.evaluate.multilabel import FIGURES, multilabel_metrics
from metaecg.experiments.ht_bootstrap import (
    Answers,
    draw,
    interval,
    paired_intervals,
    resampled,
    weighted_figures,
)

NAMES = ("a", "b", "c")
THRESHOLDS = np.array([0.5, 0.4, 0.6])


def make_tested(seed: int, *, n: int = 40) -> Answers:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < 0.3).astype(int)
    noisy = np.clip(0.5 * labels + 0.6 * rng.random((n, 3)), 0, 1)
    people = np.array([f"s{i // 2}" for i in range(n)])
    return Answers(
        labels=labels, probabilities=noisy.round(1), thresholds=THRESHOLDS, subject_ids=people
    )


def test_a_weight_is_how_often_a_record_is_there():
    tested = make_tested(7)
    weights = np.random.default_rng(1).integers(0, 3, size=(5, 40)).astype(float)
    found = weighted_figures(tested, weights)
    for i, row in enumerate(weights.astype(int)):
        repeated = np.repeat(np.arange(40), row)
        expected = multilabel_metrics(
            tested.labels[repeated],
            tested.probabilities[repeated],
            thresholds=THRESHOLDS,
            class_names=NAMES,
        )
        for name in FIGURES:
            assert found[name][i] == pytest.approx(expected[name], abs=1e-12), name


def test_a_class_that_nobody_drawn_has_is_left_out_of_the_mean():
    tested = make_tested(7)
    without_a = (tested.labels[:, 0] == 0).astype(float)[None]
    auc = weighted_figures(tested, without_a)["macro_auc"]
    rows = np.flatnonzero(without_a[0])
    expected = multilabel_metrics(
        tested.labels[rows], tested.probabilities[rows], thresholds=THRESHOLDS, class_names=NAMES
    )
    assert expected["left_out"] == ["a"]
    assert auc[0] == pytest.approx(expected["macro_auc"])


def test_nobody_drawn_is_undefined_not_zero():
    found = weighted_figures(make_tested(7), np.zeros((1, 40)))
    assert all(np.isnan(values).all() for values in found.values())
    assert interval(found["macro_auc"]) is None


def draws_for(tested, *, n_seeds: int):
    people = tested.subject_ids.tolist()
    rng = np.random.default_rng(3)
    return draw(people, n_seeds=n_seeds, n_resamples=300, rng=rng)


def test_a_patient_comes_with_all_records():
    tested = make_tested(7)
    weights = draws_for(tested, n_seeds=1).weights(tested.subject_ids)
    assert (weights[:, 0::2] == weights[:, 1::2]).all()
    assert (weights[:, 0::2].sum(axis=1) == 20).all()


def test_the_difference_of_a_method_to_itself_has_no_spread_and_a_better_one_is_above_zero():
    worse = make_tested(7)
    better = Answers(
        labels=worse.labels,
        probabilities=0.8 * worse.labels + 0.1,
        thresholds=THRESHOLDS,
        subject_ids=worse.subject_ids,
    )
    draws = draws_for(worse, n_seeds=1)
    first, second = resampled([worse], draws), resampled([better], draws)
    assert paired_intervals(first, first)["macro_auc"] == [0.0, 0.0]
    assert paired_intervals(second, first)["macro_auc"][0] > 0


def test_a_seed_that_is_drawn_twice_counts_twice():
    low, high = make_tested(7), make_tested(8)
    draws = draws_for(low, n_seeds=2)
    both = resampled([low, high], draws)["macro_auc"]
    alone = [resampled([each], draws_for(low, n_seeds=1))["macro_auc"] for each in (low, high)]
    assert len(set(draws.seeds[:, 0].tolist())) == 3
    only_first = draws.seeds[:, 1] == 0
    weights = draws.weights(low.subject_ids)[only_first]
    assert both[only_first] == pytest.approx(weighted_figures(low, weights)["macro_auc"])
    assert min(a.mean() for a in alone) < both.mean() < max(a.mean() for a in alone)
