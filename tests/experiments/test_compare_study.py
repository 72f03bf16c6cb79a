"""A study beside the runs: its course, what mattered, and that it is only read."""

import json
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
from made_runs import make_run, shifted, write

from metaecg.errors import ConfigError, DataError
from metaecg.experiments.compare import compare
from metaecg.experiments.compare_study import describe_studies
from metaecg.experiments.tune_outputs import MIN_FOR_IMPORTANCE, _states, importances
from metaecg.experiments.tune_study import DECIDES, REASON

VALUES = (0.5, 0.25, 0.75, 0.625, 1.0)
MANY = (*VALUES, *(place / 32 for place in range(MIN_FOR_IMPORTANCE)))


def make_study(storage=None, values=VALUES, *, name="va", directions=("maximize",)):
    """Return a study with a trial per value, a pruned one after the first and a failed one."""
    study = optuna.create_study(study_name=name, storage=storage, directions=list(directions))
    states = [optuna.trial.TrialState.COMPLETE] * len(values)
    trials = list(zip(states, values, strict=True))
    trials[1:1] = [(optuna.trial.TrialState.PRUNED, None), (optuna.trial.TrialState.FAIL, None)]
    spread = optuna.distributions.FloatDistribution(0.0, 1.0)
    for place, (state, value) in enumerate(trials):
        found = [value, 0.1] if len(directions) == 2 else [value]
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=found if value is not None else None,
                params={"rate": value or 0.1, "steps": place / 50},
                distributions={"rate": spread, "steps": spread},
            )
        )
    return study


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("study") / "study.db"
    make_study(f"sqlite:///{file}")
    return file


def study_file(folder: Path, **changes) -> Path:
    """Write study.json as tune does, as far as it is read."""
    folder.mkdir(parents=True, exist_ok=True)
    trials = [{"number": i, "state": "complete", "values": [v]} for i, v in enumerate(VALUES)]
    trials.insert(0, {"number": 9, "state": "pruned", "values": None})
    content = {"study": "mine", "objective": ["auc"], "directions": ["maximize"], "trials": trials}
    content |= {"states": {"complete": 5, "pruned": 1, "failed": 0}}
    content |= {"importance": {"rate": 0.75, "steps": 0.25}, "importance_note": None}
    write(folder / "study.json", {**content, **changes})
    return folder


def test_the_course_of_a_database_holds_the_complete_trials_and_the_best_until_then(sqlite):
    (found,) = describe_studies([f"sqlite:///{sqlite}:va"], [])
    assert [each["number"] for each in found["course"]] == [0, 3, 4, 5, 6]
    assert [each["best"] for each in found["course"]] == [0.5, 0.5, 0.75, 0.75, 1.0]
    assert found["states"] == {"complete": 5, "pruned": 1, "failed": 1}
    assert (found["study"], found["source"]) == ("va", f"sqlite:///{sqlite}")


def test_a_study_of_tune_says_its_objective_and_its_lost_trials_from_a_database_as_from_a_folder(
    tmp_path,
):
    """A trial that failed without a reason was lost with its process; another replaced it."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = make_study(storage, directions=("maximize", "minimize"))
    study.set_user_attr(DECIDES, {"objective": "auc,adapt_seconds"})
    reason = {REASON: "the loss is not finite"}
    study.add_trial(
        optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=reason)
    )
    (found,) = describe_studies([f"{storage}:va"], [])
    assert found["objective"] == ["auc", "adapt_seconds"]
    assert found["states"] == {"complete": 5, "pruned": 1, "lost": 1, "failed": 1}
    assert found["states"] == {
        state: n for state, n in _states(study).items() if n
    }  # of study.json


def test_what_mattered_is_taken_from_a_database_with_enough_trials(tmp_path):
    make_study(f"sqlite:///{tmp_path / 'study.db'}", MANY)
    (found,) = describe_studies([f"sqlite:///{tmp_path / 'study.db'}:va"], [])
    assert found["importance"].keys() == {"rate", "steps"}
    assert sum(found["importance"].values()) == pytest.approx(1.0)


def test_a_folder_of_tune_is_read_from_its_file(tmp_path):
    (found,) = describe_studies([str(study_file(tmp_path / "tune"))], [])
    assert [each["best"] for each in found["course"]] == [0.5, 0.5, 0.75, 0.75, 1.0]
    assert found["importance"] == {"rate": 0.75, "steps": 0.25}
    assert found["states"] == {"complete": 5, "pruned": 1}
    # The lowest is the best of a study that minimizes.
    (down,) = describe_studies([str(study_file(tmp_path / "down", directions=["minimize"]))], [])
    assert [each["best"] for each in down["course"]] == [0.5, 0.25, 0.25, 0.25, 0.25]


def test_a_journal_is_read(tmp_path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    make_study(JournalStorage(JournalFileBackend(str(tmp_path / "j"))))
    (found,) = describe_studies([f"journal:{tmp_path / 'j'}:va"], [])
    assert found["n_trials"] == 7


def test_a_run_in_the_folder_of_a_study_or_on_its_split_brings_the_study_along(tmp_path):
    tune = study_file(tmp_path / "tune")
    inside = make_run(tune / "test")
    split = str(tune / "split.json")
    elsewhere = make_run(tmp_path / "b", shifted(0.01), config={"split": split})
    found = compare([str(inside), str(elsewhere)], studies=[str(tune)])["studies"]
    assert [each["study"] for each in found] == ["mine"]
    assert compare([str(inside), str(elsewhere)])["studies"] == found


def test_runs_without_a_study_have_none(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", shifted(0.01))]
    assert compare([str(run) for run in runs])["studies"] == []


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("va", ConfigError, "expected URL:NAME"),
        ("postgresql://host:5432/db", ConfigError, "expected URL:NAME"),
        ("sqlite:///{tmp}/no.db:va", DataError, "no.db, which doesn't exist"),
        ("journal:{tmp}/no:va", DataError, "no, which doesn't exist"),
        ("sqlite:///{file}:vb", DataError, "has no study 'vb'; it has va"),
        ("sqlite:///{text}:va", (ConfigError, DataError), "file is not a database"),
    ],
)
def test_a_study_that_cannot_be_read_is_refused(tmp_path, sqlite, name, error, words):
    text = tmp_path / "text.db"
    text.write_text("this is no database, but a text that is long enough to be seen as none" * 20)
    with pytest.raises(error, match=words):
        describe_studies([name.format(tmp=tmp_path, file=sqlite, text=text)], [])
    assert list(tmp_path.iterdir()) == [text]  # nothing was made


@pytest.mark.parametrize("changes", [{"trials": None}, {"directions": 3}, {"states": []}])
def test_a_damaged_file_of_a_study_is_refused(tmp_path, changes):
    folder = study_file(tmp_path / "tune", **changes)
    with pytest.raises(DataError, match="expected what tune writes"):
        describe_studies([str(folder)], [])


def test_reading_a_study_leaves_it_as_it_was(tmp_path, sqlite):
    copy = tmp_path / "study.db"
    shutil.copy(sqlite, copy)
    before = json.dumps([t.params for t in load(copy).trials])
    describe_studies([f"sqlite:///{copy}:va"], [])
    assert json.dumps([t.params for t in load(copy).trials]) == before


def load(file: Path):
    return optuna.load_study(study_name="va", storage=f"sqlite:///{file}")


def test_what_mattered_is_what_leads_to_good_values_and_not_to_bad_ones():
    """`peak` decides who is best, `pit` only who is worst."""
    spread = optuna.distributions.FloatDistribution(0.0, 1.0)
    study = optuna.create_study(direction="maximize")
    for peak, pit in np.random.default_rng(0).random((300, 2)).tolist():
        value = (peak > 0.95) - 10 * (pit < 0.05) + 0.001 * peak
        study.add_trial(
            optuna.trial.create_trial(
                value=value,
                params={"peak": peak, "pit": pit},
                distributions={"peak": spread, "pit": spread},
            )
        )
    found, _ = importances(study)
    assert found["peak"] > 0.9


def test_no_importance_is_made_up_from_a_few_trials_or_from_equal_ones():
    few, why = importances(make_study(values=VALUES[:3]))
    assert few is None and why.startswith("3 complete trials; at least")
    equal, why = importances(make_study(values=(0.5,) * len(MANY)))
    assert (equal, why) == (None, "all trials are worth the same")


def test_a_study_of_two_objectives_has_a_course_by_the_first(tmp_path):
    file = tmp_path / "study.db"
    make_study(f"sqlite:///{file}", directions=("maximize", "minimize"))
    (found,) = describe_studies([f"sqlite:///{file}:va"], [])
    assert found["directions"] == ["maximize", "minimize"]
    assert found["course"][-1]["best"] == 1.0
