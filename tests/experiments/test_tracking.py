"""The MLflow record in the embedded store: what is written, and how."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from metaecg.experiments import tracking_process
from metaecg.experiments.tracking import (
    NoTracker,
    Tracker,
    default_uri,
    main,
    make_tracker,
    warm_up,
)
from metaecg.experiments.tracking_journal import CALLS, JournalReader, find_journals
from metaecg.experiments.tracking_sender import NICENESS

SETTINGS = {"enabled": True, "experiment": "test", "name": "run", "uri": None}
NOBODY = "http://127.0.0.1:9"
"""Nobody listens on the discard port."""
METHODS = ["params", "tags", "history", "metrics", "artifacts", "datasets", "model", "end"]


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record a run with a child, all that a tracker can; return client, run, child and folder."""
    folder = tmp_path_factory.mktemp("tracking")
    out = folder / "out"
    (out / "inner" / "deep").mkdir(parents=True)
    (out / "results.json").write_text('{"auc": 0.5}')
    (out / "inner" / "deep" / "a.txt").write_text("a")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = make_tracker(**SETTINGS, out=out, tags={"early": 1})
    tracker.params({"meta": {"inner_lr": 0.05, "nothing": {}}, "seeds": [0, 1], "no": None})
    tracker.params({"store": "postgresql://me:secret@host/db", "long": "x" * 9000})
    tracker.tags({"late": "2", "unknown": None})
    tracker.metrics({"auc": 0.5, "undefined": None, "a+b/f1": 0.25, "nan": float("nan")})
    tracker.history("fold+x", [(0, {"loss": 2.0}), (20, {"loss": 1.0})])
    tracker.datasets(
        [
            {
                "name": "db",
                "digest": "ab" * 32,
                "source_type": "http",
                "source": "{}",
                "profile": "{}",
            }
        ]
    )
    child = make_tracker(**SETTINGS, out=out, parent_run_id=tracker.run_id)
    child.end("FAILED")
    tracker.artifacts([out / "results.json", out / "inner", out / "missing"])
    tracker.end()
    client = client_of(tracker.uri)
    return client, client.get_run(tracker.run_id), client.get_run(child.run_id), folder


def test_a_switched_off_tracker_records_nothing(tmp_path):
    tracker = make_tracker(**{**SETTINGS, "enabled": False}, out=tmp_path / "out")
    assert isinstance(tracker, NoTracker)
    for name in METHODS:
        arguments = {"tags": [{}], "history": ["x", []], "model": [{}], "end": []}
        options = {"folder": tmp_path} if name == "model" else {}
        getattr(tracker, name)(*arguments.get(name, [{}]), **options)
    assert not list(tmp_path.iterdir())


def test_the_default_store_lies_beside_the_output_folder(tmp_path):
    assert default_uri(tmp_path / "runs" / "va") == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"


def test_nested_parameters_are_flattened_and_what_is_forbidden_in_names_becomes_a_dot(recorded):
    _, run, _, _ = recorded
    assert run.data.params.pop("long") == "x" * 5000
    assert run.data.params == {
        "meta.inner_lr": "0.05",
        "meta.nothing": "{}",
        "seeds": "[0, 1]",
        "no": "None",
        "store": "postgresql://***@host/db",
    }
    assert run.data.metrics["a.b/f1"] == 0.25
    assert run.info.status == "FINISHED"


def test_an_undefined_metric_is_left_out_and_one_that_is_not_a_number_is_not(recorded):
    _, run, _, _ = recorded
    assert run.data.metrics["auc"] == 0.5
    assert "undefined" not in run.data.metrics
    assert np.isnan(run.data.metrics["nan"])


def test_the_course_of_a_training_is_recorded_step_by_step(recorded):
    client, run, _, _ = recorded
    course = client.get_metric_history(run.info.run_id, "fold.x/loss")
    assert [(point.step, point.value) for point in course] == [(0, 2.0), (20, 1.0)]


def test_tags_are_recorded_and_those_without_a_value_left_out(recorded):
    _, run, _, _ = recorded
    assert (run.data.tags["early"], run.data.tags["late"]) == ("1", "2")
    assert "unknown" not in run.data.tags


def test_a_child_run_names_its_parent_and_how_it_ended(recorded):
    _, run, child, _ = recorded
    assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert child.info.status == "FAILED"
    assert "system/cpu_utilization_percentage" not in child.data.metrics


def test_files_and_folders_are_recorded_and_what_is_not_there_is_left_out(recorded):
    client, run, _, folder = recorded
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == [
        "inner",
        "results.json",
    ]
    stored = folder / "mlartifacts" / run.info.run_id / "artifacts"
    assert (stored / "inner" / "deep" / "a.txt").read_text() == "a"
    assert not (stored / "results.json").is_symlink()


def test_a_dataset_is_an_input_with_its_digest(recorded):
    _, run, _, _ = recorded
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("db", "ab" * 16)
    assert {tag.key: tag.value for tag in found.tags} == {"sha256": "ab" * 32}


def test_the_load_of_the_machine_is_recorded_and_so_is_the_memory_of_the_run(recorded):
    _, run, _, _ = recorded
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert run.data.metrics["system/run_memory_megabytes"] > 50  # this process has numpy at least
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 50


def test_nothing_is_left_of_the_journal_when_everything_has_arrived(recorded):
    *_, folder = recorded
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["inner", "results.json"]


def test_the_sending_process_ends_with_the_run(recorded):
    assert tracking_process._current is None


def test_the_environment_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    tracker = make_tracker(**SETTINGS, out=tmp_path / "out")
    tracker.end()
    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_cannot_be_used_warns_once_and_the_run_goes_on(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    settings = {**SETTINGS, "uri": f"sqlite:///{blocked}/mlflow.db"}
    tracker = make_tracker(**settings, out=tmp_path / "out")
    tracker.params({"a": 1})
    assert tracker.run_id == tracker.key
    child = make_tracker(**settings, out=tmp_path / "out", parent_run_id=tracker.run_id)
    child.end()
    tracker.metrics({"b": 1.0})
    tracker.end()
    text = capsys.readouterr().err
    assert text.count("warning:") == 1
    assert "the run goes on, and what the store misses is kept: python -m " in text
    assert len(find_journals(tmp_path)) == 2


def test_a_run_whose_sending_process_is_killed_goes_on_and_loses_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    tracker = make_tracker(**SETTINGS, out=out)
    tracker.params({"a": 1})
    begun = tracker.run_id
    os.kill(tracker._sender.pid, signal.SIGKILL)
    tracker.metrics({"b": 1.0})
    tracker.end()
    assert "ended or said nothing" in capsys.readouterr().err
    assert main(["replay", str(out)]) == 0
    run = client_of(tracker.uri).get_run(begun)
    assert (run.data.params, run.data.metrics["b"]) == ({"a": "1"}, 1.0)
    assert run.info.status == "FINISHED"


def test_a_replay_takes_folders_as_one_types_them_relative_to_where_one_stands(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tracker = make_tracker(**{**SETTINGS, "uri": NOBODY}, out=Path("runs/va"))
    tracker.params({"a": 1})
    Path("runs/va/note.txt").write_text("x")
    tracker.artifacts([Path("runs/va/note.txt")])
    tracker.end()
    assert main(["replay", "runs/va", "--uri", "sqlite:///later.db"]) == 0
    client = client_of("sqlite:///later.db")
    experiment = client.get_experiment_by_name(SETTINGS["experiment"]).experiment_id
    (run,) = client.search_runs([experiment])
    assert run.data.params == {"a": "1"}
    assert (tmp_path / "runs" / "mlartifacts").is_dir()
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]


def test_the_sending_process_yields_to_training(tmp_path):
    tracker = make_tracker(**SETTINGS, out=tmp_path / "out")
    tracker.run_id  # noqa: B018 - it waits until the process is at work
    others = psutil.Process().nice()
    assert psutil.Process(tracker._sender.pid).nice() == min(others + NICENESS, 19)
    tracker.end()


KILLED = """
import os, signal, sys
from pathlib import Path
from metaecg.experiments.tracking import make_tracker

tracker = make_tracker(enabled=True, uri=None, experiment="t", out=Path(sys.argv[1]), name="n")
tracker.metrics({"loss": 0.5})
print(tracker.uri, tracker.run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_killed_is_closed_as_killed_with_all_that_it_recorded(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(out)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    uri, run_id = done.stdout.split()
    deadline = time.monotonic() + 60
    while find_journals(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    run = client_of(uri).get_run(run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("KILLED", 0.5)


def test_what_the_store_never_takes_is_said_and_all_else_arrives(tmp_path, capsys):
    out = tmp_path / "out"
    tracker = make_tracker(**SETTINGS, out=out)
    tracker.params({"a": 1})
    tracker.params({"a": 2})  # MLflow's parameters can't be changed
    tracker.metrics({"b": 1.0})
    tracker.end()
    assert "doesn't take everything (params:" in capsys.readouterr().err
    assert client_of(tracker.uri).get_run(tracker.run_id).data.metrics["b"] == 1.0
    assert main(["replay", str(out)]) == 3
    text = capsys.readouterr().err
    assert "1 of 1 run(s) not sent" in text
    assert "All else arrived: remove the folder if you can do without" in text


def test_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    tracker = make_tracker(**SETTINGS, out=tmp_path / "out")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracker._file, "add", full)
    tracker.params({"a": 1})
    tracker.params({"b": 1})
    tracker.end()
    text = capsys.readouterr().err
    assert text.count("No space left on device") == 1


def test_a_journal_is_made_of_complete_lines_and_a_half_one_waits_for_its_rest(tmp_path):
    path = tmp_path / CALLS
    path.write_bytes(b'{"call": "a"}\n{"call": "b')
    reader = JournalReader(path)
    assert [entry["call"] for entry in reader.entries()] == ["a"]
    with io.FileIO(path, "a") as file:
        file.write(b'"}\nnot json\n{"call": "c"}\n')
    assert [entry["call"] for entry in reader.entries()] == ["b", "c"]
    assert reader.n_damaged == 1


def test_a_password_in_the_address_is_neither_written_down_nor_shown(tmp_path, capsys):
    uri = "http://me:secret@127.0.0.1:9/mlflow"  # nobody listens on the discard port
    tracker = make_tracker(**{**SETTINGS, "uri": uri}, out=tmp_path / "out")
    tracker.end()
    assert "secret" not in capsys.readouterr().err
    (folder,) = find_journals(tmp_path)
    assert "secret" not in (folder / CALLS).read_text()
    assert json.loads((folder / CALLS).read_text().splitlines()[0])["uri"].endswith(
        "//***@127.0.0.1:9/mlflow"
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_tracker_that_records_nothing_has_every_method_of_the_other(name):
    assert callable(getattr(NoTracker, name))
    assert callable(getattr(Tracker, name))


def test_warming_up_writes_nothing_and_what_was_prepared_is_the_store_of_the_run(tmp_path):
    out = tmp_path / "out"
    warm_up(enabled=True, uri=None, out=out)
    warmed = tracking_process._current
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
    tracker = make_tracker(**SETTINGS, out=out)
    assert tracker._sender is warmed
    tracker.params({"a": 1})
    tracker.end()
    assert client_of(tracker.uri).get_run(tracker.run_id).data.params == {"a": "1"}


def test_a_program_that_only_warmed_up_ends_at_once_and_leaves_nothing(tmp_path):
    code = "from pathlib import Path; from metaecg.experiments import tracking as t; "
    code += (
        "t.warm_up(enabled=True, uri=None, out=Path('out')); print(t.tracking_process._current.pid)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    deadline = time.monotonic() + 60
    while _is_alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.glob("metaecg-tracking-*")) == []
    assert not (tmp_path / "mlflow.db").exists()


def _is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
