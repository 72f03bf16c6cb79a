"""A recording becomes an input: band, rate, scale and length, each with a readable answer."""

import numpy as np
import pytest
from scipy import signal

from metaecg.data.twelve_lead_input import PAPER_INPUT, TwelveLeadInput, fit_length
from metaecg.errors import DataError

RAW = {"fs_hz": 500.0, "n_samples": 5000, "normalize": "none"}


def tone(f_hz, *, fs_hz=500.0, seconds=10.0):
    time_s = np.arange(round(seconds * fs_hz)) / fs_hz
    return np.tile(np.sin(2 * np.pi * f_hz * time_s), (12, 1))


def test_the_published_input_has_12288_milliseconds():
    found = PAPER_INPUT.prepare(tone(10), fs_hz=500.0)
    assert (found.shape, found.dtype) == ((12, 6144), np.float32)
    assert not found[:, 5000:].any() and found[:, :5000].any()


def test_the_band_pass_is_the_published_filter_run_both_ways():
    signals = np.random.default_rng(7).normal(size=(12, 5000))
    b, a = signal.butter(3, (1, 47), btype="bandpass", fs=500)
    expected = signal.filtfilt(b, a, signals, axis=-1)
    assert TwelveLeadInput(**RAW).prepare(signals, fs_hz=500.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("f_hz", "gain"), [(0.1, 0.0), (10.0, 1.0), (47.0, 0.5), (120.0, 0.0)])
def test_the_band_is_kept_and_the_rest_is_gone(f_hz, gain):
    middle = TwelveLeadInput(**RAW).prepare(tone(f_hz), fs_hz=500.0)[:, 1000:4000]
    assert middle.max() == pytest.approx(gain, abs=0.02)


@pytest.mark.parametrize("fs_hz", [100.0, 250.0, 257.0, 1000.0])
def test_another_rate_gives_nearly_the_same_input(fs_hz):
    expected = TwelveLeadInput(**RAW).prepare(tone(10), fs_hz=500.0)
    found = TwelveLeadInput(**RAW).prepare(tone(10, fs_hz=fs_hz), fs_hz=fs_hz)
    assert found[:, 500:4500] == pytest.approx(expected[:, 500:4500], abs=0.03)


def test_an_offset_does_not_ring_when_the_rate_changes():
    found = TwelveLeadInput(**RAW).prepare(np.full((12, 1000), 7.0), fs_hz=100.0)
    assert np.abs(found).max() < 1e-4


def test_a_drift_does_not_ring_at_the_ends_when_the_rate_changes():
    fine, coarse = (np.tile(np.arange(n) * 10.0 / n, (12, 1)) for n in (5000, 1000))
    expected = TwelveLeadInput(**RAW).prepare(fine, fs_hz=500.0)
    found = TwelveLeadInput(**RAW).prepare(coarse, fs_hz=100.0)
    assert found == pytest.approx(expected, abs=0.05)


def test_every_lead_is_scaled_by_its_own_spread_and_a_flat_one_stays_zero():
    signals = tone(10) * np.arange(12)[:, None] + 3.0  # lead 0 is flat
    found = TwelveLeadInput(fs_hz=500.0, n_samples=5000).prepare(signals, fs_hz=500.0)
    assert found.mean(axis=-1) == pytest.approx(np.zeros(12), abs=1e-5)
    assert found.std(axis=-1) == pytest.approx([0.0] + [1.0] * 11, abs=1e-5)
    assert not found[0].any()


def test_a_batch_is_prepared_as_its_recordings_are():
    batch = np.random.default_rng(7).normal(size=(3, 12, 1000))
    chosen = TwelveLeadInput(fs_hz=100.0, n_samples=1024)
    expected = np.stack([chosen.prepare(each, fs_hz=100.0) for each in batch])
    assert np.array_equal(chosen.prepare(batch, fs_hz=100.0), expected)


def test_a_long_recording_keeps_its_beginning_and_a_short_one_gets_zeros():
    assert fit_length(np.array([[1, 2, 3]]), 2).tolist() == [[1, 2]]
    assert fit_length(np.array([[1, 2, 3]]), 5).tolist() == [[1, 2, 3, 0, 0]]


def test_the_signals_handed_over_are_left_alone():
    signals = tone(10)
    before = signals.copy()
    PAPER_INPUT.prepare(signals, fs_hz=500.0)
    assert np.array_equal(signals, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fs_hz": 0.0}, "fs_hz is 0.0"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"fs_hz": 90.0}, r"band-pass is 1.0 to 47.0 Hz at 90.0 Hz; .* < 45\."),
        ({"lowcut_hz": 50.0}, "band-pass is 50.0 to 47.0"),
        ({"normalize": "window"}, "normalize is 'window'; expected one of lead, none"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TwelveLeadInput(**{"fs_hz": 500.0, "n_samples": 5000, **settings})


@pytest.mark.parametrize(
    ("signals", "fs_hz", "message"),
    [
        (np.zeros(1000), 500.0, r"signals has shape \(1000,\)"),
        (np.full((12, 1000), np.nan), 500.0, "signals holds 12000 samples that are NaN"),
        (np.zeros((12, 20)), 500.0, "a recording has 20 samples at 500 Hz; .* more than 21"),
        (np.zeros((12, 1000)), 499.99, "499.99 Hz can't be resampled to 500.0 Hz"),
    ],
)
def test_signals_that_cannot_be_prepared_are_refused(signals, fs_hz, message):
    with pytest.raises(DataError, match=message):
        PAPER_INPUT.prepare(signals, fs_hz=fs_hz)
