"""Supervised pre-training: it learns, its batches are balanced, it repeats, it stops at NaN."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from metaecg.data.augment import Augmentation
from metaecg.data.windows import WindowSet
from metaecg.errors import AdaptationError, DataError
from metaecg.meta.supervised import pretrain

N_SAMPLES = 8


def make_windows(labels, values, subject_ids=None) -> WindowSet:
    n = len(labels)
    return WindowSet(
        windows=np.asarray(values, dtype=np.float32),
        labels=np.asarray(labels, dtype=np.int64),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.asarray(subject_ids if subject_ids is not None else ["s"] * n),
        record_ids=np.full(n, "r"),
        start_s=2.0 * np.arange(n),
        time_s=2.0 * np.arange(n),
        fs_hz=N_SAMPLES / 2,
        window_s=2.0,
    )


def make_separable(n=60, seed=7) -> WindowSet:
    """The class is how fast a window swings; turned upside down it stays the same class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    period = np.where(labels == 1, 2, 8)[:, None]
    waves = np.cos(2 * np.pi * np.arange(N_SAMPLES) / period)
    values = waves + 0.2 * rng.standard_normal((n, N_SAMPLES))
    return make_windows(labels, values[:, None])


def make_numbered(labels, subject_ids=None) -> WindowSet:
    """Every sample of window i is i + 1, so that a batch says which windows it holds."""
    values = np.tile(np.arange(1, len(labels) + 1)[:, None, None], (1, 1, N_SAMPLES))
    return make_windows(labels, values, subject_ids)


class Spy(nn.Module):
    """Notes the first sample of every window that it is shown."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(N_SAMPLES, 2)
        self.batches = []

    def forward(self, x):
        self.batches.append(x[:, 0, 0].detach().numpy().copy())
        return self.head(x[:, 0] * 0.0)


class Broken(nn.Module):
    """Logits are fine at first, NaN from the call `breaks_at` on."""

    def __init__(self, breaks_at):
        super().__init__()
        self.head, self.n_calls, self.breaks_at = nn.Linear(N_SAMPLES, 2), 0, breaks_at

    def forward(self, x):
        self.n_calls += 1
        return self.head(x[:, 0]) * (math.nan if self.n_calls > self.breaks_at else 1.0)


class FineLossBadGradient(nn.Module):
    """sqrt(w) at w = 0: the logit is 0, its slope infinite."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.w.sqrt() + x[:, 0, :2] * 0.0


def make_network(seed=0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(N_SAMPLES, 16), nn.ReLU(), nn.Linear(16, 2))


def train(network, windows, *, n_steps=20, batch_size=16, lr=0.01, seed=1, polarity=2, **settings):
    pretrain(
        network,
        windows,
        n_steps=n_steps,
        batch_size=batch_size,
        lr=lr,
        rng=np.random.default_rng(seed),
        generator=torch.Generator().manual_seed(polarity),
        **settings,
    )


def shown_to_spy(windows, **settings) -> list[np.ndarray]:
    spy = Spy()
    train(spy, windows, **settings)
    return spy.batches


def test_classes_that_can_be_told_apart_are_told_apart_upside_down_too():
    network, new = make_network(), make_separable(seed=8)
    train(network, make_separable(), n_steps=80)
    for sign in (1, -1):
        with torch.no_grad():
            answer = network(torch.from_numpy(sign * new.windows)).argmax(dim=1).numpy()
        assert (answer == new.labels).mean() > 0.95


def test_a_batch_holds_each_class_in_equal_parts_however_rare_it_is():
    labels = np.zeros(100, dtype=np.int64)
    labels[[17, 60, 80]] = 1
    for batch in shown_to_spy(make_numbered(labels), n_steps=10, batch_size=16):
        seen = labels[np.abs(batch).astype(int) - 1]
        assert len(seen) == 16 and seen.sum() == 8


def test_every_window_of_a_class_can_be_drawn():
    labels = np.arange(12) % 2
    batches = shown_to_spy(make_numbered(labels), n_steps=30, batch_size=12)
    assert set(np.abs(np.concatenate(batches)).astype(int)) == set(range(1, 13))


def test_a_subject_weighs_with_the_square_root_of_its_windows():
    """400 windows of one subject against 25 of another: 4 to 1, and not 16 to 1."""
    subjects = np.array(["long"] * 400 + ["short"] * 25 + ["va"])
    labels = (subjects == "va").astype(np.int64)
    batches = shown_to_spy(make_numbered(labels, subjects), n_steps=100, batch_size=40)
    seen = subjects[np.abs(np.concatenate(batches)).astype(int) - 1]
    share = (seen == "short").sum() / (seen != "va").sum()
    assert share == pytest.approx(0.2, abs=0.03)  # 2000 draws: three standard errors


def test_about_half_of_the_windows_are_turned_upside_down():
    batches = shown_to_spy(make_numbered(np.arange(10) % 2), n_steps=50, batch_size=20)
    turned = (np.concatenate(batches) < 0).mean()
    assert turned == pytest.approx(0.5, abs=0.05)  # 1000 draws: three standard errors


def test_the_same_seeds_give_the_same_weights_and_other_seeds_other_ones():
    found = []
    for seed, polarity in ((1, 2), (1, 2), (3, 2), (1, 4)):
        network = make_network()
        train(network, make_separable(), seed=seed, polarity=polarity)
        found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


def end_of(**settings) -> torch.Tensor:
    """Weights after a training."""
    network = make_network()
    train(network, make_separable(), **settings)
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_an_augmentation_that_is_off_changes_no_bit():
    drawn = torch.Generator().manual_seed(9)
    assert torch.equal(end_of(augment=Augmentation(), augment_generator=drawn), end_of())
    # A generator alone is no augmentation.
    assert torch.equal(end_of(augment_generator=drawn), end_of())


def test_an_augmentation_draws_from_its_own_generator_alone():
    def augmented(seed, **settings):
        return end_of(
            augment=Augmentation(**settings), augment_generator=torch.Generator().manual_seed(seed)
        )

    assert torch.equal(augmented(1, time_warp=0.2), augmented(1, time_warp=0.2))
    assert not torch.equal(augmented(1, time_warp=0.2), augmented(2, time_warp=0.2))
    assert not torch.equal(augmented(1, time_warp=0.2), end_of())


def test_every_window_of_a_batch_is_a_patient_of_its_own_and_batches_are_as_without():
    windows = make_numbered(np.arange(12) % 2)
    settings = {"n_steps": 5, "batch_size": 12}
    plain = np.concatenate(shown_to_spy(windows, **settings))
    drawn = torch.Generator().manual_seed(0)
    changed = np.concatenate(
        shown_to_spy(windows, augment=Augmentation(gain=0.5), augment_generator=drawn, **settings)
    )
    factor = changed / plain  # the same windows and the same polarity
    assert len(np.unique(factor.round(5))) > 50
    assert (factor >= 1 / 1.5001).all() and (factor <= 1.5001).all()


def test_an_augmentation_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="augment_generator is None"):
        train(make_network(), make_separable(), augment=Augmentation(gain=0.1))


def test_training_leaves_the_global_random_states_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(make_network(), make_separable(), n_steps=2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_every_step_reports_its_loss_and_rate():
    seen = []
    train(
        make_network(),
        make_separable(),
        n_steps=40,
        lr=0.01,
        on_step=lambda step, values: seen.append((step, values["loss"], values["lr"])),
    )
    steps, losses, rates = zip(*seen, strict=True)
    assert steps == tuple(range(40))
    assert losses[-1] < 0.5 * losses[0]
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates[0] < 0.1 * max(rates) and rates[-1] < 0.01 * max(rates)


def test_the_network_trains_in_train_mode_and_is_left_ready_for_use():
    network, modes = make_network().eval(), []
    train(network, make_separable(), n_steps=1, on_step=lambda *_: modes.append(network.training))
    assert modes == [True]
    assert not network.training and all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("label", "missing"), [(0, "va"), (1, "other")])
def test_a_class_without_any_window_is_named(label, missing):
    with pytest.raises(DataError, match=f"no window of class '{missing}'"):
        train(make_network(), make_numbered([label] * 5))


def test_a_batch_without_room_for_each_class_is_refused():
    with pytest.raises(ValueError, match="batch_size is 1; .*at least 2"):
        train(make_network(), make_separable(), batch_size=1)


def test_a_loss_that_is_not_finite_names_its_step():
    with pytest.raises(AdaptationError, match="step 3: the loss is nan"):
        train(Broken(breaks_at=3), make_separable(), n_steps=10)


def test_weights_that_the_last_step_spoilt_are_not_handed_on():
    with pytest.raises(AdaptationError, match="the last of 1 steps left weights"):
        train(FineLossBadGradient(), make_separable(), n_steps=1)
