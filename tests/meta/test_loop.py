"""The meta-training loop: it helps, it stops at NaN, it reports, it repeats."""

import math

import numpy as np
import pytest
import torch
from swapped_patients import N_SAMPLES, make_windows
from torch import nn

from metaecg.data.augment import Augmentation
from metaecg.errors import AdaptationError
from metaecg.meta.algorithms import Algorithm
from metaecg.meta.engine import MetaStep, stack_tasks
from metaecg.meta.func_engine import FuncEngine
from metaecg.meta.loop import meta_train
from metaecg.tasks.curriculum import Curriculum
from metaecg.tasks.sampler import TaskSampler

NEW = ("x", "y")


def make_network(seed=0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(N_SAMPLES, 16), nn.Tanh(), nn.Linear(16, 2))


def weights_of(network) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


class ScriptedEngine:
    """Answers with the losses of a script and one constant gradient."""

    def __init__(self, losses, gradient=0.1, *, support=(0.5,), **algorithm):
        self.losses, self.gradient, self.support = iter(losses), gradient, support
        self.algorithm = Algorithm(inner_lr=0.1, inner_steps=len(support), **algorithm)
        self.batches, self.plans = [], []

    def meta_gradients(self, parameters, batch, *, plan=None, generator=None):
        self.batches.append(batch)
        self.plans.append(plan)
        support = [row if isinstance(row, list) else [row] * len(batch) for row in self.support]
        return MetaStep(
            losses=torch.tensor(next(self.losses)),
            support_losses=torch.tensor(support),
            gradients={n: torch.full_like(p, self.gradient) for n, p in parameters.items()},
        )


class ScriptedCurriculum:
    """Hands out the same two subjects and notes what it is told."""

    def __init__(self):
        self.asked, self.observed = [], []

    def draw(self, iteration):
        self.asked.append(iteration)
        return ["b", "a"]

    def observe(self, subject_ids, losses):
        self.observed.append((list(subject_ids), losses))


def train(
    network,
    engine,
    *,
    windows=None,
    curriculum=None,
    n_iterations,
    seed=1,
    outer_lr=0.01,
    **settings,
):
    sampler = TaskSampler(windows or make_windows(), n_shots=3, n_query=3)
    curriculum = curriculum or Curriculum(
        sampler.subject_ids,
        pacing="none",
        difficulty=np.zeros(len(sampler.subject_ids)),
        n_iterations=n_iterations,
        meta_batch_size=4,
        rng=np.random.default_rng(0),
    )
    return meta_train(
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
    weights = {n: p.detach() for n, p in network.named_parameters()}
    return engine.meta_gradients(weights, batch).losses.mean().item()


def test_meta_training_lowers_the_loss_of_new_patients_after_adaptation():
    network = make_network()
    engine = FuncEngine(network, Algorithm(inner_lr=0.3, inner_steps=2))
    before = loss_after_adaptation(network, engine)
    train(network, engine, n_iterations=60, outer_lr=0.02)
    unadapted = FuncEngine(network, Algorithm(inner_lr=0.3, inner_steps=0))
    assert before > 0.15
    assert loss_after_adaptation(network, engine) < 0.05
    assert loss_after_adaptation(network, unadapted) > 0.5  # it is adaptation that does it


def test_the_same_generators_give_the_same_weights_and_others_other_ones():
    found = []
    for seed in (1, 1, 2):
        network = make_network()
        train(
            network,
            FuncEngine(network, Algorithm(inner_lr=0.3, inner_steps=1)),
            n_iterations=4,
            seed=seed,
        )
        found.append(torch.cat([p.flatten() for p in weights_of(network)]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_training_leaves_the_global_random_states_alone():
    network = make_network()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(network, FuncEngine(network, Algorithm(inner_lr=0.3, inner_steps=1)), n_iterations=2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(("bad", "said"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_loss_that_is_not_finite_names_iteration_and_subject_and_keeps_the_last_weights(
    bad, said
):
    network, seen = make_network(), []
    engine = ScriptedEngine([[1.0, 1.0], [1.0, 1.0], [1.0, bad]])
    message = f"iteration 2: the loss of subject 'a' after 1 inner steps, on the query, is {said}"
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


def test_a_loss_that_is_not_finite_on_the_support_names_the_inner_step():
    engine = ScriptedEngine([[math.nan, 1.0]], support=(0.5, [0.25, math.inf], math.nan))
    message = "iteration 0: the loss of subject 'a' at inner step 2 of 3, on the support, is inf"
    with pytest.raises(AdaptationError, match=message):
        train(make_network(), engine, curriculum=ScriptedCurriculum(), n_iterations=1)


def test_a_window_that_is_not_a_number_names_its_subject_and_the_first_inner_step():
    windows = make_windows()
    windows.windows[windows.subject_ids == "c"] = math.nan
    network = make_network()
    engine = FuncEngine(network, Algorithm(inner_lr=0.3, inner_steps=2))
    message = "iteration 0: the loss of subject 'c' at inner step 1 of 2, on the support, is nan"
    with pytest.raises(AdaptationError, match=message):
        train(network, engine, windows=windows, n_iterations=1)


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


def test_every_iteration_follows_the_plan_of_its_algorithm():
    engine = ScriptedEngine([[1.0, 1.0]] * 20, support=(0.5, 0.5), name="maml++")
    train(make_network(), engine, curriculum=ScriptedCurriculum(), n_iterations=20)
    planned = [engine.algorithm.plan(i, n_iterations=20) for i in range(20)]
    assert engine.plans == planned
    assert [plan.first_order for plan in planned] == [True] * 10 + [False] * 10


@pytest.mark.parametrize("name", ["meta-sgd", "maml++"])
def test_learned_rates_are_handed_back_moved_and_their_range_is_reported(name):
    network, seen = make_network(), []
    algorithm = Algorithm(name=name, inner_lr=0.3, inner_steps=2)
    found = train(
        network,
        FuncEngine(network, algorithm),
        n_iterations=4,
        on_step=lambda _, values: seen.append(values),
    )
    assert set(found.rates) == {n for n, _ in network.named_parameters()}
    for name_, p in network.named_parameters():
        assert found.rates[name_].shape == (p.shape if name == "meta-sgd" else (2,))
    every = torch.cat([rate.flatten() for rate in found.rates.values()])
    assert (every != 0.3).all()
    assert seen[-1]["inner_lr_min"] == every.min().item() < 0.3 < every.max().item()
    assert seen[-1]["inner_lr_max"] == every.max().item()
    assert found.history == seen


@pytest.mark.parametrize("name", ["maml", "anil", "reptile"])
def test_where_no_rate_is_learned_none_is_handed_back(name):
    engine = ScriptedEngine([[1.0, 1.0]], name=name)
    found = train(make_network(), engine, curriculum=ScriptedCurriculum(), n_iterations=1)
    assert found.rates == {}
    assert set(found.history[0]) == {"loss", "outer_lr"}


def test_weights_decay_and_learned_rates_do_not():
    network = make_network()
    before = weights_of(network)
    engine = ScriptedEngine([[1.0, 1.0]], gradient=0.0, name="meta-sgd")
    found = train(
        network,
        engine,
        curriculum=ScriptedCurriculum(),
        n_iterations=1,
        outer_lr=0.1,
        weight_decay=0.5,
    )
    for now, old in zip(weights_of(network), before, strict=True):
        assert torch.allclose(now, 0.95 * old)
    assert all((rate == torch.full_like(rate, 0.1)).all() for rate in found.rates.values())


def test_rates_and_weights_are_clipped_as_one_gradient():
    network, lengths = make_network(), []
    engine = ScriptedEngine([[1.0, 1.0]], gradient=100.0, name="meta-sgd")
    train(
        network,
        engine,
        curriculum=ScriptedCurriculum(),
        n_iterations=1,
        clip_norm=0.5,
        on_step=lambda *_: lengths.append(
            torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item()
        ),
    )
    assert lengths == pytest.approx(
        [0.5 / math.sqrt(2)], rel=1e-4
    )  # the rates have as many numbers


def shown_to_engine(**settings):
    """Return the batches of two iterations with two tasks each."""
    engine = ScriptedEngine([[1.0, 1.0], [1.0, 1.0]])
    curriculum = ScriptedCurriculum()
    train(make_network(), engine, curriculum=curriculum, n_iterations=2, **settings)
    return engine.batches


def augmented(seed=0, **settings):
    drawn = torch.Generator().manual_seed(seed)
    return shown_to_engine(augment=Augmentation(**settings), augment_generator=drawn)


def test_an_augmentation_that_is_off_changes_no_window():
    for batch, plain in zip(augmented(), shown_to_engine(), strict=True):
        assert torch.equal(batch.support_x, plain.support_x)
        assert torch.equal(batch.query_x, plain.query_x)


def test_support_and_query_of_a_task_have_one_gain_and_other_tasks_another():
    factors = []
    for batch, plain in zip(augmented(gain=0.5), shown_to_engine(), strict=True):
        of_support = (batch.support_x / plain.support_x).flatten(1)  # (T, n * n_samples)
        of_query = (batch.query_x / plain.query_x).flatten(1)
        assert torch.allclose(of_support, of_support[:, :1].expand_as(of_support), rtol=1e-4)
        assert torch.allclose(of_query, of_support[:, :1].expand_as(of_query), rtol=1e-4)
        assert torch.equal(batch.support_y, plain.support_y)
        factors += of_support[:, 0].tolist()
    assert len({round(factor, 4) for factor in factors}) == 4


def test_windows_of_a_task_have_baselines_of_their_own():
    batch, plain = augmented(baseline=0.5)[0], shown_to_engine()[0]
    added = (batch.support_x - plain.support_x).flatten(0, 1)
    assert len(torch.unique(added.round(decimals=4), dim=0)) == len(added)


def test_the_same_seed_augments_in_the_same_way_and_another_one_otherwise():
    one, again, other = (augmented(seed, gain=0.5)[1].query_x for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_an_augmentation_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="augment_generator is None"):
        shown_to_engine(augment=Augmentation(gain=0.5))


def test_dropout_draws_from_the_generator_that_is_given():
    def trained(seed) -> torch.Tensor:
        network = make_network()
        network.append(nn.Dropout(0.5))
        engine = FuncEngine(network, Algorithm(inner_lr=0.3, inner_steps=1))
        train(network, engine, n_iterations=2, generator=torch.Generator().manual_seed(seed))
        return torch.cat([p.flatten() for p in weights_of(network)])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
