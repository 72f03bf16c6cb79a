"""Splits of multi-label recordings: by subject, every class's share, PTB-XL's folds."""

import numpy as np
import pytest

from metaecg.data.splits import read_manifest, write_manifest
from metaecg.data.stratification import SIDES, fold_split, multilabel_split
from metaecg.errors import DataError, LeakageError

FREQUENCIES = (0.5, 0.2, 0.1, 0.03)


def rng(seed=0):
    return np.random.default_rng(seed)


def drawn(n_records=1000, n_subjects=800, seed=7):
    """Return labels of given frequencies and people with one to a few records."""
    labels = (rng(seed).random((n_records, len(FREQUENCIES))) < FREQUENCIES).astype(np.uint8)
    person = np.concatenate([np.arange(n_subjects), rng(seed).integers(n_subjects, size=n_records - n_subjects)])  # fmt: skip
    return labels, np.array([f"s{i:04}" for i in person])


@pytest.mark.parametrize("seed", range(3))
def test_everybody_stands_on_exactly_one_side(seed):
    labels, subjects = drawn(seed=seed)
    split = multilabel_split(labels, subjects, rng=rng(seed))
    everyone = [*split.train, *split.validation, *split.test]
    assert sorted(everyone) == sorted(set(subjects))
    rows = split.rows(subjects)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(subjects)))
    for side, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(subjects[rows[side]]) & set(subjects[rows[other]])


@pytest.mark.parametrize("fractions", [(0.08, 0.02, 0.9), (0.6, 0.2, 0.2), (0.5, 0.0, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_every_side_has_its_share_of_records_and_of_every_class(fractions, seed):
    labels, subjects = drawn(seed=seed)
    rows = multilabel_split(labels, subjects, fractions=fractions, rng=rng(seed)).rows(subjects)
    for side, share in zip(SIDES, fractions, strict=True):
        assert len(rows[side]) == pytest.approx(share * len(labels), abs=12)
        found = labels[rows[side]].sum(axis=0)
        assert found == pytest.approx(share * labels.sum(axis=0), abs=6), side


def test_a_rare_class_is_dealt_better_than_at_random():
    labels, subjects = drawn()
    wanted = 0.08 * labels[:, 3].sum()
    people = np.unique(subjects)

    def misses(split_of):
        return [abs(labels[np.isin(subjects, split_of(seed))][:, 3].sum() - wanted) for seed in range(20)]  # fmt: skip

    dealt = misses(lambda seed: multilabel_split(labels, subjects, rng=rng(seed)).train)
    lots = misses(lambda seed: rng(seed).permutation(people)[:64])
    assert max(dealt) < 1.0 < np.mean(lots)


def test_the_split_depends_on_the_generator_and_not_on_the_order_of_the_records():
    labels, subjects = drawn(200, 150)
    order = rng(3).permutation(200)
    first = multilabel_split(labels, subjects, rng=rng(1))
    assert multilabel_split(labels[order], subjects[order], rng=rng(1)) == first
    assert multilabel_split(labels, subjects, rng=rng(2)) != first


def test_records_without_a_label_are_dealt_too():
    split = multilabel_split(
        np.zeros((10, 2)), [f"s{i}" for i in range(10)], fractions=(0.5, 0.2, 0.3), rng=rng()
    )
    assert [len(getattr(split, side)) for side in SIDES] == [5, 2, 3]


def test_a_side_without_a_share_stays_empty():
    labels, subjects = drawn(100, 100)
    assert multilabel_split(labels, subjects, fractions=(0.5, 0, 0.5), rng=rng()).validation == ()


def test_the_split_comes_back_from_a_manifest(tmp_path):
    labels, subjects = drawn(200, 150)
    split = multilabel_split(labels, subjects, rng=rng())
    write_manifest(tmp_path / "multilabel 8.json", split)
    found = read_manifest(tmp_path / "multilabel 8.json")
    assert [getattr(found, side) for side in SIDES] == [getattr(split, side) for side in SIDES]


@pytest.mark.parametrize(
    ("labels", "fractions", "message"),
    [
        (np.ones((3, 2)), (0.5, 0.5), "fractions is .0.5, 0.5.; expected three shares"),
        (np.ones((3, 2)), (0.5, 0.1, 0.5), "add up to 1"),
        (np.ones((3, 2)), (1.2, -0.2, 0.0), "at least 0"),
        (np.ones((3, 2)), (0.98, 0.01, 0.01), "validation should get 1% of 3 recordings"),
        (np.full((3, 2), 2), (0.5, 0.2, 0.3), "labels holds 2"),
        (np.ones((2, 2)), (0.5, 0.2, 0.3), r"labels has shape \(2, 2\) for 3 subject_ids"),
        (np.ones(3), (0.5, 0.2, 0.3), r"labels has shape \(3,\)"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(labels, fractions, message):
    with pytest.raises(DataError, match=message):
        multilabel_split(labels, ["a", "b", "c"], fractions=fractions, rng=rng())


def test_folds_become_sides():
    split = fold_split(np.array([1, 2, 9, 10, 1]), list("abcde"))
    assert (split.train, split.validation, split.test) == (("a", "b", "e"), ("c",), ("d",))
    split = fold_split(np.array([1, 2, 3]), list("abc"), validation=[2], test=[1])
    assert (split.train, split.validation, split.test) == (("c",), ("b",), ("a",))


def test_a_person_with_records_in_folds_of_two_sides_is_leakage():
    with pytest.raises(LeakageError, match="1 subjects stand on both sides: a"):
        fold_split(np.array([1, 9, 10]), ["a", "b", "a"])


def test_a_fold_on_two_sides_is_leakage():
    with pytest.raises(LeakageError, match=r"validation is \[9\] and test is \[9, 10\]"):
        fold_split(np.array([1, 9, 10]), list("abc"), test=(9, 10))


def test_a_fold_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DataError, match="no fold 10; it has the folds 1, 9"):
        fold_split(np.array([1, 9]), list("ab"))
    with pytest.raises(DataError, match="no fold is left to train on"):
        fold_split(np.array([9, 10]), list("ab"))
    with pytest.raises(DataError, match=r"strat_fold has shape \(2,\)"):
        fold_split(np.array([9, 10]), list("abc"))
