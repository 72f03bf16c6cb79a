"""Trials whose process or machine is gone, those given up while they ran, and who joins last."""

import socket
import sqlite3
import subprocess
import time
from contextlib import closing

import optuna
import psutil
import pytest
from tune_cases import SMALL, plan_of, run, study_of

from metaecg.data.splits import Split
from metaecg.experiments import tune, tune_storage, tune_study, tune_trial
from metaecg.experiments.tune_storage import is_dead, opened_storage, worker_name
from metaecg.experiments.tune_study import SPLIT, WORKER, find_study

# Its trials are begun by hand here, without anything that beats.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with")
RANDOM = ["--sampler", "random", "--pruner", "none"]
ELSEWHERE = "elsewhere 00000000 pid:[1]|7|1.0"
BEFORE_THE_BOOT = f"{socket.gethostname()} 00000000 pid:[1]|7|1.0"


def sqlite_of(folder) -> str:
    return f"sqlite:///{folder / 'study' / 'study.db'}"


def leave_running(url: str, worker: str | None, *, is_silent: bool = False) -> None:
    """Begin a trial as another process would, and leave it there."""
    with opened_storage(url) as storage:
        trial = find_study(storage, "study").ask()
        if worker:
            trial.set_user_attr(WORKER, worker)
            if not url.startswith("journal:"):
                storage.record_heartbeat(trial._trial_id)
    if is_silent:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database, database:
            database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
            database.execute(
                "UPDATE trials SET datetime_start = datetime('now', 'localtime', '-1 hour') "
                "WHERE state = 'RUNNING'"
            )


def begun_study(folder):
    """Begin a study as a command does, without any trial; return its storage's address."""
    plan = plan_of(folder)
    plan.config.out.mkdir()
    with opened_storage(plan.config.storage_url) as storage:
        tune._begun(plan, storage, must_exist=False)
    return plan.config.storage_url


# --- machines and processes that are gone --------------------------------------------------------


@pytest.mark.parametrize("worker", [ELSEWHERE, None], ids=["another machine's", "nobody's"])
def test_the_last_trial_of_a_machine_that_fell_silent_is_replaced(tmp_path, worker):
    assert run(tmp_path, *RANDOM, "--n-trials", "1") == 0
    leave_running(sqlite_of(tmp_path), worker, is_silent=True)
    assert run(tmp_path, *RANDOM, "--n-trials", "2") == 0
    states = study_of(tmp_path)["states"]
    assert (states["complete"], states["lost"], states["running"]) == (2, 1, 0)


@pytest.mark.slow
def test_several_workers_replace_the_last_trial_of_a_silent_machine_too(tmp_path):
    assert run(tmp_path, *RANDOM, "--n-trials", "1") == 0
    leave_running(sqlite_of(tmp_path), ELSEWHERE, is_silent=True)
    assert run(tmp_path, *RANDOM, "--n-trials", "2", "--workers", "2") == 0
    states = study_of(tmp_path)["states"]
    assert (states["complete"], states["lost"], states["running"]) == (2, 1, 0)


def test_a_journals_trial_from_before_the_machine_was_started_anew_is_replaced(tmp_path):
    url = f"journal:{tmp_path / 'study.log'}"
    options = [*RANDOM, "--storage", url, "--n-trials"]
    assert run(tmp_path, *options, "1") == 0
    leave_running(url, BEFORE_THE_BOOT)
    assert run(tmp_path, *options, "2") == 0
    study = study_of(tmp_path)
    assert (study["states"]["complete"], study["states"]["lost"]) == (2, 1)
    assert study["trials"][1]["reason"] == "its machine was started anew"


def test_a_databases_trial_of_a_machine_of_the_same_name_is_left_alone(tmp_path):
    assert run(tmp_path, *RANDOM, "--n-trials", "1") == 0
    leave_running(sqlite_of(tmp_path), BEFORE_THE_BOOT)  # heard of a moment ago
    assert run(tmp_path, *RANDOM, "--n-trials", "2") == 0
    assert study_of(tmp_path)["states"]["running"] == 1


def test_what_runs_elsewhere_is_named_at_the_end_with_a_way_out_that_works(tmp_path, capsys):
    url = f"journal:{tmp_path / 'study.log'}"
    options = [*RANDOM, "--storage", url, "--n-trials", "2"]
    assert run(tmp_path, *options[:-1], "1") == 0
    leave_running(url, ELSEWHERE)
    capsys.readouterr()
    assert run(tmp_path, *options) == 0
    said = capsys.readouterr().out
    assert "still running elsewhere: 1 (process 7 on elsewhere)" in said
    assert "the same command with --take-over replaces them" in said
    assert study_of(tmp_path)["states"]["running"] == 1
    assert run(tmp_path, *options, "--take-over") == 0
    study = study_of(tmp_path)
    assert (study["states"]["complete"], study["states"]["running"]) == (2, 0)
    assert study["trials"][1]["reason"] == "it was given up with --take-over"
    assert "still running" not in capsys.readouterr().out


def test_taking_over_leaves_the_trials_of_living_processes_alone(tmp_path):
    assert run(tmp_path, *RANDOM, "--n-trials", "1") == 0
    leave_running(sqlite_of(tmp_path), worker_name())
    assert run(tmp_path, *RANDOM, "--n-trials", "2", "--take-over") == 0
    assert study_of(tmp_path)["states"]["running"] == 1


def test_setting_the_clock_kills_no_process(monkeypatch):
    mine, plain = worker_name(), psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: plain(self) + 3600)
    assert not is_dead(mine)


def test_a_killed_process_that_nobody_has_buried_is_dead():
    with subprocess.Popen(["sleep", "60"]) as process:
        name = f"{tune_storage._machine()}|{process.pid}|{tune_storage._began(process.pid)}"
        assert not is_dead(name)
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert is_dead(name)


# --- trials that another process declared dead while they ran ------------------------------------


def declare_dead(url: str, trial) -> None:
    with opened_storage(url) as storage:
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)


def once(plain, before):
    """Return `plain` with `before` called ahead of its first call."""
    calls = []

    def wrapped(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            before(self, *arguments)
        return plain(self, *arguments)

    return wrapped


def dies_at_report(url, monkeypatch):
    before = once(tune_trial.Course.report, lambda self, *_: declare_dead(url, self._trial))
    monkeypatch.setattr(tune_trial.Course, "report", before)


def dies_at_its_end(url, monkeypatch):
    def objective(self, trial, plain=tune_trial.Workplace.objective):
        value = plain(self, trial)
        if trial.number == 0:
            declare_dead(url, trial)
        return value

    monkeypatch.setattr(tune_trial.Workplace, "objective", objective)


@pytest.mark.parametrize("dies", [dies_at_report, dies_at_its_end])
def test_a_trial_declared_dead_while_it_ran_does_not_end_the_study(
    tmp_path, monkeypatch, capsys, dies
):
    dies(sqlite_of(tmp_path), monkeypatch)
    assert run(tmp_path, *RANDOM, "--n-trials", "2") == 0
    assert "trial 0 was declared dead by another process while it ran" in capsys.readouterr().err
    states = study_of(tmp_path)["states"]
    assert (states["complete"], states["lost"], states["failed"]) == (2, 1, 0)


def test_ctrl_c_in_a_trial_that_was_declared_dead_is_still_ctrl_c(tmp_path, monkeypatch):
    def interrupted(self, trial, record):
        declare_dead(sqlite_of(tmp_path), trial)
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_trial.Workplace, "_worth", interrupted)
    assert run(tmp_path, *RANDOM, "--n-trials", "2") == 130


def test_ctrl_c_while_a_trial_is_begun_leaves_none_running(tmp_path, monkeypatch):
    def interrupted(self, plain=optuna.Study.ask):
        plain(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "ask", interrupted)
    assert run(tmp_path, *RANDOM, "--n-trials", "2") == 130
    study = study_of(tmp_path)
    assert (study["states"]["lost"], study["states"]["running"]) == (1, 0)
    assert study["trials"][0]["reason"] == "interrupted"


# --- beginning and joining -----------------------------------------------------------------------


def test_who_joins_when_all_trials_run_elsewhere_has_nothing_to_do_and_no_error(tmp_path, capsys):
    leave_running(begun_study(tmp_path), ELSEWHERE)
    assert run(tmp_path, *RANDOM, "--n-trials", "1") == 0
    said = capsys.readouterr().out
    assert "still running elsewhere: 1" in said
    assert "90 s after they were heard of last the same command replaces them" in said
    assert "best.yaml" not in said
    assert not (tmp_path / "study" / "best.yaml").exists()


def test_a_study_whose_trials_were_all_stopped_early_says_that(tmp_path, monkeypatch, capsys):
    def stop(self, step, scores):
        raise optuna.TrialPruned

    monkeypatch.setattr(tune_trial.Course, "report", stop)
    assert run(tmp_path, "--n-trials", "2", "--pruner", "median") == 3
    said = capsys.readouterr().err
    assert "all 2 trials were stopped early by the pruner 'median'" in said
    assert "--pruner none" in said


def test_who_is_beaten_to_the_beginning_takes_the_others_split(tmp_path, monkeypatch):
    plan, plain = plan_of(tmp_path), tune_study.begin_study
    plan.config.out.mkdir()
    theirs = []

    def beaten(storage, plan, *, decides, split):
        other = Split(
            name="split",
            train=split.train[1:],
            test=(*split.test, split.train[0]),
            checksums=split.checksums,
        )
        sha256 = plan.recipe.develop(plan.shared, other).manifest_sha256
        plain(storage, plan, decides={**decides, "data_sha256": sha256}, split=other)
        theirs.append(other)
        return plain(storage, plan, decides=decides, split=split)

    monkeypatch.setattr(tune_study, "begin_study", beaten)
    with opened_storage(plan.config.storage_url) as storage:
        _, decides, split, development = tune._begun(plan, storage, must_exist=False)
    assert split == theirs[0]
    assert development.held_out == set(theirs[0].test)
    assert decides["data_sha256"] == development.manifest_sha256


@pytest.fixture
def half_begun(tmp_path, monkeypatch):
    """A study whose process was killed before the study said what it is."""
    monkeypatch.setattr(tune_study, "SETTLING_S", 1)
    url = sqlite_of(tmp_path)
    plan = plan_of(tmp_path)
    with opened_storage(url) as storage:
        study = optuna.create_study(storage=storage, study_name="study", direction="maximize")
        study.set_user_attr(SPLIT, {"train": [], "test": [], "checksums": {}})
        tune_study._enqueue(study, plan)
    return tmp_path


def test_a_half_begun_study_is_made_whole_with_one_default_trial(half_begun):
    assert run(half_begun, *RANDOM, "--n-trials", "2") == 0
    trials = study_of(half_begun)["trials"]
    assert [trial["is_default"] for trial in trials] == [True, False]


def test_a_half_begun_study_of_another_number_of_objectives_is_refused(half_begun, capsys):
    options = [*RANDOM, "--objective", "auc,adapt_seconds", "--n-trials", "1"]
    assert run(half_begun, *options, overrides=SMALL) == 2
    said = capsys.readouterr().err
    assert "to maximize; objective auc,adapt_seconds is to maximize and minimize" in said
    assert "--study" in said
