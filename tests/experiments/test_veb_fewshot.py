"""The recipe for ventricular beats, on generated patients."""

import json

import numpy as np
import pytest

from metaecg import load_base
from metaecg.data.beats import cut_beats
from metaecg.data.demo import write_demo_database
from metaecg.data.records import read_record
from metaecg.evaluate.ec57 import BeatPrediction
from metaecg.evaluate.predictions import load_predictions
from metaecg.experiments.veb_fewshot import main
from metaecg.models.beat_detector import BeatDetector

SMALL = ("--quick", "--workers", "1", "tracking.enabled=false", "train.n_steps=60")
METHODS = "global,zero-shot,labels,head,active+labels,active+labels@later"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight generated patients, a run on them, and its cache."""
    folder = tmp_path_factory.mktemp("veb")
    write_demo_database(folder / "data", n_subjects=8, duration_s=180.0)
    assert main([*shared(folder), "--methods", METHODS, "--out", str(folder / "out")]) == 0
    return folder


def shared(folder) -> list[str]:
    data = ("--data", str(folder / "data"), "--databases", "demo", "--cache", str(folder / "cache"))
    return [*data, *SMALL]


def results_of(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_every_method_has_gross_figures_and_those_of_its_subjects(root):
    results = results_of(root / "out")
    assert results["protocol"] == "aami"
    assert set(results["methods"]) == set(METHODS.split(","))
    for figures in results["methods"].values():
        assert set(figures["veb"]) >= {"sensitivity", "ppv", "f1"}
        for subject in figures["subjects"].values():
            assert set(subject["veb"]) == {"sensitivity", "ppv", "f1"}
    assert {
        "results.json",
        "report.html",
        "predictions.npz",
        "model",
        "run.json",
        "config.yaml",
    } <= {path.name for path in (root / "out").iterdir()}


@pytest.mark.slow
def test_nobody_is_trained_on_and_tested(root):
    base = load_base(root / "out" / "model")
    tested = set(results_of(root / "out")["methods"]["global"]["subjects"])
    assert tested and not tested & set(base.training["subject_ids"])


@pytest.mark.slow
def test_methods_with_the_same_support_are_judged_on_the_same_beats(root):
    found = {}
    for p in load_predictions(root / "out" / "predictions.npz", BeatPrediction):
        found.setdefault(p.subject_id, {})[p.method] = p
    for methods in found.values():
        if "head" not in methods:
            continue
        assert np.array_equal(methods["head"].start_s, methods["zero-shot"].start_s)
        assert set(methods["active+labels@later"].start_s) <= set(methods["head"].start_s)
        assert len(methods["global"].start_s) > len(methods["head"].start_s)


@pytest.mark.slow
def test_a_trained_base_is_evaluated_without_training(root, capsys):
    out = root / "based"
    arguments = (
        "--base",
        str(root / "out" / "model"),
        "--methods",
        "global,labels",
        "--out",
        str(out),
    )
    assert main([*shared(root), *arguments]) == 0
    first, second = results_of(root / "out")["methods"], results_of(out)["methods"]
    assert second["global"]["veb"]["f1"] == pytest.approx(first["global"]["veb"]["f1"])
    assert not (out / "model").exists()


@pytest.mark.slow
def test_the_base_detects_the_beats_of_a_recording_that_nobody_annotated(root):
    base = load_base(root / "out" / "model")
    subject = next(iter(results_of(root / "out")["methods"]["global"]["subjects"]))
    record = read_record(root / "data" / subject, annotations=False)
    detector = BeatDetector(base)
    beats, _ = cut_beats(record, r_peaks="detected", **detector.cutting)
    found = detector.predict_proba(beats)
    assert found.shape == (len(beats),) and (0 <= found).all() and (found <= 1).all()


@pytest.mark.slow
def test_a_manifest_can_not_test_whom_the_base_has_seen(root, tmp_path, capsys):
    base = load_base(root / "out" / "model")
    manifest = tmp_path / "split.json"
    manifest.write_text(json.dumps({"train": [], "test": base.training["subject_ids"][:1]}))
    arguments = ("--base", str(root / "out" / "model"), "--split", str(manifest))
    assert main([*shared(root), *arguments, "--out", str(tmp_path / "out")]) == 3
    assert "leakage: the base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            {"demo/demo01": {"support": ["demo/demo02"], "test": ["demo/demo01"]}},
            "of that test subject",
        ),
        (
            {"demo/demo01": {"support": ["demo/demo01"], "test": ["demo/demo01"]}},
            "in the support and in",
        ),
        (
            {"demo/demo02": {"support": ["demo/demo02"], "test": ["demo/demo02"]}},
            "of that test subject",
        ),
    ],
)
def test_recordings_of_a_manifest_that_can_not_be_meant_are_refused(
    tmp_path, capsys, records, message
):
    write_demo_database(tmp_path / "data", n_subjects=8, duration_s=180.0)
    manifest = tmp_path / "split.json"
    content = {"train": ["demo/demo03", "demo/demo04"], "test": ["demo/demo01"], "records": records}
    manifest.write_text(json.dumps(content))
    arguments = [*shared(tmp_path), "--split", str(manifest), "--out", str(tmp_path / "out")]
    assert main(arguments) == 3
    assert message in capsys.readouterr().err


def test_every_mistake_on_the_command_line_is_named_at_once(tmp_path, capsys):
    arguments = ["--methods", "heads", "network.width=6", "--seeds", "0,0", "--out", str(tmp_path)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    for text in ("'heads'", "network.width is 6", "seeds is [0, 0]"):
        assert text in said


def test_a_database_that_names_no_kinds_of_beats_is_refused(tmp_path, capsys):
    assert main(["--databases", "vfdb", "--out", str(tmp_path)]) == 2
    assert "don't say which beats are ventricular" in capsys.readouterr().err
