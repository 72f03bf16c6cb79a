"""Signals come back bit by bit, and only the part that is asked for is read."""

import numpy as np
import pytest
from store_cases import BEATS, add_recording, dump, ramp

from metaecg.errors import DataError
from metaecg.serve.store_errors import NotFoundError
from metaecg.serve.store_signal import OVERVIEW_SAMPLES, chunk_length, chunks_of, overview_of

CHUNK = 15_040  # samples of a minute and a bit at 250 Hz


@pytest.fixture
def at(store):
    """Organisation and patient of a store with one patient."""
    org_id = store.create_org("clinic").org_id
    store.create_patient(org_id, "s-1")
    return org_id, "s-1"


def test_what_is_known_of_a_recording_is_what_was_given(store, at):
    made = add_recording(
        store, *at, signal_mv=ramp(500, n_leads=2), lead=1, name="früh.hea", fs_hz=128.5
    )
    found = store.get_recording(*at, made.recording_id)
    assert found == made
    assert (found.lead_names, found.lead, found.n_samples) == (("II", "V1"), 1, 500)
    assert found.duration_s == pytest.approx(500 / 128.5)
    assert store.list_recordings(*at) == [made]


@pytest.mark.parametrize("n_samples", [1, 63, 64, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_a_signal_comes_back_bit_by_bit_with_its_gaps(store, at, n_samples):
    signal_mv = np.random.default_rng(7).normal(size=(2, n_samples)).astype(np.float32)
    signal_mv[1, : n_samples // 3] = np.nan
    made = add_recording(store, *at, signal_mv=signal_mv)
    found = store.read_signal(*at, made.recording_id)
    assert found.dtype == np.float32
    assert found.tobytes() == signal_mv.tobytes()


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, 1),
        (CHUNK - 1, CHUNK + 1),
        (CHUNK, 2 * CHUNK),
        (100, 3 * CHUNK),
        (39_999, None),
        (39_999, 10**12),
        (5, 5),
    ],
)
def test_any_part_of_any_lead_is_that_part(store, at, start, stop):
    signal_mv = ramp(40_000, n_leads=3)
    made = add_recording(store, *at, signal_mv=signal_mv)
    part = store.read_signal(*at, made.recording_id, start=start, stop=stop)
    assert np.array_equal(part, signal_mv[:, start:stop])
    one = store.read_signal(*at, made.recording_id, start=start, stop=stop, lead=2)
    assert np.array_equal(one, signal_mv[2:, start:stop])


def test_a_part_beyond_the_end_is_empty(store, at):
    made = add_recording(store, *at, signal_mv=ramp(100))
    for start in (100, 101, 10**6, 2**40):
        assert store.read_signal(*at, made.recording_id, start=start).shape == (1, 0)
        assert store.read_overview(*at, made.recording_id, lead=0, start=start)[0].shape == (0,)


@pytest.mark.parametrize(
    "wrong", [{"start": -1}, {"start": 5, "stop": 4}, {"lead": 1}, {"lead": -1}, {"start": 0.5}]
)
def test_a_part_that_cannot_be_is_refused(store, at, wrong):
    made = add_recording(store, *at, signal_mv=ramp(100))
    with pytest.raises(DataError, match="expected a whole number"):
        store.read_signal(*at, made.recording_id, **wrong)


def test_the_overview_is_that_of_the_whole_signal_without_seams(store, at):
    signal_mv = np.random.default_rng(7).normal(size=(2, 2 * CHUNK + 100)).astype(np.float32)
    signal_mv[1, 64:128] = np.nan  # a pair without a sample
    signal_mv[1, 128:150] = np.nan  # a pair with some
    made = add_recording(store, *at, signal_mv=signal_mv)
    for lead in (0, 1):
        minimum, maximum = store.read_overview(*at, made.recording_id, lead=lead)
        expected = overview_of(signal_mv[lead])
        assert np.array_equal(minimum, expected[0], equal_nan=True)
        assert np.array_equal(maximum, expected[1], equal_nan=True)
        for start, stop in ((0, 10), (230, 240), (235, 472), (400, None)):
            part, _ = store.read_overview(*at, made.recording_id, lead=lead, start=start, stop=stop)
            assert np.array_equal(part, minimum[start:stop], equal_nan=True)


def test_an_overview_has_a_pair_per_64_samples_and_leaves_gaps_out():
    samples = np.arange(130, dtype=np.float32)
    samples[3:7] = np.nan
    minimum, maximum = overview_of(samples)
    assert (minimum.tolist(), maximum.tolist()) == ([0, 64, 128], [63, 127, 129])
    assert np.isnan(overview_of(np.full(65, np.nan))).all()
    assert OVERVIEW_SAMPLES == 64


@pytest.mark.parametrize("fs_hz", [0.1, 100.0, 128.0, 250.0, 360.0, 1000.0])
def test_a_chunk_is_whole_pairs_of_the_overview_and_about_a_minute(fs_hz):
    length = chunk_length(fs_hz)
    assert length % OVERVIEW_SAMPLES == 0
    assert 0 <= length - 60 * fs_hz < OVERVIEW_SAMPLES


def test_only_the_chunks_that_hold_the_part_are_read(store, at):
    made = add_recording(store, *at, signal_mv=ramp(10 * CHUNK, n_leads=2))
    rows = dump(store)["signal_chunks"]
    assert len(rows) == 20
    # With every other chunk gone, the part can still be read.
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM signal_chunks WHERE lead <> 1 OR number <> 4")
    part = store.read_signal(
        *at, made.recording_id, start=4 * CHUNK + 10, stop=5 * CHUNK - 10, lead=1
    )
    assert part.shape == (1, CHUNK - 20)


def test_an_ecg_takes_less_room_than_its_samples():
    time_s = np.arange(60 * 250) / 250
    wave = np.round(200 * np.exp(-50 * (time_s % 0.8 - 0.4) ** 2)) / 200  # 12 bits, as recorded
    (chunk,) = chunks_of(wave[None].astype(np.float32), chunk_samples=chunk_length(250.0))
    assert len(chunk["samples"]) < 0.5 * wave.size * 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"signal_mv": np.zeros(10)},
        {"signal_mv": np.zeros((2, 10)), "lead_names": ["II"]},
        {"signal_mv": np.zeros((1, 0))},
        {"lead": 1},
        {"lead": -1},
        {"fs_hz": 0.0},
        {"fs_hz": float("nan")},
        {"name": "a" * 256},
        {"name": "nul\x00"},
        {"lead_names": ["\ud800"]},
        {"peaks": None},
        {"segmentation": None},
        {"peaks": np.array([1, 1])},
        {"peaks": np.array([0.5])},
        {"peaks": np.array([0, 40_000])},
    ],
)
def test_a_recording_that_does_not_fit_together_is_refused_whole(store, at, wrong):
    before = dump(store)
    with pytest.raises(ValueError, match="expected|both or neither|character that is none"):
        add_recording(store, *at, **wrong)
    assert dump(store) == before


def test_beats_are_kept_beside_the_recording_and_can_be_replaced(store, at):
    made = add_recording(store, *at)
    assert store.read_peaks(*at, made.recording_id, BEATS).tolist() == [10, 200, 390]
    assert store.read_peaks(*at, made.recording_id, "beats:other") is None
    store.put_peaks(*at, made.recording_id, "beats:other", np.array([], dtype=np.int64))
    store.put_peaks(*at, made.recording_id, BEATS, np.array([7]))
    assert store.read_peaks(*at, made.recording_id, "beats:other").tolist() == []
    assert store.read_peaks(*at, made.recording_id, BEATS).tolist() == [7]
    assert store.read_peaks(*at, made.recording_id, BEATS).dtype == np.int64


@pytest.mark.parametrize("recording_id", ["", "x", "0" * 32, "A" * 32, "../../etc", None, "\x00"])
def test_a_recording_that_is_not_there_is_not_found(store, at, recording_id):
    for call in (store.get_recording, store.read_signal, store.delete_recording):
        with pytest.raises(NotFoundError, match="there is no recording"):
            call(*at, recording_id)
