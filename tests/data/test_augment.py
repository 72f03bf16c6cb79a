"""Changes to training windows: each does what it says, to whom it says, and nothing when it is off."""

import math

import pytest
import torch

from metaecg.data import augment as module
from metaecg.data.augment import Augmentation, require_generator
from metaecg.errors import DataError

FS_HZ, N_SAMPLES = 200.0, 400
ALL = {"gain": 0.3, "polarity": 0.5, "baseline": 0.3, "noise": 0.3, "time_warp": 0.1}


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_windows(n=50, *, n_leads=2, seed=1) -> torch.Tensor:
    """Windows of different size and offset, as in millivolts."""
    windows = torch.randn(n, n_leads, N_SAMPLES, generator=generator(seed))
    size = torch.linspace(0.1, 3.0, n)[:, None, None]
    return size * windows + 0.5


def make_sines(frequency_hz, n=50) -> torch.Tensor:
    time_s = torch.arange(N_SAMPLES) / FS_HZ
    return torch.sin(2 * math.pi * frequency_hz * time_s).expand(n, 1, N_SAMPLES).clone()


def changed_by(windows, *, seed=0, patients=None, **settings) -> torch.Tensor:
    augment = Augmentation(**settings)
    return augment(windows, fs_hz=FS_HZ, generator=generator(seed), patients=patients)


def spread(windows) -> torch.Tensor:
    return windows.std(-1, correction=0, keepdim=True)


def correlation(a, b) -> torch.Tensor:
    """Correlation of each lead of each window with the other one's, (n_windows, n_leads, 1)."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).mean(-1, keepdim=True) / (spread(a) * spread(b))


def share_of_added(windows, changed) -> torch.Tensor:
    """What was added, as a part of the window's spread, for windows it is orthogonal to on average.

    Of x + a n, scaled back to the spread of x, the correlation with x is 1 / sqrt(1 + a^2).
    """
    return (1 / correlation(windows, changed).clamp_max(1).square() - 1).sqrt()


@pytest.mark.parametrize("settings", [{}, {**ALL, "probability": 0.0}, {"probability": 0.5}])
def test_an_augmentation_that_is_off_hands_the_windows_on_and_draws_nothing(settings):
    augment, windows, drawn = Augmentation(**settings), make_windows(), generator()
    assert augment.is_off
    assert augment(windows, fs_hz=FS_HZ, generator=drawn) is windows
    assert torch.equal(drawn.get_state(), generator().get_state())


@pytest.mark.parametrize("name", ALL)
def test_every_part_alone_changes_windows_and_leaves_those_given_alone(name):
    windows, before = make_windows(), make_windows()
    changed = changed_by(windows, **{name: 0.5})
    assert not Augmentation(**{name: 0.5}).is_off
    assert changed.shape == windows.shape and changed.dtype == torch.float32
    assert torch.equal(windows, before)
    assert not torch.allclose(changed, windows)


def test_the_same_generator_gives_the_same_windows_and_another_one_others():
    first, again, other = (changed_by(make_windows(), seed=s, **ALL) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_is_drawn_from_the_global_random_state():
    before = torch.get_rng_state()
    changed_by(make_windows(), **ALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_gain_multiplies_all_leads_by_a_log_uniform_factor():
    windows = make_windows(2000)
    factor = changed_by(windows, gain=0.5) / windows
    of_window = factor[:, :1, :1]
    assert torch.allclose(factor, of_window.expand_as(factor), rtol=1e-4)
    log = of_window.log() / math.log(1.5)
    assert log.abs().max() <= 1.0001 and log.abs().max() > 0.99
    assert (log > 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert log.square().mean().item() == pytest.approx(1 / 3, abs=0.03)  # uniform in -1 to 1


def test_polarity_turns_all_leads_of_so_many_windows():
    windows = make_windows(2000)
    sign = changed_by(windows, polarity=0.25) / windows
    assert set(sign.flatten().tolist()) == {1.0, -1.0}
    assert torch.equal(sign, sign[:, :1, :1].expand_as(sign))
    assert (sign[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("settings", [{"time_warp": 0.2}, {"baseline": 0.5}, {"noise": 0.5}])
def test_every_lead_keeps_its_mean_and_spread_so_normalised_windows_stay_so(settings):
    windows = make_windows()
    changed = changed_by(windows, **settings)
    assert torch.allclose(changed.mean(-1), windows.mean(-1), atol=1e-4)
    assert torch.allclose(spread(changed), spread(windows), rtol=1e-4)


def test_a_flat_lead_stays_flat():
    windows = make_windows()
    windows[3, 1] = 0.0
    windows[4, 0] = 1.5
    changed = changed_by(windows, **ALL | {"gain": 0.0, "polarity": 0.0})
    assert torch.isfinite(changed).all()
    assert (changed[3, 1] == 0.0).all() and torch.allclose(changed[4, 0], torch.tensor(1.5))


@pytest.mark.parametrize("name", ["baseline", "noise"])
def test_what_is_added_is_uniform_up_to_its_part_of_the_spread(name):
    windows = make_sines(20.5, n=2000)  # a wander is far from it; of the noise little is near it
    share = share_of_added(windows, changed_by(windows, **{name: 0.4})).flatten()
    assert share.max().item() == pytest.approx(0.4, abs=0.02)
    assert share.mean().item() == pytest.approx(0.2, abs=0.01)
    assert (share < 0.1).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_leads_and_windows_have_noise_of_their_own():
    added = added_alone("noise", n_leads=2)
    between_leads = correlation(added[:, :1], added[:, 1:])
    between_windows = correlation(added[1:], added[:-1])
    for found in (between_leads, between_windows):
        assert abs(found.mean()) < 0.03 and 0.1 < found.std() < 0.6


def added_alone(name, *, n=3000, n_leads=1) -> torch.Tensor:
    """What is added, with little of the window left."""
    windows = make_sines(32.5, n=n).expand(n, n_leads, N_SAMPLES)
    return changed_by(windows, **{name: 1000.0})


def shares_of_power(windows) -> torch.Tensor:
    power = torch.fft.rfft(windows[:, 0]).abs().square()
    return power / power.sum(1, keepdim=True)


def test_the_noise_of_one_window_is_flat_and_of_another_nearly_all_slow():
    of_low = shares_of_power(added_alone("noise"))[:, 1:9].sum(1)
    assert (of_low < 0.3).float().mean() > 0.1
    assert (of_low > 0.8).float().mean() > 0.1


def test_the_noise_has_the_band_of_the_filter_and_its_power_falls_with_the_frequency():
    mean = shares_of_power(added_alone("noise")).mean(0)  # bins of 0.5 Hz
    assert mean[0] < 1e-6 and mean[81:].sum() < 1e-4  # no offset, no mains
    assert (mean[1:81] > 0).all()
    falling = torch.arange(1.0, 81) ** -torch.linspace(0, 2, 201)[:, None]
    expected = (falling[:, :8].sum(1) / falling.sum(1)).mean().item()
    assert mean[1:9].sum().item() == pytest.approx(expected, abs=0.03)  # 0.5 to 4 Hz
    assert 0.4 < expected < 0.7  # 0.1 if it were flat, 0.9 if always as 1 / f^2


def test_the_wander_lies_where_the_filter_leaves_something_of_it():
    power = torch.fft.rfft(added_alone("baseline")[:, 0], n=8 * N_SAMPLES).abs().square()
    mean = power.mean(0) / power.sum(1).mean()
    assert mean[: round(1.5 * 16)].sum() > 0.9  # bins of 1/16 Hz; a window of 2 s blurs them


def test_the_filter_leaves_of_a_wander_and_of_the_mains_what_is_said():
    from metaecg.data.filtering import _kernels
    from metaecg.data.preprocessing import Preprocessing

    taps = torch.from_numpy(_kernels(FS_HZ, Preprocessing()).taps)
    at = torch.arange(len(taps)) - len(taps) // 2

    def db(frequency_hz):
        gain = (taps * torch.cos(2 * math.pi * frequency_hz / FS_HZ * at)).sum().abs()
        return 20 * math.log10(gain)

    assert [round(db(f)) for f in (0.05, 0.3, 0.7)] == [-44, -13, -2]
    assert max(db(50.0), db(60.0)) < -50


def main_frequency(windows) -> torch.Tensor:
    """Frequency of the strongest part of each window, in steps of 1/32 Hz."""
    power = torch.fft.rfft(windows[:, 0] * torch.hann_window(N_SAMPLES), n=16 * N_SAMPLES).abs()
    return power.argmax(-1) * FS_HZ / (16 * N_SAMPLES)


def test_time_warp_multiplies_the_rate_by_a_log_uniform_factor():
    factor = main_frequency(changed_by(make_sines(8.0, n=1000), time_warp=0.25)) / 8.0
    log = factor.log() / math.log(1.25)
    assert log.abs().max().item() == pytest.approx(1.0, abs=0.05)
    assert (log > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert log.square().mean().item() == pytest.approx(1 / 3, abs=0.04)


def test_a_warp_goes_around_the_centre_by_linear_interpolation():
    line = torch.arange(9.0)[None, None]  # the centre is 4
    slower = module._at_rate(line, torch.tensor(0.5).view(1, 1, 1))
    assert torch.allclose(slower[0, 0], torch.arange(2.0, 6.5, 0.5))


def test_a_higher_rate_is_given_the_windows_own_samples_mirrored_at_the_edges():
    line = torch.arange(9.0)[None, None]
    faster = module._at_rate(line, torch.tensor(1.5).view(1, 1, 1))
    # The places would be -2, -0.5, 1, 2.5, 4, 5.5, 7, 8.5, 10.
    expected = torch.tensor([2.0, 0.5, 1.0, 2.5, 4.0, 5.5, 7.0, 7.5, 6.0])
    assert torch.allclose(faster[0, 0], expected, atol=1e-5)


def test_so_many_windows_are_changed_and_the_others_come_out_bit_for_bit():
    windows = make_windows(2000)
    changed = changed_by(windows, **ALL | {"probability": 0.7})
    same = (changed == windows).all(-1).all(-1)
    assert same.float().mean().item() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("name", ["gain", "time_warp", "polarity"])
def test_windows_of_a_patient_share_rate_gain_and_polarity(name):
    windows = make_sines(8.0, n=40)
    patients = torch.arange(8).repeat(5)
    changed = changed_by(windows, patients=patients, **{name: 0.4})
    for patient in range(8):
        mine = changed[patients == patient]
        assert torch.equal(mine, mine[:1].expand_as(mine))
    assert len(torch.unique(changed[:8], dim=0)) == (2 if name == "polarity" else 8)


@pytest.mark.parametrize("name", ["baseline", "noise"])
def test_windows_of_a_patient_have_baseline_and_noise_of_their_own(name):
    changed = changed_by(make_sines(8.0, n=6), patients=torch.zeros(6).long(), **{name: 0.4})
    assert len(torch.unique(changed, dim=0)) == 6


def test_all_windows_of_a_patient_are_changed_or_none():
    windows = make_windows(400)
    patients = torch.arange(40).repeat_interleave(10)
    same = (changed_by(windows, patients=patients, noise=0.3, probability=0.5) == windows).all(-1)
    per_patient = same.all(-1).view(40, 10)
    assert torch.equal(per_patient.all(1), per_patient.any(1))
    assert 5 < per_patient[:, 0].sum() < 35


def test_double_precision_stays_and_no_windows_are_no_windows():
    assert changed_by(make_windows().double(), **ALL).dtype == torch.float64
    assert changed_by(make_windows(0), **ALL).shape == (0, 2, N_SAMPLES)


def test_a_window_that_is_not_a_number_does_not_come_out_as_one():
    windows = make_windows(3)
    windows[1, 0, 7] = math.nan
    changed = changed_by(windows, noise=0.2)
    assert torch.isnan(changed[1, 0]).all()
    assert torch.isfinite(changed[[0, 2]]).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gain": -0.1}, "gain is -0.1; a finite number of at least 0"),
        ({"noise": math.inf}, "noise is inf; a finite number of at least 0"),
        ({"baseline": math.nan}, "baseline is nan"),
        ({"polarity": 1.5}, "polarity is 1.5; a finite number between 0 and 1"),
        ({"time_warp": 2.0}, "time_warp is 2.0; a finite number between 0 and 1"),
        ({"probability": -1}, "probability is -1"),
        ({"band_hz": (40.0, 0.5)}, r"band_hz is \(40.0, 0.5\); a lower and a higher"),
    ],
)
def test_a_number_out_of_range_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Augmentation(**settings)


def test_windows_of_another_shape_or_of_whole_numbers_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 400\); expected floating-point"):
        changed_by(make_windows()[0], noise=0.1)
    with pytest.raises(DataError, match="windows are torch.int64"):
        changed_by(make_windows().long(), noise=0.1)
    with pytest.raises(DataError, match=r"patients has shape \(3,\); .*each of 50 windows"):
        changed_by(make_windows(), noise=0.1, patients=torch.zeros(3).long())


def test_a_window_too_short_for_the_noise_is_refused():
    with pytest.raises(ValueError, match="4 samples at 200 Hz holds no frequency between 0.5"):
        changed_by(make_windows()[..., :4], noise=0.1)
    with pytest.raises(ValueError, match="fs_hz is 0"):
        Augmentation(gain=0.1)(make_windows(), fs_hz=0, generator=generator())


def test_an_augmentation_without_a_generator_is_refused():
    require_generator(None, None)
    with pytest.raises(ValueError, match="augment_generator is None; pass a torch.Generator"):
        require_generator(Augmentation(noise=0.1), None)
