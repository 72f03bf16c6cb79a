"""Rows of a mixed batch equal those of one patient's detector after another."""

import itertools

import numpy as np
import pytest
import torch

from metaecg.adapt.methods import METHODS
from metaecg.adapt.personalize import Personalizer
from metaecg.data.preprocessing import Preprocessing
from metaecg.models.checkpoints import BaseModel, load_base
from metaecg.models.registry import NETWORKS, build_network
from metaecg.serve.mixed import MixedBatch

SMALL = {
    "compact-cnn": {"width": 8},
    "compact-cnn-ensemble": {"width": 8, "n_members": 2},
    "metava": {"mid": 8, "d_model": 8, "feedforward": 16},
    "beat-cnn": {"width": 8},
    "cnn-transformer": {},
    "net1d": {},
}


def make_base(architecture, **kwargs):
    preprocessing = Preprocessing(fs_hz=100.0, window_s=1.0)
    network = build_network(
        architecture,
        n_leads=1,
        n_samples=100,
        fs_hz=100.0,
        n_classes=2,
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    )
    return BaseModel(
        network=network,
        architecture=architecture,
        architecture_kwargs=kwargs,
        n_leads=1,
        classes=("other", "va"),
        preprocessing=preprocessing,
    )


def windows_like(base, n, *, seed=0):
    shape = (n, base.n_leads, base.preprocessing.n_samples)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def personal_of(base, method, *, seed, **arguments):
    """Return a patient's detector whose numbers all differ from the base's."""
    arguments = {"n_steps": 2, **arguments}
    personal = Personalizer(base, method=method, random_state=seed, **arguments)
    return personal.fit(windows_like(base, 6, seed=100 + seed), [0, 1] * 3)


def assert_rows_agree(base, personals, *, n=9, atol=1e-5):
    mixed, windows = MixedBatch(base), windows_like(base, n)
    chosen = list(itertools.islice(itertools.cycle([*personals, None]), n))
    loaded = {id(p): mixed.reader.of(p) for p in personals} | {id(None): None}
    found = mixed.logits(windows, [loaded[id(p)] for p in chosen])
    models = [base if p is None else p for p in chosen]
    expected = np.concatenate([m.logits(windows[i : i + 1]) for i, m in enumerate(models)])
    assert len(np.unique(expected, axis=0)) == n
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", sorted(NETWORKS))
def test_each_row_has_its_own_patients_logits(architecture, method):
    base = make_base(architecture, **SMALL.get(architecture, {}))
    arguments = {"rank": 2} if method in ("lora", "h-tuning") else {}
    try:
        personals = [personal_of(base, method, seed=seed, **arguments) for seed in range(3)]
    except Exception as error:
        if "matches no layer" not in str(error):
            raise
        pytest.skip(f"{architecture} has no layer for {method}")
    assert_rows_agree(base, personals)


@pytest.mark.parametrize("name", ["va-base", "veb-base"])
def test_methods_mix_in_one_batch_of_the_published_bases(name):
    base = load_base(name)
    personals = [personal_of(base, method, seed=k) for k, method in enumerate(METHODS)]
    personals += [personal_of(base, "lora", seed=9), personal_of(base, "lora", seed=8, rank=2)]
    personals += [personal_of(base, "lora", seed=7, alpha=1.5), personal_of(base, "head", seed=6)]
    assert_rows_agree(base, personals, n=23)
