"""The meta-training loop: it helps, it stops at NaN, it reports, it repeats."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from metaecg.data.windows import WindowSet
from metaecg.errors import AdaptationError
from metaecg.meta.engine import FuncEngine, stack_tasks
from metaecg.meta.loop import meta_train
from metaecg.tasks.curriculum import Curriculum
from metaecg.tasks.sampler import TaskSampler

N_SAMPLES = 8
TRAINING, NEW = ("a", "b", "c", "d"), ("x", "y")


def make_windows(subjects=TRAINING, *, n_per_class=20, seed=7) -> WindowSet:
    """Patients whose electrodes are swapped or not: a rising window is VA in one, not in the next.

    No detector can be right for both without having seen some of a patient's own windows.
    """
    rng = np.random.default_rng(seed)
    n = 2 * n_per_class
    labels = np.tile(np.array([0, 1]), n_per_class)
    parts = []
    for number, _ in enumerate(subjects):
        rises = (2 * labels - 1) * (-1) ** number
        shape = rises[:, None] * np.linspace(-1, 1, N_SAMPLES)
        parts.append(shape + 0.3 * rng.standard_normal((n, N_SAMPLES)))
    times = np.tile(2.0 * np.arange(n), len(subjects))
    names = np.repeat(np.array(subjects), n)
    return WindowSet(
        windows=np.concatenate(parts)[:, None].astype(np.float32),
        labels=np.tile(labels, len(subjects)),
        is_mixed=np.zeros(len(names), dtype=bool),
        subject_ids=names,
        record_ids=names,
        start_s=times,
        time_s=times,
        fs_hz=4.0,
        window_s=2.0,
    )


def make_network(seed=0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(N_SAMPLES, 16), nn.Tanh(), nn.Linear(16, 2))


def weights_of(network) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


class ScriptedEngine:
    """Answers with the losses of a script and one constant gradient."""

    def __init__(self, losses, gradient=0.1):
        self.losses, self.gradient, self.batches = iter(losses), gradient, []

    def meta_gradients(self, parameters, batch):
        self.batches.append(batch)
        gradients = {n: torch.full_like(p, self.gradient) for n, p in parameters.items()}
        return torch.tensor(next(self.losses)), gradients


class ScriptedCurriculum:
    """Hands out the same two subjects and notes what it is told."""

    def __init__(self):
        self.asked, self.observed = [], []

    def draw(self, iteration):
        self.asked.append(iteration)
        return ["b", "a"]

    def observe(self, subject_ids, losses):
        self.observed.append((list(subject_ids), losses))


def train(network, engine, *, curriculum=None, n_iterations, seed=1, outer_lr=0.01, **settings):
    sampler = TaskSampler(make_windows(), n_shots=3, n_query=3)
    curriculum = curriculum or Curriculum(
        sampler.subject_ids,
        pacing="none",
        difficulty=np.zeros(len(sampler.subject_ids)),
        n_iterations=n_iterations,
        meta_batch_size=4,
        rng=np.random.default_rng(0),
    )
    meta_train(
        network,
        engine=engine,
        sampler=sampler,
        curriculum=curriculum,
        n_iterations=n_iterations,
        outer_lr=outer_lr,
        rng=np.random.default_rng(seed),
        **settings,
    )


def loss_after_adaptation(network, engine) -> float:
    """Mean query loss of new patients after the inner loop on their own support."""
    sampler = TaskSampler(make_windows(NEW, seed=99), n_shots=3, n_query=10)
    rng = np.random.default_rng(5)
    batch = stack_tasks([sampler.draw(subject, rng=rng) for subject in NEW])
    losses, _ = engine.meta_gradients({n: p.detach() for n, p in network.named_parameters()}, batch)
    return losses.mean().item()


def test_meta_training_lowers_the_loss_of_new_patients_after_adaptation():
    network = make_network()
    engine = FuncEngine(network, inner_lr=0.3, inner_steps=2)
    before = loss_after_adaptation(network, engine)
    train(network, engine, n_iterations=60, outer_lr=0.02)
    unadapted = FuncEngine(network, inner_lr=0.3, inner_steps=0)
    assert before > 0.15
    assert loss_after_adaptation(network, engine) < 0.05
    assert loss_after_adaptation(network, unadapted) > 0.5  # it is adaptation that does it


def test_the_same_generators_give_the_same_weights_and_others_other_ones():
    found = []
    for seed in (1, 1, 2):
        network = make_network()
        train(network, FuncEngine(network, inner_lr=0.3, inner_steps=1), n_iterations=4, seed=seed)
        found.append(torch.cat([p.flatten() for p in weights_of(network)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_training_leaves_the_global_random_states_alone():
    network = make_network()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(network, FuncEngine(network, inner_lr=0.3, inner_steps=1), n_iterations=2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(("bad", "said"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_names_iteration_and_subject_and_keeps_the_last_weights(
    bad, said
):
    network, seen = make_network(), []
    engine = ScriptedEngine([[1.0, 1.0], [1.0, 1.0], [1.0, bad]])
    message = f"iteration 2: the loss of subject 'a' is {said}"
    with pytest.raises(AdaptationError, match=message):
        train(
            network,
            engine,
            curriculum=ScriptedCurriculum(),
            n_iterations=5,
            on_step=lambda *_: seen.append(weights_of(network)),
        )
    assert len(seen) == 2
    for now, last, first in zip(weights_of(network), seen[1], seen[0], strict=True):
        assert torch.equal(now, last) and not torch.equal(last, first)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_training_before_it_moves_a_weight(bad):
    network = make_network()
    before = weights_of(network)
    engine = ScriptedEngine([[1.0, 1.0]], gradient=bad)
    with pytest.raises(AdaptationError, match="iteration 0: .*the meta-gradient is"):
        train(network, engine, curriculum=ScriptedCurriculum(), n_iterations=1)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(network), before, strict=True))


def test_the_curriculum_is_asked_in_order_and_told_each_subject_its_loss():
    curriculum, engine = ScriptedCurriculum(), ScriptedEngine([[0.5, 2.0], [0.25, 1.0]])
    train(make_network(), engine, curriculum=curriculum, n_iterations=2)
    assert curriculum.asked == [0, 1]
    assert curriculum.observed == [(["b", "a"], [0.5, 2.0]), (["b", "a"], [0.25, 1.0])]
    assert [batch.subject_ids for batch in engine.batches] == [("b", "a")] * 2


def test_every_step_reports_the_mean_loss_and_the_rate_of_a_falling_cosine():
    seen = []
    engine = ScriptedEngine([[0.5, 1.5], [0.25, 0.75], [0.0, 0.0], [2.0, 2.0]])
    train(
        make_network(),
        engine,
        curriculum=ScriptedCurriculum(),
        n_iterations=4,
        outer_lr=0.08,
        on_step=lambda iteration, values: seen.append((iteration, values)),
    )
    assert [iteration for iteration, _ in seen] == [0, 1, 2, 3]
    assert [values["loss"] for _, values in seen] == [1.0, 0.5, 0.0, 2.0]
    expected = [0.04 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert [values["outer_lr"] for _, values in seen] == pytest.approx(expected)
    assert all(set(values) == {"loss", "outer_lr"} for _, values in seen)


@pytest.mark.parametrize(("gradient", "norm"), [(100.0, 0.5), (1e-4, None)], ids=["long", "short"])
def test_a_gradient_is_clipped_to_the_norm_asked_for_and_a_short_one_left_alone(gradient, norm):
    network, norms = make_network(), []
    n_weights = sum(p.numel() for p in network.parameters())

    def measure(*_):
        norms.append(torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item())

    train(
        network,
        ScriptedEngine([[1.0, 1.0]], gradient=gradient),
        curriculum=ScriptedCurriculum(),
        n_iterations=1,
        clip_norm=0.5,
        on_step=measure,
    )
    assert norms == pytest.approx([norm or gradient * math.sqrt(n_weights)], rel=1e-4)


def test_a_frozen_weight_stays_where_it_is():
    network = make_network()
    network[1].weight.requires_grad_(False)
    before = weights_of(network)
    engine = ScriptedEngine([[1.0, 1.0]])
    train(network, engine, curriculum=ScriptedCurriculum(), n_iterations=1)
    moved = [not torch.equal(a, b) for a, b in zip(weights_of(network), before, strict=True)]
    assert moved == [False, True, True, True]


def test_the_network_trains_in_train_mode_and_is_left_ready_for_use():
    network, modes = make_network().eval(), []
    train(
        network,
        ScriptedEngine([[1.0, 1.0]]),
        curriculum=ScriptedCurriculum(),
        n_iterations=1,
        on_step=lambda *_: modes.append(network.training),
    )
    assert modes == [True]
    assert not network.training and all(p.grad is None for p in network.parameters())
