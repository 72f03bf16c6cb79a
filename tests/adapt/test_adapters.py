import json

import pytest
import torch

from metaecg import __version__
from metaecg.adapt.adapters import adapter_tensors, put_tensors, read_adapter, write_adapter
from metaecg.adapt.methods import METHODS, prepare_network
from metaecg.adapt.personalize import Personalizer
from metaecg.errors import CheckpointError
from metaecg.models.checkpoints import BaseModel


@pytest.fixture(scope="module")
def personal(base, support):
    return Personalizer(base, n_steps=3, method="head").fit(support[0], support[1])


@pytest.fixture
def folder(personal, tmp_path):
    personal.save(tmp_path / "s-1")
    return tmp_path / "s-1"


def edit(folder, **changes):
    path = folder / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_base(base):
    network = base.new_network()
    with torch.no_grad():
        network.head.bias[0] += 1e-3
    return BaseModel(
        network=network,
        architecture=base.architecture,
        architecture_kwargs=base.architecture_kwargs,
        n_leads=1,
        classes=base.classes,
        preprocessing=base.preprocessing,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["base", "metava_base"])
def test_a_loaded_adapter_gives_the_same_probabilities_bit_for_bit(
    request, which, method, support, later, tmp_path
):
    base = request.getfixturevalue(which)
    fitted = Personalizer(base, method=method, n_steps=5, prefine="intended", rank=2)
    fitted.fit(support[0], support[1], time_s=support[2])
    fitted.save(tmp_path / "a")
    loaded = Personalizer.load(tmp_path / "a", base)
    assert (loaded.predict_proba(later[0]) == fitted.predict_proba(later[0])).all()
    assert (loaded.predict_proba(later[0]) != base.predict_proba(later[0])).any()
    for name in ("n_trainable_", "n_support_", "loss_curve_", "prefine_curve_", "adapted_layers_"):
        assert getattr(loaded, name) == getattr(fitted, name), name
    left, right = loaded.get_params(), fitted.get_params()
    assert left == right


def test_the_tensors_of_lora_have_the_names_of_pefts_own_files(base):
    from peft import get_peft_model_state_dict

    network = prepare_network(base.new_network(), "lora")
    expected = get_peft_model_state_dict(network, save_embedding_layers=False)
    found = adapter_tensors(network)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("method", "most"), [("head", 2_000), ("bias", 4_000), ("lora", 16_000)])
def test_the_file_of_a_patient_is_small(base, support, tmp_path, method, most):
    fitted = Personalizer(base, method=method, n_steps=1, rank=2).fit(support[0], support[1])
    fitted.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter.safetensors").stat().st_size < most


def test_the_document_says_what_the_adapter_is(folder, base):
    document = json.loads((folder / "adapter.json").read_text())
    assert document["format_version"] == 1
    assert document["metaecg_version"] == __version__
    assert document["method"] == "head"
    assert document["base_fingerprint"] == base.fingerprint
    assert document["classes"] == ["other", "va"]
    assert document["n_support"] == {"other": 10, "va": 10}
    assert document["params"]["n_steps"] == 3 and "base" not in document["params"]


def test_what_fit_used_is_saved_and_the_threshold_of_now(base, support, tmp_path):
    fitted = Personalizer(base, method="head", n_steps=2).fit(support[0], support[1])
    fitted.set_params(method="lora", threshold=0.3).save(tmp_path / "a")
    loaded = Personalizer.load(tmp_path / "a", base)
    assert (loaded.method, loaded.threshold) == ("head", 0.3)


def test_a_reader_waits_while_the_folder_is_being_replaced(folder, base, monkeypatch):
    aside = folder.rename(folder.with_name("aside"))

    def sleep(pause_s):
        if pause_s and aside.exists():
            aside.rename(folder)

    monkeypatch.setattr("metaecg.adapt.adapters.time.sleep", sleep)
    assert len(Personalizer.load(folder, base).loss_curve_) == 3


def test_saving_again_replaces_the_adapter_and_leaves_nothing_beside_it(folder, base, support):
    other = Personalizer(base, method="head", n_steps=9).fit(support[0], support[1])
    other.save(folder)
    assert len(Personalizer.load(folder, base).loss_curve_) == 9
    assert sorted(path.name for path in folder.parent.iterdir()) == ["s-1"]


def test_a_save_that_fails_leaves_the_old_adapter_whole(folder, base, personal, monkeypatch):
    def full_disk(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            personal.save(folder)
    Personalizer.load(folder, base)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["s-1"]


def test_a_folder_with_other_files_is_not_replaced(personal, tmp_path):
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="letter.txt"):
        personal.save(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "keep me"


def test_another_base_is_refused_with_both_fingerprints(folder, base):
    other = other_base(base)
    with pytest.raises(CheckpointError) as info:
        Personalizer.load(folder, other)
    assert base.fingerprint in str(info.value) and other.fingerprint in str(info.value)


@pytest.mark.parametrize("n_bytes", [0, 7, 200, -1])
def test_a_truncated_file_is_refused(folder, base, n_bytes):
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match="checksum.*cut short"):
        Personalizer.load(folder, base)


def test_a_file_that_is_no_safetensors_is_never_unpickled(folder, base, tmp_path):
    import hashlib

    path = folder / "adapter.safetensors"
    torch.save({"head.bias": torch.zeros(2)}, path)
    edit(folder, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        Personalizer.load(folder, base)


@pytest.mark.parametrize("version", [2, "1", None])
def test_an_unknown_format_version_is_refused(folder, base, version):
    edit(folder, format_version=version)
    with pytest.raises(CheckpointError, match=f"format version {version!r}; this metaecg reads 1"):
        Personalizer.load(folder, base)


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_missing_file_is_named(folder, base, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Personalizer.load(folder, base)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"format_version": 1}', "\udcff"])
def test_a_damaged_document_is_refused(folder, base, text):
    (folder / "adapter.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="adapter.json"):
        Personalizer.load(folder, base)


@pytest.mark.parametrize(
    "params",
    [
        {"method": "hypnosis"},
        {"surprise": 1},
        {"method": "lora", "rank": 0},
        {"method": "lora", "rank": 500},
        {"method": "lora", "alpha": "much"},
        {"threshold": "high"},
        [],
        None,
    ],
)
def test_parameters_that_cannot_be_used_are_refused(folder, base, params):
    edit(folder, params=params)
    with pytest.raises(CheckpointError, match="Fit again"):
        Personalizer.load(folder, base)


@pytest.mark.parametrize("changes", [{"n_support": 3}, {"fit_seconds": []}, {"loss_curve": 1}])
def test_facts_of_another_kind_are_refused(folder, base, changes):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match="Fit again"):
        Personalizer.load(folder, base)


def test_tensors_of_another_method_are_refused(folder, base):
    edit(folder, params={"method": "bias"})
    with pytest.raises(CheckpointError, match="tensors of the adapter don't fit"):
        Personalizer.load(folder, base)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(base):
    network = prepare_network(base.new_network(), "head")
    tensors = adapter_tensors(network) | {"head.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"'head.bias': its shape is \(3,\), expected \(2,\)"):
        put_tensors(network, tensors)


def test_a_lora_tensor_too_many_is_refused(base):
    network = prepare_network(base.new_network(), "lora")
    tensors = adapter_tensors(network) | {"extra": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="'extra'.*expected no such tensor"):
        put_tensors(network, tensors)


def test_what_is_written_is_read(tmp_path):
    keys = ("method", "params", "base_fingerprint", "classes", "n_support")
    write_adapter(tmp_path / "a", {"w": torch.arange(3.0)}, dict.fromkeys(keys, "x"))
    tensors, document = read_adapter(tmp_path / "a")
    assert tensors["w"].tolist() == [0, 1, 2] and document["classes"] == "x"
