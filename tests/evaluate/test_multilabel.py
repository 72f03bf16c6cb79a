"""Multi-label figures: by hand, against scikit-learn, undefined cases, thresholds, intervals."""

import numpy as np
import pytest
from sklearn import metrics as reference

from metaecg.errors import DataError
from metaecg.evaluate.multilabel import (
    FIGURES,
    best_thresholds,
    bootstrap_intervals,
    multilabel_metrics,
)

NAMES = ("a", "b", "c", "d")


def drawn(n_records=60, n_classes=4, seed=7, *, with_ties=False):
    """Return labels that the probabilities say something about; ties where they are rounded."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n_records, n_classes)) < 0.3
    labels[0], labels[1] = True, False  # every class has both
    probabilities = np.clip(0.3 * labels + 0.7 * rng.random(labels.shape), 0, 1)
    return labels.astype(np.uint8), np.round(probabilities, 1 if with_ties else 6)


def judged(labels, probabilities, *, thresholds=None, names=None):
    n_classes = np.shape(labels)[1]
    thresholds = np.full(n_classes, 0.5) if thresholds is None else thresholds
    names = names or [str(i) for i in range(n_classes)]
    return multilabel_metrics(labels, probabilities, thresholds=thresholds, class_names=names)


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_figure_that_scikit_learn_has_is_the_same(with_ties, seed):
    labels, probabilities = drawn(seed=seed, with_ties=with_ties)
    found = judged(labels, probabilities)
    expected = {
        "macro_auc": reference.roc_auc_score(labels, probabilities, average="macro"),
        "mean_ap": reference.average_precision_score(labels, probabilities, average="macro"),
        "macro_f2": reference.fbeta_score(labels, probabilities >= 0.5, beta=2, average="macro"),
        "ranking_loss": reference.label_ranking_loss(labels, probabilities),
        "coverage": reference.coverage_error(labels, probabilities),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_f_and_g_follow_from_the_counts():
    labels = np.array([[1], [1], [1], [0], [0], [0]])
    flagged = np.array([[1], [1], [0], [1], [1], [0]])  # TP 2, FP 2, FN 1
    found = judged(labels, flagged.astype(float))
    assert found["macro_f2"] == pytest.approx(5 * 2 / (5 * 2 + 2 + 4 * 1))
    assert found["macro_g2"] == pytest.approx(2 / (2 + 2 + 2 * 1))


def test_a_probability_on_the_threshold_is_flagged():
    found = judged([[1], [0]], [[0.5], [0.4]], thresholds=[0.5])
    assert found["macro_f2"] == 1.0


def test_a_class_that_nobody_has_is_left_out_of_every_mean_and_listed():
    labels, probabilities = drawn()
    labels[:, 2] = 0
    found = judged(labels, probabilities, names=NAMES)
    others = judged(labels[:, [0, 1, 3]], probabilities[:, [0, 1, 3]])
    assert found["left_out"] == ["c"]
    assert found["classes"]["c"] == {"auc": None, "ap": None, "f2": None, "g2": None, "n_positives": 0}  # fmt: skip
    for name in ("macro_auc", "mean_ap", "macro_f2", "macro_g2"):
        assert found[name] == pytest.approx(others[name])


def test_a_class_that_everybody_has_lacks_only_its_auc_and_is_listed():
    labels, probabilities = drawn()
    labels[:, 1] = 1
    found = judged(labels, probabilities, names=NAMES)
    assert found["no_negative"] == ["b"] and found["left_out"] == []
    assert found["classes"]["b"]["auc"] is None and found["classes"]["b"]["ap"] == 1.0
    assert found["macro_auc"] == judged(labels[:, [0, 2, 3]], probabilities[:, [0, 2, 3]])["macro_auc"]  # fmt: skip


def test_without_any_positive_every_macro_figure_is_none():
    found = judged(np.zeros((3, 2)), np.full((3, 2), 0.2))
    assert [found[name] for name in FIGURES] == [None, None, None, None, 0.0, 0.0]


def test_the_threshold_is_the_probability_with_the_highest_f2():
    labels, probabilities = drawn(seed=3)
    thresholds, undetermined = best_thresholds(labels, probabilities)
    assert undetermined == []
    for i in range(labels.shape[1]):
        tried = {
            t: reference.fbeta_score(labels[:, i], probabilities[:, i] >= t, beta=2)
            for t in probabilities[:, i]
        }
        best = max(tried.values())
        assert thresholds[i] == max(t for t, f2 in tried.items() if f2 == pytest.approx(best))


def test_beta_moves_the_threshold_towards_fewer_misses():
    labels = np.array([[1], [0], [0], [1], [0]])
    probabilities = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    assert best_thresholds(labels, probabilities, beta=0.5)[0].tolist() == [0.9]
    assert best_thresholds(labels, probabilities, beta=2)[0].tolist() == [0.6]


def test_a_class_without_a_positive_in_validation_keeps_one_half_and_is_named():
    labels, probabilities = drawn()
    labels[:, [0, 3]] = 0
    thresholds, undetermined = best_thresholds(labels, probabilities)
    assert undetermined == [0, 3]
    assert thresholds[[0, 3]].tolist() == [0.5, 0.5]


def test_the_interval_holds_the_figure_and_a_generator_repeats_it():
    labels, probabilities = drawn(200)
    subjects = [f"s{i // 2}" for i in range(200)]

    def intervals(seed):
        return bootstrap_intervals(
            labels, probabilities, subjects, thresholds=np.full(4, 0.5),
            rng=np.random.default_rng(seed), n_resamples=200,
        )  # fmt: skip

    found, figures = intervals(0), judged(labels, probabilities)
    assert list(found) == list(FIGURES)
    for name, (low, high) in found.items():
        assert low < figures[name] < high, name
    assert intervals(0) == found and intervals(1) != found


def test_records_of_one_person_are_drawn_together():
    # The same record twenty times says no more than once: the interval stays as wide.
    labels, probabilities = drawn(30, 1)
    thresholds = np.array([0.5])

    def width(times, subjects):
        low, high = bootstrap_intervals(
            np.repeat(labels, times, axis=0), np.repeat(probabilities, times, axis=0), subjects,
            thresholds=thresholds, rng=np.random.default_rng(0), n_resamples=300,
        )["macro_auc"]  # fmt: skip
        return high - low

    people = np.arange(30)
    assert width(20, np.repeat(people, 20)) == pytest.approx(width(1, people))
    assert width(20, np.arange(600)) < 0.5 * width(1, people)


def test_a_weighted_figure_is_that_of_the_repeated_records():
    labels, probabilities = drawn(40, with_ties=True)
    thresholds = np.full(4, 0.5)
    # Two people, of whom a resample takes A twice, B twice or each once.
    subjects = ["A"] * 20 + ["B"] * 20
    found = bootstrap_intervals(
        labels, probabilities, subjects, thresholds=thresholds,
        rng=np.random.default_rng(0), n_resamples=300,
    )  # fmt: skip
    halves = [judged(labels[part], probabilities[part]) for part in (slice(0, 20), slice(20, 40))]
    for name in FIGURES:
        ends = sorted(half[name] for half in halves)
        whole = judged(labels, probabilities)[name]
        assert found[name] == pytest.approx([min(*ends, whole), max(*ends, whole)])


def test_one_person_has_no_interval():
    labels, probabilities = drawn(5)
    found = bootstrap_intervals(
        labels, probabilities, ["s"] * 5, thresholds=np.full(4, 0.5), rng=np.random.default_rng(0)
    )
    assert found == dict.fromkeys(FIGURES)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([1, 0], [0.1, 0.2], r"labels has shape \(2,\) .* expected \(n_records, n_classes\)"),
        ([[1]], [[0.1, 0.2]], r"labels has shape \(1, 1\) and probabilities has shape \(1, 2\)"),
        ([[1, 2]], [[0.1, 0.2]], "labels holds 2; expected 0 and 1"),
        ([[1, 0]], [[0.1, np.nan]], r"probabilities\[0, 1\] is nan"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "at least one of each"),
    ],
)
def test_what_cannot_be_judged_is_refused(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        best_thresholds(labels, probabilities)


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, np.nan], 0.5])
def test_thresholds_that_do_not_fit_are_refused(thresholds):
    with pytest.raises(DataError, match="thresholds has shape .* for 2 classes"):
        judged([[1, 0]], [[0.1, 0.2]], thresholds=thresholds)


def test_names_and_subjects_that_do_not_line_up_are_refused():
    with pytest.raises(DataError, match="class_names has 1 names for 2 columns"):
        judged([[1, 0]], [[0.1, 0.2]], names=["a"])
    with pytest.raises(DataError, match="subject_ids has 3 entries for 1 records"):
        bootstrap_intervals(
            [[1, 0]], [[0.1, 0.2]], list("abc"), thresholds=[0.5, 0.5], rng=np.random.default_rng(0)
        )
