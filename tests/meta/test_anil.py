"""ANIL: the inner loop moves the head, the meta-gradient reaches every weight."""

from dataclasses import replace

import pytest
import torch
from reference import (
    assert_same_step,
    explicit_step,
    for_head_only,
    make_batch,
    make_registered,
    make_smooth,
    weights_of,
)
from torch import nn

from metaecg.errors import AdaptationError
from metaecg.meta.algorithms import Algorithm
from metaecg.meta.func_engine import FuncEngine
from metaecg.models.registry import NETWORKS

RATE = 0.3
ORDERS = pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
ACCEPTED = {
    "compact-cnn": {"width": 4},
    "compact-cnn-ensemble": {"width": 4, "n_members": 2},
    "beat-cnn": {"width": 4},
    "resnet1d-18": {"norm": "group", "width": 8},
    "net1d": {"base_filters": 16, "filters": [16], "n_blocks": 1},
    "gru": {"n_channels": 4, "n_hidden": 5},
    "lstm": {"n_channels": 4, "n_hidden": 5, "n_layers": 2},
    "bilstm": {"n_channels": 4, "n_hidden": 5},
}
WITH_BATCH_NORM = {"metava": {}, "cnn-transformer": {}, "resnet1d-18": {"norm": "batch"}}


def engine_of(network, *, inner_steps=3, task_chunk=None, **algorithm) -> FuncEngine:
    settings = {"name": "anil", "inner_lr": RATE, "inner_steps": inner_steps} | algorithm
    return FuncEngine(network, Algorithm(**settings), task_chunk=task_chunk)


def compare(network, batch, *, weights=None, inner_steps=3, first_order=False, rtol=1e-9):
    weights = weights or weights_of(network)
    engine = engine_of(network, inner_steps=inner_steps, first_order=first_order)
    expected = explicit_step(
        network,
        weights,
        batch,
        rate_of=for_head_only(RATE),
        inner_steps=inner_steps,
        first_order=first_order,
    )
    assert_same_step(engine.meta_gradients(weights, batch), expected, rtol=rtol)


@ORDERS
@pytest.mark.parametrize("inner_steps", [1, 4])
def test_anil_is_that_of_an_explicit_loop_with_a_body_that_stands_still(inner_steps, first_order):
    compare(make_smooth(), make_batch(), inner_steps=inner_steps, first_order=first_order)


@ORDERS
@pytest.mark.parametrize("name", ACCEPTED)
def test_every_network_of_the_registry_without_batch_norm_runs_under_anil(name, first_order):
    batch = make_batch(n_tasks=2, n_leads=1, n_samples=50, n_classes=2)
    network = make_registered(name, **ACCEPTED[name])
    compare(network, batch, first_order=first_order, rtol=1e-7)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_norm_is_refused_under_anil_too_since_all_tasks_pass_the_body_together(name):
    network = make_registered(name, **WITH_BATCH_NORM[name])
    with pytest.raises(AdaptationError, match="BatchNorm1d.*kept apart for tasks.*learn2learn"):
        engine_of(network)


def test_every_network_of_the_registry_runs_or_is_refused_here():
    assert set(ACCEPTED) | set(WITH_BATCH_NORM) == set(NETWORKS)


@ORDERS
def test_anil_is_meta_sgd_with_rates_of_zero_on_the_body(first_order):
    network, batch = make_smooth(), make_batch()
    weights = weights_of(network)
    rates = {
        f"inner_lr.{name}": torch.full_like(w, RATE if name.startswith("head.") else 0.0)
        for name, w in weights.items()
    }
    sgd = engine_of(network, name="meta-sgd", first_order=first_order)
    expected = sgd.meta_gradients(weights | rates, batch)
    expected = replace(expected, gradients={name: expected.gradients[name] for name in weights})
    found = engine_of(network, first_order=first_order).meta_gradients(weights, batch)
    assert_same_step(found, expected)


def test_first_order_leaves_out_the_way_through_the_features_of_the_support():
    network, batch = make_smooth(), make_batch()
    second, first = (
        engine_of(network, first_order=order).meta_gradients(weights_of(network), batch)
        for order in (False, True)
    )
    assert torch.equal(first.losses, second.losses)
    for name, gradient in second.gradients.items():
        assert (first.gradients[name] - gradient).abs().max() > 0.01 * gradient.abs().max(), name


@ORDERS
@pytest.mark.parametrize(
    "frozen", ["conv", "head.1.bias", "head", ("conv", "norm")], ids=["body", "part", "head", "all"]
)
def test_a_frozen_weight_stays_as_it_is_in_the_network(frozen, first_order):
    network = make_smooth()
    trained = {k: w for k, w in weights_of(network).items() if not k.startswith(frozen)}
    compare(network, make_batch(), weights=trained, first_order=first_order)


@pytest.mark.parametrize(
    ("network", "missing"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), "Sequential has no features and no head;"),
        (nn.ModuleDict({"head": nn.Linear(4, 3)}), "ModuleDict has no features;"),
    ],
    ids=["both", "features"],
)
def test_a_network_without_features_or_head_is_refused_by_what_it_lacks(network, missing):
    with pytest.raises(AdaptationError, match=f"{missing}.*metaecg.models.registry"):
        engine_of(network)


def test_a_recurrent_network_is_refused_where_every_weight_moves():
    network = make_registered("gru", **ACCEPTED["gru"])
    with pytest.raises(AdaptationError, match="GRUNet can't run.*learn2learn"):
        engine_of(network, name="maml")
