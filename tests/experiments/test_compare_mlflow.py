"""Runs are taken from a real MLflow store: by id, by the beginning of an id, by experiment."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
from made_runs import change, make_run, shifted
from mlflow.tracking import MlflowClient
from test_tracking_server import Server

from metaecg.errors import DataError
from metaecg.experiments import compare as command
from metaecg.experiments import va_fewshot
from metaecg.experiments.compare import compare
from metaecg.experiments.compare_mlflow import Store, store_uri


class Tracked:
    """An SQLite store with the runs that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=self.uri)
        self.experiment = self.client.create_experiment("ours", (folder / "artifacts").as_uri())

    def add(self, name: str, by: float = 0.0, *, status="FINISHED", files=True, **changes) -> str:
        """Record a run and return its id; `files`: send what lies in its folder."""
        run_id = self.client.create_run(self.experiment, run_name=name).info.run_id
        self.client.log_param(run_id, "meta.inner_lr", f"0.{name[-1]}")
        folder = make_run(self.folder / name, shifted(by), **changes)
        if files:
            self.client.log_artifacts(run_id, str(folder))
        if status:
            self.client.set_terminated(run_id, status)
        return run_id


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A store with its tables and nothing else: making them takes seconds, a copy takes none."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def tracked(tmp_path, monkeypatch, empty_store) -> Tracked:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Tracked(tmp_path)


def test_a_run_id_is_compared_with_a_folder_from_the_store_beside_it(tracked):
    run_id = tracked.add("run1")
    folder = make_run(tracked.folder / "b", shifted(0.01))
    for name in (run_id, run_id[:8]):
        found = compare([name, str(folder)])
        assert [row["run"] for row in found["rows"]] == [f"run1 ({run_id[:8]})", "b"]
        assert found["rows"][0]["source"] == f"MLflow run {run_id}"
        assert found["rows"][1]["difference"]["verdict"] == "better"
        assert not any("predictions" in note for note in found["notes"])  # they were fetched


def test_the_parameters_of_the_store_stand_in_for_a_configuration_that_it_lacks(tracked):
    folder = tracked.folder / "run1"
    run_id = tracked.add("run1", files=False)
    (folder / "config.yaml").unlink()
    tracked.client.log_artifacts(run_id, str(folder))
    other = make_run(tracked.folder / "b", shifted(0.01))
    found = compare([run_id, str(other)])["parameters"]["meta.inner_lr"]
    assert found == {f"run1 ({run_id[:8]})": "0.1", "b": 0.05}


def test_an_experiment_gives_its_newest_finished_runs_and_says_what_is_left_out(tracked):
    names = [f"run{i}" for i in range(4)]
    for place, name in enumerate(names):
        tracked.add(name, 0.01 * place)
    tracked.add("failed", status="FAILED")
    tracked.add("running", status=None)
    tracked.add("trial", files=False)
    found = compare([], experiment="ours", max_runs=2, tracking_uri=tracked.uri)
    assert [row["run"].split()[0] for row in found["rows"]] == ["run3", "run2"]
    assert found["notes"][0] == (
        "experiment 'ours': the 2 newest finished runs; left out: 2 not looked at, being older "
        "(--max-runs), 2 not finished, 1 without results.json."
    )
    everything = compare([], experiment="ours", tracking_uri=tracked.uri)
    assert len(everything["rows"]) == 4


def test_a_named_run_comes_first_and_not_twice(tracked):
    tracked.add("run1")
    second = tracked.add("run2", 0.01)
    folder = tracked.folder / "run1"  # the same run as in the store
    found = compare([str(folder)], experiment="ours")
    assert [row["run"] for row in found["rows"]] == ["run1", f"run2 ({second[:8]})"]


def test_what_can_be_compared_is_named_as_the_command_takes_it(tracked):
    """Ids of the store, and folders in quotes where they need them: the line can be pasted."""
    first = tracked.add("run1")
    other = tracked.add("run2", 0.01, n_shots=5)
    third = tracked.add("run3", 0.02)
    folder = make_run(tracked.folder / "my runs" / "b", shifted(0.03))
    with pytest.raises(DataError) as caught:
        compare([first, other, third, str(folder)], tracking_uri=tracked.uri)
    line = str(caught.value).splitlines()[-1]
    assert line == f"These can be compared: {first} {third} '{folder}'"
    again = shlex.split(line.partition(": ")[2])
    assert len(compare(again, tracking_uri=tracked.uri)["rows"]) == 3


def test_runs_of_an_experiment_under_other_protocols_are_refused_too(tracked):
    tracked.add("run1")
    tracked.add("run2", 0.01, n_shots=5)
    with pytest.raises(DataError, match="n_shots is 10, not 5"):
        compare([], experiment="ours", tracking_uri=tracked.uri)


@pytest.mark.parametrize(
    ("status", "words"), [("FAILED", "is failed, not finished"), (None, "is running, not finished")]
)
def test_a_run_that_did_not_finish_is_refused_by_its_state(tracked, status, words):
    run_id = tracked.add("run1", status=status)
    with pytest.raises(DataError, match=words):
        compare([run_id, str(tracked.folder / "run1")])


def test_a_run_without_results_is_refused(tracked):
    run_id = tracked.add("run1", files=False)
    with pytest.raises(DataError, match="holds no results.json"):
        compare([run_id, str(tracked.folder / "run1")])


def test_an_unknown_id_and_a_beginning_of_two_ids_are_refused(tracked):
    """Of seventeen ids two begin with the same of sixteen digits."""
    ids = [tracked.client.create_run(tracked.experiment).info.run_id for _ in range(17)]
    digits = [run_id[0] for run_id in ids]
    shared = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(DataError, match=f"'{shared}' begins .* or more run ids"):
        Store(tracked.uri).fetch(shared, tracked.folder)
    with pytest.raises(DataError, match="'deadbeef' is no folder here, and no run of sqlite"):
        compare(["deadbeef"], tracking_uri=tracked.uri)


def test_an_unknown_experiment_is_answered_with_those_that_exist(tracked, capsys):
    arguments = ["--experiment", "our", "--tracking-uri", tracked.uri]
    assert command.main(arguments) == 3
    assert "has no experiment 'our'; expected one of Default, ours. Did you mean 'ours'" in (
        capsys.readouterr().err
    )
    with pytest.raises(DataError, match="has 0 finished runs"):
        compare([], experiment="ours", tracking_uri=tracked.uri)


def test_a_server_that_is_down_is_said_soon_once_and_without_its_password(tmp_path, capsys):
    """Nothing listens on port 9 of this machine; MLflow itself would try for minutes."""
    before = dict(os.environ)
    run = make_run(tmp_path / "a")
    arguments = [str(run), "deadbeef", "deadbee1", "--tracking-uri", "http://me:secret@127.0.0.1:9"]
    assert command.main(arguments) == 3
    text = capsys.readouterr().err
    assert text.count("http://***@127.0.0.1:9 can't be read") == 1
    assert "secret" not in text and "Traceback" not in text
    assert dict(os.environ) == before


def test_a_store_that_does_not_exist_is_not_made(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'no.db'}"
    with pytest.raises(DataError, match="no.db doesn't exist"):
        compare(["deadbeef"], tracking_uri=uri)
    with pytest.raises(DataError, match="there is no MLflow store: no runs/mlflow.db"):
        compare([], experiment="ours")
    assert not list(tmp_path.iterdir())


def test_the_named_store_comes_before_the_environments_and_that_before_a_file(tracked, monkeypatch):
    beside = [tracked.folder / "run1"]
    assert store_uri(None, beside) == tracked.uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert store_uri(None, beside) == "http://team:5000"
    assert store_uri("sqlite:///mine.db", beside) == "sqlite:///mine.db"


@pytest.mark.slow
def test_runs_are_taken_from_a_real_tracking_server(tmp_path):
    """Started here on a free port of this machine; it hands out the files itself."""
    server = Server(tmp_path)
    server.start()
    try:
        client = MlflowClient(tracking_uri=server.uri)
        experiment = client.create_experiment("ours")
        for name, by in (("a", 0.0), ("b", 0.01)):
            run_id = client.create_run(experiment, run_name=name).info.run_id
            client.log_artifacts(run_id, str(make_run(tmp_path / name, shifted(by))))
            client.set_terminated(run_id)
        found = compare([], experiment="ours", tracking_uri=server.uri)
        mixed = compare([run_id[:6], str(tmp_path / "a")], tracking_uri=server.uri)
    finally:
        server.stop()
    assert [row["run"].split()[0] for row in found["rows"]] == ["b", "a"]
    assert found["rows"][1]["difference"]["mean"] == pytest.approx(-0.01)
    assert mixed["rows"][1]["difference"]["mean"] == pytest.approx(-0.01)
    assert not any("predictions" in note for note in found["notes"])


def test_two_real_runs_are_compared_from_their_folders_and_from_the_store(tmp_path, monkeypatch):
    """Trained here; the second personalizes with another learning rate."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    common = ["--data", tmp_path / "data", "--cache", tmp_path / "cache", "--databases", "demo"]
    common += ["--methods", "scratch", "--seeds", "0", "folds=2", "workers=1", "budget_windows=64"]
    common += ["demo.n_subjects=8", "demo.duration_s=180"]
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder, lr in zip(folders, ("null", "0.02"), strict=True):
        arguments = [*common, "--out", folder, f"personalize.lr={lr}"]
        assert va_fewshot.main([str(each) for each in arguments]) == 0
    found = compare([str(folder) for folder in folders])
    assert found["parameters"]["personalize.lr"] == {"a": None, "b": 0.02}
    assert found["rows"][1]["difference"]["n"] >= 4
    assert "demo data" in found["notes"][0]
    stored = compare(
        [], experiment="va_fewshot", tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db"
    )
    rows = {row["run"].split()[0]: row for row in stored["rows"]}
    assert rows["a"]["subjects"] == found["rows"][0]["subjects"]
    assert rows["a"]["difference"]["mean"] == pytest.approx(-found["rows"][1]["difference"]["mean"])
    with pytest.raises(DataError, match="n_shots is 5, not 10"):
        change(folders[1], n_shots=5)
        compare([str(folder) for folder in folders])
