"""Figures of beats as EC57 counts them."""

import numpy as np
import pytest

from metaecg.evaluate.ec57 import BeatPrediction, counts_of, figures_of, interval_of, method_figures
from metaecg.evaluate.predictions import load_predictions, save_predictions


def make(letters: str, called: str, *, subject="own/p", seed=0, method="head", **facts):
    letters, called = np.array(list(letters)), np.array(list(called))
    return BeatPrediction(
        method=method,
        seed=seed,
        subject_id=subject,
        record_ids=np.full(len(letters), subject),
        start_s=1.0 * np.arange(len(letters)),
        labels=(letters == "V").astype(int),
        is_mixed=np.isin(letters, ("F", "Q")),
        probabilities=np.where(called == "V", 0.9, 0.1),
        letters=letters,
        called=called,
        **facts,
    )


def test_a_fusion_beat_called_ventricular_is_neither_right_nor_wrong():
    assert counts_of([make("VVFQN", "VVVVV")], "V") == {"own/p": {"tp": 2, "fp": 1, "fn": 0}}


def test_a_beat_that_was_not_detected_counts_as_missed():
    p = make("VN", "VN", n_missed={"own/p": {"V": 3, "N": 1}})
    assert counts_of([p], "V")["own/p"]["fn"] == 3


def test_a_figure_without_anything_to_judge_is_none():
    assert figures_of({"tp": 0, "fp": 0, "fn": 0}) == {"sensitivity": None, "ppv": None, "f1": None}
    assert figures_of({"tp": 0, "fp": 1, "fn": 0})["sensitivity"] is None


def test_gross_figures_sum_over_records_and_average_over_seeds():
    predictions = [
        make("VVNN", "VVNN", subject="own/a", seed=0),
        make("VVNN", "VNVN", subject="own/b", seed=0),
        make("VVNN", "VVNN", subject="own/a", seed=1),
        make("VVNN", "VVNN", subject="own/b", seed=1),
    ]
    veb = method_figures(predictions, description="")["veb"]
    assert veb["seeds"]["0"] == pytest.approx({"sensitivity": 0.75, "ppv": 0.75, "f1": 0.75})
    assert veb["f1"] == pytest.approx((0.75 + 1.0) / 2)
    assert veb["ci95"]["f1"][0] < veb["f1"] <= veb["ci95"]["f1"][1]


def test_a_subject_has_its_own_figures_and_whether_it_was_refused():
    found = method_figures([make("VVNN", "VNVN", is_refused=True, n_labels=20)], description="")
    subject = found["subjects"]["own/p"]
    assert subject["veb"] == {"sensitivity": 0.5, "ppv": 0.5, "f1": 0.5}
    assert (subject["n_refused"], found["n_refused"], found["labels_p50"]) == (1, 1, 20)
    assert found["ec57"]["records"]["own/p"]["V"]["fp"] == 1.0


def test_false_positives_are_per_hour_of_what_was_tested():
    """Seven beats a second apart are six seconds; one false positive is 600 an hour."""
    found = method_figures([make("VVNNNNN", "VVVNNNN")], description="")
    assert found["false_alarms_per_hour"] == pytest.approx(600.0)


def test_five_classes_have_figures_each():
    found = method_figures([make("NSVF", "NSVN")], classes=tuple("NSVF"), description="")
    gross = found["ec57"]["gross"]
    assert [gross[name]["sensitivity"] for name in "NSVF"] == [1.0, 1.0, 1.0, 0.0]
    assert gross["N"]["ppv"] == 0.5


def test_the_interval_of_records_that_are_all_alike_is_a_point():
    assert interval_of([{"tp": 8, "fp": 2, "fn": 2}] * 5, "f1") == pytest.approx([0.8, 0.8])
    assert interval_of([{"tp": 8, "fp": 2, "fn": 2}], "f1") is None


def test_predictions_of_beats_come_back_from_disk_with_their_letters(tmp_path):
    made = make("VNF", "VNN", is_refused=True, n_missed={"own/p": {"V": 1}})
    save_predictions(tmp_path / "p.npz", [made])
    (found,) = load_predictions(tmp_path / "p.npz", BeatPrediction)
    assert found.letters.tolist() == ["V", "N", "F"]
    assert found.called.tolist() == ["V", "N", "N"]
    assert (found.is_refused, found.n_missed) == (True, {"own/p": {"V": 1}})


def test_a_recording_without_any_row_counts_with_all_that_was_missed_in_it():
    """The detector found nothing in own/q: half of the V are missed."""
    p = make("VVNN", "VVNN", n_missed={"own/p": {"V": 0}, "own/q": {"V": 2, "N": 5}})
    assert counts_of([p], "V")["own/q"] == {"tp": 0, "fp": 0, "fn": 2}
    figures = method_figures([p], description="")
    assert figures["veb"]["sensitivity"] == 0.5
    assert figures["ec57"]["records"]["own/q"]["V"]["fn"] == 2.0
    assert figures["subjects"]["own/p"]["n_va"] == 4


def test_a_subject_without_any_row_has_a_sensitivity_of_zero():
    predictions = [
        make("VVNN", "VVNN"),
        make("", "", subject="own/q", n_missed={"own/q": {"V": 2}}),
    ]
    figures = method_figures(predictions, description="")
    assert figures["veb"]["sensitivity"] == 0.5
    assert figures["subjects"]["own/q"]["sensitivity"] == 0.0
    assert figures["subjects"]["own/q"]["auc"] is None


def test_a_false_detection_is_no_true_n_and_a_negative_all_the_same():
    found = method_figures([make("NNVVO", "NNVVN")], classes=tuple("NV"), description="")
    gross = found["ec57"]["gross"]
    assert (gross["N"]["tp"], gross["N"]["fp"], gross["V"]["fp"]) == (2.0, 1.0, 0.0)
    assert found["subjects"]["own/p"]["n_other"] == 3
    assert found["subjects"]["own/p"]["auc"] == 1.0
    called_v = method_figures([make("NNVVO", "NNVVV")], description="")
    assert called_v["veb"]["fp"] == 1.0
