"""Segments of a recording: the windows and beats of the library, number by number."""

import numpy as np
import pytest

from metaecg import load_base, read_record
from metaecg.data.beat_input import beat_inputs
from metaecg.data.beats import cut_beats
from metaecg.data.demo_patients import FS_HZ, generate_patient
from metaecg.data.preprocessing import MARGIN_S, Preprocessing, measured_segments
from metaecg.data.records import Annotations, Record
from metaecg.data.windows import cut_windows
from metaecg.errors import CheckpointError, DataError
from metaecg.serve.segments import Segments, segmentation_of

NO_MARKS = Annotations(sample=np.zeros(0, dtype=np.int64), symbol=(), note=())


@pytest.fixture(scope="module")
def windows():
    return segmentation_of(load_base("va-base"))


@pytest.fixture(scope="module")
def beats():
    return segmentation_of(load_base("veb-base"))


def made_record(*, gaps=((2000, 2003), (9000, 12000)), n_samples=30000) -> Record:
    signal_mv = generate_patient(1, duration_s=180.0, seed=3).signal_mv[None, :n_samples]
    signal_mv = signal_mv.astype(np.float32)
    for start, stop in gaps:
        signal_mv[:, start:stop] = np.nan
    return Record(
        record_id="own/r",
        subject_id="own/s",
        signal_mv=signal_mv,
        fs_hz=FS_HZ,
        lead_names=("II",),
        annotations=NO_MARKS,
    )


def test_the_kind_of_a_base_is_in_the_name_that_labels_are_stored_under(windows, beats):
    assert (windows.kind, windows.name) == ("windows", "windows:2@200")
    assert (beats.kind, beats.name) == ("beats", "beats:found-1")


def test_a_base_of_twelve_leads_is_refused():
    class Twelve:
        n_leads, training, preprocessing = 12, {}, Preprocessing()

    with pytest.raises(CheckpointError, match="takes 12 leads; expected one"):
        segmentation_of(Twelve())


def test_windows_with_gaps_are_those_of_the_library_bit_for_bit(windows):
    record = made_record()
    expected, _ = cut_windows(record, windows.preprocessing)
    segments, inputs = windows.inputs(record.signal_mv, record.fs_hz)
    assert np.array_equal(inputs, expected.windows)
    assert segments.start_s.tolist() == expected.start_s.tolist()
    assert segments.index.tolist() == [k for k in range(60) if k not in (4, *range(18, 24))]
    assert segments.is_whole


@pytest.mark.parametrize("name", ["mitdb/100", "mitdb/207", "vfdb/418", "cudb/cu02"])
def test_windows_of_real_recordings_are_those_of_the_library(windows, real_data, name):
    record = read_record(real_data / name, annotations=False)
    bare = Record(**{**vars(record), "annotations": NO_MARKS, "database": ""})
    expected, _ = cut_windows(bare, windows.preprocessing)
    segments, inputs = windows.inputs(record.signal_mv, record.fs_hz)
    assert np.array_equal(inputs, expected.windows)
    assert np.array_equal(segments.start_s, expected.start_s)


def test_beats_with_gaps_are_those_of_the_library_bit_for_bit(beats):
    record = made_record()
    _assert_beats_agree(beats, record)


@pytest.mark.parametrize("name", ["mitdb/100", "mitdb/233", "cudb/cu02"])
def test_beats_of_real_recordings_are_those_of_the_library(beats, real_data, name):
    _assert_beats_agree(beats, read_record(real_data / name, annotations=False))


def _assert_beats_agree(beats, record):
    cutting = load_base("veb-base").training["beat_cutting"]
    expected, _ = cut_beats(record, beats.preprocessing, r_peaks="detected", **cutting)
    peaks = beats.peaks(record.signal_mv, record.fs_hz)
    segments, inputs = beats.inputs(record.signal_mv, record.fs_hz, peaks)
    assert np.array_equal(inputs, beat_inputs(expected))
    assert np.array_equal(peaks[segments.index], expected.sample)
    assert np.array_equal(segments.beats.rr, expected.rr)


@pytest.mark.parametrize("kind", ["windows", "beats"])
def test_without_the_signal_the_same_segments_are_known(kind, request):
    found = request.getfixturevalue(kind)
    gaps = [(2000, 2003), (9000, 12000), (12400, 12401), (12901, 12902), (29990, 30000)]
    record = made_record(gaps=gaps)
    peaks = found.peaks(record.signal_mv, record.fs_hz)
    segments, _ = found.inputs(record.signal_mv, record.fs_hz, peaks)
    measured = measured_segments(record.signal_mv)
    listed = found.segments(record.n_samples, record.fs_hz, peaks, measured=measured)
    assert listed.index.tolist() == segments.index.tolist()
    assert np.array_equal(listed.start_s, segments.start_s)
    assert np.array_equal(listed.stop_s, segments.stop_s)


@pytest.mark.parametrize("fs_hz", [128.0, 250.0, 257.0, 360.0, 1000.0])
def test_at_any_rate_and_with_any_gaps_the_same_segments_are_known(windows, fs_hz):
    rng = np.random.default_rng(5)
    for n_samples in rng.integers(1000, 9000, 8).tolist():
        signal_mv = rng.standard_normal((1, n_samples)).astype(np.float32)
        signal_mv[:, rng.integers(0, n_samples, 6)] = np.nan
        segments, _ = windows.inputs(signal_mv, fs_hz)
        measured = measured_segments(signal_mv)
        listed = windows.segments(n_samples, fs_hz, measured=measured)
        assert listed.index.tolist() == segments.index.tolist()


@pytest.mark.parametrize("fs_hz", [128.0, 250.0, 257.0, 360.0, 1000.0])
def test_with_gaps_at_the_bounds_of_windows_the_same_segments_are_known(windows, fs_hz):
    for shift in (-2, -1, 0, 1, 2):
        signal_mv = np.ones((1, round(41 * fs_hz)), dtype=np.float32)
        places = np.round(np.arange(6, 40, 6) * fs_hz).astype(int) + shift
        signal_mv[:, places] = np.nan
        segments, _ = windows.inputs(signal_mv, fs_hz)
        measured = measured_segments(signal_mv)
        listed = windows.segments(signal_mv.shape[1], fs_hz, measured=measured)
        assert listed.index.tolist() == segments.index.tolist()
        assert len(listed) < 20


def test_without_gaps_nothing_is_left_out(windows):
    listed = windows.segments(1999, 250.0)
    assert listed.start_s.tolist() == [0.0, 2.0, 4.0]
    assert listed.stop_s.tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("kind", ["windows", "beats"])
def test_only_some_segments_are_those_among_all(kind, request):
    found = request.getfixturevalue(kind)
    record = made_record()
    peaks = found.peaks(record.signal_mv, record.fs_hz)
    everything, inputs = found.inputs(record.signal_mv, record.fs_hz, peaks)
    some, chosen = found.inputs(record.signal_mv, record.fs_hz, peaks, [40, 7, 4, 10**6, 30])
    rows = everything.rows_of([7, 30, 40])
    if kind == "windows":
        assert some.index.tolist() == [7, 30, 40]  # 4 lies in a gap
    assert some.index.tolist() == everything.index[everything.rows_of([4, 7, 30, 40])].tolist()
    assert np.array_equal(chosen[some.rows_of([7, 30, 40])], inputs[rows])
    assert not some.is_whole


def test_a_signal_with_gaps_around_what_is_needed_gives_the_same_windows(windows):
    record = made_record(gaps=())
    _, expected = windows.inputs(record.signal_mv, record.fs_hz, None, [0, 7, 8, 40, 59])
    ranges = windows.needed([0, 7, 8, 40, 59], n_samples=record.n_samples, fs_hz=record.fs_hz)
    part = np.full_like(record.signal_mv, np.nan)
    for start, stop in ranges:
        part[:, start:stop] = record.signal_mv[:, start:stop]
    segments, inputs = windows.inputs(part, record.fs_hz, None, [0, 7, 8, 40, 59])
    assert len(ranges) == 4
    assert segments.index.tolist() == [0, 7, 8, 40, 59]
    np.testing.assert_allclose(inputs, expected, atol=2e-6)
    assert sum(b - a for a, b in ranges) <= FS_HZ * (5 * 2 + 7 * MARGIN_S) + 20


def test_beats_are_shown_without_overlap_and_around_their_peaks(beats):
    listed = beats.segments(2500, 250.0, np.array([100, 350, 475, 1200, 1480]))
    assert listed.index.tolist() == [1, 2, 3, 4]  # a window begins a second before its peak
    assert listed.peak_s.tolist() == [1.4, 1.9, 4.8, 5.92]
    np.testing.assert_allclose(listed.start_s, [1.0, 1.7, 4.4, 5.52])
    np.testing.assert_allclose(listed.stop_s, [1.7, 2.5, 5.4, 6.52])


def test_a_recording_without_a_beat_has_no_segments(beats):
    signal_mv = np.zeros((1, 5000), dtype=np.float32)
    peaks = beats.peaks(signal_mv, 250.0)
    segments, inputs = beats.inputs(signal_mv, 250.0, peaks)
    assert len(peaks) == len(segments) == 0
    assert inputs.shape == (0, 2, 219)


@pytest.mark.parametrize("n_samples", [0, 1, 499])
def test_a_recording_shorter_than_a_window_has_no_segments(windows, n_samples):
    segments, inputs = windows.inputs(np.ones((1, n_samples), dtype=np.float32), 250.0)
    assert len(segments) == 0
    assert inputs.shape == (0, 1, 400)
    assert len(windows.segments(n_samples, 250.0)) == 0


def test_what_touches_a_time_is_found(windows):
    listed = windows.segments(5000, 250.0)
    assert listed.select(listed.between(3.9, 6.0)).index.tolist() == [1, 2]


def test_a_selection_of_all_stays_whole():
    three = np.arange(3)
    segments = Segments(index=three, start_s=three * 2.0, stop_s=three * 2.0 + 2)
    assert segments.select(np.ones(3, dtype=bool)).is_whole
    assert not segments.select(np.array([0, 2])).is_whole


def test_a_rate_that_the_base_cannot_take_is_refused(windows, beats):
    windows.check_rate(360.0)
    with pytest.raises(DataError, match="can't be resampled to 200.0 Hz"):
        windows.check_rate(333.37)
    with pytest.raises(DataError, match="fs_hz is 0.0; expected a number of hertz"):
        windows.check_rate(0.0)
    with pytest.raises(DataError, match="fs_hz is 80; beats can be found from 100 Hz on"):
        beats.peaks(np.zeros((1, 1000)), 80.0)


def test_beats_without_peaks_and_several_leads_are_refused(windows, beats):
    with pytest.raises(DataError, match="peaks is None; beats need the R peaks"):
        beats.inputs(np.zeros((1, 1000)), 250.0)
    with pytest.raises(DataError, match=r"shape \(2, 1000\); expected one lead"):
        windows.inputs(np.zeros((2, 1000)), 250.0)
