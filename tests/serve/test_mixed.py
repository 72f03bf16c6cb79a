"""Rows of a mixed batch equal those of one patient's detector after another."""

import itertools

import numpy as np
import pytest
import torch

from metaecg.adapt.methods import METHODS
from metaecg.adapt.personalize import Personalizer
from metaecg.data.preprocessing import Preprocessing
from metaecg.errors import DataError
from metaecg.models.base_windows import is_for_beats
from metaecg.models.checkpoints import BaseModel, load_base
from metaecg.models.registry import NETWORKS, build_network
from metaecg.serve.mixed import MixedBatch
from metaecg.serve.mixed_rows import MisfitError, RowNetwork

SMALL = {
    "compact-cnn": {"width": 8},
    "compact-cnn-ensemble": {"width": 8, "n_members": 2},
    "metava": {"mid": 8, "d_model": 8, "feedforward": 16},
    "beat-cnn": {"width": 8},
    "cnn-transformer": {},
    "net1d": {},
}


def make_base(architecture, *, n_samples=100, n_leads=1, normalize="window", **kwargs):
    preprocessing = Preprocessing(fs_hz=100.0, window_s=n_samples / 100, normalize=normalize)
    network = build_network(
        architecture,
        n_leads=n_leads,
        n_samples=n_samples,
        fs_hz=100.0,
        n_classes=2,
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    )
    return BaseModel(
        network=network,
        architecture=architecture,
        architecture_kwargs=kwargs,
        n_leads=n_leads,
        classes=("other", "va"),
        preprocessing=preprocessing,
    )


def windows_like(base, n, *, seed=0):
    shape = (n, base.n_leads, base.preprocessing.n_samples)
    windows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if is_for_beats(base):  # its last row holds numbers, and nothing behind them
        windows[:, -1, base.architecture_kwargs["n_numbers"] :] = 0
    return windows


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


@pytest.mark.parametrize("rank", [1, 3, 4, 5, 8])
def test_any_rank_and_scale_fits_the_compiled_rows(rank):
    base = make_base("compact-cnn-ensemble", width=8, n_members=2)
    personals = [personal_of(base, "lora", seed=s, rank=rank, alpha=s + 0.5) for s in range(2)]
    personals.append(personal_of(base, "h-tuning", seed=4, rank=rank))
    assert_rows_agree(base, personals)


@pytest.mark.parametrize("targets", [["blocks.1.conv"], ["blocks.0.conv", "blocks.3.conv"]])
def test_layers_without_a_change_of_their_own_keep_the_bases(targets):
    base = make_base("compact-cnn", width=8)
    personals = [personal_of(base, "lora", seed=s, target_modules=targets) for s in range(3)]
    personals.append(personal_of(base, "full", seed=4, freeze=["blocks.2"]))
    assert_rows_agree(base, personals)


@pytest.mark.parametrize("n_samples", [7, 60, 101, 219])
@pytest.mark.parametrize("n_leads", [1, 3])
def test_windows_of_any_length_and_leads_fit(n_samples, n_leads):
    base = make_base("compact-cnn", n_samples=n_samples, n_leads=n_leads, width=8)
    assert_rows_agree(base, [personal_of(base, m, seed=4) for m in ("lora", "full", "bias")])


def test_compact_bodies_run_compiled_and_others_as_they_are():
    fused = {name: len(RowNetwork(make_base(name).network, 100)._bodies) for name in NETWORKS}
    assert {name: n for name, n in fused.items() if n} == {
        "compact-cnn": 1,
        "compact-cnn-ensemble": 3,
        "beat-cnn": 1,
    }


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_large_and_small_signals_keep_their_digits(scale):
    base = make_base("compact-cnn", normalize="none", width=8)
    personal = personal_of(base, "lora", seed=1)
    windows = scale * windows_like(base, 8) + 3 * scale
    mixed = MixedBatch(base)
    found = mixed.logits(windows, [mixed.reader.of(personal)] * 8)
    np.testing.assert_allclose(found, personal.logits(windows), rtol=1e-4, atol=1e-5)


def test_one_patients_windows_equal_the_personalizers_whatever_their_number():
    base = make_base("metava", **SMALL["metava"])
    for method in ("lora", "full"):
        personal = personal_of(base, method, seed=2)
        mixed = MixedBatch(base)
        model = mixed.model_of(mixed.reader.of(personal))
        for n in (0, 1, 7, 8, 300):
            windows = windows_like(base, n, seed=n)
            np.testing.assert_allclose(model.logits(windows), personal.logits(windows), atol=1e-5)


def test_the_answer_of_a_row_does_not_depend_on_the_others():
    base = load_base("va-base")
    mixed, windows = MixedBatch(base), windows_like(base, 40)
    adapters = [mixed.reader.of(personal_of(base, "lora", seed=s)) for s in range(4)] * 10
    together = mixed.logits(windows, adapters)
    alone = np.concatenate(
        [mixed.logits(windows[i : i + 1], [adapters[i]]) for i in range(len(windows))]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)


def test_threads_change_no_answer():
    base = load_base("va-base")
    mixed, windows = MixedBatch(base), windows_like(base, 64)
    adapters = [mixed.reader.of(personal_of(base, "lora", seed=s)) for s in range(2)] * 32
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(mixed.logits(windows, adapters))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6)


def test_where_stacked_weights_have_no_rule_one_adapter_runs_after_another(monkeypatch):
    base = make_base("metava", **SMALL["metava"])
    personals = [personal_of(base, "full", seed=seed) for seed in range(3)]

    def refuse(function):
        raise RuntimeError("no batching rule")

    monkeypatch.setattr("metaecg.serve.mixed_whole.vmap", refuse)
    assert_rows_agree(base, personals)


def test_a_network_that_folds_its_rows_is_left_to_whole_weights(monkeypatch):
    base = make_base("metava", **SMALL["metava"])
    personals = [personal_of(base, "lora", seed=seed, rank=2) for seed in range(3)]

    def misfit(self, x, adapters):
        raise MisfitError("a layer was called with other rows")

    monkeypatch.setattr(RowNetwork, "logits", misfit)
    assert_rows_agree(base, personals)


def test_the_base_itself_is_left_as_it_was():
    base = make_base("compact-cnn", width=8)
    windows, before = windows_like(base, 4), base.fingerprint
    expected = base.logits(windows)
    mixed = MixedBatch(base)
    mixed.logits(windows, [mixed.reader.of(personal_of(base, "lora", seed=0))] * 4)
    assert np.array_equal(base.logits(windows), expected)
    assert before == make_base("compact-cnn", width=8).fingerprint


def test_windows_and_adapters_that_do_not_fit_are_refused():
    base = make_base("compact-cnn", width=8)
    mixed = MixedBatch(base)
    with pytest.raises(DataError, match=r"\(2, 1, 99\)"):
        mixed.logits(np.zeros((2, 1, 99)), [None] * 2)
    with pytest.raises(DataError, match="NaN"):
        mixed.logits(np.full((2, 1, 100), np.nan), [None] * 2)
    with pytest.raises(ValueError, match="3 adapters for 2 windows"):
        mixed.logits(windows_like(base, 2), [None] * 3)
    assert mixed.logits(windows_like(base, 0), []).shape == (0, 2)
