"""What is taken from a recording piece by piece equals what is taken from the whole."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from serve_cases import RHYTHM, make_base

from metaecg.serve import recordings
from metaecg.serve.recordings import (
    GapCache,
    Judged,
    Opened,
    episodes_of,
    inputs_of,
    judge,
    measured_ranges,
    see,
)
from metaecg.serve.segment_probabilities import probabilities
from metaecg.serve.segments import segmentation_of
from metaecg.serve.store_rows import RecordingInfo

BASE = make_base(rhythm=RHYTHM)
SEGMENTATION = segmentation_of(BASE)


def opened(signal: np.ndarray, fs_hz: float, asked: list | None = None) -> Opened:
    """Return a recording of this signal; the stretches that are read are noted in `asked`."""
    info = RecordingInfo(
        recording_id="0" * 32,
        name="",
        fs_hz=fs_hz,
        lead_names=("II",),
        lead=0,
        n_samples=len(signal),
        source_format="json",
        digest="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )

    def read(start: int, stop: int) -> np.ndarray:
        if asked is not None:
            asked.append((start, stop))
        return signal[None, start:stop]

    return Opened(info=info, peaks=None, read=read)


def noise(n: int, *, gaps=()) -> np.ndarray:
    signal = np.random.default_rng(7).normal(size=n).astype(np.float32)
    for start, stop in gaps:
        signal[start:stop] = np.nan
    return signal


@pytest.mark.parametrize("fs_hz", [100.0, 250.0, 360.0, 128.0, 256.25])
def test_some_windows_of_a_recording_are_those_of_the_whole(fs_hz):
    signal = noise(round(400 * fs_hz), gaps=[(1000, 1010), (20_000, 20_001)])
    whole, all_inputs = SEGMENTATION.inputs(signal[None], fs_hz)
    only = [0, 1, 5, 77, 78, 200, 399, 4000]
    found, inputs = inputs_of(SEGMENTATION, opened(signal, fs_hz), only)
    rows = whole.rows_of(only)
    assert found.index.tolist() == whole.index[rows].tolist()
    np.testing.assert_array_equal(found.start_s, whole.start_s[rows])
    np.testing.assert_allclose(inputs, all_inputs[rows], atol=1e-5)


def test_only_what_is_needed_of_a_long_recording_is_read():
    asked = []
    inputs_of(SEGMENTATION, opened(noise(100_000), 100.0, asked), [10, 900])
    assert len(asked) == 2
    assert sum(stop - start for start, stop in asked) < 2000


def test_a_recording_is_seen_in_blocks_as_it_is_at_once(monkeypatch):
    monkeypatch.setattr(recordings, "BLOCK_SEGMENTS", 7)
    monkeypatch.setattr(recordings, "JOIN_S", 0.0)
    signal = noise(10_000, gaps=[(3333, 3400), (5000, 5001)])
    segments, inputs = SEGMENTATION.inputs(signal[None], 100.0)
    seen = see(SEGMENTATION, opened(signal, 100.0), BASE)
    np.testing.assert_allclose(seen.logits, BASE.logits(inputs), atol=1e-4)
    for rhythm in ("none", "causal", "offline"):
        expected = probabilities(BASE, None, segments, inputs, rhythm)
        found = judge(BASE, None, seen, rhythm)
        assert found.index.tolist() == segments.index.tolist()
        np.testing.assert_allclose(found.probability, expected, atol=1e-5)


def test_a_recording_without_a_whole_window_has_no_predictions():
    for signal in (noise(50), noise(300, gaps=[(0, 300)])):
        seen = see(SEGMENTATION, opened(signal, 100.0), BASE)
        found = judge(BASE, None, seen, "offline")
        assert found.probability.shape == (0, 2)
        assert episodes_of(found, np.zeros(0, bool), np.zeros(0)) == []


@pytest.mark.parametrize("block", [1, 3, 10, 100])
def test_gaps_are_found_whatever_is_read_at_once(block):
    signal = noise(30, gaps=[(0, 2), (9, 10), (10, 12), (29, 30)])
    read = opened(signal, 100.0).read
    assert measured_ranges(read, 30, block=block).tolist() == [[2, 9], [12, 29]]


@pytest.mark.parametrize("block", [1, 3, 10, 100])
def test_short_stretches_are_left_out_wherever_blocks_end(block):
    signal = noise(30, gaps=[(0, 2), (5, 6), (9, 10), (17, 19), (29, 30)])
    read = opened(signal, 100.0).read
    assert measured_ranges(read, 30, is_long=lambda n: n >= 7, block=block).tolist() == [
        [10, 17],
        [19, 29],
    ]


def test_gaps_are_looked_for_once():
    asked, cache = [], GapCache()
    recording = opened(noise(1000, gaps=[(250, 251)]), 100.0, asked)
    for _ in range(3):
        found = cache.measured_segments_of(SEGMENTATION, recording)
        assert found.index.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert len(asked) == 1


@pytest.mark.parametrize("fs_hz", [100.0, 250.0, 360.0, 128.0, 256.25])
@pytest.mark.parametrize("seed", range(3))
def test_segments_between_gaps_are_those_that_can_be_cut(fs_hz, seed):
    rng = np.random.default_rng(seed)
    signal = noise(round(60 * fs_hz))
    for start in rng.integers(0, len(signal), 12):
        signal[start : start + int(rng.integers(1, 2 * fs_hz))] = np.nan
    found = GapCache().measured_segments_of(SEGMENTATION, opened(signal, fs_hz))
    cut, _ = SEGMENTATION.inputs(signal[None], fs_hz)
    assert found.index.tolist() == cut.index.tolist()


def test_a_recording_with_a_gap_at_every_second_sample_takes_no_room():
    cache, signal = GapCache(), noise(100_000)
    signal[::2] = np.nan
    assert len(cache.measured_segments_of(SEGMENTATION, opened(signal, 100.0))) == 0
    assert cache.n_bytes < 1000


def test_the_gaps_of_many_recordings_stay_within_their_bound():
    cache = GapCache(max_bytes=10_000)
    for number in range(30):
        recording = opened(noise(20_000, gaps=[(i, i + 1) for i in range(0, 20_000, 500)]), 100.0)
        info = replace(recording.info, recording_id=f"{number:032x}")
        cache.measured_segments_of(SEGMENTATION, replace(recording, info=info))
        assert cache.n_bytes <= 10_000
    assert cache.n_bytes > 5000


def test_an_episode_ends_where_a_segment_is_missing():
    index = np.array([0, 1, 2, 4, 5, 9])
    judged = Judged(
        index=index, start_s=index * 1.0, stop_s=index + 1.0, probability=np.zeros((6, 2))
    )
    positive = np.array([0.1, 0.8, 0.9, 0.7, 0.2, 0.6])
    found = episodes_of(judged, positive > 0.5, positive)
    assert [(e["start_s"], e["stop_s"], e["n_segments"], e["peak_probability"]) for e in found] == [
        (1.0, 3.0, 2, 0.9),
        (4.0, 5.0, 1, 0.7),
        (9.0, 10.0, 1, 0.6),
    ]
