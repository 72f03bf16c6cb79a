"""`meta.engine` of the main job: what is refused in advance, and bases trained by either engine."""

import importlib.util
import os

import numpy as np
import pytest
import torch

from metaecg.data.datasets import Dataset
from metaecg.data.splits import Split
from metaecg.data.windows import WindowSet
from metaecg.errors import AdaptationError
from metaecg.experiments import va_options
from metaecg.experiments.config import build_config
from metaecg.experiments.va_bases import train_base
from metaecg.meta.algorithms import Algorithm
from metaecg.meta.engine import ENGINES, build_engine
from metaecg.models.registry import build_network

NETWORKS = [
    ("gru", {}),
    ("lstm", {}),
    ("bilstm", {}),
    ("metava", {}),
    ("cnn-transformer", {"attention": "plain"}),
    ("resnet1d-18", {}),
    ("resnet1d-18", {"norm": "group"}),
    ("net1d", {}),
    ("net1d", {"use_bn": True}),
    ("compact-cnn", {}),
]
TINY = {
    "methods": ["maml+full"],
    "n_shots": 2,
    "budget_windows": 100,
    "meta": {"n_query": 2, "meta_batch_size": 2, "inner_steps": 2, "warm_start": 0.0},
}
needs_learn2learn = pytest.mark.skipif(
    importlib.util.find_spec("learn2learn") is None and not os.environ.get("CI"),
    reason="learn2learn is not installed; type scripts/install_learn2learn",
)  # in CI they run, and fail without it


def make_dataset() -> Dataset:
    """Three subjects whose VA windows oscillate and whose other windows are noise."""
    rng = np.random.default_rng(7)
    labels = np.tile(np.arange(40) % 2, 3)
    wave = np.sin(np.arange(64) / 2) * labels[:, None]
    subjects = np.repeat(["s-1", "s-2", "s-3"], 40)
    times = np.tile(2.0 * np.arange(40), 3)
    windows = WindowSet(
        windows=(wave + rng.standard_normal(wave.shape))[:, None].astype(np.float32),
        labels=labels,
        is_mixed=np.zeros(120, dtype=bool),
        subject_ids=subjects,
        record_ids=subjects,
        start_s=times,
        time_s=times,
        fs_hz=32.0,
        window_s=2.0,
    )
    return Dataset(windows=windows, records=())


def train(engine: str, network: str, arguments: dict):
    """Return the network of a base that is meta-learned in a few steps."""
    values = {**TINY, "network": {"name": network, "arguments": arguments}}
    values["meta"] = {**TINY["meta"], "engine": engine}
    split = Split(name="fold-0", train=("s-1", "s-2", "s-3"), test=())
    trained = train_base(
        "maml", build_config(values), make_dataset(), split, seed=0, on_cost=lambda cost: None
    )
    return trained.model.network


@needs_learn2learn
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", ["maml", "anil", "maml++"])
@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
def test_the_configuration_refuses_just_what_the_engine_refuses(engine, algorithm, name, arguments):
    values = {"network": {"name": name, "arguments": arguments}, "methods": ["maml+full"]}
    config = build_config({**values, "meta": {"engine": engine, "algorithm": algorithm}})
    network = build_network(name, n_leads=1, n_samples=400, fs_hz=200.0, n_classes=2, **arguments)
    try:
        build_engine(engine, network, Algorithm(name=algorithm, inner_lr=0.1, inner_steps=1))
        refused = False
    except AdaptationError:
        refused = True
    assert bool(va_options._network_problems(config)) == refused


def test_a_missing_learn2learn_is_reported_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(va_options, "find_spec", lambda name: None)
    config = build_config({"meta": {"engine": "learn2learn"}, "methods": ["maml+full"]})
    (problem,) = va_options._network_problems(config)
    assert "scripts/install_learn2learn" in problem
    unused = build_config({"meta": {"engine": "learn2learn"}, "methods": ["pretrain+full"]})
    assert va_options._network_problems(unused) == []


@needs_learn2learn
@pytest.mark.parametrize(
    ("arguments", "meta", "refused"),
    [
        ({}, {"algorithm": "maml"}, True),
        ({"attention": "fused"}, {"algorithm": "meta-sgd"}, True),
        ({}, {"algorithm": "maml", "first_order": True}, False),
        ({}, {"algorithm": "anil"}, False),
    ],
)
def test_fused_attention_is_refused_where_second_derivatives_are_needed(arguments, meta, refused):
    network = {"name": "cnn-transformer", "arguments": arguments}
    config = build_config({"network": network, "meta": {"engine": "learn2learn"} | meta})
    problems = va_options._network_problems(config)
    assert [("attention: plain" in problem) for problem in problems] == [True] * refused


@needs_learn2learn
def test_a_base_has_the_same_weights_whichever_engine_trains_it():
    func, learn2learn = (train(engine, "compact-cnn", {"width": 4}) for engine in ENGINES)
    for (name, a), b in zip(func.named_parameters(), learn2learn.parameters(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@needs_learn2learn
def test_a_base_with_batch_norm_has_the_running_statistics_of_its_training_windows():
    network = train("learn2learn", "resnet1d-18", {"width": 8})
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert all(norm.num_batches_tracked == 3 for norm in norms)  # one task of each subject
    assert all((norm.running_var != 1).all() for norm in norms)
