"""Bases on disk: what comes back, and what is refused."""

import hashlib
import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from metaecg.data.preprocessing import Preprocessing
from metaecg.errors import CheckpointError, DataError
from metaecg.models import checkpoints, folders, inference
from metaecg.models.checkpoints import BaseModel, load_base, published_names
from metaecg.models.inference import network_logits
from metaecg.models.registry import build_network
from metaecg.models.rhythm import RhythmModel


def make_base(seed: int = 0, *, width: int = 16, **changes) -> BaseModel:
    network = build_network(
        "compact-cnn",
        n_leads=1,
        n_samples=400,
        fs_hz=200.0,
        n_classes=2,
        generator=torch.Generator().manual_seed(seed),
        width=width,
    )
    values = {
        "network": network,
        "architecture": "compact-cnn",
        "architecture_kwargs": {"width": width},
        "n_leads": 1,
        "classes": ("other", "va"),
        "preprocessing": Preprocessing(),
        "training": {"subject_ids": ["a", "b"]},
    }
    return BaseModel(**{**values, **changes})


def make_rhythm(**changes) -> RhythmModel:
    values = {"p_onset": 0.1, "p_end": 0.2, "strength_onset": 100, "strength_end": 10}
    values |= {"temperature": 1 / 3, "bias": 2, "threshold": 0.4, "step_s": 2}
    return RhythmModel(**{**values, **changes})


def some_windows(n: int = 5, n_leads: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, n_leads, 400)).astype(np.float32)


@pytest.fixture
def folder(tmp_path) -> Path:
    make_base().save(tmp_path / "base")
    return tmp_path / "base"


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps({**config, **changes}))


def change_weights(folder: Path, content: bytes) -> None:
    """Put other bytes in the place of the weights, with the checksum that belongs to them."""
    (folder / "weights.safetensors").write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    change_config(folder, weights={"n_bytes": len(content), "sha256": checksum})


def test_all_that_was_saved_comes_back(tmp_path):
    base = make_base(preprocessing=Preprocessing(highcut_hz=30.0))
    base.save(tmp_path / "new" / "base")
    loaded = load_base(tmp_path / "new" / "base")
    assert (loaded.logits(some_windows()) == base.logits(some_windows())).all()
    assert loaded.classes == ("other", "va")
    assert loaded.preprocessing == Preprocessing(highcut_hz=30.0)
    assert loaded.training == {"subject_ids": ["a", "b"]}
    assert (loaded.architecture, loaded.architecture_kwargs) == ("compact-cnn", {"width": 16})
    assert loaded.fingerprint == base.fingerprint


def test_a_base_is_two_files_and_nothing_is_left_beside_it(tmp_path):
    make_base(seed=1).save(tmp_path / "base")
    make_base(seed=2).save(str(tmp_path / "base"))
    assert sorted(p.name for p in (tmp_path / "base").iterdir()) == [
        "base.json",
        "weights.safetensors",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert load_base(tmp_path / "base").fingerprint == make_base(seed=2).fingerprint


def test_saving_the_same_base_twice_writes_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        make_base().save(tmp_path / name)
    for file in ("base.json", "weights.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_probabilities_are_the_softmax_of_the_logits_and_sum_to_one():
    base = make_base()
    logits, probabilities = base.logits(some_windows()), base.predict_proba(some_windows())
    assert probabilities.dtype == np.float64 and probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(probabilities[:, 1], expected, rtol=1e-12)


def test_windows_are_normalised_as_the_preprocessing_says():
    windows = some_windows()
    base, raw = make_base(), make_base(preprocessing=Preprocessing(normalize="none"))
    np.testing.assert_allclose(base.logits(3 * windows + 1), base.logits(windows), atol=1e-4)
    normalised = Preprocessing().normalize_windows(windows)
    np.testing.assert_allclose(raw.logits(normalised), base.logits(windows), atol=1e-6)
    assert not np.allclose(raw.logits(3 * windows + 1), raw.logits(windows), atol=1e-2)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    whole = make_base().logits(some_windows(7))
    monkeypatch.setattr(inference, "CHUNK", 3)
    np.testing.assert_allclose(make_base().logits(some_windows(7)), whole, atol=1e-6)


def test_no_window_gives_no_row():
    assert make_base().predict_proba(some_windows(0)).shape == (0, 2)


def test_windows_of_another_shape_are_refused_with_both_shapes():
    with pytest.raises(
        DataError, match=r"\(5, 2, 400\).*expected \(n_windows, 1, 400\): the base takes"
    ):
        make_base().logits(some_windows(n_leads=2))


def test_windows_with_gaps_are_refused():
    windows = some_windows()
    windows[3, 0, 7] = np.nan
    with pytest.raises(DataError, match=r"windows\[3\] holds NaN"):
        make_base().predict_proba(windows)


def test_a_base_stays_as_it_is_when_the_callers_network_or_a_copy_is_trained():
    network = make_base().new_network()
    base = make_base(network=network)
    expected = base.logits(some_windows())
    for other in (network, base.new_network()):
        with torch.no_grad():
            other.head.weight.zero_()
    assert (base.logits(some_windows()) == expected).all()


def test_logits_leave_every_train_flag_as_it_was():
    network = build_network("metava", n_leads=1, n_samples=400, fs_hz=200.0, n_classes=2)
    network.train()
    network.norm1.eval()
    before = [module.training for module in network.modules()]
    first = network_logits(network, some_windows(), n_classes=2)
    assert [module.training for module in network.modules()] == before
    assert (network_logits(network, some_windows(), n_classes=2) == first).all()  # no dropout


def test_the_fingerprint_changes_with_all_that_decides_the_output_and_with_nothing_else():
    base = make_base()
    weights = base.new_network()
    with torch.no_grad():
        weights.head.bias[0] += 1e-6
    others = {
        make_base(network=weights).fingerprint,
        make_base(classes=("va", "other")).fingerprint,
        make_base(preprocessing=Preprocessing(normalize="none")).fingerprint,
    }
    assert len(others | {base.fingerprint}) == 4
    assert make_base(training={"recipe": "another"}).fingerprint == base.fingerprint


def test_a_base_comes_back_with_its_rhythm_model_which_leaves_its_logits_alone(tmp_path):
    base = make_base(rhythm=make_rhythm())
    base.save(tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    assert loaded.rhythm == make_rhythm() and loaded.fingerprint == base.fingerprint
    assert (loaded.logits(some_windows()) == make_base().logits(some_windows())).all()


def test_the_rhythm_model_is_part_of_the_fingerprint():
    plain, other = make_base(), make_base(rhythm=make_rhythm(bias=2.0001))
    found = {plain.fingerprint, other.fingerprint, make_base(rhythm=make_rhythm()).fingerprint}
    assert len(found) == 3


def test_a_base_without_a_rhythm_model_is_written_and_fingerprinted_as_before_there_were_any(
    folder,
):
    config, base = json.loads((folder / "base.json").read_text()), load_base(folder)
    assert base.rhythm is None and "rhythm" not in config
    keys = ("architecture", "architecture_kwargs", "n_leads", "classes", "preprocessing")
    facts = {key: config[key] for key in keys}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in sorted(base.network.state_dict().items()):
        digest.update(f"\x1f{name} {tensor.dtype} {list(tensor.shape)}\x1f".encode())
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == base.fingerprint


def test_a_rhythm_model_needs_two_classes_and_is_one():
    network = build_network("compact-cnn", n_leads=1, n_samples=400, fs_hz=200.0, n_classes=3)
    with pytest.raises(ValueError, match="'c'.*a rhythm model, which knows two"):
        make_base(network=network, classes=("a", "b", "c"), rhythm=make_rhythm())
    with pytest.raises(ValueError, match="a RhythmModel or None"):
        make_base(rhythm=make_rhythm().to_dict())


@pytest.mark.parametrize(
    ("rhythm", "reason"),
    [
        ({**make_rhythm().to_dict(), "p_onset": 2.0}, "p_onset is 2.0"),
        ({**make_rhythm().to_dict(), "bias": 1.9}, "was changed after it was written"),
        ({"p_onset": 0.1}, "RhythmModel was given"),
        (None, "RhythmModel was given None"),
        ("fast", "has a rhythm that can't be used"),
    ],
)
def test_a_damaged_rhythm_model_is_refused(tmp_path, rhythm, reason):
    make_base(rhythm=make_rhythm()).save(tmp_path / "base")
    change_config(tmp_path / "base", rhythm=rhythm)
    with pytest.raises(CheckpointError, match=reason):
        load_base(tmp_path / "base")


def test_a_rhythm_model_beside_three_classes_is_refused(folder):
    change_config(folder, rhythm=make_rhythm().to_dict(), classes=["a", "b", "c"])
    with pytest.raises(CheckpointError, match="a rhythm model knows two"):
        load_base(folder)


def test_one_name_per_logit_is_needed():
    with pytest.raises(ValueError, match="gives 2 logits, but classes has 3 names"):
        make_base(classes=("a", "b", "c"))


def test_a_network_that_does_not_fit_its_description_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="don't fit the architecture"):
        make_base(architecture_kwargs={"width": 32}).save(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_training_facts_that_are_no_json_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="ndarray is not JSON serializable.*training"):
        make_base(training={"curve": np.zeros(3)}).save(tmp_path / "base")


@pytest.mark.parametrize("missing", ["base.json", "weights.safetensors"])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing} can't be read"):
        load_base(folder)


def test_a_missing_folder_is_named_with_what_was_asked(tmp_path):
    with pytest.raises(CheckpointError, match="there is no base 'no-such-base'"):
        load_base("no-such-base")


def test_a_file_cut_short_is_refused_with_both_sizes(folder):
    path = folder / "weights.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"has {size - 100} bytes, base.json says {size}"):
        load_base(folder)


def test_a_flipped_bit_is_refused(folder):
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="does not have the checksum"):
        load_base(folder)


def test_an_unknown_format_version_is_refused(folder):
    change_config(folder, format_version=99)
    with pytest.raises(CheckpointError, match="format version 99; this metaecg reads 1"):
        load_base(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "is not JSON"), ("[]", "not a base of metaecg"), ('{"a": 1}', "not a base of metaecg")],
)
def test_a_config_that_is_something_else_is_refused(folder, content, reason):
    (folder / "base.json").write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        load_base(folder)


def test_an_unknown_architecture_is_refused_with_the_nearest_name(folder):
    change_config(folder, architecture="compact_cnn")
    with pytest.raises(CheckpointError, match="'compact_cnn'.*Did you mean 'compact-cnn'"):
        load_base(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture_kwargs": {"width": 32}}, r"\[16, 1, 21\] where the network has .*32, 1"),
        ({"architecture_kwargs": {"depth": 2}}, "no argument 'depth'"),
        ({"architecture_kwargs": {"width": "x"}}, "can't be built"),
        ({"n_leads": 2}, r"where the network has torch.float32 \[16, 2, 21\]"),
        ({"n_leads": "one"}, "'one' as 'n_leads'; a int was expected"),
        ({"preprocessing": {"speed": 1}}, "unknown keys"),
        ({"classes": ["other", "va", "x"]}, "head"),
        ({"classes": ["va", "other"]}, "was changed after it was written"),
        ({"weights": {}}, "None"),
    ],
)
def test_a_config_that_does_not_belong_to_the_weights_is_refused(folder, changes, reason):
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=reason):
        load_base(folder)


def test_a_huge_network_is_refused_before_memory_is_taken_for_it(folder):
    change_config(folder, architecture_kwargs={"width": 2**20})
    with pytest.raises(CheckpointError, match="don't fit the architecture"):
        load_base(folder)


def test_missing_and_unknown_tensors_are_named(folder):
    tensors = load((folder / "weights.safetensors").read_bytes())
    tensors["tail.weight"] = tensors.pop("head.weight")
    change_weights(folder, save(tensors))
    with pytest.raises(CheckpointError, match="unknown tensor 'tail.weight'; no tensor 'head.wei"):
        load_base(folder)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_ever_unpickled(folder, tmp_path):
    marker = tmp_path / "executed"
    change_weights(folder, pickle.dumps(Trap(marker)))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_base(folder)
    assert not marker.exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds 'thesis.txt'"):
        make_base().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "base").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file; a folder to write to"):
        make_base().save(tmp_path / "base")
    assert (tmp_path / "base").read_text() == "a file"


@pytest.mark.parametrize("step", ["_write_synced", "sync_folder"])
def test_a_failure_while_writing_leaves_the_old_base(folder, monkeypatch, step):
    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, step, full_disk)
    with pytest.raises(OSError, match="No space"):
        make_base(seed=9).save(folder)
    assert load_base(folder).fingerprint == make_base().fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_a_failure_while_renaming_puts_the_old_base_back(folder, monkeypatch):
    rename = Path.rename

    def refuse_the_new_one(self, target):
        if self.suffix == ".new":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(PermissionError):
        make_base(seed=9).save(folder)
    assert load_base(folder).fingerprint == make_base().fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_a_reader_beside_two_writers_always_gets_a_whole_base(folder):
    bases = [make_base(seed=0), make_base(seed=1)]
    known = {base.fingerprint for base in bases}
    errors = []  # of the threads: pytest would only warn

    def write(base):
        try:
            for _ in range(15):
                base.save(folder)
        except (OSError, CheckpointError) as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(base,)) for base in bases]
    for writer in writers:
        writer.start()
    n_read = 0
    while any(writer.is_alive() for writer in writers):
        assert load_base(folder).fingerprint in known
        n_read += 1
    for writer in writers:
        writer.join()
    assert errors == [] and n_read > 0
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_a_published_base_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PUBLISHED", tmp_path)
    assert published_names() == ()
    make_base().save(tmp_path / "va-small")
    (tmp_path / "not-a-base").mkdir()
    assert published_names() == ("va-small",)
    assert load_base("va-small").fingerprint == make_base().fingerprint
    with pytest.raises(CheckpointError, match="'va-smal'.*Did you mean 'va-small'"):
        load_base("va-smal")


def test_every_base_that_comes_with_the_package_loads():
    for name in published_names():
        base = load_base(name)
        assert base.predict_proba(
            np.zeros((1, base.n_leads, base.preprocessing.n_samples))
        ).shape == (1, len(base.classes))
