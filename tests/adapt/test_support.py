import numpy as np
import pytest

from metaecg.adapt.support import check_enough, checked_times, class_counts, label_index
from metaecg.errors import DataError, NotEnoughWindowsError

CLASSES = ("other", "va")


def test_names_and_indices_mean_the_same():
    assert label_index(["va", "other", "va"], CLASSES, n_windows=3).tolist() == [1, 0, 1]
    assert label_index(np.array([1, 0, 1], np.uint8), CLASSES, n_windows=3).tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels", [["va", "vt"], [0, 2], [0, -1], [0.0, 0.5], [None, "va"]])
def test_a_label_that_names_no_class_is_refused(labels):
    with pytest.raises(DataError, match=r"labels holds .* expected names of \['other', 'va'\]"):
        label_index(labels, CLASSES, n_windows=2)


def test_another_number_of_labels_than_windows_is_refused():
    with pytest.raises(DataError, match=r"shape \(2,\); expected \(3,\)"):
        label_index(["va", "other"], CLASSES, n_windows=3)


def test_windows_are_counted_per_class():
    assert class_counts(np.array([1, 1, 1]), CLASSES) == {"other": 0, "va": 3}


def test_a_single_class_is_refused_and_the_missing_one_named():
    with pytest.raises(NotEnoughWindowsError, match="'s-1' has 0 windows of class 'other'") as info:
        check_enough(np.array([1, 1, 1]), CLASSES, subject_id="s-1")
    assert (info.value.n_found, info.value.n_needed) == (0, 1)


def test_no_window_at_all_is_refused():
    with pytest.raises(NotEnoughWindowsError, match="0 windows of class 'other' among the 0 given"):
        check_enough(np.array([], np.int64), CLASSES, subject_id="s-1")


def test_of_many_classes_two_are_enough():
    check_enough(np.array([0, 2]), ("N", "S", "V"), subject_id="s-1")


@pytest.mark.parametrize("time_s", [[0.0], [0.0, np.nan], [[0.0, 1.0]]])
def test_times_that_cannot_be_used_are_refused(time_s):
    with pytest.raises(DataError, match=r"expected \(2,\), one finite time"):
        checked_times(time_s, n_windows=2)
