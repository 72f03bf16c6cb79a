"""What is recorded of a study: the commit of each trial, the MLflow runs, the tuned configuration."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from tune_cases import SMALL, plan_of, run, study_of

from metaecg.data.datasets import Dataset
from metaecg.data.records import subject_of
from metaecg.data.splits import read_manifest
from metaecg.data.windows import RecordInfo
from metaecg.experiments import tune_outputs
from metaecg.experiments.config import load_yaml
from metaecg.experiments.provenance import git_commit
from metaecg.experiments.va_options import resolve_values
from metaecg.experiments.va_splits import splits_of

ROOT = Path(__file__).parents[2]
RANDOM = ["--sampler", "random"]


def test_every_trial_says_of_which_commit_it_is_and_a_mixture_is_pointed_out(
    tmp_path, monkeypatch, capsys
):
    for i, letter in enumerate("ab", start=1):
        monkeypatch.setattr("metaecg.experiments.provenance.git_commit", lambda c=letter: c * 40)
        assert "commits are mixed" not in capsys.readouterr().out
        assert run(tmp_path, "--n-trials", str(i)) == 0
    study = study_of(tmp_path)
    assert [trial["git_commit"] for trial in study["trials"]] == ["a" * 40, "b" * 40]
    assert study["git_commits"] == {"a" * 40: 1, "b" * 40: 1}
    said = capsys.readouterr().out
    assert f"several commits are mixed (1 of {'a' * 40}, 1 of {'b' * 40})" in said


# --- MLflow --------------------------------------------------------------------------------------


def recorded(monkeypatch, study, folder, uri: str, **values):
    """Open a study's run as a command does, in a store that keeps nothing."""
    silent = SimpleNamespace(
        uri=uri, run_id="0123", params=lambda values: None, datasets=lambda found: None
    )
    monkeypatch.setattr(tune_outputs, "make_tracker", lambda **options: silent)
    development = SimpleNamespace(databases=[], records=(), manifest_sha256="0")
    tune_outputs.start_tracking(plan_of(folder, **values), study, development, commit=None)


def test_who_records_in_another_store_than_the_study_is_told(tmp_path, monkeypatch, capsys):
    study = optuna.create_study()
    recorded(monkeypatch, study, tmp_path, "http://me:secret@one.example")
    recorded(monkeypatch, study, tmp_path, "http://you:secret@one.example")
    assert capsys.readouterr().err == ""
    recorded(monkeypatch, study, tmp_path, "http://me:secret@two.example")
    said = capsys.readouterr().err
    assert "the study's MLflow run is in http://***@one.example" in said
    assert "the runs of this command go to http://***@two.example" in said
    assert "secret" not in said + str(study.user_attrs)


def test_a_file_of_that_name_on_another_machine_is_another_store(tmp_path, monkeypatch, capsys):
    study, shared = optuna.create_study(), {"storage": "postgresql://me@host/db"}
    recorded(monkeypatch, study, tmp_path, "sqlite:////runs/mlflow.db", **shared)
    recorded(monkeypatch, study, tmp_path, "sqlite:////runs/mlflow.db", **shared)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    recorded(monkeypatch, study, tmp_path, "sqlite:////runs/mlflow.db", **shared)
    assert "go to sqlite:////runs/mlflow.db on another" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_is_an_mlflow_run_and_its_trials_are_children_of_it(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracked = [*SMALL[:-1], "space.network.arguments.width={choices: [16, 18]}"]
    tracked += ["start_with_defaults=false"]
    options = ["--pruner", "none", *RANDOM]
    assert run(tmp_path, *options, "--n-trials", "2", overrides=tracked) == 0
    assert run(tmp_path, *options, "--n-trials", "4", overrides=tracked) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tune")
    runs = client.search_runs([experiment.experiment_id])
    study = study_of(tmp_path)
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert parent.info.run_id == study["mlflow_run_id"]
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} >= {
        "best.yaml",
        "split.json",
    }
    split, plan = read_manifest(tmp_path / "study" / "split.json"), plan_of(tmp_path)
    development = plan.recipe.develop(plan.shared, split)
    (data,) = [used.dataset for used in parent.inputs.dataset_inputs]
    assert data.name == "demo"
    assert json.loads(data.profile)["n_subjects"] == len(split.train)
    for each in runs:
        assert each.data.tags["git_commit"] == git_commit()
        assert each.data.tags["protocol"] == "deploy"
        assert each.data.tags["recipe"] == "va_fewshot"
        assert each.data.tags["data_manifest_sha256"] == development.manifest_sha256
    children = {r.info.run_name: r for r in runs if r is not parent}
    assert {r.data.tags["mlflow.parentRunId"] for r in children.values()} == {parent.info.run_id}
    assert set(children) == {f"study-trial-{i}" for i in range(4)} | {"study taken up"}
    for trial in study["trials"]:
        recorded = children[f"study-trial-{trial['number']}"]
        assert recorded.data.params["method"] == trial["params"]["method"]
        if trial["state"] == "complete":
            assert recorded.data.tags["state"] == "complete"
            assert recorded.data.metrics["auc"] == pytest.approx(trial["values"][0])
            course = client.get_metric_history(recorded.info.run_id, "validation/auc")
            assert [point.step for point in course] == [8, 16]
        else:
            assert recorded.info.status == "FAILED"
            assert "width is 18" in recorded.data.tags["reason"]
    assert {t["state"] for t in study["trials"]} == {"complete", "fail"}


# --- the configuration that a study found --------------------------------------------------------


def recordings_of(manifest) -> Dataset:
    """Return the recordings that a manifest fixes the files of, without their windows."""
    files: dict[str, dict[str, str]] = {}
    for name, checksum in manifest.checksums.items():
        files.setdefault(name.rpartition(".")[0], {})[Path(name).name] = checksum
    records = tuple(
        RecordInfo(
            record_id=record,
            subject_id=subject_of(record),
            database=record.partition("/")[0],
            duration_s=1.0,
            episodes=(),
            excluded={},
            checksums=checksums,
        )
        for record, checksums in files.items()
    )
    return Dataset(windows=None, records=records)


def test_the_tuned_configuration_judges_nobody_whom_it_was_tuned_on(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_manifest("experiments/configs/va_tune_split.json")
    config = resolve_values(load_yaml(Path("experiments/configs/va_tuned.yaml")), {})
    (split,) = splits_of(config, recordings_of(study), None)
    assert len(study.train) == 74
    assert set(split.test) == set(study.test)
    assert set(split.test).isdisjoint(study.train)
