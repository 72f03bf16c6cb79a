"""RR features: values that can be worked out by hand, and nothing of the future."""

import numpy as np
import pytest

from metaecg.data.rr import FIRST_RR_S, MAX_RR_S, rr_features, rr_names
from metaecg.errors import DataError


def peaks_of(intervals, *, first_s=0.5):
    return first_s + np.concatenate([[0.0], np.cumsum(intervals)])


def test_the_features_of_a_beat_compare_its_interval_with_those_before_it():
    found = rr_features(peaks_of([1.0, 1.0, 0.4, 1.6]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[3], [0.4, 0.4, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found[4], [1.6, 1.6, 2.0, 4.0], rtol=1e-6)  # mean (1 + 1 + 0.4) / 3


def test_the_median_is_that_of_the_last_ten_intervals_the_mean_that_of_all():
    found = rr_features(peaks_of([2.0] * 10 + [1.0] * 10 + [1.5]))
    np.testing.assert_allclose(found[-1], [1.5, 1.5, 1.0, 1.5], rtol=1e-6)


@pytest.mark.parametrize("n_beats", range(4))
def test_the_first_beats_have_defined_values(n_beats):
    found = rr_features(peaks_of([1.0, 1.0])[:n_beats])
    expected = [[FIRST_RR_S, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 4)[:n_beats], rtol=1e-6)


def test_changing_the_future_changes_nothing():
    rng = np.random.default_rng(7)
    peaks = peaks_of(rng.uniform(0.3, 1.5, size=60))
    whole = rr_features(peaks)
    for n_known in range(1, 61):
        future = peaks[n_known - 1] + np.cumsum(rng.uniform(0.3, 4.0, size=61 - n_known))
        changed = rr_features(np.concatenate([peaks[:n_known], future]))
        np.testing.assert_array_equal(changed[:n_known], whole[:n_known])


def test_the_next_interval_is_there_on_request_only():
    peaks = peaks_of([1.0, 1.0, 0.5, 1.5])
    plain, found = rr_features(peaks), rr_features(peaks, use_next=True)
    np.testing.assert_array_equal(found[:, :4], plain)
    np.testing.assert_allclose(found[:, 4], [1.0, 1.0, 0.5, 1.5, FIRST_RR_S])
    np.testing.assert_allclose(found[:, 5], [1.0, 1.0, 0.5, 1.5, 1.0])


def test_the_next_interval_knows_one_beat_of_the_future_and_no_more():
    peaks = peaks_of([1.0, 0.9, 0.8, 0.7, 0.6])
    changed = np.concatenate([peaks[:4], peaks[4:] + 0.3])
    first, second = (rr_features(p, use_next=True) for p in (peaks, changed))
    np.testing.assert_array_equal(first[:3], second[:3])
    assert (first[3] != second[3]).any()


def test_the_names_line_up_with_the_columns():
    assert len(rr_names()) == 4
    assert len(rr_names(use_next=True)) == 6
    assert all(name.startswith("next_") for name in rr_names(use_next=True)[4:])


def test_a_gap_counts_as_the_longest_interval_and_leaves_the_statistics_alone():
    found = rr_features(peaks_of([1.0, 1.0, 60.0, 1.0, 1.0]))
    np.testing.assert_allclose(found[3], [MAX_RR_S, 3.0, 3.0, 3.0])
    np.testing.assert_allclose(found[4], [1.0, 1.0, 1.0, 1.0])  # nothing to compare with before it
    np.testing.assert_allclose(found[5], [1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("peaks", "message"),
    [
        ([1.0, 3.0, 3.0], "3 s before 3 s at 1"),
        ([1.0, np.nan], r"shape \(2,\); expected finite"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
    ],
)
def test_impossible_peaks_are_refused(peaks, message):
    with pytest.raises(DataError, match=message):
        rr_features(np.array(peaks))
