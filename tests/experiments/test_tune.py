"""A study from end to end on generated patients: files, held-out subjects, going on, failures."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from tune_cases import SMALL, plan_of, run, study_of, values_of

from metaecg.data.demo import write_demo_database
from metaecg.data.splits import Split, read_manifest
from metaecg.errors import ConfigError, LeakageError
from metaecg.experiments import va_fewshot
from metaecg.experiments.config import VAConfig
from metaecg.experiments.tune_options import make_plan
from metaecg.experiments.tune_outputs import importances, table
from metaecg.experiments.tune_recipe import Fold, Score
from metaecg.experiments.tune_storage import opened_storage
from metaecg.experiments.tune_study import find_study
from metaecg.experiments.tune_trial import summary, worth

RANDOM = ["--sampler", "random"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of five trials without pruning."""
    folder = tmp_path_factory.mktemp("tune")
    assert run(folder, "--n-trials", "5", "--pruner", "none") == 0
    return folder


@pytest.fixture
def own_data(tmp_path):
    """Generated recordings that a test may damage, and the options that name them."""
    write_demo_database(tmp_path / "data", n_subjects=12, duration_s=240.0)
    return ["--data", str(tmp_path / "data"), "--databases", "demo"]


# --- what a study leaves behind ------------------------------------------------------------------


def test_a_study_leaves_its_files_and_says_what_it_is_about(finished):
    found = {path.name for path in (finished / "study").iterdir() if path.name[0] != "."}
    assert found >= {"best.yaml", "split.json", "study.json", "study.db"}
    study = study_of(finished)
    assert study["states"] == {"complete": 5, "pruned": 0, "failed": 0, "lost": 0, "running": 0}
    assert study["objective"] == ["auc"]
    assert study["directions"] == ["maximize"]
    assert study["importance"] is None
    assert study["importance_note"] == "5 complete trials; at least 8 are needed"


def test_the_best_trial_has_the_highest_value(finished):
    study = study_of(finished)
    values = [trial["values"][0] for trial in study["trials"]]
    assert values[study["best"]] == max(values)


def test_a_trials_value_is_the_mean_over_its_meta_validation_subjects(finished):
    for trial in study_of(finished)["trials"]:
        assert trial["values"][0] == pytest.approx(np.mean(list(trial["subject_auc"].values())))


def test_every_trial_is_judged_on_the_same_subjects_none_of_them_held_out(finished):
    study = study_of(finished)
    split = read_manifest(finished / "study" / "split.json")
    judged = {frozenset(trial["subject_auc"]) for trial in study["trials"]}
    assert len(judged) == 1
    assert next(iter(judged)) <= set(split.train)
    assert set(split.test).isdisjoint(split.train)


def test_the_first_trial_is_the_recipe_as_it_is_configured(finished):
    first = study_of(finished)["trials"][0]
    assert first["is_default"]
    assert (first["params"]["method"], first["params"]["pretrain.lr"]) == ("head", 3e-3)


def test_the_best_configuration_is_whole_and_scores_the_held_out_subjects_once(finished, capsys):
    study, out = study_of(finished), finished / "study"
    values = yaml.safe_load((out / "best.yaml").read_text())
    config = VAConfig.model_validate(values)
    best = study["trials"][study["best"]]["params"]
    assert config.pretrain.lr == best["pretrain.lr"]
    assert config.methods == [best["method"]]
    arguments = ["--config", str(out / "best.yaml"), "--split", str(out / "split.json")]
    assert va_fewshot.main([*arguments, "tracking.enabled=false", "workers=1"]) == 0
    results = json.loads((out / "test" / "results.json").read_text())
    evaluated = set(results["methods"][best["method"]]["subjects"])
    assert evaluated
    assert evaluated <= set(read_manifest(out / "split.json").test)
    assert "demo data" in capsys.readouterr().out


def test_the_table_names_the_best_trial_and_what_failed(finished):
    plan = plan_of(finished)
    with opened_storage(plan.config.storage_url) as storage:
        text = table(plan, find_study(storage, "study"))
    assert "5 complete" in text
    assert "demo data" in text
    best = study_of(finished)["best"]
    assert re.search(rf"^ +{best}  ", text, flags=re.M)


# --- held-out subjects ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_is_the_same_whatever_the_held_out_subjects_recordings_hold(tmp_path, own_data):
    options = [*own_data, "--n-trials", "4"]
    assert run(tmp_path, *options, out="whole") == 0
    assert run(tmp_path, *own_data, "--n-trials", "1") == 0  # the split stands
    held_out = read_manifest(tmp_path / "study" / "split.json").test
    assert len(held_out) >= 2
    for subject in held_out:
        (tmp_path / "data" / f"{subject}.dat").write_bytes(b"poison")
        (tmp_path / "data" / f"{subject}.atr").unlink()
        (tmp_path / "data" / f"{subject}.hea").write_text("no header")
    assert run(tmp_path, *options) == 0  # goes on, from one trial to four
    poisoned, whole = study_of(tmp_path), study_of(tmp_path, "whole")
    assert len(poisoned["trials"]) == 4
    assert values_of(poisoned) == values_of(whole)


def test_asking_for_a_held_out_subject_is_leakage(finished):
    plan = plan_of(finished)
    split = read_manifest(finished / "study" / "split.json")
    development = plan.recipe.develop(plan.shared, split)
    assert set(development.subject_ids) == set(split.train)
    assert set(np.unique(development.windows.subject_ids)) <= set(split.train)
    assert len(development.of_subject(split.train[0]))
    with pytest.raises(LeakageError, match=f"'{split.test[0]}' is held out"):
        development.of_subject(split.test[0])


@pytest.mark.parametrize("side", ["train", "test", "eligible"])
def test_a_fold_that_names_a_held_out_subject_is_leakage(finished, side):
    plan = plan_of(finished)
    split = read_manifest(finished / "study" / "split.json")
    development = plan.recipe.develop(plan.shared, split)
    sides = {"train": split.train[:2], "test": split.train[2:4], "eligible": split.train[2:3]}
    sides[side] = (*sides[side], split.test[0])
    fold = Fold(
        split=Split(name="planted", train=sides["train"], test=sides["test"]),
        eligible=sides["eligible"],
    )
    with pytest.raises(LeakageError, match="is held out"):
        plan.recipe.evaluate(plan.shared, development, fold, seed=0)


def test_recordings_of_a_held_out_subject_are_no_development_data(finished):
    plan = plan_of(finished)
    split = read_manifest(finished / "study" / "split.json")
    wrong = Split(name="wrong", train=(*split.train, split.test[0]), test=split.test[1:])
    everybody = plan.recipe.develop(plan.shared, wrong)
    with pytest.raises(LeakageError, match=f"'{split.test[0]}' is held out"):
        type(everybody)(
            windows=everybody.windows, records=everybody.records, held_out=frozenset(split.test)
        )


def test_inner_folds_judge_every_eligible_subject_once_and_share_none(finished):
    plan = plan_of(finished)
    split = read_manifest(finished / "study" / "split.json")
    folds = plan.recipe.inner_folds(plan.shared, plan.recipe.develop(plan.shared, split), 3)
    judged = [subject for fold in folds for subject in fold.eligible]
    assert len(judged) == len(set(judged))
    for fold in folds:
        assert set(fold.split.train).isdisjoint(fold.split.test)
        assert {*fold.split.train, *fold.split.test} == set(split.train)


def test_a_manifest_decides_who_is_held_out(tmp_path, finished):
    path = tmp_path / "mine.json"
    subjects = read_manifest(finished / "study" / "split.json")
    everybody = sorted({*subjects.train, *subjects.test})
    path.write_text(json.dumps({"train": everybody[4:], "test": everybody[:3]}))
    plan = plan_of(finished, split=str(path))
    split = plan.recipe.hold_out(plan.shared, plan.config.hold_out_folds)
    assert (set(split.test), set(split.train)) == (set(everybody[:3]), set(everybody[4:]))
    # Whom the manifest leaves out is on no side, and never opened.
    assert everybody[3] not in plan.recipe.develop(plan.shared, split).subject_ids


def test_holding_out_every_fold_or_one_that_is_not_there_is_refused(finished):
    plan = plan_of(finished)
    for folds in ([0, 1, 2], [3]):
        with pytest.raises(ConfigError, match="expected some of 0 to 2, not all"):
            plan.recipe.hold_out(plan.shared, folds)


def test_more_inner_folds_than_subjects_to_judge_on_are_refused(tmp_path, capsys):
    assert run(tmp_path, "--n-trials", "1", overrides=[*SMALL, "n_inner_folds=9"]) == 3
    assert re.search(r"eligible, n_inner_folds is 9; expected", capsys.readouterr().err)
    assert not (tmp_path / "study" / "study.json").exists()


# --- trials --------------------------------------------------------------------------------------


def test_looking_at_a_trial_in_between_changes_nothing_of_it(finished, tmp_path):
    assert run(tmp_path, "--n-trials", "1", "--pruner", "hyperband") == 0
    watched, plain = study_of(tmp_path)["trials"][0], study_of(finished)["trials"][0]
    assert (watched["params"], watched["values"]) == (plain["params"], plain["values"])
    assert watched["subject_auc"] == plain["subject_auc"]
    assert list(plain["intermediate"]) == ["8", "16"]
    assert list(watched["intermediate"]) == ["1", "2", "4", "8", "16"]
    assert watched["intermediate"]["16"] == watched["values"][0]


@pytest.mark.slow
def test_meta_learning_is_looked_at_in_between_too(tmp_path):
    options = ["--method", "maml+full", "--n-trials", "1"]
    assert run(tmp_path, *options, "--pruner", "none", out="plain") == 0
    assert run(tmp_path, *options, out="watched") == 0
    plain, watched = (study_of(tmp_path, out)["trials"][0] for out in ("plain", "watched"))
    assert watched["subject_auc"] == plain["subject_auc"]
    assert list(watched["intermediate"]) == ["1", "2", "4", "8", "16"]


@pytest.mark.slow
def test_a_trial_that_does_badly_is_stopped_early_and_the_study_goes_on(tmp_path):
    options = ["--n-trials", "8", *RANDOM, "--method", "pretrain+full"]
    # Rates from useless to good: most trials are far from the best.
    space = "space.personalize.lr={low: 1e-7, high: 1e-2, log: true}"
    assert run(tmp_path, *options, overrides=[*SMALL, space]) == 0
    study = study_of(tmp_path)
    assert study["states"]["pruned"] >= 2
    assert study["states"]["complete"] >= 1
    assert study["states"]["complete"] + study["states"]["pruned"] == 8
    for trial in study["trials"]:
        if trial["state"] == "pruned":
            assert trial["values"] is None
            assert trial["intermediate"]


def test_a_trial_that_fails_keeps_its_reason_and_the_study_goes_on(tmp_path, capsys):
    space = ["space.network.arguments.width={choices: [16, 18]}", "start_with_defaults=false"]
    assert run(tmp_path, "--n-trials", "6", *RANDOM, overrides=[*SMALL, *space]) == 0
    trials = study_of(tmp_path)["trials"]
    failed = [t for t in trials if t["state"] == "fail"]
    assert {t["params"]["network.arguments.width"] for t in failed} == {18}
    assert all("width is 18; a multiple of 4" in t["reason"] for t in failed)
    assert not any(t["is_lost"] for t in failed)
    assert len(trials) == 6
    assert "failed (" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_fails_the_trial_and_no_other(tmp_path):
    space = ["space.pretrain.lr={choices: [1e-3, 1e30]}", "start_with_defaults=false"]
    options = ["--n-trials", "4", "--method", "pretrain+full", *RANDOM]
    assert run(tmp_path, *options, overrides=[*SMALL, *space]) == 0
    trials = study_of(tmp_path)["trials"]
    reasons = {t["reason"] for t in trials if t["params"]["pretrain.lr"] == 1e30}
    assert reasons
    assert all(reason.startswith("AdaptationError: ") for reason in reasons)
    assert all(t["state"] != "fail" for t in trials if t["params"]["pretrain.lr"] == 1e-3)


def test_a_study_without_any_complete_trial_is_an_error_with_the_first_reason(tmp_path, capsys):
    space = ["space.network.arguments.width={choices: [18]}", "start_with_defaults=false"]
    assert run(tmp_path, "--n-trials", "2", overrides=[*SMALL, *space]) == 3
    said = capsys.readouterr().err
    assert "none of the 2 trials that ended could be completed" in said
    assert "width is 18; a multiple of 4" in said
    assert not (tmp_path / "study" / "best.yaml").exists()


@pytest.mark.parametrize("second", ["adapt_seconds", "adapter_bytes"])
def test_two_objectives_leave_a_front_and_no_pruning(tmp_path, capsys, second):
    options = ["--n-trials", "3", "--objective", f"auc,{second}", *RANDOM]
    assert run(tmp_path, *options) == 0
    study = study_of(tmp_path)
    assert study["directions"] == ["maximize", "minimize"]
    assert study["pruner"] == "none"
    assert "optuna has no pruning" in capsys.readouterr().err
    values = {t["number"]: t["values"] for t in study["trials"]}
    for number in study["front"]:
        auc, cost = values[number]
        assert not any(a >= auc and c <= cost and (a, c) != (auc, cost) for a, c in values.values())
    assert values[study["best"]][0] == max(values[number][0] for number in study["front"])


def test_the_size_of_an_adapter_is_that_of_the_file_that_a_patient_gets(tmp_path):
    options = ["--n-trials", "1", "--objective", "auc,adapter_bytes", "--method", "head"]
    fixed = [*SMALL, "config.network.arguments.width=16"]
    assert run(tmp_path, *options, overrides=fixed) == 0
    (trial,) = study_of(tmp_path)["trials"]
    assert trial["values"][1] == 4 * (4 * 16 * 2 + 2)  # weights and biases of the last layer


def test_the_field_that_decides_is_found():
    import optuna

    def objective(trial):
        return trial.suggest_float("good", 0, 1) + 0 * trial.suggest_float("rest", 0, 1)

    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=60)
    importance, note = importances(study)
    assert importance["good"] > 0.9
    assert sum(importance.values()) == pytest.approx(1)
    assert note == "from 60 complete trials"


def test_figures_count_every_subject_the_same():
    scores = [
        Score(subject_id=s, auc=a, f1=f, adapt_seconds=t, adapter_bytes=8)
        for s, a, f, t in (("a", 1.0, 0.5, 1.0), ("b", 0.5, 0.0, 9.0), ("c", 0.6, 0.1, 2.0))
    ]
    figures = summary(scores)
    assert figures == pytest.approx(
        {"auc": 0.7, "f1": 0.2, "adapt_seconds": 2.0, "adapter_bytes": 8.0}
    )
    assert worth(figures, ("f1",)) == pytest.approx(0.2)
    assert worth(figures, ("auc", "adapt_seconds")) == pytest.approx((0.7, 2.0))


# --- going on ------------------------------------------------------------------------------------


def test_the_same_command_goes_on_to_the_number_of_trials_in_all(finished, tmp_path, capsys):
    options = ["--pruner", "none"]
    assert run(tmp_path, *options, "--n-trials", "2") == 0
    begun = values_of(study_of(tmp_path))
    assert run(tmp_path, *options, "--n-trials", "5", "--resume") == 0
    assert "has 2 finished trials; going on to 5 in all" in capsys.readouterr().err
    assert values_of(study_of(tmp_path))[:2] == begun
    # An interruption changes nothing: the same study as in one go.
    again = study_of(tmp_path)
    assert values_of(again)[:2] == values_of(study_of(finished))[:2]
    assert [t["params"] for t in again["trials"][2:]] == [
        t["params"] for t in study_of(finished)["trials"][2:]
    ]


def test_a_study_that_has_its_trials_runs_none(finished, tmp_path):
    before = values_of(study_of(finished))
    assert run(finished, "--n-trials", "5", "--pruner", "none") == 0
    assert values_of(study_of(finished)) == before


def test_resume_without_a_study_is_refused(tmp_path, capsys):
    assert run(tmp_path, "--resume") == 2
    assert "there is no study 'study' to take up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.budget_windows=700", "config.budget_windows is 640 there, 700 here"),
        ("seed=4", "seed is 0 there, 4 here"),
        ("objective=f1", "objective is 'auc' there, 'f1' here"),
        ("hold_out_folds=1", r"hold_out_folds is \[0\] there, \[1\] here"),
        ("n_inner_folds=3", "n_inner_folds is 2 there, 3 here"),
        ("space.pretrain.lr={low: 1e-4, high: 1e-2}", "space.pretrain.lr.low is 0.0005 there"),
        ("method=head", "space.method.choices"),
        ("config.demo.n_subjects=13", "config.demo.n_subjects is 12 there, 13 here"),
    ],
)
def test_a_study_of_other_settings_is_not_joined(finished, capsys, override, message):
    before = values_of(study_of(finished))
    assert run(finished, "--n-trials", "6", overrides=[*SMALL, override]) == 2
    said = capsys.readouterr().err
    assert "was begun with other settings" in said
    assert re.search(message, said)
    assert values_of(study_of(finished)) == before


def test_a_study_of_other_data_is_not_joined(tmp_path, own_data, capsys):
    assert run(tmp_path, *own_data, "--n-trials", "1") == 0
    subject = read_manifest(tmp_path / "study" / "split.json").train[0]
    header = tmp_path / "data" / f"{subject}.hea"
    header.write_text(header.read_text() + "# a comment more\n")
    assert run(tmp_path, *own_data, "--n-trials", "2") == 2
    assert "data_sha256 is" in capsys.readouterr().err


def test_somebody_elses_study_of_that_name_is_left_alone(tmp_path, capsys):
    import optuna

    url = f"sqlite:///{tmp_path / 'other.db'}"
    theirs = optuna.create_study(storage=url, study_name="study")
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    assert run(tmp_path, "--storage", url) == 2
    assert "was not begun by va_fewshot's tuning" in capsys.readouterr().err


def test_a_dry_run_prints_the_study_and_writes_nothing(tmp_path, capsys):
    assert run(tmp_path, "--dry-run") == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["space"]["pretrain.lr"] == {"low": 5e-4, "high": 1e-2, "log": True}
    assert not (tmp_path / "study").exists()


def test_the_committed_configuration_is_a_study_of_real_recordings(monkeypatch, tmp_path):
    for slug in ("mitdb", "vfdb", "cudb"):
        (tmp_path / slug).mkdir()
    monkeypatch.setenv("METAECG_DATA", str(tmp_path))
    path = Path(__file__).parents[2] / "experiments" / "configs" / "va_tune.yaml"
    made = make_plan(yaml.safe_load(path.read_text()))
    assert made.shared.databases == ["mitdb", "vfdb", "cudb"]
    assert made.config.folds is None
    assert made.shared.folds == 5
    assert set(made.config.hold_out_folds) == {0}
