"""The algorithms: settings that are refused, what changes over a training, learned rates."""

import re

import pytest
import torch

from metaecg.meta import algorithms
from metaecg.meta.algorithms import (
    ALGORITHMS,
    Algorithm,
    StepPlan,
    check_meta_step,
    head_names,
    is_rate,
    split_rates,
)

WEIGHTS = {"conv.weight": torch.zeros(4, 2, 5), "head.bias": torch.zeros(3, dtype=torch.float64)}


def make(name="maml", *, inner_lr=0.1, inner_steps=3, first_order=False) -> Algorithm:
    return Algorithm(name=name, inner_lr=inner_lr, inner_steps=inner_steps, first_order=first_order)


def with_rates(**shapes) -> dict[str, torch.Tensor]:
    return {"w": torch.zeros(2, 3)} | {
        f"inner_lr.{name}": torch.ones(shape) for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mamll"}, "algorithm is 'mamll'; expected one of .*Did you mean 'maml'"),
        ({"name": "MAML"}, "algorithm is 'MAML'"),
        ({"inner_lr": 0.0}, "inner_lr is 0.0; a number above 0"),
        ({"inner_lr": -0.5}, "inner_lr is -0.5"),
        ({"inner_lr": float("nan")}, "inner_lr is nan; a finite number"),
        ({"inner_lr": float("inf")}, "inner_lr is inf"),
        ({"inner_steps": -1}, "inner_steps is -1; a whole number, 0 or more"),
        ({"inner_steps": 2.5}, "inner_steps is 2.5; a whole number"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("name", ["anil", "meta-sgd", "maml++", "reptile"])
def test_an_algorithm_that_needs_an_inner_step_says_so(name):
    with pytest.raises(
        ValueError, match=rf"inner_steps is 0, and {re.escape(name)} needs at least"
    ):
        make(name, inner_steps=0)


@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_joint_training_has_no_inner_step_and_one_loss_weight(name):
    assert make(name, inner_steps=0).final_plan().loss_weights == (1.0,)


def table() -> dict[str, list[str]]:
    """Return name -> columns of the table in the module's docstring, rows over two lines joined."""
    lines = algorithms.__doc__.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("====")]
    edges = [match.span() for match in re.finditer("=+", lines[rules[0]])]
    edges[-1] = (edges[-1][0], 200)
    rows: dict[str, list[str]] = {}
    for line in lines[rules[1] + 1 : rules[2]]:
        name, *cells = (line[start:stop].strip() for start, stop in edges)
        name = name or list(rows)[-1]
        before = rows.get(name, [""] * len(cells))
        rows[name] = [f"{a} {b}".strip() for a, b in zip(before, cells, strict=True)]
    return rows


def test_the_table_names_every_algorithm_in_order():
    assert tuple(table()) == ALGORITHMS


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_table_says_what_the_algorithm_does(name):
    adapted, rate, gradient = table()[name]
    algorithm = make(name)
    rates = algorithm.initial_rates(WEIGHTS)
    shapes = {key: tuple(r.shape) for key, r in rates.items()}
    assert adapted == ("the head" if algorithm.adapts_head_only else "every weight")
    assert (
        shapes
        == {
            "fixed": {},
            "one per weight": {"inner_lr.conv.weight": (4, 2, 5), "inner_lr.head.bias": (3,)},
            "one per layer and step": {"inner_lr.conv.weight": (3,), "inner_lr.head.bias": (3,)},
        }[rate]
    )
    assert algorithm.learns_rates == ("for the rates too" in gradient) == bool(rates)
    assert algorithm.final_plan().first_order == ("second derivatives dropped" in gradient)
    early = algorithm.plan(0, n_iterations=100)
    assert (early != algorithm.final_plan()) == ("at first" in gradient)


@pytest.mark.parametrize("name", ["meta-sgd", "maml++"])
def test_learned_rates_start_at_the_inner_rate_in_the_precision_of_their_weight(name):
    rates = make(name, inner_lr=0.25).initial_rates(WEIGHTS)
    assert all((rate == 0.25).all() for rate in rates.values())
    assert [rate.dtype for rate in rates.values()] == [torch.float32, torch.float64]


def test_weights_and_rates_are_told_apart_by_name():
    both = WEIGHTS | make("maml++").initial_rates(WEIGHTS)
    weights, rates = split_rates(both)
    assert list(weights) == list(rates) == list(WEIGHTS)
    assert [name for name in both if is_rate(name)] == [
        "inner_lr.conv.weight",
        "inner_lr.head.bias",
    ]
    assert not is_rate("inner.weight") and not is_rate("inner_lr")
    assert head_names([*both, "header.weight", "body.head.weight"]) == ["head.bias"]


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "maml++"])
@pytest.mark.parametrize("first_order", [False, True])
def test_all_but_one_algorithm_do_the_same_at_every_iteration(name, first_order):
    algorithm = make(name, first_order=first_order)
    plans = {algorithm.plan(i, n_iterations=10) for i in range(10)}
    assert plans == {algorithm.final_plan()}
    assert algorithm.final_plan().loss_weights == (0.0, 0.0, 1.0)
    assert algorithm.final_plan().first_order == (first_order or name == "fomaml")
    assert not algorithm.final_plan().is_multi_step


@pytest.mark.parametrize("inner_steps", [1, 2, 5])
@pytest.mark.parametrize("n_iterations", [2, 7, 100, 333])
def test_the_loss_weights_of_maml_plus_plus_go_from_equal_to_the_last_alone(
    n_iterations, inner_steps
):
    algorithm = make("maml++", inner_steps=inner_steps)
    plans = [algorithm.plan(i, n_iterations=n_iterations) for i in range(n_iterations)]
    assert plans[0].loss_weights == pytest.approx((1 / inner_steps,) * inner_steps)
    assert plans[-1] == algorithm.final_plan()
    for plan in plans:
        *early, last = plan.loss_weights
        assert len(plan.loss_weights) == inner_steps and sum(plan.loss_weights) == pytest.approx(1)
        assert len(set(early)) <= 1 and all(0 <= w <= last + 1e-12 for w in early)
        assert plan.is_multi_step == any(early)
    last_weights = [plan.loss_weights[-1] for plan in plans]
    assert last_weights == sorted(last_weights)


def test_the_phases_of_maml_plus_plus_end_where_the_paper_ends_them():
    """Of 100 iterations: 15 with several query losses, 50 without second derivatives."""
    plans = [make("maml++").plan(i, n_iterations=100) for i in range(100)]
    assert sum(plan.is_multi_step for plan in plans) == 15
    assert [plan.first_order for plan in plans] == [True] * 50 + [False] * 50


def test_maml_plus_plus_stays_without_second_derivatives_where_asked_to():
    algorithm = make("maml++", first_order=True)
    assert all(algorithm.plan(i, n_iterations=10).first_order for i in range(10))
    assert algorithm.final_plan().first_order


@pytest.mark.parametrize("loss_weights", [(), (1.0,), (0.5, 0.5), (0.25,) * 4], ids=str)
def test_a_plan_for_another_number_of_steps_is_refused(loss_weights):
    plan = StepPlan(first_order=False, loss_weights=loss_weights)
    with pytest.raises(ValueError, match=r"3 were expected, one per inner step"):
        check_meta_step(make(), with_rates(), plan)


@pytest.mark.parametrize("name", ["anil", "reptile"])
def test_a_plan_with_earlier_query_losses_is_refused_where_they_would_not_count(name):
    plan = StepPlan(first_order=False, loss_weights=(0.5, 0.0, 0.5))
    with pytest.raises(
        ValueError, match=rf"\(0.5, 0.0, 0.5\), and {name} knows the last.*maml\+\+"
    ):
        check_meta_step(make(name), with_rates(), plan)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("maml", with_rates(w=(2, 3)), r"inner_lr.w is of shape \(2, 3\) and maml .* not there"),
        ("meta-sgd", with_rates(), r"inner_lr.w is not there and meta-sgd .* shape \(2, 3\)"),
        ("meta-sgd", with_rates(w=(3,)), r"of shape \(3,\) and meta-sgd .* shape \(2, 3\)"),
        ("maml++", with_rates(w=(2,)), r"of shape \(2,\) and maml\+\+ expects it of shape \(3,\)"),
        ("maml++", with_rates(w=(3,), v=(3,)), r"inner_lr.v is of shape \(3,\) and .* not there"),
    ],
)
def test_rates_that_are_not_the_algorithms_are_refused_by_name(name, parameters, message):
    algorithm = make(name)
    with pytest.raises(ValueError, match=message + r".*Algorithm\.initial_rates\(weights\)"):
        check_meta_step(algorithm, parameters, algorithm.final_plan())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_weights_and_the_rates_at_their_start_are_accepted(name):
    algorithm = make(name)
    check_meta_step(algorithm, WEIGHTS | algorithm.initial_rates(WEIGHTS), algorithm.final_plan())
