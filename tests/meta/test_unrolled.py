"""The inner loop and the way back against autograd loops, where every weight is adapted."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from reference import (
    assert_same_step,
    constant,
    explicit_reptile,
    explicit_step,
    make_batch,
    make_registered,
    make_smooth,
    weights_of,
)
from torch import nn
from torch.nn import functional as F

from metaecg.meta.algorithms import ALGORITHMS, Algorithm, StepPlan
from metaecg.meta.func_engine import FuncEngine

RATE = 0.3
ORDERS = pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
RATE_OF = {
    "meta-sgd": lambda rates, name, step: rates[name],
    "maml++": lambda rates, name, step: rates[name][step],
}


def engine_of(network, *, task_chunk=None, loss=F.cross_entropy, **algorithm) -> FuncEngine:
    settings = {"inner_lr": RATE, "inner_steps": 3} | algorithm
    return FuncEngine(network, Algorithm(**settings), task_chunk=task_chunk, loss=loss)


def varied_rates(algorithm: Algorithm, weights) -> dict[str, torch.Tensor]:
    """Learned rates of which no two are equal and some are negative, by the name of the weight."""
    generator = torch.Generator().manual_seed(11)
    return {
        name.removeprefix("inner_lr."): RATE * torch.randn(r.shape, generator=generator).double()
        for name, r in algorithm.initial_rates(weights).items()
    }


def meta_parameters(engine, weights=None, rates=None):
    """What `engine` learns: weights of its network, and rates where it learns any."""
    weights = weights or weights_of(engine.network)
    rates = rates or varied_rates(engine.algorithm, weights)
    return weights | {f"inner_lr.{name}": rate for name, rate in rates.items()}


def plan_of(*loss_weights, first_order=False) -> StepPlan:
    return StepPlan(first_order=first_order, loss_weights=loss_weights)


def compare(engine, plan=None, *, batch=None, weights=None, rtol=1e-9):
    """Compare one meta-step of `engine` with the explicit loop under the same plan."""
    algorithm, batch = engine.algorithm, batch or make_batch()
    weights = weights or weights_of(engine.network)
    rates, plan = varied_rates(algorithm, weights), plan or algorithm.final_plan()
    expected = explicit_step(
        engine.network,
        weights,
        batch,
        rate_of=RATE_OF.get(algorithm.name, constant(algorithm.inner_lr)),
        rates=rates,
        inner_steps=algorithm.inner_steps,
        first_order=plan.first_order,
        loss_weights=plan.loss_weights,
        loss=engine.loss,
    )
    found = engine.meta_gradients(meta_parameters(engine, weights, rates), batch, plan=plan)
    assert_same_step(found, expected, rtol=rtol)


@pytest.mark.parametrize("inner_steps", [0, 1, 4])
@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_maml_is_that_of_an_explicit_loop(name, inner_steps):
    compare(engine_of(make_smooth(), name=name, inner_steps=inner_steps))


def test_fomaml_is_maml_without_second_derivatives():
    network, batch = make_smooth(), make_batch()
    found = engine_of(network, name="fomaml").meta_gradients(weights_of(network), batch)
    expected = engine_of(network, first_order=True).meta_gradients(weights_of(network), batch)
    assert_same_step(found, expected)


@ORDERS
@pytest.mark.parametrize("inner_steps", [1, 4])
@pytest.mark.parametrize("name", ["meta-sgd", "maml++"])
def test_learned_rates_and_weights_have_the_gradients_of_an_explicit_loop(
    name, inner_steps, first_order
):
    engine = engine_of(make_smooth(), name=name, inner_steps=inner_steps, first_order=first_order)
    compare(engine)


@ORDERS
@pytest.mark.parametrize("name", ["maml", "meta-sgd", "maml++"])
@pytest.mark.parametrize(
    "loss_weights",
    [(0.2, 0.3, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.0, 1.0, 0.0), (0.5, 0.0, 0.5), (2.0, -1.0, 0.0)],
    ids=str,
)
def test_query_losses_of_earlier_steps_count_by_their_weight(name, loss_weights, first_order):
    compare(engine_of(make_smooth(), name=name), plan_of(*loss_weights, first_order=first_order))


@pytest.mark.parametrize("iteration", [0, 7, 14, 15, 49, 50, 99])
def test_every_phase_of_maml_plus_plus_has_the_gradients_of_an_explicit_loop(iteration):
    engine = engine_of(make_smooth(), name="maml++")
    compare(engine, engine.algorithm.plan(iteration, n_iterations=100))


def test_rates_at_their_start_give_the_weights_the_gradients_of_maml():
    network, batch = make_smooth(), make_batch()
    maml = engine_of(network).meta_gradients(weights_of(network), batch)
    for name in ("meta-sgd", "maml++"):
        engine = engine_of(network, name=name)
        start = weights_of(network) | engine.algorithm.initial_rates(weights_of(network))
        found = engine.meta_gradients(start, batch)
        kept = {weight: found.gradients[weight] for weight in maml.gradients}
        assert_same_step(replace(found, gradients=kept), maml)


@pytest.mark.parametrize("inner_steps", [1, 4])
def test_reptile_is_start_minus_end_over_the_rate(inner_steps):
    network, batch = make_smooth(), make_batch()
    engine = engine_of(network, name="reptile", inner_steps=inner_steps)
    settings = {"inner_lr": RATE, "inner_steps": inner_steps}
    expected = explicit_reptile(network, weights_of(network), batch, **settings)
    assert_same_step(engine.meta_gradients(weights_of(network), batch), expected)


def test_one_step_of_reptile_is_the_gradient_of_joint_training_on_support_and_query():
    network, batch = make_smooth(), make_batch()
    x, y = (
        torch.cat([getattr(batch, f"{side}_{kind}") for side in ("support", "query")], dim=1)
        for kind in "xy"
    )
    joint = replace(batch, query_x=x, query_y=y)
    expected = engine_of(network, inner_steps=0).meta_gradients(weights_of(network), joint)
    engine = engine_of(network, name="reptile", inner_steps=1)
    found = engine.meta_gradients(weights_of(network), batch)
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task_chunk", [1, 2, 7])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_chunks_of_tasks_give_the_same_answer(name, task_chunk):
    network, batch = make_smooth(), make_batch(n_tasks=5)
    whole, parts = (engine_of(network, name=name, task_chunk=n) for n in (None, task_chunk))
    parameters = meta_parameters(whole)
    expected = whole.meta_gradients(parameters, batch)
    assert_same_step(parts.meta_gradients(parameters, batch), expected)


@ORDERS
@pytest.mark.parametrize("frozen", ["conv", "norm", "head"])
@pytest.mark.parametrize("name", ["maml", "meta-sgd", "maml++"])
def test_a_frozen_weight_stays_as_it_is_in_the_network(name, frozen, first_order):
    network = make_smooth()
    trained = {k: w for k, w in weights_of(network).items() if not k.startswith(frozen)}
    compare(engine_of(network, name=name, first_order=first_order), weights=trained)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_parameters_decide_and_the_network_only_lends_its_form(name):
    network, batch = make_smooth(), make_batch()
    engine = engine_of(network, name=name)
    parameters = {k: p.clone() for k, p in meta_parameters(engine).items()}
    before = engine.meta_gradients(parameters, batch)
    with torch.no_grad():
        for p in network.parameters():
            p += 1
    assert_same_step(engine.meta_gradients(parameters, batch), before)


def test_another_loss_takes_the_place_of_cross_entropy():
    def margin(scores, y):
        return F.softplus(scores.gather(1, y[:, None]).neg()).square().sum()

    compare(engine_of(make_smooth(), loss=margin), plan_of(0.5, 0.2, 0.3))
    compare(engine_of(make_smooth(), loss=margin, name="maml++"))


def test_rates_or_a_plan_of_another_algorithm_are_refused_at_the_door():
    engine, batch = engine_of(make_smooth()), make_batch()
    weights = weights_of(engine.network)
    with pytest.raises(ValueError, match="inner_lr.conv.weight is of shape .* and maml expects"):
        engine.meta_gradients(weights | {"inner_lr.conv.weight": torch.ones(3)}, batch)
    with pytest.raises(ValueError, match="3 were expected, one per inner step"):
        engine.meta_gradients(weights, batch, plan=plan_of(0.5, 0.5))


def make_ecg_batch(n_tasks=3):
    return make_batch(n_tasks=n_tasks, n_leads=1, n_samples=50, n_classes=2)


@ORDERS
@pytest.mark.parametrize("frozen", ["none", "blocks.1.conv", "blocks.0", "head"])
@pytest.mark.parametrize("name", ["maml", "meta-sgd", "maml++"])
def test_the_default_network_has_the_gradients_of_an_explicit_loop(name, frozen, first_order):
    network = make_registered("compact-cnn", width=4)
    trained = {k: w for k, w in weights_of(network).items() if not k.startswith(frozen)}
    engine = engine_of(network, name=name, inner_lr=0.1)
    plan = plan_of(0.3, 0.0, 0.7, first_order=first_order)
    compare(engine, plan, batch=make_ecg_batch(), weights=trained, rtol=1e-7)


def test_the_default_network_under_reptile_is_start_minus_end_over_the_rate():
    network, batch = make_registered("compact-cnn", width=4), make_ecg_batch()
    settings = {"inner_lr": 0.1, "inner_steps": 3}
    expected = explicit_reptile(network, weights_of(network), batch, **settings)
    found = engine_of(network, name="reptile", **settings).meta_gradients(
        weights_of(network), batch
    )
    assert_same_step(found, expected, rtol=1e-7)


class Offset(nn.Module):
    """Adds one number, a weight without dimensions, to every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.scale = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3))

    def forward(self, x):
        return torch.tanh(x[..., 0] + self.shift) @ self.scale


@pytest.mark.parametrize("name", ["maml", "meta-sgd", "maml++"])
def test_a_weight_may_be_a_single_number(name):
    compare(engine_of(Offset(), name=name))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_single_precision_gives_the_same_answer_to_single_precision(name):
    double, batch = engine_of(make_smooth(), name=name), make_batch()
    single = engine_of(make_smooth().float(), name=name)
    parameters = meta_parameters(double)
    expected = double.meta_gradients(parameters, batch)
    found = single.meta_gradients(
        {k: p.float() for k, p in parameters.items()},
        replace(batch, support_x=batch.support_x.float(), query_x=batch.query_x.float()),
    )
    assert {t.dtype for t in found.gradients.values()} == {found.losses.dtype} == {torch.float32}
    assert found.support_losses.dtype == torch.float32
    torch.testing.assert_close(found.losses.double(), expected.losses, rtol=1e-4, atol=1e-5)
    for key, gradient in expected.gradients.items():
        torch.testing.assert_close(
            found.gradients[key].double(), gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max()
        )


@pytest.mark.parametrize("task_chunk", [None, 2])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_losses_have_a_place_for_every_task_and_inner_step(name, task_chunk):
    engine = engine_of(make_smooth(), name=name, task_chunk=task_chunk)
    parameters = meta_parameters(engine)
    step = engine.meta_gradients(parameters, make_batch(n_tasks=5))
    assert step.losses.shape == (5,) and step.support_losses.shape == (3, 5)
    shapes = {k: p.shape for k, p in parameters.items()}
    assert {k: g.shape for k, g in step.gradients.items()} == shapes


@pytest.mark.parametrize("task_chunk", [None, 2])
@pytest.mark.parametrize("side", ["support", "query"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_nan_in_the_windows_of_one_subject_shows_in_its_losses_alone(name, side, task_chunk):
    batch = make_ecg_batch(n_tasks=4)
    getattr(batch, f"{side}_x")[2, 1, 0, 3] = torch.nan
    network = make_registered("compact-cnn", width=4)
    engine = engine_of(network, name=name, task_chunk=task_chunk)
    step = engine.meta_gradients(meta_parameters(engine), batch)
    in_the_loop = side == "support" or name == "reptile"  # which adapts on the query too
    assert torch.isnan(step.losses).tolist() == [False, False, True, False]
    bad = torch.isnan(step.support_losses)
    assert bad.any(dim=0).tolist() == [False, False, in_the_loop, False]
    assert bad[:, 2].all() == in_the_loop


@pytest.mark.parametrize("name", ["maml", "meta-sgd", "maml++", "reptile"])
def test_a_loss_that_overflows_in_the_inner_loop_is_placed_at_its_step(name):
    """Descent on (w - label)^4 / 4 with rate 1 from w = 0: w' = w - (w - label)^3.

    Label 1 arrives at once. From label 4 the distance goes 4, 60, 2e5, 1e16, 1e48, 1e144 (signs
    left out), and the fourth power of the last is beyond 1e308; label 9 is one step faster.
    """

    class Value(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            return self.w.expand(len(x))

    def quartic(output, y):
        return (output - y).pow(4).mean() / 4

    labels = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)[:, None]
    batch = replace(make_batch(), support_y=labels.expand(3, 5), query_y=labels.expand(3, 4))
    engine = engine_of(Value(), name=name, inner_lr=1.0, inner_steps=7, loss=quartic)
    rates = engine.algorithm.initial_rates(weights_of(engine.network))
    step = engine.meta_gradients(weights_of(engine.network) | rates, batch)
    first_bad = [column.tolist().index(False) for column in finite_until_the_end(step)]
    assert first_bad == [7, 5, 4]


def finite_until_the_end(step):
    """For each task: is the support loss finite before step 0, 1, ...; then a False."""
    finite = torch.isfinite(step.support_losses).T
    return torch.cat([finite, torch.zeros(len(finite), 1, dtype=torch.bool)], dim=1)


@pytest.mark.parametrize("name", ["maml", "maml++", "anil"])
def test_no_tape_is_left_where_parameters_and_frozen_weights_require_gradients(name):
    network = make_smooth()
    engine = engine_of(network, name=name)
    trained = {k: p for k, p in network.named_parameters() if not k.startswith("norm")}
    rates = engine.algorithm.initial_rates(trained)
    step = engine.meta_gradients(trained | rates, make_batch())
    assert all(p.requires_grad for p in network.parameters())
    tensors = (step.losses, step.support_losses, *step.gradients.values())
    assert not any(t.requires_grad for t in tensors)


def test_a_chunk_lets_go_of_its_graph_before_the_next_begins(monkeypatch):
    """Without the garbage collector: a graph in a reference cycle would stay for a while."""
    engine = engine_of(make_smooth(), task_chunk=2)
    seen, alive_at_start, slope = [], [], engine.model.slope

    def watched(weights, x, y, *, shared, curved):
        if shared and curved:
            alive_at_start.append(sum(graph() is not None for graph in seen))
        found = slope(weights, x, y, shared=shared, curved=curved)
        if curved:
            seen.append(weakref.ref(found.hessian_product))
        return found

    monkeypatch.setattr(engine.model, "slope", watched)
    gc.disable()
    try:
        engine.meta_gradients(dict(engine.network.named_parameters()), make_batch(n_tasks=6))
    finally:
        gc.enable()
    assert len(seen) == 9 and alive_at_start == [0, 0, 0]
