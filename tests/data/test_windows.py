"""Windows: where they lie, what is left out, and that nothing crosses a gap."""

from dataclasses import replace

import numpy as np
import pytest

from metaecg.data.preprocessing import MARGIN_S, Preprocessing
from metaecg.data.records import read_record
from metaecg.data.windows import (
    DENSE_LIMIT,
    DENSE_STRIDE_S,
    RecordInfo,
    cut_windows,
    join,
    windows_from_marks,
)
from metaecg.errors import DataError

P = Preprocessing()


def noise(seconds, fs_hz=250.0, *, n_leads=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n_leads, round(seconds * fs_hz)))


@pytest.mark.parametrize("fs_hz", [360.0, 250.0, 200.0, 128.0, 500.0])
def test_windows_lie_end_to_end_from_the_first_to_the_last_sample(make_record, fs_hz):
    found, info = cut_windows(make_record(noise(20, fs_hz), fs_hz=fs_hz), P)
    assert found.start_s.tolist() == list(range(0, 20, 2))
    assert found.windows.shape == (10, 1, 400)
    assert (found.windows.dtype, found.labels.dtype) == (np.float32, np.int64)
    assert info.excluded == {"gap": 0, "noise or asystole": 0}
    np.testing.assert_array_equal(found.time_s, found.start_s)


def test_an_incomplete_last_window_is_left_out(make_record):
    found, info = cut_windows(make_record(noise(21.99)), P)
    assert found.start_s[-1] == 18.0
    assert info.duration_s == pytest.approx(21.99, abs=0.01)


@pytest.mark.parametrize("window_s", [0.3, 1.0, 2.0, 3.7, 5.0])
def test_no_window_overlaps_another_whatever_its_length(make_record, window_s):
    settings = Preprocessing(window_s=window_s)
    found, _ = cut_windows(make_record(noise(30)), settings)
    assert np.diff(found.start_s).min() > window_s - 1e-9
    assert found.windows.shape[2] == round(window_s * 200)
    assert len(found) == int(30 / window_s + 1e-9)


def test_a_stretch_of_two_seconds_off_the_grid_holds_no_window(make_record):
    signal_mv = noise(8)
    signal_mv[:, [500, 1001]] = np.nan  # 501 to 1001 is two seconds long
    found, info = cut_windows(make_record(signal_mv), P)
    assert found.start_s.tolist() == [0.0, 6.0]
    assert info.excluded["gap"] == 2


def test_a_window_is_the_signal_at_its_own_time(make_record):
    t = np.arange(5000) / 250.0
    found, _ = cut_windows(make_record(np.sin(2 * np.pi * 5.0 * t + 0.3)), P)
    for k in range(2, 8):
        time = found.start_s[k] + np.arange(400) / 200
        expected = np.sin(2 * np.pi * 5.0 * time + 0.3)
        np.testing.assert_allclose(found.windows[k, 0], expected, atol=0.01)


def test_a_recording_shorter_than_a_window_gives_none(make_record):
    found, info = cut_windows(make_record(noise(1.9)), P)
    assert len(found) == 0
    assert found.windows.shape == (0, 1, 400)
    assert info.excluded == {"gap": 0, "noise or asystole": 0}


def test_a_recording_that_was_never_measured_gives_none_and_counts_them(make_record):
    found, info = cut_windows(make_record(np.full((1, 2500), np.nan)), P)
    assert (len(found), info.excluded["gap"]) == (0, 5)


@pytest.mark.parametrize(
    ("gap", "lost"),
    [
        ((2000, 2001), [8.0]),  # the first sample of the window at 8 s
        ((1999, 2000), [6.0]),  # the last sample of the window before
        ((1999, 2001), [6.0, 8.0]),
        ((2000, 3000), [8.0, 10.0]),
        ((0, 1), [0.0]),
        ((4999, 5000), [18.0]),
    ],
)
def test_exactly_the_windows_that_hold_an_unmeasured_sample_are_left_out(make_record, gap, lost):
    signal_mv = noise(20)
    signal_mv[0, gap[0] : gap[1]] = np.nan
    found, info = cut_windows(make_record(signal_mv), P)
    assert sorted(set(np.arange(0, 20, 2.0)) - set(found.start_s)) == lost
    assert info.excluded["gap"] == len(lost)
    assert np.isfinite(found.windows).all()


def test_a_gap_in_one_lead_is_a_gap(make_record):
    signal_mv = noise(20, n_leads=2)
    signal_mv[1, 2100] = np.nan
    found, info = cut_windows(make_record(signal_mv), P)
    assert 8.0 not in found.start_s
    assert found.windows.shape == (9, 2, 400)


def test_nothing_from_the_far_side_of_a_gap_enters_a_window(make_record):
    near, far = noise(20, seed=1), noise(20, seed=2) * 100 + 40
    left, right = near.copy(), near.copy()
    left[0, 2000:2002] = right[0, 2000:2002] = np.nan
    right[0, 2002:] = far[0, 2002:]
    a, _ = cut_windows(make_record(left), P)
    b, _ = cut_windows(make_record(right), P)
    before = a.start_s < 8
    assert before.sum() == 4
    np.testing.assert_array_equal(a.windows[before], b.windows[before])
    assert np.abs(a.windows[~before] - b.windows[~before]).max() > 1


def test_windows_further_than_the_margin_from_a_gap_do_not_feel_it(make_record):
    whole = noise(20)
    broken = whole.copy()
    broken[0, 2500] = np.nan  # at 10 s
    a, _ = cut_windows(make_record(whole), P)
    b, _ = cut_windows(make_record(broken), P)
    far = b.start_s[(b.start_s + 2 <= 10 - MARGIN_S) | (b.start_s >= 10 + MARGIN_S)]
    assert len(far) == 8
    for start_s in far:
        x, y = a.windows[a.start_s == start_s], b.windows[b.start_s == start_s]
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_windows_are_in_millivolts_not_normalised(make_record):
    found, _ = cut_windows(make_record(5 * np.sin(np.arange(5000) * 2 * np.pi * 5 / 250)), P)
    assert found.windows[3].max() == pytest.approx(5, rel=0.02)


@pytest.mark.real
def test_real_records_give_as_many_windows_as_fit(real_data):
    found, info = cut_windows(read_record(real_data / "mitdb" / "100"), P)
    assert len(found) == 902  # 650,000 samples at 360 Hz are 1805.6 s
    assert (found.subject_ids[0], found.record_ids[0]) == ("mitdb/100", "mitdb/100")
    assert (info.database, sum(info.excluded.values())) == ("mitdb", 0)


# Dense cutting, as MetaVA's release does


def test_dense_cutting_strides_short_inside_va_and_long_outside(make_record):
    marks = ((0, "+", "(N"), (2500, "+", "(VT"), (3750, "+", "(N"))  # VA from 10 to 15 s
    found, _ = cut_windows(make_record(noise(30), marks=marks), P, dense_va=True)
    steps = np.diff(found.start_s)
    assert np.allclose(steps[found.labels[:-1] == 1], DENSE_STRIDE_S)
    assert np.allclose(steps[found.labels[:-1] == 0], 2.0)
    inside = found.start_s[found.labels == 1]
    assert (inside[0], inside[-1]) == (10.0, 14.0)
    assert len(inside) == 41


def test_dense_cutting_stops_being_dense_after_the_limit(make_record):
    marks = ((0, "+", "(VT"),)
    found, _ = cut_windows(make_record(noise(60), marks=marks), P, dense_va=True)
    steps = np.diff(found.start_s)
    assert np.allclose(steps[:DENSE_LIMIT], DENSE_STRIDE_S)
    assert np.allclose(steps[DENSE_LIMIT:], 2.0)


def test_dense_windows_are_the_signal_at_their_own_time(make_record):
    t = np.arange(5000) / 250.0
    record = make_record(np.sin(2 * np.pi * 3.0 * t), marks=((0, "+", "(VT"),))
    found, _ = cut_windows(record, P, dense_va=True)
    for k in range(30, 40):
        time = found.start_s[k] + np.arange(400) / 200
        np.testing.assert_allclose(found.windows[k, 0], np.sin(2 * np.pi * 3 * time), atol=0.01)


# Marks made by a person


def test_a_mark_gives_as_many_whole_windows_as_fit(make_record):
    record = make_record(noise(30), marks=())
    marks = [(20.0, 25.9, "va"), (1.0, 5.0, "other")]
    found = windows_from_marks(record, marks, P)
    assert found.start_s.tolist() == [1.0, 3.0, 20.0, 22.0]
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert not found.is_mixed.any()


def test_marked_windows_equal_those_of_the_file(make_record):
    record = make_record(noise(30))
    cut, _ = cut_windows(record, P)
    marked = windows_from_marks(record, [(4.0, 14.0, "va")], P)
    np.testing.assert_array_equal(marked.windows, cut.windows[2:7])


def test_a_mark_between_two_samples_starts_at_the_next_one(make_record):
    found = windows_from_marks(make_record(noise(30)), [(3.0012, 6.0, "va")], P)
    assert found.start_s.tolist() == [3.005]


def test_marked_windows_with_a_gap_are_left_out(make_record):
    signal_mv = noise(30)
    signal_mv[0, 1600] = np.nan  # at 6.4 s
    found = windows_from_marks(make_record(signal_mv), [(4.0, 10.0, "va")], P)
    assert found.start_s.tolist() == [4.0, 8.0]
    assert len(found.labels) == len(found.windows) == 2


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([], "there are no marks; expected at least one"),
        ([(0, 4, "vt")], r"'vt'\) of 'own/s1': the class is unknown; expected one of other, va"),
        ([(28, 31, "va")], r"mark \(28 s, 31 s, 'va'\).* lies outside the recording of 30 s"),
        ([(-1, 4, "va")], "lies outside the recording"),
        ([(5, 4, "va")], "lies outside the recording"),
        ([(4, 5.9, "va")], "is shorter than a window of 2 s"),
        ([(4, 8, "va"), (7, 10, "other")], "overlaps the mark before it, which ends at 8 s"),
        ([(float("nan"), 8, "va")], "lies outside the recording"),
    ],
)
def test_a_mark_that_cannot_be_is_refused_with_its_numbers(make_record, marks, message):
    with pytest.raises(DataError, match=message):
        windows_from_marks(make_record(noise(30)), marks, P)


# Sets


def test_selecting_keeps_all_columns_lined_up(make_record):
    found, _ = cut_windows(make_record(noise(20)), P)
    some = found.select(np.array([7, 2]))
    assert some.start_s.tolist() == [14.0, 4.0]
    np.testing.assert_array_equal(some.windows, found.windows[[7, 2]])
    assert len(found.select(found.start_s > 9)) == 5


def test_a_subjects_windows_come_in_the_order_of_time(make_record):
    found, _ = cut_windows(make_record(noise(20)), P)
    other = replace(found, subject_ids=np.full(len(found), "own/s2"))
    mixed = join([other, found.select(np.arange(10)[::-1])])
    assert mixed.of_subject("own/s1").time_s.tolist() == list(range(0, 20, 2))
    with pytest.raises(DataError, match="'own/s3'; expected one of own/s1, own/s2"):
        mixed.of_subject("own/s3")


def test_windows_are_counted_by_class(make_record):
    marks = ((0, "+", "(N"), (3000, "+", "(VT"))
    found, _ = cut_windows(make_record(noise(20), marks=marks), P)
    assert (found.count("other"), found.count("va")) == (6, 4)


def test_joining_nothing_is_refused():
    with pytest.raises(DataError, match="no windows to join; expected at least one recording"):
        join([])


def test_what_is_known_of_a_recording_survives_a_dictionary(make_record):
    marks = ((0, "+", "(N"), (3000, "+", "(VT"))
    _, info = cut_windows(make_record(noise(20), marks=marks), P)
    assert info.episodes == ((12.0, 20.0),)
    assert RecordInfo.from_dict(info.to_dict()) == info
