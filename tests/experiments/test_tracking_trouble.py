"""What a run's record survives: stores of files that are away, silence, full disks, kill -9."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from metaecg.experiments import tracking_process
from metaecg.experiments.tracking import main, make_tracker
from metaecg.experiments.tracking_journal import (
    CALLS,
    JournalFile,
    JournalReader,
    find_journals,
    journal_folder,
)
from metaecg.experiments.tracking_sender import Watched

SETTINGS = {"enabled": True, "experiment": "test", "name": "run", "uri": None}
NOBODY = "http://127.0.0.1:9"
"""Nobody listens on the discard port."""


@pytest.fixture(autouse=True)
def no_store_of_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_files_that_cannot_be_stored_keep_no_figure_back_and_are_sent_later(tmp_path, capsys):
    out, blocked = tmp_path / "out", tmp_path / "mlartifacts"
    blocked.write_text("where the store's folder of files should be")
    tracker = make_tracker(**SETTINGS, out=out)
    (out / "note.txt").write_text("x")
    tracker.artifacts([out / "note.txt"])
    tracker.metrics({"auc": 0.5})
    tracker.end()
    client = client_of(tracker.uri)
    run = client.get_run(tracker.run_id)
    assert (run.data.metrics["auc"], run.info.status) == (0.5, "FINISHED")
    assert "its files can't be stored" in capsys.readouterr().err
    (journal,) = find_journals(out)
    blocked.unlink()
    assert main(["replay", str(out)]) == 0
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["note.txt"]
    assert len(client.get_metric_history(tracker.run_id, "auc")) == 1
    assert not journal.exists()


def test_a_program_that_listens_to_nothing_for_long_does_not_hold_up_sending(tmp_path):
    tracker = make_tracker(**SETTINGS, out=tmp_path / "out")
    begun = tracker.run_id
    for i in range(900):  # more words about them than the pipe holds
        tracker._file.add({"call": "tags", "time_ms": 0, "values": {"last": str(i)}})
    client, deadline = client_of(tracker.uri), time.monotonic() + 120
    while client.get_run(begun).data.tags.get("last") != "899" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert client.get_run(begun).data.tags["last"] == "899"
    tracker.end()


def test_a_sending_process_that_is_silent_but_at_work_is_not_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_process, "STALL_S", 1.0)  # importing mlflow takes longer
    monkeypatch.setattr(tracking_process, "AT_WORK_S", 0.0)
    tracker = make_tracker(**SETTINGS, out=tmp_path / "out")
    assert tracker.run_id != tracker.key
    tracker.end()
    assert find_journals(tmp_path) == []


def test_a_sending_process_that_hangs_is_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking_process, "STALL_S", 0.5)
    tracker = make_tracker(**SETTINGS, out=tmp_path / "out")
    os.kill(tracker._sender.pid, signal.SIGSTOP)
    assert tracker.run_id == tracker.key
    tracker.end()
    assert "said nothing for 0.5 s" in capsys.readouterr().err
    assert len(find_journals(tmp_path)) == 1


def test_a_sampler_that_fails_is_called_no_more_and_nothing_else_is_hurt(tmp_path):
    said = []
    folder = journal_folder(tmp_path, "offline-x")
    folder.mkdir(parents=True)
    watched = Watched(folder, uri="", with_system=False, say=lambda *words: said.append(words))

    def fail(sampler):
        raise OSError("no space left")

    watched.sampler = object()
    watched.sample(fail)
    watched.sample(fail)
    assert [event for _, event, _ in said] == ["told"]
    assert "no space left" in said[0][2]


def test_a_line_that_the_disk_takes_only_a_part_of_leaves_nothing_behind(tmp_path):
    file = JournalFile(tmp_path / CALLS)
    file.add({"call": "first"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25, limits[1]))
        with pytest.raises(OSError, match="No space left"):
            file.add({"call": "second"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.add({"call": "third"})
    file.close()
    reader = JournalReader(tmp_path / CALLS)
    assert [entry["call"] for entry in reader.entries()] == ["first", "third"]
    assert reader.n_damaged == 0


CHILD = """
import sys
from pathlib import Path
from metaecg.experiments.tracking import make_tracker
options = dict(enabled=True, experiment="test", name="trial", uri=sys.argv[3])
tracker = make_tracker(out=Path(sys.argv[1]), parent_run_id=sys.argv[2], **options)
tracker.metrics({"a": 1.0})
tracker.end()
"""


def test_a_trial_says_nothing_of_a_store_of_which_its_study_has_said_it(tmp_path, capsys):
    study = make_tracker(**{**SETTINGS, "uri": NOBODY}, out=tmp_path / "study")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "trial"), study.run_id, NOBODY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    study.end()
    assert capsys.readouterr().err.count("warning:") == 1
    assert done.stderr == ""
    assert len(find_journals(tmp_path)) == 2


CUT = """
import os, signal, sys
from pathlib import Path
from metaecg.experiments.tracking import make_tracker
out = Path(sys.argv[1])
tracker = make_tracker(enabled=True, experiment="test", name="run", uri=sys.argv[2], out=out)
(out / "note.txt").write_text("x")
tracker.artifacts([out / "note.txt"])
tracker.run_id
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_files_of_a_run_that_is_killed_without_a_store_are_kept(tmp_path):
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", CUT, str(out), NOBODY], check=False)
    (journal,) = find_journals(out)
    deadline = time.monotonic() + 60
    while not list(journal.glob("files/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (out / "note.txt").unlink()  # as the next run in this folder does with results
    uri = f"sqlite:///{tmp_path / 'later.db'}"
    assert main(["replay", str(out), "--uri", uri]) == 0
    client = client_of(uri)
    experiment = client.get_experiment_by_name("test").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
