"""MetaVA as released: tasks, schedule, tasks at once against one by one, training, adaptation."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.errors import AdaptationError, DataError
from metaecg.meta import metava_released
from metaecg.meta.metava_released import (
    adapt_metava_released,
    choose_subjects,
    draw_task,
    initialise_metava_released,
    train_metava_released,
)
from metaecg.meta.metava_tasks import (
    SeededDropout,
    StackedFeedForward,
    TasksAtOnce,
    fold_statistics,
)
from metaecg.models.backbones.metava import MetaVANet

N_SAMPLES = 64


def make_network(*, seed: int = 0, dropout: bool = True) -> MetaVANet:
    network = MetaVANet(
        n_leads=1, n_samples=N_SAMPLES, fs_hz=200.0, n_classes=2, mid=8, d_model=8, feedforward=32
    )
    initialise_metava_released(network, seed=seed)
    for module in network.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    return network


def make_subject(labels: str, *, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return sine waves in noise; those marked "1" are four times as fast as those marked "0"."""
    rng = np.random.default_rng(seed)
    classes = np.array([int(label) for label in labels])
    phase = rng.uniform(0, 2 * np.pi, (len(labels), 1, 1))
    rate = np.where(classes == 1, 0.8, 0.2)[:, None, None]
    noise = 0.3 * rng.standard_normal((len(labels), 1, N_SAMPLES))
    windows = np.sin(rate * np.arange(N_SAMPLES) + phase) + noise
    return windows.astype(np.float32), classes


def make_subjects(n_both: int, n_one_class: int) -> dict:
    both = {f"both-{i}": make_subject("01" * 10, seed=i) for i in range(n_both)}
    return both | {f"one-{i}": make_subject("0" * 12, seed=90 + i) for i in range(n_one_class)}


def n_different(task_x: torch.Tensor) -> int:
    return len(task_x.flatten(0, 1).flatten(1).unique(dim=0))


# tasks


def test_a_task_has_twenty_windows_per_class_in_minibatches_of_one_class():
    task = draw_task(*make_subject("0" * 60 + "1" * 60), np.random.default_rng(7))
    assert task.support_x.shape == task.query_x.shape == (10, 4, 1, N_SAMPLES)
    assert task.support_y.tolist() == task.query_y.tolist() == [[0] * 4] * 5 + [[1] * 4] * 5


def test_support_and_query_share_no_window():
    task = draw_task(*make_subject("0" * 45 + "1" * 11), np.random.default_rng(7))
    everything = torch.cat([task.support_x, task.query_x])
    assert (
        n_different(task.support_x) == 20 + 6
    )  # of 11 windows 6 go to the support, 5 to the query
    assert n_different(task.query_x) == 20 + 5
    assert n_different(everything) == 40 + 11


def test_a_subject_with_one_class_makes_a_task_of_half_the_size():
    task = draw_task(*make_subject("0" * 50), np.random.default_rng(7))
    assert task.support_x.shape == (5, 4, 1, N_SAMPLES)
    assert task.query_y.unique().tolist() == [0]


# schedule

EVEN = np.full(40, 1 / 40) + np.linspace(0, 1e-3, 40)  # subject 0 is the easiest


def choose(iteration: int, *, n_chosen=None, seed: int = 7) -> list[int]:
    has_va = np.arange(40) % 10 == 5  # 5, 15, 25, 35
    n_chosen = np.zeros(40, dtype=int) if n_chosen is None else n_chosen
    rng = np.random.default_rng(seed)
    return choose_subjects(EVEN, has_va, n_chosen, iteration=iteration, rng=rng)


@pytest.mark.parametrize("iteration", [1, 20, 40])
def test_early_on_the_nine_subjects_are_the_easiest_whatever_the_draw(iteration):
    for seed in range(3):
        assert choose(iteration, seed=seed) == [5, 15, 0, 1, 2, 3, 4, 6, 7]


def test_from_iteration_fifty_on_all_subjects_are_drawn_beside_the_two_easiest_with_va():
    batches = [choose(60, seed=seed) for seed in range(60)]
    assert all(batch[:2] == [5, 15] and len(set(batch)) == 9 for batch in batches)
    assert set().union(*batches) == set(range(40))


def test_a_subject_chosen_in_every_iteration_so_far_is_drawn_last():
    n_chosen = np.where(np.arange(40) < 30, 60, 0)
    drawn = {i for seed in range(20) for i in choose(60, n_chosen=n_chosen, seed=seed)[2:]}
    assert drawn <= set(range(30, 40))


def test_fewer_subjects_than_a_meta_batch_are_all_taken():
    chosen = choose_subjects(
        np.array([0.5, 0.2, 0.3]),
        np.array([True, False, False]),
        np.zeros(3, dtype=int),
        iteration=1,
        rng=np.random.default_rng(7),
    )
    assert chosen == [0, 1, 2]


# tasks at once


def one_by_one(network: nn.Module, tasks: list):
    """The release's own way: a clone per task whose running statistics are those of `network`."""
    losses, gradients = [], {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    for task in tasks:
        clone = copy.deepcopy(network).train()
        optimizer = torch.optim.SGD(clone.parameters(), lr=1e-3)
        for _ in range(5):
            for x, y in zip(task.support_x, task.support_y, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(clone(x), y).backward()
                optimizer.step()
        optimizer.zero_grad()
        loss = sum(
            F.cross_entropy(clone(x), y) for x, y in zip(task.query_x, task.query_y, strict=True)
        ) / len(task.query_y)
        loss.backward()
        losses.append(loss.item())
        for name, parameter in clone.named_parameters():
            gradients[name] += parameter.grad / len(tasks)
        for name, buffer in clone.named_buffers():
            network.get_buffer(name).copy_(buffer)
    return losses, gradients


def make_tasks_at_once(network: nn.Module) -> TasksAtOnce:
    rng = np.random.default_rng(7)
    return TasksAtOnce(network, n_epochs=5, learning_rate=1e-3, rng=rng)


def test_tasks_at_once_equal_tasks_one_by_one_in_losses_gradients_and_running_statistics():
    network = make_network(dropout=False)
    twin = copy.deepcopy(network)
    rng = np.random.default_rng(7)
    subjects = make_subjects(2, 2)
    tasks = [draw_task(*subjects[i], rng) for i in ("both-0", "one-0", "both-1", "one-1")]
    expected_losses, expected_gradients = one_by_one(twin, tasks)
    losses, gradients, statistics = make_tasks_at_once(network).adapt_all(network, tasks)
    for one_task in statistics:
        fold_statistics(network, one_task)
    np.testing.assert_allclose(losses, expected_losses, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name), atol=1e-5, rtol=1e-5)


def test_adapting_many_tasks_leaves_the_meta_weights_alone():
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    tasks = [draw_task(*make_subject("01" * 20), np.random.default_rng(7))]
    make_tasks_at_once(network).adapt_all(network, tasks)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_stacked_feed_forward_has_the_gradients_of_autograd_with_dropout():
    generator = torch.Generator().manual_seed(7)
    shapes = [(2, 12, 8), (2, 32, 8), (2, 32), (2, 8, 32), (2, 8)]
    inputs = [torch.randn(*s, generator=generator).requires_grad_() for s in shapes]
    weight = torch.randn(2, 12, 8, generator=generator)
    ours = StackedFeedForward.apply(*inputs, SeededDropout(0.1, np.random.default_rng(3)))
    x, w1, b1, w2, b2 = inputs
    dropout = SeededDropout(0.1, np.random.default_rng(3))
    masks = torch.stack([dropout.draw(12, 32) for _ in range(2)])
    hidden = (x @ w1.mT + b1[:, None]).relu() * masks
    plain = hidden @ w2.mT + b2[:, None]
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((ours * weight).sum(), inputs)
    expected = torch.autograd.grad((plain * weight).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_dropout_masks_differ_between_tasks():
    network = make_network()
    task = draw_task(*make_subject("01" * 20), np.random.default_rng(7))
    losses, _, _ = make_tasks_at_once(network).adapt_all(network, [task, task])
    assert losses[0] != losses[1]


def test_dropout_drops_the_share_it_names_and_keeps_the_mean():
    mask = SeededDropout(0.1, np.random.default_rng(7)).draw(100, 1001)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert (mask == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)


# training


@pytest.fixture
def few_inner_steps(monkeypatch):
    """A fifth of the released inner steps: these tests are about the loop around them."""
    monkeypatch.setattr(metava_released, "INNER_EPOCHS", 1)


def test_training_finds_what_separates_the_classes(few_inner_steps):
    network = make_network(dropout=False)
    history = train_metava_released(network, make_subjects(4, 0), seed=1, n_iterations=15)
    windows, labels = make_subject("01" * 30, seed=55)  # a subject it never saw
    with torch.inference_mode():
        answers = network(torch.from_numpy(windows)).argmax(1).numpy()
    assert not network.training
    assert history.losses[-1] < 0.8 * history.losses[0]
    assert (answers == labels).mean() > 0.75


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(few_inner_steps):
    subjects = make_subjects(2, 1)
    states = []
    for seed in (1, 1, 2):
        network = make_network(seed=9)
        train_metava_released(network, subjects, seed=seed, n_iterations=2)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_training_leaves_the_global_random_state_alone(few_inner_steps):
    network = make_network()
    before = torch.get_rng_state()
    train_metava_released(network, make_subjects(1, 0), seed=1, n_iterations=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_stops_and_says_so_once_the_rate_moves_nothing(monkeypatch):
    monkeypatch.setattr(metava_released, "_meta_step", lambda *_: 1.0)
    network = make_network()
    history = train_metava_released(network, make_subjects(2, 0), seed=1)
    # the first value sets the mark; every 11 without improvement cut the rate: 5e-3 to 5e-9
    assert len(history.losses) == 1 + 6 * 11
    assert history.learning_rates[-1] == pytest.approx(5e-8)
    assert "5e-09 before iteration 68" in history.stopped


def test_every_iteration_is_reported_with_its_loss_and_rate(few_inner_steps):
    seen = []
    history = train_metava_released(
        make_network(),
        make_subjects(1, 1),
        seed=1,
        n_iterations=2,
        on_iteration=lambda *facts: seen.append(facts),
    )
    assert seen == [(1, history.losses[0], 5e-3), (2, history.losses[1], 5e-3)]
    assert set(history.chosen[0]) == {"both-0", "one-0"}
    assert sum(history.difficulty.values()) == pytest.approx(1.0)


def test_training_without_subjects_is_refused():
    with pytest.raises(DataError, match="subjects is empty"):
        train_metava_released(make_network(), {}, seed=1)


def test_a_subject_with_a_label_too_many_is_named():
    windows, labels = make_subject("0101")
    with pytest.raises(DataError, match=r"'s-1' has 3 windows and labels of shape \(4,\)"):
        train_metava_released(make_network(), {"s-1": (windows[:3], labels)}, seed=1)


def test_a_network_that_answers_nan_is_refused():
    network = make_network()
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    with pytest.raises(AdaptationError, match="released adaptation is nan"):
        adapt_metava_released(network, *make_subject("0101"), seed=1)


# adaptation


def test_ten_labelled_windows_per_class_separate_the_rest_of_a_subject():
    network = make_network()
    windows, labels = make_subject("01" * 40)
    adapted = adapt_metava_released(network, windows[:20], labels[:20], seed=1)
    with torch.inference_mode():
        answers = adapted(torch.from_numpy(windows[20:])).argmax(1).numpy()
    assert not adapted.training
    assert (answers == labels[20:]).mean() > 0.9


def test_adaptation_returns_a_copy():
    network = make_network()
    before = copy.deepcopy(network.state_dict())
    adapted = adapt_metava_released(network, *make_subject("01" * 10), seed=1, n_epochs=1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not torch.equal(adapted.head.weight, network.head.weight)
    assert [type(m) for m in adapted.modules()] == [type(m) for m in network.modules()]


def test_the_same_seed_adapts_the_same_way():
    network, support = make_network(), make_subject("01" * 10)
    one, other, third = (
        adapt_metava_released(network, *support, seed=seed, n_epochs=2) for seed in (1, 1, 2)
    )
    assert torch.equal(one.head.weight, other.head.weight)
    assert not torch.equal(one.head.weight, third.head.weight)


def test_pre_fine_tuning_is_ten_gradient_steps_on_the_summed_minibatch_losses():
    network = make_network(dropout=False)
    windows, labels = make_subject("01" * 10)
    adapted = adapt_metava_released(network, windows, labels, seed=1, n_epochs=0)
    by_hand = copy.deepcopy(network).train()
    x, y = torch.from_numpy(windows), torch.from_numpy(labels)
    parameters = list(by_hand.parameters())
    for _ in range(10):
        loss = sum(
            F.cross_entropy(by_hand(x[part]), y[part])
            for part in (slice(0, 8), slice(8, 16), slice(16, 20))
        )
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 1e-3 * gradient
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(adapted.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_without_pre_fine_tuning_and_epochs_nothing_changes():
    network = make_network()
    adapted = adapt_metava_released(
        network, *make_subject("0101"), seed=1, n_epochs=0, prefine=False
    )
    for name, value in network.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value), name
