"""learn2learn as an engine: the same meta-gradients as the default one, and what only one of them runs.

Where the variable CI is set, a missing learn2learn fails these tests; elsewhere they are skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import (
    assert_same_step,
    constant,
    explicit_step,
    make_batch,
    make_registered,
    make_smooth,
    weights_of,
)
from torch import nn

from metaecg.errors import AdaptationError, MissingDependencyError
from metaecg.meta.algorithms import Algorithm, StepPlan
from metaecg.meta.engine import build_engine
from metaecg.meta.func_engine import FuncEngine
from metaecg.meta.learn2learn_engine import (
    COMMAND,
    SCRIPT,
    Learn2LearnEngine,
    import_learn2learn,
)
from metaecg.models.registry import NETWORKS

ROOT = Path(__file__).parents[2]

COMPARED = {
    "compact-cnn": {"width": 4},
    "compact-cnn-ensemble": {"width": 4, "n_members": 2},
    "beat-cnn": {"width": 4},
    "resnet1d-18": {"norm": "group", "width": 8},
    "net1d": {"base_filters": 16, "filters": [16], "n_blocks": 1},
}
ONLY_LEARN2LEARN = {
    "metava": {},
    "cnn-transformer": {"width": 16, "attention": "plain"},
    "resnet1d-18": {"width": 8},
    "gru": {},
    "lstm": {},
    "bilstm": {},
}
"""Networks that the default engine refuses: batch norm, recurrent cells."""

INNER_LOOPS = [
    {"name": "maml", "inner_steps": 0},
    {"name": "maml", "inner_steps": 1},
    {"name": "maml", "inner_steps": 3},
    {"name": "maml", "inner_steps": 3, "first_order": True},
    {"name": "fomaml", "inner_steps": 2},
    {"name": "anil", "inner_steps": 1},
    {"name": "anil", "inner_steps": 3},
    {"name": "anil", "inner_steps": 3, "first_order": True},
    {"name": "meta-sgd", "inner_steps": 1},
    {"name": "meta-sgd", "inner_steps": 3},
    {"name": "meta-sgd", "inner_steps": 3, "first_order": True},
    {"name": "reptile", "inner_steps": 1},
    {"name": "reptile", "inner_steps": 3},
]


def require_learn2learn() -> None:
    """Skip, saying what to type, where learn2learn can't be imported; in CI, fail."""
    try:
        import_learn2learn()
    except MissingDependencyError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


@pytest.fixture
def installed() -> None:
    require_learn2learn()


def named(case) -> str:
    order = "first" if case.get("first_order") else "second"
    return f"{case['name']}-{case['inner_steps']}-{order}" if isinstance(case, dict) else str(case)


def window_batch(**kwargs):
    """Tasks for the networks of the registry."""
    return make_batch(n_tasks=2, n_leads=1, n_samples=50, n_classes=2, **kwargs)


def meta_parameters(network, algorithm):
    """Weights and, where rates are learned, rates that differ from each other."""
    weights, draw = weights_of(network), torch.Generator().manual_seed(5)
    rates = algorithm.initial_rates(weights)
    varied = {
        n: r * torch.empty_like(r).uniform_(0.5, 1.5, generator=draw) for n, r in rates.items()
    }
    return {**weights, **varied}


def without_dropout(network):
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


@pytest.mark.parametrize("case", INNER_LOOPS, ids=named)
@pytest.mark.parametrize("name", COMPARED)
def test_both_engines_have_the_same_losses_and_meta_gradients(installed, name, case):
    algorithm = Algorithm(inner_lr=0.05, **case)
    network, batch = make_registered(name, **COMPARED[name]), window_batch()
    parameters = meta_parameters(network, algorithm)
    expected = FuncEngine(network, algorithm).meta_gradients(parameters, batch)
    found = Learn2LearnEngine(network, algorithm).meta_gradients(parameters, batch)
    assert_same_step(found, expected)
    assert any(gradient.abs().max() > 0 for gradient in found.gradients.values())


def test_every_network_of_the_registry_is_compared_or_refused_by_the_default_engine():
    assert set(COMPARED) | set(ONLY_LEARN2LEARN) == set(NETWORKS)
    for name, kwargs in ONLY_LEARN2LEARN.items():
        with pytest.raises(AdaptationError, match="learn2learn"):
            FuncEngine(make_registered(name, **kwargs), Algorithm(inner_lr=0.1, inner_steps=1))


@pytest.mark.parametrize("algorithm", ["maml", "meta-sgd"])
@pytest.mark.parametrize("name", ONLY_LEARN2LEARN)
def test_a_network_that_the_default_engine_refuses_has_the_gradients_of_an_explicit_loop(
    installed, name, algorithm
):
    """Under meta-sgd at its start, a rate per weight is one rate."""
    network, batch = (
        without_dropout(make_registered(name, **ONLY_LEARN2LEARN[name])),
        window_batch(),
    )
    algorithm = Algorithm(name=algorithm, inner_lr=0.05, inner_steps=2)
    weights = weights_of(network)
    parameters = {**weights, **algorithm.initial_rates(weights)}
    found = Learn2LearnEngine(network, algorithm).meta_gradients(parameters, batch)
    expected = explicit_step(network, weights, batch, rate_of=constant(0.05), inner_steps=2)
    torch.testing.assert_close(found.losses, expected.losses)
    for weight, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[weight], gradient, rtol=1e-8, atol=1e-11)
    assert all(torch.isfinite(gradient).all() for gradient in found.gradients.values())


@pytest.mark.parametrize("algorithm", ["maml", "anil", "meta-sgd"])
def test_a_frozen_weight_takes_part_and_is_not_adapted(installed, algorithm):
    algorithm = Algorithm(name=algorithm, inner_lr=0.3, inner_steps=2)
    network, batch = make_smooth(), make_batch()
    trained = {n: p for n, p in weights_of(network).items() if not n.startswith("conv")}
    trained |= algorithm.initial_rates(trained)
    found = Learn2LearnEngine(network, algorithm).meta_gradients(trained, batch)
    assert_same_step(found, FuncEngine(network, algorithm).meta_gradients(trained, batch))
    with torch.no_grad():
        network.conv.weight += 0.5
    moved = Learn2LearnEngine(network, algorithm).meta_gradients(trained, batch)
    assert not torch.equal(moved.losses, found.losses)


@pytest.mark.parametrize("algorithm", ["maml", "meta-sgd", "reptile"])
def test_neither_network_nor_tensors_nor_running_statistics_are_changed(installed, algorithm):
    algorithm = Algorithm(name=algorithm, inner_lr=0.1, inner_steps=2)
    network, batch = make_registered("resnet1d-18", width=8), window_batch()
    parameters = meta_parameters(network, algorithm)
    values = {name: p.clone() for name, p in parameters.items()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    Learn2LearnEngine(network, algorithm).meta_gradients(parameters, batch)
    assert all(torch.equal(parameters[name], values[name]) for name in values)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in parameters.values())


def test_batch_norm_uses_running_statistics_in_eval_mode_alone(installed):
    network, batch = make_registered("resnet1d-18", width=8), window_batch()
    engine = Learn2LearnEngine(network, Algorithm(inner_lr=0.05, inner_steps=1))

    def losses():
        return engine.meta_gradients(weights_of(network), batch).losses

    in_training, in_use = losses(), (network.eval(), losses())[1]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean += 0.5
    assert not torch.allclose(losses(), in_use)
    network.train()
    assert torch.equal(losses(), in_training)


def test_dropout_draws_from_the_generator_and_from_nothing_else(installed):
    network, batch = make_smooth(drop=0.5), make_batch()
    engine = Learn2LearnEngine(network, Algorithm(inner_lr=0.1, inner_steps=2))
    before = torch.get_rng_state()
    first, same, other = (
        engine.meta_gradients(
            weights_of(network), batch, generator=torch.Generator().manual_seed(seed)
        ).losses
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="'dropout' drops values at random, and generator is None"):
        engine.meta_gradients(weights_of(network), batch)


class WithUnusedWeight(nn.Module):
    """A linear layer, and a weight that nothing asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(50, 2).double()
        self.unused = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_a_weight_that_the_loss_does_not_depend_on_has_no_gradient(installed):
    network = WithUnusedWeight()
    engine = Learn2LearnEngine(network, Algorithm(inner_lr=0.1, inner_steps=2))
    gradients = engine.meta_gradients(weights_of(network), window_batch()).gradients
    assert gradients["unused"] == 0 and gradients["linear.weight"].abs().max() > 0


def test_meta_sgd_says_what_to_do_about_such_a_weight(installed):
    network, algorithm = WithUnusedWeight(), Algorithm(name="meta-sgd", inner_lr=0.1, inner_steps=1)
    engine = Learn2LearnEngine(network, algorithm)
    with pytest.raises(
        AdaptationError, match="weight that the loss doesn't depend on.*engine=func"
    ):
        engine.meta_gradients(meta_parameters(network, algorithm), window_batch())


def test_tasks_in_chunks_are_the_same_since_they_run_one_by_one(installed):
    network, batch = make_smooth(), make_batch(n_tasks=5)
    algorithm = Algorithm(inner_lr=0.3, inner_steps=2)
    whole, chunks = (
        build_engine("learn2learn", network, algorithm, task_chunk=size) for size in (None, 2)
    )
    expected = whole.meta_gradients(weights_of(network), batch)
    assert_same_step(chunks.meta_gradients(weights_of(network), batch), expected, rtol=0, atol=0)


def test_what_learn2learn_has_not_is_refused_with_the_way_out(installed):
    def refused(match, *, network=None, error=AdaptationError, **settings):
        task_chunk = settings.pop("task_chunk", None)
        algorithm = Algorithm(inner_lr=0.1, inner_steps=2, **settings)
        with pytest.raises(error, match=match):
            Learn2LearnEngine(network or make_smooth(), algorithm, task_chunk=task_chunk)

    refused(r"no maml\+\+.*meta\.engine=func", name="maml++")
    refused("WithUnusedWeight has no features and no head", network=WithUnusedWeight(), name="anil")
    refused("task_chunk is 0", task_chunk=0, error=ValueError)


def test_query_losses_after_every_step_are_refused(installed):
    network, batch = make_smooth(), make_batch()
    engine = Learn2LearnEngine(network, Algorithm(inner_lr=0.1, inner_steps=2))
    plan = StepPlan(first_order=False, loss_weights=(0.5, 0.5))
    with pytest.raises(AdaptationError, match=r"\(0.5, 0.5\).*Use meta.engine=func"):
        engine.meta_gradients(weights_of(network), batch, plan=plan)


def test_without_learn2learn_the_error_has_the_line_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(MissingDependencyError) as caught:
        build_engine("learn2learn", make_smooth(), Algorithm(inner_lr=0.1, inner_steps=1))
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert SCRIPT in lines and COMMAND in lines


@pytest.mark.parametrize(("ci", "outcome"), [("1", pytest.fail), ("", pytest.skip)])
def test_these_tests_fail_without_learn2learn_in_ci_and_are_skipped_elsewhere(
    monkeypatch, ci, outcome
):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome.Exception, match=SCRIPT):
        require_learn2learn()


def test_the_line_to_type_does_what_the_script_does():
    script = (ROOT / SCRIPT).read_text()
    assert os.access(ROOT / SCRIPT, os.X_OK)
    words = COMMAND.replace("pip install 'metaecg[learn2learn]'", "").replace("&&", "").split()
    assert [word for word in words if word not in script] == []


def test_importing_learn2learn_says_nothing_and_leaves_global_randomness_alone(installed):
    code = (
        "import random, numpy, torch\n"
        "from metaecg.meta.learn2learn_engine import import_learn2learn\n"
        "def drawn(): return random.random(), numpy.random.random(), torch.rand(1).item()\n"
        "def seed(): random.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n"
        "seed(); expected = drawn(); seed(); import_learn2learn()\n"
        "assert drawn() == expected\n"
        "from gym_notices.notices import notices; assert notices\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
