"""Runs of `veb_fewshot` are compared by the figures they have, on the same beats."""

from pathlib import Path

import numpy as np
import pytest
from made_runs import (
    SUBJECTS,
    beat_figures_of,
    beat_predictions_of,
    make_beat_run,
    make_run,
    shifted,
)

from metaecg.errors import ConfigError, DataError
from metaecg.experiments import compare as command
from metaecg.experiments import veb_fewshot
from metaecg.experiments.compare import compare
from metaecg.experiments.compare_runs import BEAT_FIGURES, BEATS, read_path
from metaecg.experiments.veb_outputs import PROTOCOL

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "experiments" / "results" / "veb_aami.json"
CAUSAL = COMMITTED.with_name("veb_causal.json")
F1S = dict(zip(SUBJECTS, np.linspace(0.8, 0.95, len(SUBJECTS)).tolist(), strict=True))
WHOLE = F1S | {"vfdb/999": 0.5}


@pytest.fixture
def pair(tmp_path) -> list[str]:
    """Two runs of `head` and, on more beats and subjects, `global`; the second has 0.02 more."""
    return [
        str(make_beat_run(tmp_path / name, table(by), config={"out": name}))
        for name, by in (("a", 0.0), ("b", 0.02))
    ]


def table(by: float) -> dict:
    whole = beat_figures_of(shifted(by, WHOLE), n_other=900)
    return {"global": whole, "head": beat_figures_of(shifted(by, F1S))}


def test_the_protocol_is_that_of_the_recipe():
    assert BEATS == PROTOCOL


def test_two_runs_are_compared_by_the_f1_of_their_subjects(pair, tmp_path, capsys):
    found = compare(pair)
    assert (found["protocol"], found["metric"]) == ("aami", "f1")
    assert [row["method"] for row in found["rows"]] == ["head", "head"]
    assert found["rows"][1]["difference"]["mean"] == pytest.approx(0.02)
    assert found["rows"][1]["difference"]["verdict"] == "better"
    assert any("gross figures" in note for note in found["notes"])
    assert not any("predictions" in note for note in found["notes"])  # they were read
    page = tmp_path / "x.html"
    assert command.main([*pair, "--html", str(page)]) == 0
    assert "b against a: better. F1 +0.020" in capsys.readouterr().out
    assert "aami" in page.read_text()


@pytest.mark.parametrize("metric", BEAT_FIGURES)
def test_every_figure_that_beats_have_can_decide(pair, metric):
    found = compare(pair, metric=metric)["rows"][1]["difference"]
    assert found["mean"] == pytest.approx(0.02 if metric == "f1" else 0.0)


def test_specificity_is_refused_with_the_figures_there_are(pair, capsys):
    assert command.main([*pair, "--metric", "specificity"]) == 2
    text = capsys.readouterr().err
    assert "'specificity', which the subjects of" in text
    assert "expected one of auc, f1, false_alarms_per_hour, ppv, sensitivity" in text
    with pytest.raises(ConfigError, match="'acu'.*Did you mean 'auc'"):
        compare(pair, metric="acu")


def test_methods_on_other_beats_are_refused_with_those_on_the_same(tmp_path):
    methods = table(0.0) | {"lora": beat_figures_of(F1S)}
    run = make_beat_run(tmp_path / "a", methods)
    assert len(compare([str(run)], methods=["head", "lora"])["rows"]) == 2
    with pytest.raises(DataError) as caught:
        compare([str(run)], methods=["head", "global"])
    assert str(caught.value).splitlines()[1:] == [
        "  - global against head: evaluated subjects differ: 1 in global alone (vfdb/999).",
        "  - global against head: test windows of 8 subjects differ in number: vfdb/418 has 20 V "
        "and 900 other, not 20 and 30; vfdb/419 has 20 V and 900 other, not 20 and 30; vfdb/420 has "
        "20 V and 900 other, not 20 and 30 and 5 more.",
        "On the beats of head were judged: head, lora.",
    ]


def test_other_beats_of_the_same_number_are_found_in_the_predictions(tmp_path, pair):
    """Those of the method that is compared, whatever the seeds."""
    moved = beat_predictions_of("global") + beat_predictions_of("head", 1.0, seed=5)
    c = make_beat_run(tmp_path / "c", table(0.01), moved, seeds=[5])
    with pytest.raises(
        DataError, match=r"test windows of 8 subjects are others: vfdb/418 \(starts"
    ):
        compare([pair[0], str(c)])
    assert compare([pair[0], str(c)], methods=["global"])["rows"][1]["run"] == "c"
    other = beat_predictions_of("head", 0.0, seed=5)
    d = make_beat_run(tmp_path / "d", table(0.03), other, seeds=[5])
    notes = compare([pair[0], str(d)])["notes"]
    assert not any("drawn with other seeds" in note for note in notes)


def test_detected_peaks_and_windows_of_ventricular_arrhythmia_are_no_comparison(tmp_path, pair):
    detected = make_beat_run(tmp_path / "c", table(0.01), r_peaks="detected")
    with pytest.raises(DataError, match="r_peaks is 'detected', not 'annotated'"):
        compare([pair[0], str(detected)])
    with pytest.raises(DataError, match="protocol is 'deploy', not 'aami'"):
        compare([pair[0], str(make_run(tmp_path / "d"))])


def test_the_committed_run_is_compared_with_its_own_rows_and_with_another_run():
    found = compare([str(COMMITTED)], methods=["zero-shot", "head", "full"])
    subjects = read_path(COMMITTED).results["methods"]["head"]["subjects"]
    assert found["rows"][1]["subjects"] == {s: v["f1"] for s, v in subjects.items()}
    assert found["rows"][1]["n_subjects"] == 10
    assert {row["difference"]["verdict"] for row in found["rows"][1:]} == {"no difference"}
    other = compare([str(COMMITTED), str(CAUSAL)], methods=["active+full@later"])
    assert other["rows"][1]["difference"]["n"] == 10


@pytest.mark.slow
def test_two_real_runs_are_compared_from_their_folders(tmp_path):
    """Trained here on generated patients; the second personalizes with another learning rate."""
    shared = ["--quick", "--workers", "1", "tracking.enabled=false", "train.n_steps=60"]
    shared += ["--cache", str(tmp_path / "cache"), "demo.n_subjects=8", "demo.duration_s=180"]
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, lr in zip(folders, ("0.003", "0.01"), strict=True):
        arguments = [*shared, "--methods", "zero-shot,head", "--out", folder]
        assert veb_fewshot.main([*arguments, f"personalize.lr.head={lr}"]) == 0
    found = compare(folders)
    assert found["parameters"]["personalize.lr.head"] == {"a": 0.003, "b": 0.01}
    assert found["rows"][1]["difference"]["n"] >= 1
    assert "demo data" in found["notes"][0]
    assert not any("at hand" in note for note in found["notes"])
    within = compare(folders[:1], methods=["zero-shot", "head"], metric="auc")
    assert [row["label"] for row in within["rows"]] == ["zero-shot", "head"]
