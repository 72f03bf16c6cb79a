"""A storage that fails for a moment ends no study; one that stays away ends it in order."""

import errno
import random

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend
from tune_cases import run, study_of, values_of

from metaecg.experiments import tune_storage
from metaecg.experiments.tune_storage import StorageAwayError, opened_storage

# Some of its trials are begun by hand, without anything that beats.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with")
RANDOM = ["--sampler", "random", "--pruner", "none"]
AWAY = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))


class Weather:
    """Decides which statements of a database fail."""

    def __init__(self) -> None:
        self.n_failed, self.is_away, self.share = 0, False, 0.0
        self._rng = random.Random(7)

    def strike(self, *statement) -> None:
        if self.is_away or self._rng.random() < self.share:
            self.n_failed += 1
            raise AWAY


@pytest.fixture
def weather(monkeypatch):
    """The weather over every database that is opened."""
    build, found = tune_storage._database, Weather()

    def under_it(*arguments):
        database = build(*arguments)
        sqlalchemy.event.listen(database.engine, "before_cursor_execute", found.strike)
        return database

    monkeypatch.setattr(tune_storage, "_database", under_it)
    monkeypatch.setattr("metaecg.experiments.tune_patience.PAUSES_S", (0.0,))
    return found


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr("metaecg.experiments.tune_patience.time", found)
    return found


def test_a_study_on_a_database_that_often_fails_is_the_same_study(tmp_path, weather):
    assert run(tmp_path, *RANDOM, "--n-trials", "3", out="calm") == 0
    weather.share = 0.05
    assert run(tmp_path, *RANDOM, "--n-trials", "3") == 0
    assert weather.n_failed >= 5
    weather.share = 0.0
    assert values_of(study_of(tmp_path)) == values_of(study_of(tmp_path, "calm"))


def test_a_trial_whose_storage_lost_only_the_answer_is_told_once(tmp_path, monkeypatch, capsys):
    plain, lost = RDBStorage.set_trial_state_values, []

    def told_in_vain(self, trial_id, state, values=None):
        found = plain(self, trial_id, state, values)
        if state.is_finished() and not lost:
            lost.append(trial_id)
            raise optuna.exceptions.StorageInternalError from AWAY
        return found

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", told_in_vain)
    monkeypatch.setattr("metaecg.experiments.tune_patience.PAUSES_S", (0.0,))
    assert run(tmp_path, *RANDOM, "--n-trials", "2") == 0
    assert lost
    assert [trial["state"] for trial in study_of(tmp_path)["trials"]] == ["complete"] * 2
    assert "declared dead" not in capsys.readouterr().err


def test_a_database_that_stays_away_ends_the_command_and_keeps_its_trials(
    tmp_path, weather, monkeypatch, capsys
):
    from metaecg.experiments.tune_trial import Course

    def leave(self, step, scores, plain=Course.report):
        weather.is_away = self._trial.number == 1
        plain(self, step, scores)

    monkeypatch.setattr(Course, "report", leave)
    monkeypatch.setattr("metaecg.experiments.tune_patience.PATIENCE_S", 0)
    monkeypatch.setattr("metaecg.experiments.tune_patience.PAUSES_S", (0.1,))
    assert run(tmp_path, *RANDOM, "--n-trials", "2") == 3
    said = capsys.readouterr().err
    assert "server closed the connection" in said
    assert "Finished trials are kept in it" in said
    assert "give the same command again" in said
    assert "Traceback" not in said
    monkeypatch.undo()
    # The trial that was lost counts as running: its process is this one, which lives on.
    assert run(tmp_path, *RANDOM, "--n-trials", "3") == 0
    states = [trial["state"] for trial in study_of(tmp_path)["trials"]]
    assert states == ["complete", "running", "complete"]


def test_a_heartbeat_that_fails_is_left_out_and_the_next_one_arrives(tmp_path, weather):
    with opened_storage(f"sqlite:///{tmp_path / 'study.db'}") as storage:
        study = optuna.create_study(storage=storage)
        trial = study.ask()
        weather.is_away = True
        storage.record_heartbeat(trial._trial_id)
        assert weather.n_failed == 1
        weather.is_away = False
        storage.record_heartbeat(trial._trial_id)
        with storage.engine.connect() as connection:
            found = connection.execute(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats"))
            assert found.fetchall() == [(trial._trial_id,)]


def test_a_journal_whose_disk_is_full_for_a_moment_keeps_every_line_once(tmp_path, monkeypatch):
    plain, failures = JournalFileBackend.append_logs, []

    def half(self, logs):
        if len(failures) % 3 < 2:  # two in three lines get no further than this
            failures.append(1)
            with open(self._file_path, "a") as file:
                file.write('{"op_code":')
            raise OSError(errno.ENOSPC, "No space left on device")
        failures.append(1)
        plain(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", half)
    monkeypatch.setattr("metaecg.experiments.tune_patience.PAUSES_S", (0.0,))
    url = f"journal:{tmp_path / 'study.log'}"
    with opened_storage(url) as storage:
        study = optuna.create_study(storage=storage, study_name="study")
        for value in (1.0, 2.0):
            study.tell(study.ask(), value)
    assert len(failures) >= 6
    with opened_storage(url) as storage:
        trials = optuna.load_study(study_name="study", storage=storage).get_trials()
    assert [trial.value for trial in trials] == [1.0, 2.0]


def test_one_waits_about_a_minute_once_and_again_after_an_answer(clock, capsys):
    from metaecg.experiments.tune_patience import Patience

    n_calls, is_away = 0, True

    def ask():
        nonlocal n_calls
        n_calls += 1
        if is_away:
            raise AWAY
        return "answer"

    patient = Patience("'sqlite:///study.db'").of(ask)
    with pytest.raises(StorageAwayError, match="'sqlite:///study.db' didn't answer for 60 s"):
        patient()
    assert 45 <= clock.now <= 60
    assert capsys.readouterr().err.count("doesn't answer") == 1
    n_calls = 0
    with pytest.raises(StorageAwayError):
        patient()
    assert n_calls == 1
    is_away = False
    assert patient() == "answer"
    is_away, before = True, clock.now
    with pytest.raises(StorageAwayError):
        patient()
    assert clock.now - before >= 45


def test_an_answer_that_is_no_is_not_asked_for_again(tmp_path, clock):
    with (
        opened_storage(f"sqlite:///{tmp_path / 'study.db'}") as storage,
        pytest.raises(KeyError, match="No study with name|Record does not exist"),
    ):
        storage.get_study_id_from_name("nobody's")
    assert clock.now == 0
