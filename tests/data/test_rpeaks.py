"""R peaks are found where the beats are, never in a gap; matching pairs each beat once."""

import numpy as np
import pytest

from metaecg.data.labels import DS1, beat_labels
from metaecg.data.records import read_record
from metaecg.data.rpeaks import SHORTEST_S, TOLERANCE_S, detect_r_peaks, match_beats
from metaecg.errors import DataError

FS_HZ = 250.0
PLACES = np.arange(200, 30_000, 200)  # two minutes of a beat every 0.8 s


def ecg(places=PLACES, *, n_samples=30_000, fs_hz=FS_HZ, height_mv=1.0, noise_mv=0.01):
    """Return a lead with a narrow beat, about 60 ms wide, at each place."""
    at = np.zeros(n_samples)
    at[places] = height_mv
    beat = np.hanning(2 * round(0.03 * fs_hz) + 1)
    noise = np.random.default_rng(7).normal(scale=noise_mv, size=n_samples)
    return np.convolve(at, beat, mode="same") + noise


@pytest.mark.parametrize("height_mv", [1.0, -1.0, 0.3])
def test_every_beat_is_found_at_its_peak_upwards_or_downwards(height_mv):
    found = detect_r_peaks(ecg(height_mv=height_mv), fs_hz=FS_HZ)
    assert found.dtype == np.int64
    assert len(found) == len(PLACES)
    assert np.abs(found - PLACES).max() <= 2


@pytest.mark.parametrize("fs_hz", [100.0, 128.0, 257.0, 360.0, 500.0])
def test_the_rate_is_free(fs_hz):
    places = np.arange(1, 60) * round(fs_hz)
    found = detect_r_peaks(ecg(places, n_samples=round(61 * fs_hz), fs_hz=fs_hz), fs_hz=fs_hz)
    assert np.abs(found - places).max() <= 0.01 * fs_hz


def test_a_glitch_of_five_volts_costs_no_beat_a_minute_away():
    lead = ecg()
    lead[15_000:15_100] += 5_000.0
    found = detect_r_peaks(lead, fs_hz=FS_HZ)
    far = PLACES[np.abs(PLACES - 15_050) > 40 * FS_HZ]
    assert set(match_beats(found / FS_HZ, far / FS_HZ)) >= set(range(len(far)))


def test_beats_are_found_on_both_sides_of_a_gap_and_none_in_it():
    lead = ecg()
    lead[10_100:12_100] = np.nan
    found = detect_r_peaks(lead, fs_hz=FS_HZ)
    assert not ((found >= 10_100) & (found < 12_100)).any()
    outside = PLACES[(PLACES < 10_100) | (PLACES > 12_100)]
    assert np.abs(found - outside).max() <= 2


def test_lost_samples_here_and_there_cost_no_beats():
    lead = ecg()
    lead[77::500] = np.nan  # between the beats: every measured stretch is two seconds
    lead[78::500] = np.nan
    found = detect_r_peaks(lead, fs_hz=FS_HZ)
    assert len(found) == len(PLACES)


def test_a_peak_that_was_not_measured_is_not_found_there():
    lead = ecg()
    lead[PLACES[50] - 3 : PLACES[50] + 4] = np.nan
    found = detect_r_peaks(lead, fs_hz=FS_HZ)
    assert np.isfinite(lead[found]).all()
    assert abs(len(found) - len(PLACES)) <= 1


@pytest.mark.parametrize(
    "lead",
    [
        np.zeros(0),
        np.zeros(10_000),
        np.full(10_000, np.nan),
        np.full(10_000, -1.5),
        ecg()[: round(SHORTEST_S * FS_HZ) - 1],
        np.random.default_rng(7).normal(scale=0.005, size=10_000),
    ],
    ids=["empty", "zero", "not measured", "flat", "too short", "noise of 5 microvolts"],
)
def test_where_nothing_beats_nothing_is_found(lead):
    found = detect_r_peaks(lead, fs_hz=FS_HZ)
    assert found.dtype == np.int64 and len(found) == 0


def test_a_long_flat_stretch_between_beats_stays_empty():
    lead = ecg(noise_mv=0.0)
    lead[8_100:20_100] = 0.0
    found = detect_r_peaks(lead, fs_hz=FS_HZ)
    outside = PLACES[(PLACES < 8_100) | (PLACES > 20_100)]
    assert np.abs(found - outside).max() <= 2


def test_noise_of_microvolts_between_beats_is_no_beat():
    lead = ecg(noise_mv=0.005)
    lead[8_100:11_100] = lead[8_100:11_100].mean() + np.random.default_rng(8).normal(
        0, 0.005, 3_000
    )
    found = detect_r_peaks(lead, fs_hz=FS_HZ)
    assert not ((found > 8_100) & (found < 11_100)).any()
    assert len(found) == ((PLACES < 8_100) | (PLACES > 11_100)).sum()


def test_noise_of_any_length_is_survived():
    rng = np.random.default_rng(7)
    for n_samples in rng.integers(500, 20_000, size=40):
        lead = rng.normal(size=n_samples)
        lead[-rng.integers(1, 100) :] += 5.0
        found = detect_r_peaks(lead, fs_hz=FS_HZ)
        assert (np.diff(found) > 0).all()
        assert len(found) == 0 or 0 <= found[0] <= found[-1] < n_samples


def test_the_same_lead_gives_the_same_peaks_as_a_row():
    lead = ecg()
    np.testing.assert_array_equal(
        detect_r_peaks(lead, fs_hz=FS_HZ), detect_r_peaks(lead[None], fs_hz=FS_HZ)
    )


def test_several_leads_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 500\); expected one lead"):
        detect_r_peaks(np.zeros((2, 500)), fs_hz=FS_HZ)


@pytest.mark.parametrize(("fs_hz", "message"), [(80.0, "fs_hz is 80"), (0.0, "fs_hz is 0")])
def test_a_rate_too_low_is_refused(fs_hz, message):
    with pytest.raises(ValueError, match=message):
        detect_r_peaks(np.zeros(500), fs_hz=fs_hz)


def test_no_beat_is_matched_twice_and_the_nearest_wins():
    found = match_beats(np.array([0.9, 1.05, 2.0]), np.array([1.0, 2.1, 3.0]))
    assert found.tolist() == [-1, 0, 1]


def test_a_match_is_at_most_150_ms_away():
    edge = 1.0 + TOLERANCE_S
    assert match_beats(np.array([edge]), np.array([1.0])).tolist() == [0]
    assert match_beats(np.array([edge + 0.001]), np.array([1.0])).tolist() == [-1]


def test_nothing_matches_nothing():
    none = np.zeros(0)
    assert match_beats(none, np.array([1.0])).tolist() == []
    assert match_beats(np.array([1.0]), none).tolist() == [-1]


@pytest.mark.real
def test_matching_real_beats_agrees_with_wfdbs_comparison(real_data):
    from wfdb.processing import compare_annotations

    record = read_record(real_data / "mitdb" / "208")
    sample, _ = beat_labels(record.annotations)
    found = detect_r_peaks(record.signal_mv[0], fs_hz=record.fs_hz)
    of = match_beats(found / record.fs_hz, sample / record.fs_hz)
    theirs = compare_annotations(sample, found, round(TOLERANCE_S * record.fs_hz))
    assert ((of >= 0).sum(), (of < 0).sum()) == (theirs.tp, theirs.fp)


@pytest.mark.real
@pytest.mark.parametrize("name", ["106", "203", "208"])
def test_ventricular_beats_of_ds1_are_not_missed(real_data, name):
    assert name in DS1  # three records on which a threshold on the slope loses a seventh to a third
    record = read_record(real_data / "mitdb" / name)
    sample, label = beat_labels(record.annotations)
    found = detect_r_peaks(record.signal_mv[0], fs_hz=record.fs_hz)
    of = match_beats(found / record.fs_hz, sample / record.fs_hz)
    is_found = np.isin(np.arange(len(sample)), of)
    assert is_found[label == "V"].mean() > 0.9
    assert is_found.mean() > 0.95
    assert (of < 0).mean() < 0.01
