"""A live stream gives the windows of the file, whatever the chunks, `MARGIN_S` later."""

import numpy as np
import pytest

from metaecg.data.filtering import filter_segment
from metaecg.data.preprocessing import MARGIN_S, Preprocessing
from metaecg.data.records import read_record
from metaecg.data.stream import WindowStream
from metaecg.data.windows import cut_windows
from metaecg.errors import DataError

P = Preprocessing()


def streamed(signal_mv, fs_hz, *, rng, longest_s=3.0, preprocessing=P):
    """Push a signal in chunks of random length; return starts and windows."""
    stream = WindowStream(fs_hz=fs_hz, n_leads=len(signal_mv), preprocessing=preprocessing)
    at, found = 0, []
    while at < signal_mv.shape[1]:
        n_samples = int(rng.integers(0, round(longest_s * fs_hz)) + 1)
        found += stream.push(signal_mv[:, at : at + n_samples])
        at += n_samples
    found += stream.close()
    return [start_s for start_s, _ in found], [window for _, window in found]


def assert_stream_equals_file(record, *, rng, preprocessing=P, atol=2e-5, **options):
    expected, _ = cut_windows(record, preprocessing)
    starts, windows = streamed(
        record.signal_mv, record.fs_hz, rng=rng, preprocessing=preprocessing, **options
    )
    np.testing.assert_allclose(starts, expected.start_s)
    np.testing.assert_allclose(np.stack(windows), expected.windows, atol=atol)


@pytest.mark.parametrize("fs_hz", [360.0, 250.0, 200.0, 128.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_equals_the_file_whatever_the_chunks(make_record, fs_hz, seed):
    rng = np.random.default_rng(seed)
    signal_mv = rng.normal(size=(1, int(rng.uniform(15, 40) * fs_hz)))
    assert_stream_equals_file(make_record(signal_mv, fs_hz=fs_hz), rng=rng)


@pytest.mark.parametrize("fs_hz", [360.0, 250.0, 128.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_stream_with_gaps_equals_the_file_with_gaps(make_record, fs_hz, seed):
    rng = np.random.default_rng(100 + seed)
    signal_mv = rng.normal(size=(1, round(60 * fs_hz)))
    for _ in range(6):
        start = int(rng.integers(0, signal_mv.shape[1]))
        signal_mv[:, start : start + int(rng.integers(1, 2 * fs_hz))] = np.nan
    assert_stream_equals_file(make_record(signal_mv, fs_hz=fs_hz), rng=rng)


def test_gaps_at_the_edges_of_windows_are_treated_alike(make_record):
    for offset in (-2, -1, 0, 1, 2):
        signal_mv = np.random.default_rng(0).normal(size=(1, 5000))
        signal_mv[0, 2000 + offset] = np.nan
        assert_stream_equals_file(make_record(signal_mv), rng=np.random.default_rng(1))


@pytest.mark.parametrize("seed", range(3))
def test_single_samples_and_the_whole_at_once_give_the_same(make_record, seed):
    rng = np.random.default_rng(seed)
    record = make_record(rng.normal(size=(1, 1800)))
    assert_stream_equals_file(record, rng=rng, longest_s=1 / 250)
    stream = WindowStream(fs_hz=250.0, n_leads=1, preprocessing=P)
    pairs = stream.push(record.signal_mv) + stream.close()
    expected, _ = cut_windows(record, P)
    np.testing.assert_allclose(np.stack([w for _, w in pairs]), expected.windows, atol=2e-5)


@pytest.mark.parametrize("window_s", [0.3, 1.7, 5.0])
def test_other_window_lengths_and_several_leads_stream_alike(make_record, window_s):
    rng = np.random.default_rng(7)
    settings = Preprocessing(window_s=window_s, fs_hz=125.0, highcut_hz=30.0)
    record = make_record(rng.normal(size=(3, 9000)), fs_hz=360.0)
    assert_stream_equals_file(record, rng=rng, preprocessing=settings)


@pytest.mark.real
@pytest.mark.parametrize("name", ["mitdb/207", "vfdb/418", "cudb/cu02", "cudb/cu19"])
def test_a_real_record_streamed_equals_its_file(real_data, name):
    record = read_record(real_data / name)
    assert_stream_equals_file(record, rng=np.random.default_rng(0), longest_s=20.0, atol=1e-4)


def test_a_window_comes_as_soon_as_the_margin_after_it_is_there():
    stream = WindowStream(fs_hz=250.0, n_leads=1, preprocessing=P)
    needed = int(np.ceil((2.0 + MARGIN_S) * 250))
    assert stream.push(np.zeros((1, needed - 1))) == []
    assert [start_s for start_s, _ in stream.push(np.zeros((1, 1)))] == [0.0]
    assert stream.close() == []


def test_closing_hands_out_the_windows_that_waited():
    stream = WindowStream(fs_hz=250.0, n_leads=1, preprocessing=P)
    assert [s for s, _ in stream.push(np.zeros((1, 1000)))] == [0.0]
    assert [s for s, _ in stream.close()] == [2.0]


def test_a_long_stream_does_not_grow_the_memory():
    stream = WindowStream(fs_hz=250.0, n_leads=1, preprocessing=P)
    for _ in range(200):
        stream.push(np.zeros((1, 250)))
    assert stream._buffer.shape[1] < (2 + 2 * MARGIN_S + 2) * 250


def test_a_chunk_of_another_shape_is_refused_with_both():
    stream = WindowStream(fs_hz=250.0, n_leads=2, preprocessing=P)
    with pytest.raises(DataError, match=r"shape \(1, 100\); expected \(2, n_samples\)"):
        stream.push(np.zeros((1, 100)))
    with pytest.raises(DataError, match=r"shape \(100,\); expected \(2, n_samples\)"):
        stream.push(np.zeros(100))
    with pytest.raises(DataError, match=r"shape \(2,\); expected"):
        stream.push(np.zeros(2))


def test_a_rate_of_0_is_refused():
    with pytest.raises(ValueError, match="fs_hz is 0"):
        WindowStream(fs_hz=0, n_leads=1, preprocessing=P)


@pytest.mark.parametrize("cut", [0, 1, 777, 2000, 4999])
def test_a_stream_goes_on_where_its_state_was_taken(cut):
    signal_mv = np.random.default_rng(3).normal(size=(2, 6000))
    signal_mv[:, 3100:3300] = np.nan
    whole = WindowStream(fs_hz=250.0, n_leads=2, preprocessing=P)
    expected = [*whole.push(signal_mv[:, :cut]), *whole.push(signal_mv[:, cut:]), *whole.close()]

    before = WindowStream(fs_hz=250.0, n_leads=2, preprocessing=P)
    found = before.push(signal_mv[:, :cut])
    after = WindowStream.from_dict(before.to_dict())
    before.push(signal_mv)  # the state is a copy
    found += [*after.push(signal_mv[:, cut:]), *after.close()]
    assert [start_s for start_s, _ in found] == [start_s for start_s, _ in expected]
    for (_, window), (_, other) in zip(found, expected, strict=True):
        assert np.array_equal(window, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"next": -1}, r"next are \(0, -1\); expected whole numbers"),
        ({"next": 1.5}, r"next are \(0, 1.5\)"),
        ({"buffer_mv": np.zeros(3, np.float32)}, r"float32 of shape \(3,\)"),
        ({"buffer_mv": np.zeros((1, 3))}, "float64 of shape"),
        ({"surprise": 1}, "'surprise'"),
        ({"fs_hz": 0.0}, "fs_hz is 0.0"),
    ],
)
def test_a_state_that_cannot_be_is_refused(changes, message):
    state = WindowStream(fs_hz=250.0, n_leads=1, preprocessing=P).to_dict()
    with pytest.raises(ValueError, match=message):  # DataError is one
        WindowStream.from_dict(state | changes)


@pytest.mark.parametrize("fs_hz", [360.0, 250.0, 128.0])
def test_stretches_shorter_than_a_window_are_not_filtered(make_record, monkeypatch, fs_hz):
    """Every second sample missing: 20 s would be thousands of stretches of one sample each."""
    rng = np.random.default_rng(11)
    signal_mv = rng.normal(size=(1, round(20 * fs_hz)))
    signal_mv[:, : round(8 * fs_hz) : 2] = np.nan
    lengths = []

    def counted(segment_mv, **options):
        lengths.append(segment_mv.shape[1])
        return filter_segment(segment_mv, **options)

    monkeypatch.setattr("metaecg.data.stream.filter_segment", counted)
    assert_stream_equals_file(make_record(signal_mv, fs_hz=fs_hz), rng=rng)
    assert lengths and min(lengths) >= P.window_s * fs_hz
