"""Ensembles, context and the curve over shots in va_fewshot, on generated patients."""

import json
from dataclasses import replace

import numpy as np
import pytest

from metaecg import WindowSet, load_base
from metaecg.evaluate.predictions import load_predictions
from metaecg.experiments.config import build_config, load_yaml
from metaecg.experiments.va_fewshot import _possible, main, prepare_windows
from metaecg.experiments.va_methods import (
    BASE_ONLY_METHODS,
    METHODS,
    choose_methods,
    points_of_curve,
)
from metaecg.experiments.va_personal import is_on_curve, predict_subject

QUICK = ("--quick", "--workers", "1", "tracking.enabled=false", "budget_windows=4000")
NAMES = (
    "ensemble-zero-shot+causal",
    "ensemble+full",
    "ensemble+full+causal",
    "ensemble+full+offline",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of one small run with a curve, and its cache."""
    root = tmp_path_factory.mktemp("context")
    shared = ("--cache", str(root / "cache"), *QUICK)
    methods = ("--methods", ",".join(NAMES), "shots.n_shots=[0,1,5]", "ensemble.n_members=2")
    assert main([*methods, "--out", str(root / "out"), *shared]) == 0
    return root


def windows_of(labels) -> WindowSet:
    n = len(labels)
    return WindowSet(
        windows=np.zeros((n, 1, 4), dtype=np.float32),
        labels=np.asarray(labels, dtype=np.int64),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.full(n, "s"),
        record_ids=np.full(n, "r"),
        start_s=2.0 * np.arange(n),
        time_s=2.0 * np.arange(n),
        fs_hz=2.0,
        window_s=2.0,
    )


def results_of(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_context_changes_the_probabilities_and_says_how_far_it_looks_ahead(run):
    methods = results_of(run / "out")["methods"]
    assert list(methods) == list(NAMES)
    assert methods["ensemble+full+causal"]["look_ahead_s"] == 0.0
    assert methods["ensemble+full+offline"]["look_ahead_s"] is None
    assert methods["ensemble+full+offline"]["detection_delay_s_median"] is None
    found = {p.method: p for p in load_predictions(run / "out" / "predictions.npz")}
    plain, causal = found["ensemble+full"], found["ensemble+full+causal"]
    assert np.array_equal(plain.start_s, causal.start_s)
    assert not np.allclose(plain.probabilities, causal.probabilities)
    assert causal.threshold == load_base(run / "out" / "model").rhythm.threshold


@pytest.mark.slow
def test_causal_predictions_of_the_run_do_not_change_with_what_comes_later(run):
    """A subject is predicted once more without its last windows; offline that changes what is before."""
    config = build_config(load_yaml(run / "out" / "config.yaml"))
    base, dataset = load_base(run / "out" / "model"), prepare_windows(config)
    subject_id = next(iter(results_of(run / "out")["methods"]["ensemble+full"]["subjects"]))
    windows = dataset.of_subject(subject_id)
    shorter = replace(dataset, windows=windows.select(np.arange(len(windows) - 10)))
    for name, is_same in (("ensemble+full+causal", True), ("ensemble+full+offline", False)):
        whole, cut = (
            predict_subject(name, METHODS[name], "ensemble", 0, base, subject_id, config, data)
            for data in (dataset, shorter)
        )
        assert len(whole.probabilities) == len(cut.probabilities) + 10
        before = whole.probabilities[: len(cut.probabilities)]
        assert np.allclose(before, cut.probabilities, rtol=0, atol=1e-6) == is_same, name


@pytest.mark.slow
def test_the_rhythm_model_is_fitted_on_training_subjects_alone(run):
    base = load_base(run / "out" / "model")
    split = json.loads((run / "out" / "run.json").read_text())["splits"]["fold-0"]
    fitted_on = set(base.training["rhythm_subject_ids"])
    assert fitted_on and fitted_on <= set(split["train"])
    assert not fitted_on & set(split["test"])


@pytest.mark.slow
def test_all_points_of_the_curve_are_judged_on_the_same_windows(run):
    found = results_of(run / "out")["shots"]
    assert (found["after_shots"], list(found["points"])) == (5, ["0", "1", "5"])
    points = [
        p
        for p in load_predictions(run / "out" / "predictions.npz")
        if p.method.endswith(("@0", "@5"))
    ]
    by_subject = {}
    for p in points:
        by_subject.setdefault(p.subject_id, []).append(p.start_s)
    assert all(np.array_equal(*pair) for pair in by_subject.values())
    assert found["n_subjects"] == len(by_subject)
    assert found["points"]["5"]["difference"]["auc"]["mean"] == 0.0


@pytest.mark.slow
def test_a_given_base_with_a_rhythm_model_is_evaluated_in_time_too(run, tmp_path):
    shared = ("--cache", str(run / "cache"), *QUICK)
    given = ("--base", str(run / "out" / "model"), "--out", str(tmp_path / "given"))
    assert main([*given, "--methods", "full,full+offline", *shared]) == 0
    given_methods = results_of(tmp_path / "given")["methods"]
    trained = results_of(run / "out")["methods"]
    assert (
        given_methods["full+offline"]["subjects"].keys()
        >= trained["ensemble+full"]["subjects"].keys()
    )


@pytest.mark.slow
def test_a_base_without_a_rhythm_model_is_evaluated_without_time(run, tmp_path, capsys):
    shared = ("--cache", str(run / "cache"), *QUICK)
    plain = ("--methods", "zero-shot", "--out", str(tmp_path / "plain"))
    assert main([*plain, *shared]) == 0
    given = ("--base", str(tmp_path / "plain" / "model"), "--out", str(tmp_path / "given"))
    assert main([*given, "--methods", "full,full+causal", *shared]) == 2
    assert "has no rhythm model; leave out full+causal" in capsys.readouterr().err
    assert main([*given, *shared]) == 0
    assert not [m for m in results_of(tmp_path / "given")["methods"] if "causal" in m]


def test_context_needs_compact_networks_and_an_order_in_time(tmp_path, capsys):
    network = ("network.name=net1d", "--methods", "ensemble+full")
    assert main([*network, "--out", str(tmp_path / "a"), *QUICK]) == 2
    assert "puts several compact-cnn together" in capsys.readouterr().err
    published = ("--protocol", "as_published", "--methods", "ensemble+full+causal")
    assert main([*published, "--out", str(tmp_path / "b"), *QUICK]) == 2
    assert "there is no order to count on" in capsys.readouterr().err
    curve = ("shots.n_shots=[0]", "shots.method=ensemble+ful", "--methods", "zero-shot")
    assert main([*curve, "--out", str(tmp_path / "c"), *QUICK]) == 2
    text = capsys.readouterr().err
    assert "'ensemble+ful'" in text and "a number above 0" in text


def test_a_given_base_has_no_order_in_time_to_count_on_either(tmp_path, capsys):
    published = ("--base", "va-base", "--protocol", "as_published", "--out", str(tmp_path / "a"))
    assert main([*published, "--methods", "full,full+causal", *QUICK]) == 2
    assert "there is no order to count on" in capsys.readouterr().err


@pytest.mark.parametrize(("protocol", "has_context"), [("deploy", True), ("as_published", False)])
def test_without_an_order_in_time_unnamed_methods_with_context_are_left_out(protocol, has_context):
    config = build_config({"base": "va-base", "protocol": protocol, "databases": ["demo"]})
    found = _possible(config, choose_methods(None, table=BASE_ONLY_METHODS))
    assert "full" in found and ("full+causal" in found) == has_context


def test_a_point_without_shots_has_no_adaptation():
    points = points_of_curve("ensemble+full+offline", [10, 0, 3], table=METHODS)
    assert [name.rpartition("@")[2] for name in points] == ["0", "3", "10"]
    assert [m.adapt for m in points.values()] == [None, "full", "full"]
    assert {m.curve for m in points.values()} == {(0, 3, 10)}


def test_who_begins_with_va_is_on_no_curve_that_asks_for_one_window_of_each():
    labels = np.repeat([0, 1, 0, 1, 0, 1], 8)
    windows = windows_of(labels)
    points = points_of_curve("ensemble+full", [0, 1, 3], table=METHODS)
    assert all(is_on_curve(point, windows) for point in points.values())
    from_va_on = windows_of(labels[8:])
    assert not any(is_on_curve(point, from_va_on) for point in points.values())
    assert is_on_curve(METHODS["ensemble+full"], from_va_on)
