"""A run's base as an MLflow model: logged, loaded through pyfunc, registered, taken back."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tracked_bases import make_base

from metaecg.data.twelve_lead_input import TwelveLeadInput
from metaecg.errors import CheckpointError
from metaecg.experiments import ht_mlflow
from metaecg.experiments.ht_base import TwelveLeadBase, random_network
from metaecg.experiments.ht_training import probabilities
from metaecg.experiments.tracking import make_tracker
from metaecg.experiments.tracking_facts import record_base, record_run
from metaecg.models.checkpoints import load_base
from metaecg.models.mlflow_model import LOADER, pyfunc_facts

# mlflow.pyfunc warns of its own type hints when it is first imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")

WINDOWS = np.random.default_rng(0).normal(size=(5, 1, 400)).astype(np.float32)


def twelve_lead_base():
    prepared = TwelveLeadInput(fs_hz=100.0, n_samples=256)
    network = random_network("tinylight", prepared, 3, torch.Generator().manual_seed(0))
    return TwelveLeadBase(
        network=network.eval(),
        size="tinylight",
        class_names=("A", "B", "C"),
        input=prepared,
        training={"subject_ids": ["a"]},
    )


def log(uri, out, base, facts, *, register_as=None):
    """Record a run with a base; return the run's id."""
    tracker = make_tracker(enabled=True, uri=uri, experiment="models", out=out, name=out.name)
    base.save(out / "model")
    tracker.model(facts, folder=out / "model", register_as=register_as)
    tracker.end()
    return tracker.run_id


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Two versions of va, the second one with the alias ``best``, and a 12-lead model."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    bases = [make_base(0), make_base(1)]
    runs = [
        log(uri, folder / f"run-{i}", base, pyfunc_facts(base), register_as="va")
        for i, base in enumerate(bases)
    ]
    twelve = twelve_lead_base()
    facts = ht_mlflow.pyfunc_facts(twelve)
    log(uri, folder / "twelve", twelve, facts, register_as="twelve")
    MlflowClient(tracking_uri=uri).set_registered_model_alias("va", "best", "2")
    return uri, bases, runs


@pytest.fixture
def at_registry(registry, monkeypatch):
    """Make it the registry that MLflow is set to."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry[0])
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    return registry


@pytest.mark.parametrize(
    ("name", "which"),
    [("models:/va/1", 0), ("models:/va/2", 1), ("models:/va@best", 1), ("models:/va/latest", 1)],
)
def test_a_base_comes_back_from_the_registry(at_registry, name, which):
    base = load_base(name)
    assert base.fingerprint == at_registry[1][which].fingerprint
    assert np.array_equal(base.predict_proba(WINDOWS), at_registry[1][which].predict_proba(WINDOWS))


def test_a_base_comes_back_from_the_run_that_logged_it(at_registry):
    _, bases, runs = at_registry
    assert load_base(f"runs:/{runs[0]}/model").fingerprint == bases[0].fingerprint


def test_pyfunc_gives_the_probabilities_of_the_base(at_registry):
    import mlflow

    model = mlflow.pyfunc.load_model("models:/va/1")
    assert np.array_equal(model.predict(WINDOWS), at_registry[1][0].predict_proba(WINDOWS))
    (windows,) = model.metadata.signature.inputs.inputs
    (answers,) = model.metadata.signature.outputs.inputs
    assert (windows.type, windows.shape) == (np.dtype("float32"), (-1, 1, 400))
    assert (answers.type, answers.shape) == (np.dtype("float64"), (-1, 2))
    assert model.metadata.metadata["classes"] == ["other", "va"]
    assert model.predict(model.input_example).shape == (1, 2)


def test_pyfunc_refuses_windows_of_another_shape(at_registry):
    import mlflow

    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        mlflow.pyfunc.load_model("models:/va/1").predict(WINDOWS[:, :, :100])


def test_the_example_is_what_a_scoring_server_understands(at_registry):
    import json

    import mlflow
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    folder = Path(mlflow.artifacts.download_artifacts("models:/va/1"))
    sent = json.loads((folder / "serving_input_example.json").read_text())
    model = mlflow.pyfunc.load_model(str(folder))
    schema = model.metadata.get_input_schema()
    assert model.predict(infer_and_parse_data(sent, schema)).shape == (1, 2)


def test_nothing_in_the_model_is_pickled_and_its_requirements_can_be_installed(at_registry):
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts("models:/va/1"))
    files = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert files == sorted(
        ["MLmodel", "base.json", "weights.safetensors", "conda.yaml", "python_env.yaml"]
        + ["requirements.txt", "input_example.json", "serving_input_example.json"]
        + ["registered_model_meta"]
    )
    needed = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in needed} >= {"metaecg", "torch", "safetensors"}
    assert not any("+" in line for line in needed)


def test_the_12_lead_base_of_h_tuning_is_a_model_too_but_no_base_for_windows(at_registry):
    import mlflow

    signals = np.random.default_rng(0).normal(size=(2, 12, 256)).astype(np.float32)
    found = mlflow.pyfunc.load_model("models:/twelve/1").predict(signals)
    assert np.array_equal(found, probabilities(twelve_lead_base().network, signals, 3))
    with pytest.raises(CheckpointError, match=r"a model of 'metaecg.experiments.ht_mlflow'"):
        load_base("models:/twelve/1")


def test_a_base_that_is_recorded_when_it_is_written_is_only_registered_at_the_end(tmp_path):
    from mlflow.tracking import MlflowClient

    uri, out = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "out"
    make_base(0).save(out / "model")
    tracker = make_tracker(enabled=True, uri=uri, experiment="test", out=out, name="run")
    record_base(tracker, out)
    record_run(tracker, out, {"auc": 0.5}, register_as="early")
    tracker.end()
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(tracker.run_id)
    (model,) = run.outputs.model_outputs
    (version,) = client.search_model_versions("name = 'early'")
    assert (version.run_id, version.source) == (tracker.run_id, f"models:/{model.model_id}")


def test_a_run_with_a_given_base_records_no_model(tmp_path):
    from mlflow.tracking import MlflowClient

    uri, out = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "out"
    tracker = make_tracker(enabled=True, uri=uri, experiment="test", out=out, name="run")
    record_base(tracker, out)
    tracker.end()
    run = MlflowClient(tracking_uri=uri).get_run(tracker.run_id)
    assert run.outputs is None or not run.outputs.model_outputs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "models:/va/9",
            r"no base 'models:/va/9' at sqlite.*'va' has the versions 1, 2\. Expected",
        ),
        ("models:/va@worst", r"'va' has the versions 1, 2"),
        ("models:/other/1", r"It has the models twelve, va\."),
        ("models:/va", r"Expected models:/NAME/VERSION"),
        ("runs:/0123/model", r"Expected .* or runs:/ID/model"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_is(at_registry, name, said):
    with pytest.raises(CheckpointError, match=said):
        load_base(name)


def test_a_registry_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CheckpointError, match=r"http://\*\*\*@127.0.0.1:9 can't be used") as caught:
        load_base("models:/va/1")
    assert "MLFLOW_REGISTRY_URI" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_mlflow_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(CheckpointError, match="pip install mlflow"):
        load_base("models:/va/1")


def test_data_outside_of_the_model_are_not_opened(tmp_path, monkeypatch):
    from metaecg.models import registry_uri

    make_base(0).save(tmp_path / "base")
    model = tmp_path / "model"
    model.mkdir()
    text = f"flavors:\n  python_function:\n    loader_module: {LOADER}\n    data: ../base\n"
    (model / "MLmodel").write_text(text)
    monkeypatch.setattr(registry_uri, "_download", lambda uri, place: model)
    with pytest.raises(CheckpointError, match="data outside of itself"):
        load_base("models:/va/1")


def test_a_folder_is_loaded_without_mlflow(tmp_path):
    make_base(0).save(tmp_path / "base")
    code = "import sys; from metaecg import load_base; load_base(sys.argv[1]); "
    code += "print({'mlflow', 'mlflow.pyfunc'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "base")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()", done.stderr
