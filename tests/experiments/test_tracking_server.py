"""Tracking against a real server: what arrives, what is kept while it is away, and the replay."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tracked_bases import make_base

from metaecg.experiments.tracking import main, make_tracker
from metaecg.experiments.tracking_journal import CALLS, FOLDER, find_journals
from metaecg.models.checkpoints import load_base
from metaecg.models.mlflow_model import pyfunc_facts

# mlflow.pyfunc warns of its own type hints when it is first imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*inferred as AnyType")]

START_S = 180
NOBODY = "http://127.0.0.1:9"
"""Nobody listens on the discard port."""


class Server:
    """An MLflow tracking server on this machine, which can be stopped and started again."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--serve-artifacts",
        ]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)

    def stop(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the group that `start` made for it
            self.process.wait()
            self.process = None

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def client(server):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server.uri)


def tracker_at(uri, out, **options):
    settings = {"enabled": True, "experiment": "test", "name": out.name, "uri": uri, **options}
    return make_tracker(**settings, out=out)


def record_all(tracker, out):
    """Record something of every kind, all but the end; return what must be found later."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(f'{{"run": "{out.name}"}}')
    tracker.params({"a": {"b": 1}})
    tracker.history("fold", [(step, {"loss": 1 / (step + 1)}) for step in range(50)])
    tracker.metrics({"auc": 0.5, "nan": float("nan")})
    digest = "0123456789abcdef" * 4
    facts = {"name": "db", "digest": digest, "source_type": "http", "source": "{}", "profile": "{}"}
    tracker.datasets([facts])
    tracker.artifacts([out / "results.json"])


def check_all(client, run_id, name, *, status="FINISHED"):
    """Assert that everything of `record_all` is there, once."""
    run = client.get_run(run_id)
    assert run.data.params == {"a.b": "1"}
    course = client.get_metric_history(run_id, "fold/loss")
    assert [point.step for point in course] == list(range(50))
    assert len(client.get_metric_history(run_id, "auc")) == 1
    (nan,) = client.get_metric_history(run_id, "nan")
    assert np.isnan(nan.value)
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["db"]
    assert [file.path for file in client.list_artifacts(run_id)] == ["results.json"]
    assert run.info.status == status
    assert run.info.run_name == name


def runs_named(client, name, experiment="test"):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], f"attributes.run_name = '{name}'")


def stored_file(client, run_id, folder):
    """Return the content of results.json as the server has it."""
    return json.loads(
        Path(client.download_artifacts(run_id, "results.json", str(folder))).read_text()
    )


def test_everything_arrives_at_a_server(server, client, tmp_path):
    out = tmp_path / "whole"
    tracker = tracker_at(server.uri, out)
    record_all(tracker, out)
    tracker.end()
    check_all(client, tracker.run_id, "whole")
    assert stored_file(client, tracker.run_id, tmp_path) == {"run": "whole"}
    assert not (out / FOLDER).exists()


@pytest.fixture(scope="module")
def outage(server, client, tmp_path_factory):
    """Let the server die during a run, begin a study and its trial without it, start it again.

    Returns the folder, what the terminal said, and how the run that was begun before looked then.
    """
    folder, errors = tmp_path_factory.mktemp("outage"), io.StringIO()
    with contextlib.redirect_stderr(errors):
        cut = tracker_at(server.uri, folder / "cut")
        cut.history("fold", [(0, {"loss": 1.0})])
        begun = cut.run_id
        server.stop()
        record_all(cut, folder / "cut")
        cut.end()
        study = tracker_at(server.uri, folder / "study")
        record_all(study, folder / "study")
        trial = tracker_at(server.uri, folder / "study" / "trial", parent_run_id=study.run_id)
        record_all(trial, folder / "study" / "trial")
        trial.end("FAILED")
        study.end()
        refused = main(["replay", str(folder)])
    server.start()
    return folder, errors.getvalue(), refused, client.get_run(begun)


def test_a_run_says_once_that_the_server_is_away(outage):
    _, said, _, _ = outage
    assert said.count("warning:") == 2  # the run that was cut, and the study with its trial
    assert said.count("Connection refused") >= 2


def test_a_replay_without_a_server_says_what_is_still_missing(outage):
    folder, said, refused, _ = outage
    assert refused == 3
    assert "3 of 3 run(s) not sent" in said


def test_a_server_that_dies_in_the_middle_gets_the_rest_under_the_same_run_and_nothing_twice(
    outage, client, tmp_path
):
    folder, _, _, before = outage
    out, begun = folder / "cut", before.info.run_id
    assert (before.info.status, before.data.params) == ("RUNNING", {})
    (journal,) = find_journals(out)
    shutil.copytree(journal, tmp_path / "kept")
    assert main(["replay", str(out)]) == 0
    (run,) = runs_named(client, "cut")
    assert run.info.run_id == begun
    first = client.get_run(begun).data
    shutil.copytree(tmp_path / "kept", journal)  # as if it had died before it removed the journal
    assert main(["replay", str(out)]) == 0
    assert len(runs_named(client, "cut")) == 1
    assert client.get_run(begun).data.params == first.params
    assert len(client.get_metric_history(begun, "fold/loss")) == 51  # step 0 was recorded twice
    assert len(client.get_metric_history(begun, "system/cpu_utilization_percentage")) == 1
    assert len(client.get_run(begun).inputs.dataset_inputs) == 1


def test_runs_that_began_without_a_server_arrive_with_their_files_and_keep_their_parent(
    outage, client, tmp_path, capsys
):
    out = outage[0] / "study"
    (out / "results.json").write_text('"a later run\'s"')  # the copy is what is sent
    assert main(["replay", str(out)]) == 0
    (run,), (trial,) = runs_named(client, "study"), runs_named(client, "trial")
    check_all(client, run.info.run_id, "study")
    check_all(client, trial.info.run_id, "trial", status="FAILED")
    assert trial.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert stored_file(client, run.info.run_id, tmp_path) == {"run": "study"}
    assert find_journals(out) == []
    assert main(["replay", str(out)]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_a_replay_that_is_killed_can_be_given_again(server, client, tmp_path):
    out = tmp_path / "killed"
    tracker = tracker_at(NOBODY, out)
    for part in range(60):
        tracker.history(f"part-{part}", [(step, {"loss": float(step)}) for step in range(100)])
    record_all(tracker, out)
    tracker.end()
    again = ["replay", str(out), "--uri", server.uri]
    replaying = subprocess.Popen([sys.executable, "-m", "metaecg.experiments.tracking", *again])
    deadline = time.monotonic() + 60
    while not parts(client, "killed") and time.monotonic() < deadline:
        time.sleep(0.02)
    replaying.kill()
    replaying.wait()
    assert 0 < len(parts(client, "killed")) < 60
    assert main(again) == 0
    (run,) = runs_named(client, "killed")
    check_all(client, run.info.run_id, "killed")
    for part in (0, 20, 59):
        course = client.get_metric_history(run.info.run_id, f"part-{part}/loss")
        assert [point.step for point in course] == list(range(100))


def parts(client, name):
    """Return which courses of a run have arrived."""
    runs = runs_named(client, name)
    return [key for key in runs[0].data.metrics if key.startswith("part-")] if runs else []


def test_a_half_written_last_line_is_left_out_and_the_run_closed_as_killed(
    server, client, tmp_path
):
    out = tmp_path / "half"
    tracker = tracker_at(NOBODY, out)
    record_all(tracker, out)
    tracker.end()
    (folder,) = find_journals(out)
    lines = (folder / CALLS).read_bytes().splitlines(keepends=True)
    (folder / CALLS).write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert main(["replay", str(out), "--uri", server.uri]) == 0
    (run,) = runs_named(client, "half")
    check_all(client, run.info.run_id, "half", status="KILLED")


def test_a_run_that_is_still_going_on_is_not_replayed(server, client, tmp_path, capsys):
    out = tmp_path / "busy"
    tracker = tracker_at(server.uri, out)
    assert main(["replay", str(out)]) == 3
    assert "still going on" in capsys.readouterr().err
    tracker.end()
    assert len(runs_named(client, "busy")) == 1


def test_a_child_waits_for_its_parent_and_two_folders_go_in_the_right_order(
    server, client, tmp_path, capsys
):
    parent = tracker_at(NOBODY, tmp_path / "parent")
    child = tracker_at(NOBODY, tmp_path / "child", parent_run_id=parent.run_id)
    child.end()
    parent.end()
    at = ["--uri", server.uri]
    assert main(["replay", str(tmp_path / "child"), *at]) == 3
    assert "replay the folder of that run first" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "child"), str(tmp_path / "parent"), *at]) == 0
    (first,), (second,) = runs_named(client, "parent"), runs_named(client, "child")
    assert second.data.tags["mlflow.parentRunId"] == first.info.run_id


def test_a_server_that_never_answers_is_given_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        out = tmp_path / "hang"
        tracker = tracker_at(f"http://127.0.0.1:{silent.getsockname()[1]}", out)
        record_all(tracker, out)
        tracker.end()
    assert "timed out" in capsys.readouterr().err
    assert len(find_journals(out)) == 1


def test_a_base_is_registered_at_a_server_and_comes_back_from_it(server, tmp_path, monkeypatch):
    out = tmp_path / "registered"
    base = make_base(0)
    base.save(out / "model")
    tracker = tracker_at(server.uri, out)
    tracker.model(pyfunc_facts(base), folder=out / "model", register_as="va")
    tracker.end()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    for name in ("models:/va/1", f"runs:/{tracker.run_id}/model"):
        assert load_base(name).fingerprint == base.fingerprint


def test_a_base_without_a_server_is_registered_by_the_replay_and_only_once(
    server, client, tmp_path, capsys
):
    out = tmp_path / "later"
    base = make_base(1)
    base.save(out / "model")
    tracker = tracker_at(NOBODY, out)
    tracker.model(pyfunc_facts(base), folder=out / "model", register_as="later")
    tracker.end()
    shutil.rmtree(out / "model")  # the copies are what is sent
    (journal,) = find_journals(out)
    shutil.copytree(journal, tmp_path / "kept")
    again = ["replay", str(out), "--uri", server.uri]
    before = dict(os.environ)
    assert main(again) == 0
    assert dict(os.environ) == before
    assert "registered as models:/later/1" in capsys.readouterr().out
    shutil.copytree(tmp_path / "kept", journal)
    assert main(again) == 0
    assert len(client.search_model_versions("name = 'later'")) == 1
    (run,) = runs_named(client, "later")
    assert len(run.outputs.model_outputs) == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "nowhere")]) == 2
    assert "is no folder; expected the output folder of a run" in capsys.readouterr().err
