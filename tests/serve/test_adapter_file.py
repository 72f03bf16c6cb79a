"""An adapter as bytes: the same numbers back, and nothing but a CheckpointError for what is no adapter."""

import json
import pickle

import numpy as np
import pytest
import torch
from serve_cases import RHYTHM, make_base, personal_of, windows_like
from sklearn.exceptions import NotFittedError

from metaecg.adapt.adapters import adapter_tensors, document_of
from metaecg.adapt.methods import METHODS
from metaecg.adapt.personalize import Personalizer
from metaecg.errors import CheckpointError
from metaecg.serve.adapter_file import adapter_bytes, load_adapter, packed, unpacked
from metaecg.serve.mixed_adapters import AdapterReader


@pytest.fixture(scope="module")
def base():
    return make_base(width=8, rhythm=RHYTHM)


@pytest.fixture(scope="module")
def personal(base):
    return personal_of(base, rhythm="causal")


def readers(base):
    return [lambda data: load_adapter(data, base), AdapterReader(base).read]


def changed(personal, **changes):
    """Return the bytes of an adapter whose document says something else, with a checksum that fits."""
    document = document_of(personal)
    for name in [name for name in changes if name in document["params"]]:
        document["params"] = {**document["params"], name: changes.pop(name)}
    return packed(adapter_tensors(personal.network_), {**document, **changes})


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_come_back_bit_for_bit(method):
    base = make_base("metava", mid=8, d_model=8, feedforward=16)
    personal = personal_of(base, method, **({"rank": 2} if method == "lora" else {}))
    data, windows = adapter_bytes(personal), windows_like(base, 5)
    found = load_adapter(data, base)
    assert np.array_equal(found.logits(windows), personal.logits(windows))
    assert adapter_bytes(found) == data


def test_rhythm_threshold_and_facts_come_back(base, personal):
    found = load_adapter(adapter_bytes(personal), base)
    assert found.chain_ == personal.chain_ and found.threshold == 0.4
    assert found.n_support_ == {"other": 3, "va": 3}
    assert found.loss_curve_ == personal.loss_curve_
    windows, time_s = windows_like(base, 5), np.arange(5.0)
    expected = personal.predict_proba(windows, time_s=time_s)
    assert np.array_equal(found.predict_proba(windows, time_s=time_s), expected)


def test_what_is_not_fitted_has_no_file(base):
    with pytest.raises(NotFittedError, match="not fitted"):
        adapter_bytes(Personalizer(base))


def test_another_base_is_refused_with_both_fingerprints(base, personal):
    other = make_base(width=8, rhythm=RHYTHM, seed=1)
    for read in readers(other):
        with pytest.raises(CheckpointError, match=f"{base.fingerprint}.*{other.fingerprint}"):
            read(adapter_bytes(personal))


def test_every_cut_and_every_changed_byte_is_refused(base, personal):
    data = adapter_bytes(personal)
    rng = np.random.default_rng(0)
    broken = [data[:n] for n in (0, 7, 8, 9, 200, len(data) // 2, len(data) - 1)] + [data + b"\0"]
    for at in [*range(8), *rng.integers(0, len(data), 150).tolist()]:
        broken.append(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :])
    for read in readers(base):
        refused = 0
        for part in broken:
            try:
                read(part)
            except CheckpointError:
                refused += 1
        assert refused == len(broken)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"head.bias": torch.zeros(2)}),
        b"PK\x03\x04" + b"\0" * 500,
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        (4).to_bytes(8, "little") + b"null",
        b"",
    ],
)
def test_what_is_no_adapter_is_refused(base, data):
    for read in readers(base):
        with pytest.raises(CheckpointError, match="adapter"):
            read(data)


@pytest.mark.parametrize("content", [None, 3, [], {}, {"format_version": 1}, {"document": {}}])
def test_metadata_that_say_nothing_of_an_adapter_are_refused(base, content):
    from safetensors.torch import save

    data = save({"x": torch.zeros(2)}, metadata={"metaecg_adapter": json.dumps(content)})
    for read in readers(base):
        with pytest.raises(CheckpointError, match="adapter"):
            read(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "hypnosis"},
        {"rank": 0},
        {"rank": 500},
        {"alpha": "much"},
        {"threshold": "high"},
        {"threshold": 7.0},
        {"rhythm": "salsa"},
        {"rhythm_chain": {"p_onset": 9}},
        {"rhythm_chain": None},
        {"params": []},
        {"params": {}},
        {"params": {"surprise": 1}},
        {"n_support": 3},
        {"adapted_layers": 7},
        {"adapted_layers": [["a"]]},
        {"freeze": [3]},
        {"random_state": -1},
    ],
)
def test_a_document_that_cannot_be_is_refused_although_its_checksum_fits(base, personal, changes):
    data = changed(personal, **changes)
    for read in readers(base):
        with pytest.raises(CheckpointError):
            read(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(base, personal, value):
    tensors = adapter_tensors(personal.network_)
    next(iter(tensors.values())).view(-1)[0] = value
    data = packed(tensors, document_of(personal))
    for read in readers(base):
        with pytest.raises(CheckpointError, match="finite"):
            read(data)


def test_tensors_of_another_shape_or_kind_are_refused(base, personal):
    tensors, document = unpacked(adapter_bytes(personal))
    name = next(iter(tensors))
    for wrong in (tensors[name][:1], tensors[name].double(), tensors[name].to(torch.int32)):
        data = packed({**tensors, name: wrong}, document)
        for read in readers(base):
            with pytest.raises(CheckpointError):
                read(data)
    for data in (packed({**tensors, "x": torch.zeros(1)}, document), packed({}, document)):
        for read in readers(base):
            with pytest.raises(CheckpointError):
                read(data)


def test_a_file_of_a_known_kind_is_read_without_a_network(base, personal, monkeypatch):
    reader = AdapterReader(base)
    reader.read(adapter_bytes(personal))
    monkeypatch.setattr(Personalizer, "from_document", None)
    other = personal_of(base, rhythm="causal", seed=3)
    found = reader.read(adapter_bytes(other), version=4)
    expected = torch.cat([t.flatten() for t in adapter_tensors(other.network_).values()])
    assert np.array_equal(np.sort(found.numbers), np.sort(expected.numpy()))
    assert (found.version, found.threshold, found.chain) == (4, other.threshold, other.chain_)
    assert found.n_bytes > found.numbers.nbytes
