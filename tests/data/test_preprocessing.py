"""The band-pass, measured from outside; nothing beyond the margin; normalisation."""

import numpy as np
import pytest

from metaecg.data import filtering
from metaecg.data.filtering import filter_segment
from metaecg.data.preprocessing import MARGIN_S, MIN_STD_MV, Preprocessing, measured_segments
from metaecg.errors import DataError

RATES = (360.0, 250.0, 128.0, 200.0)
P = Preprocessing()


def filtered(signal_mv, fs_hz, *, start=0, preprocessing=P):
    return filter_segment(
        np.atleast_2d(signal_mv).astype(np.float32),
        start=start,
        fs_hz=fs_hz,
        preprocessing=preprocessing,
    )


def gain_db(frequency_hz, fs_hz, *, preprocessing=P):
    """Gain for a sine, from the part of the answer that no end touches."""
    t = np.arange(round(40 * fs_hz)) / fs_hz
    out, first = filtered(np.sin(2 * np.pi * frequency_hz * t), fs_hz, preprocessing=preprocessing)
    rate = preprocessing.fs_hz
    middle = slice(round(4 * rate), round(36 * rate))
    time = (np.arange(out.shape[1]) + first)[middle] / rate
    weight = np.hanning(len(time))
    phasor = (out[0][middle] * weight * np.exp(-2j * np.pi * frequency_hz * time)).sum()
    return 20 * np.log10(2 * abs(phasor) / weight.sum() + 1e-12)


def test_the_taps_of_the_band_pass_sum_to_zero_exactly_enough():
    for fs_hz in RATES:
        assert abs(filtering._kernels(fs_hz, P).taps.sum()) < 1e-6  # single precision


@pytest.mark.parametrize("fs_hz", RATES)
def test_a_constant_offset_leaves_less_than_a_ten_thousandth_of_itself(fs_hz):
    out, _ = filtered(np.full(round(20 * fs_hz), 5.0), fs_hz)
    assert np.abs(out).max() < 5.0 * 1e-4  # the resampler's phases; without resampling none


def test_without_resampling_a_constant_leaves_nothing():
    out, _ = filtered(np.full(4000, 5.0), 200.0)
    assert np.abs(out).max() < 2e-6  # float32


@pytest.mark.parametrize("fs_hz", RATES)
def test_the_gain_is_minus_6_db_at_both_cut_frequencies(fs_hz):
    assert gain_db(0.5, fs_hz) == pytest.approx(-6.02, abs=0.1)
    assert gain_db(40.0, fs_hz) == pytest.approx(-6.02, abs=0.3)


@pytest.mark.parametrize("fs_hz", RATES)
def test_the_pass_band_is_flat_from_2_to_30_hz(fs_hz):
    gains = [gain_db(f, fs_hz) for f in (2, 3, 5, 8, 12, 17, 23, 30)]
    assert max(np.abs(gains)) < 0.1


@pytest.mark.parametrize("fs_hz", RATES)
@pytest.mark.parametrize("mains_hz", [50, 60])
def test_mains_is_attenuated_by_50_db(fs_hz, mains_hz):
    assert gain_db(mains_hz, fs_hz) < -50


@pytest.mark.parametrize("fs_hz", [360.0, 250.0])
def test_what_lies_above_half_the_new_rate_does_not_fold_back(fs_hz):
    for frequency_hz in (110.0, 120.0):
        out, _ = filtered(np.sin(2 * np.pi * frequency_hz * np.arange(10_000) / fs_hz), fs_hz)
        assert np.abs(out[:, 600:-600]).max() < 0.003


def test_slow_drift_is_attenuated():
    assert gain_db(0.1, 250.0) < -25


@pytest.mark.parametrize("fs_hz", RATES)
def test_the_amplitude_and_the_phase_of_a_5_hz_sine_are_kept(fs_hz):
    t = np.arange(round(20 * fs_hz)) / fs_hz
    out, first = filtered(0.8 * np.sin(2 * np.pi * 5 * t), fs_hz)
    time = (np.arange(out.shape[1]) + first) / 200
    expected = 0.8 * np.sin(2 * np.pi * 5 * time)
    np.testing.assert_allclose(out[0, 400:-400], expected[400:-400], atol=0.01)


@pytest.mark.parametrize("fs_hz", RATES)
@pytest.mark.parametrize("start", [0, 1, 7, 8, 123])
def test_an_impulse_stays_where_it_is_whatever_sample_the_segment_starts_at(fs_hz, start):
    signal_mv = np.zeros(round(10 * fs_hz))
    at = round(5 * fs_hz) - start
    signal_mv[at] = 1.0
    out, first = filtered(signal_mv, fs_hz, start=start)
    assert first == int(np.ceil(start * 200 / fs_hz))
    assert (int(np.argmax(out)) + first) / 200 == 5.0
    peak = int(np.argmax(out))
    np.testing.assert_allclose(out[0, peak - 50 : peak], out[0, peak + 50 : peak : -1], atol=1e-5)


@pytest.mark.parametrize("fs_hz", RATES)
def test_a_segment_gives_as_much_time_as_it_holds(fs_hz):
    for n_samples in (round(2 * fs_hz), round(7.5 * fs_hz), round(2 * fs_hz) + 1):
        out, first = filtered(np.ones(n_samples), fs_hz)
        assert (first, out.shape) == (0, (1, int(n_samples * 200 // fs_hz)))


@pytest.mark.parametrize("fs_hz", RATES)
@pytest.mark.parametrize("seed", range(3))
def test_a_window_depends_on_nothing_beyond_the_margin(fs_hz, seed):
    rng = np.random.default_rng(seed)
    n_samples = round(20 * fs_hz)
    signal_mv = rng.normal(size=n_samples)
    start_s = float(rng.uniform(4, 12))
    window = slice(int(np.ceil(start_s * 200)), int(np.floor((start_s + 2) * 200)))
    low, high = (
        int((start_s - MARGIN_S) * fs_hz),
        int(np.ceil((start_s + 2 + MARGIN_S) * fs_hz)) + 1,
    )
    reference, _ = filtered(signal_mv, fs_hz)
    other = signal_mv.copy()
    other[:low] = rng.normal(3, 2, low)
    other[high:] = -2.0
    np.testing.assert_allclose(
        filtered(other, fs_hz)[0][:, window], reference[:, window], atol=1e-5
    )
    cut, first = filtered(signal_mv[low:high], fs_hz, start=low)
    moved = slice(window.start - first, window.stop - first)
    np.testing.assert_allclose(cut[:, moved], reference[:, window], atol=1e-5)


@pytest.mark.parametrize("fs_hz", RATES)
def test_a_window_does_depend_on_what_lies_just_inside_the_kernel(fs_hz):
    signal_mv = np.random.default_rng(0).normal(size=round(20 * fs_hz))
    other = signal_mv.copy()
    other[: round(7.5 * fs_hz)] += 5.0
    window = slice(8 * 200, 10 * 200)
    change = filtered(other, fs_hz)[0][:, window] - filtered(signal_mv, fs_hz)[0][:, window]
    assert np.abs(change).max() > 1e-3  # the test above would see a margin that is too short


def test_a_rate_whose_kernels_exceed_the_margin_is_refused():
    slow = Preprocessing(fs_hz=50.0, highcut_hz=20.0)
    with pytest.raises(DataError, match="needs a margin of 1.3.* s; at most 1.25 s.*higher fs_hz"):
        filtered(np.zeros(5000), 250.0, preprocessing=slow)


def test_a_rate_that_no_ratio_reaches_is_refused():
    with pytest.raises(DataError, match="257.123457 Hz can't be resampled to 200.0 Hz"):
        filtered(np.zeros(5000), 257.123457)


def test_leads_are_filtered_alike_and_apart():
    x, y = np.random.default_rng(0).normal(size=(2, 3000))
    both, _ = filtered(np.stack([x, y]), 250.0)
    np.testing.assert_allclose(both[0], filtered(x, 250.0)[0][0], atol=1e-6)
    np.testing.assert_allclose(both[1], filtered(y, 250.0)[0][0], atol=1e-6)


def test_the_segment_given_is_not_changed():
    signal_mv = np.random.default_rng(0).normal(size=(1, 2000)).astype(np.float32)
    before = signal_mv.copy()
    filter_segment(signal_mv, start=0, fs_hz=250.0, preprocessing=P)
    np.testing.assert_array_equal(signal_mv, before)


def test_measured_segments_are_those_in_which_every_lead_is_finite():
    signal_mv = np.zeros((2, 10))
    signal_mv[0, 3], signal_mv[1, 7], signal_mv[1, 9] = np.nan, np.inf, np.nan
    assert measured_segments(signal_mv) == [(0, 3), (4, 7), (8, 9)]
    assert measured_segments(np.full((1, 4), np.nan)) == []


# Normalisation


def test_each_lead_of_each_window_gets_mean_0_and_spread_1():
    windows = np.random.default_rng(0).normal(3, 2, (4, 2, 400))
    out = P.normalize_windows(windows)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1.1 * MIN_STD_MV, 1.0, 1e3])
def test_normalising_twice_is_normalising_once(scale):
    once = P.normalize_windows(np.random.default_rng(0).normal(1, scale, (5, 1, 400)))
    np.testing.assert_allclose(P.normalize_windows(once), once, atol=1e-5)


def test_only_a_flat_lead_grows_when_it_is_normalised_twice():
    once = P.normalize_windows(np.random.default_rng(0).normal(1, 0.1 * MIN_STD_MV, (5, 1, 400)))
    assert once.std() < 0.2
    assert P.normalize_windows(once).std() == pytest.approx(1, abs=1e-3)  # the documented limit


def test_a_flat_line_with_amplifier_noise_is_not_blown_up():
    noise = np.random.default_rng(0).normal(0.7, 0.002, (1, 1, 400))
    assert P.normalize_windows(noise).std() == pytest.approx(0.1, rel=0.1)
    assert np.all(P.normalize_windows(np.full((1, 1, 400), 2.5)) == 0)


def test_each_window_is_normalised_by_itself():
    windows = np.random.default_rng(0).normal(size=(3, 1, 400))
    alone = np.concatenate([P.normalize_windows(windows[i : i + 1]) for i in range(3)])
    np.testing.assert_array_equal(P.normalize_windows(windows), alone)


def test_normalisation_can_be_switched_off():
    windows = np.random.default_rng(0).normal(size=(3, 1, 400)).astype(np.float32)
    np.testing.assert_array_equal(
        Preprocessing(normalize="none").normalize_windows(windows), windows
    )


# Settings


def test_settings_survive_a_dictionary():
    settings = Preprocessing(fs_hz=250.0, window_s=4.0, lowcut_hz=1.0, highcut_hz=35.0)
    assert Preprocessing.from_dict(settings.to_dict()) == settings
    assert settings.n_samples == 1000


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(DataError, match="'?window_sec'?"):
        Preprocessing.from_dict({**P.to_dict(), "window_sec": 2.0})


@pytest.mark.parametrize(
    "wrong",
    [{"lowcut_hz": 0.4}, {"lowcut_hz": 40.0}, {"highcut_hz": 95.0}, {"highcut_hz": float("nan")}],
)
def test_a_band_that_cannot_be_is_refused_with_the_numbers(wrong):
    with pytest.raises(ValueError, match="band-pass is .* expected 0.5 <= lowcut_hz"):
        Preprocessing(**wrong)


@pytest.mark.parametrize("wrong", [{"fs_hz": 0}, {"window_s": -1.0}, {"fs_hz": float("nan")}])
def test_a_rate_or_length_that_is_not_positive_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
        Preprocessing(**wrong)


def test_an_unknown_normalisation_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="normalize is 'windows'.*Did you mean 'window'"):
        Preprocessing(normalize="windows")
