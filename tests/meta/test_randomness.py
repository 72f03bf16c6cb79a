"""Dropout in a meta-step: from the caller's generator alone, and the same on the way back."""

import pytest
import torch
from reference import assert_same_step, make_batch, make_smooth, weights_of
from torch import nn

from metaecg.meta.algorithms import ALGORITHMS, Algorithm
from metaecg.meta.engine import MetaBatch
from metaecg.meta.func_engine import FuncEngine

SECOND_ORDER = ["maml", "anil", "meta-sgd", "maml++"]


def engine_of(network, name="maml", *, task_chunk=None) -> FuncEngine:
    algorithm = Algorithm(name=name, inner_lr=0.3, inner_steps=3)
    return FuncEngine(network, algorithm, task_chunk=task_chunk)


def make_dropping(*, drop=0.4, drop_head=0.4) -> nn.Module:
    return make_smooth(drop=drop, drop_head=drop_head).train()


def step_of(engine, parameters=None, batch=None, *, seed=5):
    generator = torch.Generator().manual_seed(seed)
    parameters = parameters or start_of(engine)
    return engine.meta_gradients(parameters, batch or make_batch(), generator=generator)


def start_of(engine) -> dict[str, torch.Tensor]:
    weights = weights_of(engine.network)
    return weights | engine.algorithm.initial_rates(weights)


def same_task_twice() -> MetaBatch:
    batch = make_batch(n_tasks=1)
    return MetaBatch(
        subject_ids=("s-0", "s-1"),
        support_x=batch.support_x.repeat(2, 1, 1, 1),
        support_y=batch.support_y.repeat(2, 1),
        query_x=batch.query_x.repeat(2, 1, 1, 1),
        query_y=batch.query_y.repeat(2, 1),
    )


@pytest.mark.parametrize(
    ("where", "network"),
    [
        ("dropout", make_dropping(drop_head=0.0)),
        ("head.0", make_dropping(drop=0.0)),
        ("0", nn.Sequential(nn.GRU(2, 2, num_layers=2, dropout=0.5))),
        ("0", nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.5))),
    ],
    ids=["features", "head", "recurrent", "attention"],
)
def test_dropout_without_a_generator_is_refused_by_the_name_of_its_layer(where, network):
    with pytest.raises(ValueError, match=f"layer '{where}' drops .* pass a torch.Generator"):
        engine_of(network).meta_gradients(weights_of(network), make_batch())


@pytest.mark.parametrize("network", [make_dropping().eval(), make_dropping(drop=0, drop_head=0)])
def test_dropout_that_drops_nothing_needs_no_generator(network):
    engine = engine_of(network)
    found = engine.meta_gradients(start_of(engine), make_batch())
    assert_same_step(found, step_of(engine))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_same_seed_gives_the_same_step_and_another_seed_another(name):
    engine = engine_of(make_dropping(), name)
    first, again, other = (step_of(engine, seed=seed) for seed in (5, 5, 6))
    assert_same_step(again, first, rtol=0, atol=0)
    assert not torch.equal(first.losses, other.losses)


def test_a_generator_goes_on_from_step_to_step():
    engine, generator = engine_of(make_dropping()), torch.Generator().manual_seed(5)
    one, two = (
        engine.meta_gradients(start_of(engine), make_batch(), generator=generator) for _ in range(2)
    )
    assert not torch.equal(one.losses, two.losses)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_torchs_own_random_state_is_neither_read_nor_moved(name):
    engine = engine_of(make_dropping(), name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = step_of(engine)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert_same_step(step_of(engine), first, rtol=0, atol=0)


@pytest.mark.parametrize("task_chunk", [None, 1])
@pytest.mark.parametrize(("drop", "drop_head"), [(0.4, 0.0), (0.0, 0.4)], ids=["features", "head"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_equal_tasks_of_a_batch_drop_different_values(name, drop, drop_head, task_chunk):
    network = make_dropping(drop=drop, drop_head=drop_head)
    step = step_of(engine_of(network, name, task_chunk=task_chunk), batch=same_task_twice())
    assert step.losses[0] != step.losses[1]
    assert step.support_losses[0, 0] != step.support_losses[0, 1]


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_the_way_back_drops_what_the_way_there_dropped(name):
    """The gradient is the slope of the mean loss along a direction, with the same values dropped.

    A Hessian product with other values dropped would miss it by several per cent.
    """
    engine = engine_of(make_dropping(), name)
    start, generator = start_of(engine), torch.Generator().manual_seed(0)
    direction = {
        key: torch.randn(p.shape, generator=generator, dtype=p.dtype) for key, p in start.items()
    }
    gradients = step_of(engine).gradients
    slope = sum((gradients[key] * direction[key]).sum() for key in start)
    h = 1e-5
    there, back = (
        step_of(engine, {key: p + t * direction[key] for key, p in start.items()}).losses.mean()
        for t in (h, -h)
    )
    assert slope.item() == pytest.approx(((there - back) / (2 * h)).item(), rel=1e-6)
