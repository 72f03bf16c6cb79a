"""Folds hold everybody out once; a subject on both sides is an error; manifests come back."""

import json
from collections import Counter

import numpy as np
import pytest

from metaecg.data.splits import (
    Split,
    check_disjoint,
    check_split,
    make_folds,
    read_manifest,
    write_manifest,
)
from metaecg.errors import DataError, LeakageError

SIZES = {"mitdb, one class": 31, "mitdb, eligible": 7, "vfdb, eligible": 13, "cudb, eligible": 5}
STRATA = {f"{name}/{i}": name for name, size in SIZES.items() for i in range(size)}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(3))
def test_every_subject_is_held_out_exactly_once_and_trains_otherwise(n_folds, seed):
    folds = make_folds(STRATA, n_folds=n_folds, rng=rng(seed))
    held_out = [subject for fold in folds for subject in fold.test]
    assert sorted(held_out) == sorted(STRATA)
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert {*fold.train, *fold.test} == set(STRATA)


@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(3))
def test_every_fold_has_its_share_of_every_stratum_within_one(n_folds, seed):
    folds = make_folds(STRATA, n_folds=n_folds, rng=rng(seed))
    for stratum in SIZES:
        counts = [sum(STRATA[s] == stratum for s in fold.test) for fold in folds]
        assert max(counts) - min(counts) <= 1, (stratum, counts)
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_the_same_generator_deals_the_same_folds_whatever_the_order_of_the_subjects():
    backwards = dict(reversed(STRATA.items()))
    first = make_folds(STRATA, n_folds=5, rng=rng(1))
    assert make_folds(backwards, n_folds=5, rng=rng(1)) == first
    assert make_folds(STRATA, n_folds=5, rng=rng(2)) != first


def test_as_many_folds_as_subjects_leave_one_out():
    folds = make_folds({"a": "x", "b": "x", "c": "y"}, n_folds=3, rng=rng())
    assert Counter(fold.test for fold in folds) == {("a",): 1, ("b",): 1, ("c",): 1}


@pytest.mark.parametrize("n_folds", [0, 1, 4])
def test_a_number_of_folds_that_cannot_be_is_refused_with_both_numbers(n_folds):
    with pytest.raises(DataError, match=f"folds is {n_folds} for 3 subjects; expected 2 to"):
        make_folds({"a": "x", "b": "x", "c": "y"}, n_folds=n_folds, rng=rng())


def test_a_subject_planted_on_both_sides_is_refused_by_name():
    with pytest.raises(
        LeakageError, match="split 'mine': 1 subjects stand on both sides: mitdb/201"
    ):
        Split(name="mine", train=("mitdb/100", "mitdb/201"), test=("mitdb/201",))


def test_many_subjects_on_both_sides_are_counted():
    names = [f"s{i}" for i in range(9)]
    with pytest.raises(LeakageError, match=r"trial: 9 subjects .* s0, s1, s2, s3, s4, \.\.\."):
        check_disjoint(names, names, what="trial")


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_subject_of_validation_may_stand_nowhere_else(side):
    sides = {"train": ("a",), "test": ("b",)}
    message = (
        f"split 'mine', {side} and validation: 1 subjects stand on both sides: {sides[side][0]}"
    )
    with pytest.raises(LeakageError, match=message):
        Split(name="mine", validation=sides[side], **sides)


def test_rows_belong_to_the_side_of_their_subject():
    split = Split(name="s", train=("a",), validation=("c",), test=("b", "d"))
    rows = split.rows(np.array(["b", "a", "c", "b", "x"]))
    found = {side: at.tolist() for side, at in rows.items()}
    assert found == {"train": [1], "validation": [2], "test": [0, 3]}


# Manifests

GOOD = {"train": ["a/1", "a/2"], "test": ["a/3"], "checksums": {"a/3.dat": "ff"}}


@pytest.fixture
def manifest(tmp_path):
    def write(content):
        path = tmp_path / "ours.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text)
        return path

    return write


def test_a_manifest_comes_back_as_written(tmp_path):
    split = Split(name="ours", train=("a/1",), test=("a/3", "a/2"), checksums={"a/3.dat": "ff"})
    write_manifest(tmp_path / "ours.json", split)
    assert read_manifest(tmp_path / "ours.json") == split


def test_a_manifest_may_leave_the_checksums_out_and_name_a_subject_twice(manifest):
    split = read_manifest(manifest({"train": ["a", "a"], "test": ["b"]}))
    assert (split.name, split.train, split.test, split.checksums) == ("ours", ("a",), ("b",), {})


def test_a_manifest_keeps_its_validation_side(tmp_path):
    split = Split(name="ours", train=("a/1",), validation=("a/2",), test=("a/3",))
    write_manifest(tmp_path / "ours.json", split)
    assert read_manifest(tmp_path / "ours.json") == split
    with pytest.raises(DataError, match="names 1 subjects .* first 'a/2'"):
        check_split(split, ["a/1", "a/3"], {})


def test_a_manifest_may_train_on_nobody(manifest):
    assert read_manifest(manifest({"train": [], "test": ["b"]})).train == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: [a]", "ours.json is not JSON"),
        ("", "ours.json is not JSON"),
        ([], "has no list of subjects under 'train'; expected {"),
        ({"test": ["a"]}, "has no list of subjects under 'train'"),
        ({"train": ["a"]}, "has no list of subjects under 'test'"),
        ({"train": "a", "test": ["b"]}, "has no list of subjects under 'train'"),
        ({"train": [1], "test": ["b"]}, "has no list of subjects under 'train'"),
        ({"train": ["a"], "test": []}, "holds no test subject; expected at least one"),
        ({**GOOD, "checksums": ["ff"]}, "'checksums' must map file to SHA-256"),
        ({**GOOD, "checksums": {"a/3.dat": 5}}, "'checksums' must map file to SHA-256"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(manifest, content, message):
    with pytest.raises(DataError, match=message):
        read_manifest(manifest(content))


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match="split manifest .*nowhere.json can't be read"):
        read_manifest(tmp_path / "nowhere.json")


def test_a_manifest_of_bytes_is_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="x.json is not JSON"):
        read_manifest(tmp_path / "x.json")


def test_a_manifest_with_a_subject_on_both_sides_is_leakage(manifest):
    with pytest.raises(LeakageError, match="split 'ours': 1 subjects stand on both sides: a/2"):
        read_manifest(manifest({"train": ["a/1", "a/2"], "test": ["a/2"]}))


def test_a_split_that_fits_the_data_passes(manifest):
    split = read_manifest(manifest(GOOD))
    check_split(split, ["a/1", "a/2", "a/3", "a/4"], {"a/3.dat": "ff", "a/4.dat": "00"})


def test_an_unknown_subject_is_named_with_the_nearest(manifest):
    split = read_manifest(manifest({"train": ["a/1"], "test": ["a/33"]}))
    with pytest.raises(DataError, match="'ours' names 1 subjects .* first 'a/33'.*mean 'a/3'"):
        check_split(split, ["a/1", "a/3"], {})


def test_another_version_of_a_file_is_refused_with_both_checksums(manifest):
    with pytest.raises(DataError, match="a/3.dat has the checksum 0e, the manifest says ff"):
        check_split(read_manifest(manifest(GOOD)), ["a/1", "a/2", "a/3"], {"a/3.dat": "0e"})


def test_a_file_that_the_data_lacks_is_named(manifest):
    with pytest.raises(
        DataError, match="fixes the checksum of a/3.dat, which isn't among the 1 fil"
    ):
        check_split(read_manifest(manifest(GOOD)), ["a/1", "a/2", "a/3"], {"a/9.dat": "0e"})
