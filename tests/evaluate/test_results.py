"""From predictions to the figures of results.json, on windows whose answers can be counted.

Two subjects, one window every two seconds, "1" where VA is and "#" where the detector flags:

    subject a, recording r1      labels  0001110000     episode 5 s to 12 s
               seed 1            flags   #...##.##.     TP 2, FN 1, FP 3 in two runs
               seed 2            flags   ...###....     TP 3
    subject b, recording r2      labels  0110           episode 2 s to 6 s
               both seeds        flags   ....           FN 2

Window 3 of subject a is mixed. A flag is probability 0.9, no flag 0.1.
"""

import json

import numpy as np
import pytest

from metaecg.data.datasets import Dataset
from metaecg.data.preprocessing import MARGIN_S
from metaecg.data.windows import RecordInfo, WindowSet
from metaecg.errors import DataError
from metaecg.evaluate.operating_point import operating_point
from metaecg.evaluate.paired import paired_difference
from metaecg.evaluate.predictions import Prediction
from metaecg.evaluate.results import compare_methods, method_results
from metaecg.seeding import numpy_generator

LABELS = {"a": "0001110000", "b": "0110", "healthy": "0" * 9}
MIXED = {"a": "0001000000", "b": "0000", "healthy": "0" * 9}
RECORDS = {"a": "r1", "b": "r2", "healthy": "r3"}
SUMMARY = {"mean", "std", "worst", "ci95"}


def predict(subject_id, flags, *, seed=1, high=0.9, low=0.1, **facts) -> Prediction:
    n = len(LABELS[subject_id])
    assert len(flags) == n

    def digits(text):
        return np.array([int(digit) for digit in text])

    return Prediction(
        method="any",
        seed=seed,
        subject_id=subject_id,
        record_ids=np.full(n, RECORDS[subject_id]),
        start_s=2.0 * np.arange(n),
        labels=digits(LABELS[subject_id]),
        is_mixed=digits(MIXED[subject_id]).astype(bool),
        probabilities=np.where(np.array(list(flags)) == "#", high, low),
        **facts,
    )


SEED_1 = [predict("a", "#...##.##."), predict("b", "....")]
SEED_2 = [predict("a", "...###....", seed=2), predict("b", "....", seed=2)]


@pytest.fixture
def dataset() -> Dataset:
    episodes = {"a": ((5.0, 12.0),), "b": ((2.0, 6.0),), "healthy": ()}
    nothing = np.zeros(0)
    windows = WindowSet(
        windows=np.zeros((0, 1, 4), dtype=np.float32),
        labels=nothing.astype(np.int64),
        is_mixed=nothing.astype(bool),
        subject_ids=nothing.astype(str),
        record_ids=nothing.astype(str),
        start_s=nothing,
        time_s=nothing,
        fs_hz=2.0,
        window_s=2.0,
    )
    records = tuple(
        RecordInfo(
            record_id=RECORDS[subject_id],
            subject_id=subject_id,
            database="hand-made",
            duration_s=2.0 * len(labels),
            episodes=episodes[subject_id],
            excluded={},
        )
        for subject_id, labels in LABELS.items()
    )
    return Dataset(windows=windows, records=records)


def results(predictions, dataset) -> dict:
    return method_results(predictions, dataset, description="a detector")


def test_every_figure_of_the_protocol_is_there_and_is_plain_json(dataset):
    figures = results(SEED_1, dataset)
    assert set(figures) == {
        "subject_auc",
        "subject_f1",
        "pooled",
        "subjects",
        "without_mixed",
        "false_alarms_per_hour",
        "false_alarm_episodes_per_hour",
        "false_alarms_per_hour_one_class",
        "episode_sensitivity",
        "detection_delay_s_median",
        "adapt_seconds_p50",
        "trainable_parameters",
        "look_ahead_s",
        "operating_point",
        "description",
    }
    for part in (figures, figures["without_mixed"]):
        assert set(part["pooled"]) == {"auc", "f1", "sensitivity", "ppv"}
        assert set(part["subject_auc"]) >= SUMMARY and set(part["subject_f1"]) >= SUMMARY
    assert set(figures["without_mixed"]) == {"subject_auc", "subject_f1", "pooled"}
    one = {"auc", "f1", "sensitivity", "ppv", "false_alarms_per_hour", "n_va", "n_other"}
    assert set(figures["subjects"]["a"]) >= one | {"seeds"}
    assert set(figures["subjects"]["a"]["seeds"]["1"]) >= one
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["description"] == "a detector"


def test_the_figures_of_a_subject_are_those_counted_by_hand(dataset):
    """AUC of a: of 3 * 7 pairs 2 * 4 are in order, 2 * 3 + 1 * 4 are ties that count half."""
    subjects = results(SEED_1, dataset)["subjects"]
    a, b = subjects["a"], subjects["b"]
    assert a["auc"] == pytest.approx(13 / 21)
    assert (a["sensitivity"], a["ppv"], a["f1"]) == pytest.approx((2 / 3, 2 / 5, 1 / 2))
    assert a["false_alarms_per_hour"] == pytest.approx(3 * 3600 / 14)
    assert (a["n_va"], a["n_other"]) == (3, 7)
    assert (b["auc"], b["f1"], b["sensitivity"], b["ppv"]) == (0.5, 0.0, 0.0, None)
    assert a["seeds"]["1"]["auc"] == a["auc"]


def test_the_summary_is_over_subjects_each_with_the_same_weight(dataset):
    figures = results(SEED_1, dataset)
    values = np.array([13 / 21, 1 / 2])
    assert figures["subject_auc"]["mean"] == pytest.approx(values.mean())
    assert figures["subject_auc"]["std"] == pytest.approx(values.std(ddof=1))
    assert figures["subject_auc"]["worst"] == pytest.approx(1 / 2)
    assert figures["subject_auc"]["ci95"] == pytest.approx([1 / 2, 13 / 21])
    assert figures["subject_f1"]["mean"] == pytest.approx(1 / 4)
    assert figures["subject_f1"]["worst"] == 0.0


def test_pooled_figures_count_all_windows_together(dataset):
    """TP 2, FN 3, FP 3; of 5 * 9 pairs 2 * 6 are in order and 2 * 3 + 3 * 6 are ties."""
    pooled = results(SEED_1, dataset)["pooled"]
    assert (pooled["f1"], pooled["sensitivity"], pooled["ppv"]) == pytest.approx((0.4, 0.4, 0.4))
    assert pooled["auc"] == pytest.approx(24 / 45)


def test_pooled_figures_use_the_threshold_of_each_subject(dataset):
    """The first detector flags from 0.3 on, the second from 0.8 on: a common 0.5 would be wrong."""
    predictions = [
        predict("a", "...###....", high=0.4, low=0.2, threshold=0.3),
        predict("b", ".##.", high=0.9, low=0.7, threshold=0.8),
    ]
    figures = results(predictions, dataset)
    assert (figures["pooled"]["f1"], figures["pooled"]["sensitivity"]) == (1.0, 1.0)
    assert figures["pooled"]["auc"] == pytest.approx((5 * 9 - 3 * 2) / 45)
    assert figures["subject_f1"]["mean"] == 1.0
    assert figures["false_alarms_per_hour"] == 0.0


def test_false_alarms_are_counted_per_hour_of_other_rhythm_by_window_and_by_run(dataset):
    """Three windows, two runs, nine windows of other: 18 s."""
    figures = results(SEED_1, dataset)
    assert figures["false_alarms_per_hour"] == pytest.approx(3 * 3600 / 18)
    assert figures["false_alarm_episodes_per_hour"] == pytest.approx(2 * 3600 / 18)


def test_a_gap_in_the_recording_ends_a_run_of_false_alarms(dataset):
    """The last two windows of a come ten seconds later: the second run falls in two."""
    later = {**SEED_1[0].__dict__, "start_s": 2.0 * np.arange(10) + 10.0 * (np.arange(10) >= 8)}
    figures = results([Prediction(**later)], dataset)
    assert figures["false_alarm_episodes_per_hour"] == pytest.approx(3 * 3600 / 14)


def test_an_episode_is_found_by_one_window_and_the_delay_holds_the_filters_lookahead(dataset):
    """a: onset 5 s; the first true flag is on the window from 8 s to 10 s. b is missed."""
    figures = results(SEED_1, dataset)
    assert figures["episode_sensitivity"] == 1 / 2
    assert figures["detection_delay_s_median"] == pytest.approx(10.0 + MARGIN_S - 5.0)


def test_without_mixed_windows_the_missed_one_is_out_of_the_count(dataset):
    """Window 3 of a was mixed and missed: TP 2, FP 3 are left; of 2 * 7 pairs 8 + 6 / 2."""
    clean = results(SEED_1, dataset)["without_mixed"]
    assert clean["subject_f1"]["mean"] == pytest.approx((4 / 7 + 0) / 2)
    assert clean["subject_auc"]["mean"] == pytest.approx((11 / 14 + 1 / 2) / 2)
    assert clean["pooled"]["sensitivity"] == pytest.approx(2 / 4)
    assert clean["pooled"]["f1"] == pytest.approx(4 / (4 + 3 + 2))


def test_a_subject_is_averaged_over_seeds_before_the_subjects_are(dataset):
    figures = results(SEED_1 + SEED_2, dataset)
    a = figures["subjects"]["a"]
    assert a["auc"] == pytest.approx((13 / 21 + 1) / 2)
    assert a["f1"] == pytest.approx((0.5 + 1) / 2)
    assert sorted(a["seeds"]) == ["1", "2"] and a["seeds"]["2"]["f1"] == 1.0
    assert (a["n_va"], a["n_other"]) == (3, 7)
    assert figures["subject_f1"]["mean"] == pytest.approx((0.75 + 0) / 2)
    assert figures["subject_f1"]["n"] == 2
    spread = np.std([0.75, 0.0], ddof=1)
    assert figures["subject_f1"]["std"] == pytest.approx(spread)


def test_pooled_figures_and_rates_are_averaged_over_seeds_and_not_counted_twice(dataset):
    """Seed 2: TP 3, FN 2, no FP; first true flag on the window from 6 s to 8 s."""
    figures = results(SEED_1 + SEED_2, dataset)
    assert figures["pooled"]["f1"] == pytest.approx((0.4 + 6 / 8) / 2)
    assert figures["pooled"]["ppv"] == pytest.approx((0.4 + 1) / 2)
    assert figures["false_alarms_per_hour"] == pytest.approx((600 + 0) / 2)
    assert figures["episode_sensitivity"] == 1 / 2
    delays = (10.0 + MARGIN_S - 5.0, 8.0 + MARGIN_S - 5.0)
    assert figures["detection_delay_s_median"] == pytest.approx(np.mean(delays))


def test_a_median_delay_is_taken_within_each_seed(dataset):
    """Seed 1: 6.25 s. Seed 2: 4.25 s for a and 3.25 s for b, median 3.75 s. Mean of both: 5 s."""
    found = results([*SEED_1, SEED_2[0], predict("b", ".##.", seed=2)], dataset)
    assert found["detection_delay_s_median"] == pytest.approx(5.0)
    assert found["episode_sensitivity"] == pytest.approx((1 / 2 + 1) / 2)


def test_a_figure_undefined_in_one_seed_is_that_of_the_other(dataset):
    """b flags nothing in seed 1, so its PPV is undefined there; in seed 2 it is 1."""
    found = results([predict("b", "...."), predict("b", ".##.", seed=2)], dataset)
    assert found["subjects"]["b"]["ppv"] == 1.0
    assert found["subjects"]["b"]["f1"] == 0.5


def test_who_has_no_va_counts_for_false_alarms_alone(dataset):
    """Two flagged windows of eighteen: 36 s."""
    held_out, costs = [predict("a", "#...##.##.")], {"adapt_seconds": 100.0, "n_trainable": 9}
    alone = [
        predict("healthy", flags, seed=seed, is_one_class=True, **costs)
        for seed, flags in enumerate(["..##.....", "........."])
    ]
    figures = results(held_out + alone, dataset)
    assert figures.pop("false_alarms_per_hour_one_class") == pytest.approx(2 * 3600 / 36)
    without = results(held_out, dataset)
    assert without.pop("false_alarms_per_hour_one_class") is None
    assert figures.pop("operating_point")["1"]["n_episodes"] == 1
    assert without.pop("operating_point") is None
    assert figures == without


def test_what_no_window_can_answer_is_none(dataset):
    """Nothing is flagged: no delay, no PPV. Only mixed windows: nothing left without them."""
    figures = results([predict("b", "....")], dataset)
    assert figures["detection_delay_s_median"] is None
    assert figures["pooled"]["ppv"] is None
    assert figures["subject_auc"]["std"] is None and figures["subject_auc"]["ci95"] is None
    mixed = predict("b", "....")
    mixed.is_mixed[:] = True
    clean = results([mixed], dataset)["without_mixed"]
    assert clean["subject_auc"]["mean"] is None and clean["pooled"]["f1"] is None


def test_cost_is_the_median_of_the_adaptations(dataset):
    costs = [("a", 1.0, 10), ("b", 8.0, 10), ("a", 3.0, 10)]
    predictions = [
        predict(s, "." * len(LABELS[s]), seed=i, adapt_seconds=seconds, n_trainable=n)
        for i, (s, seconds, n) in enumerate(costs)
    ]
    figures = results(predictions, dataset)
    assert figures["adapt_seconds_p50"] == 3.0
    assert figures["trainable_parameters"] == 10


def test_a_method_without_a_prediction_is_refused_by_its_description(dataset):
    alone = predict("healthy", "." * 9, is_one_class=True)
    with pytest.raises(DataError, match="'a detector' has no prediction"):
        results([alone], dataset)


def test_the_same_predictions_give_the_same_figures_in_any_order(dataset):
    forwards, backwards = SEED_1 + SEED_2, SEED_2[::-1] + SEED_1[::-1]
    assert results(forwards, dataset) == results(backwards, dataset)


def test_methods_are_compared_subject_by_subject():
    """Eight subjects gain or lose in AUC; F1 is known on both sides for the first subject alone."""
    base = dict(zip("abcdefgh", np.linspace(0.5, 0.7, 8), strict=True))
    gain = np.array([0.1, 0.17, 0.02, -0.11, 0.23, 0.08, -0.03, 0.3])
    mine = {s: auc + up for (s, auc), up in zip(base.items(), gain, strict=True)}
    table = {
        "base": {"subjects": {s: {"auc": auc, "f1": None} for s, auc in base.items()}},
        "mine": {"subjects": {s: {"auc": auc, "f1": 0.1} for s, auc in mine.items()}},
    }
    table["base"]["subjects"]["a"]["f1"] = 0.2
    found = compare_methods(table, reference="base")
    assert found["mine"]["auc"]["mean"] == pytest.approx(gain.mean())
    assert found["mine"]["f1"]["mean"] == pytest.approx(-0.1)
    assert (found["mine"]["auc"]["n"], found["mine"]["f1"]["n"]) == (8, 1)
    assert found["base"]["auc"]["mean"] == 0.0
    rng = numpy_generator(0, "paired", "auc")  # the same resamples in every run
    expected = paired_difference(mine, base, rng=rng)
    assert found["mine"]["auc"] == {key: expected[key] for key in ("mean", "ci95", "n")}


def test_a_reference_that_was_not_run_gives_no_comparison():
    assert compare_methods({"mine": {"subjects": {}}}, reference="base") == {}


def test_who_sees_the_whole_recording_first_has_no_delay(dataset):
    found = results([predict("a", "...###....", look_ahead_s=None)], dataset)
    assert found["detection_delay_s_median"] is None
    assert found["episode_sensitivity"] == 1.0
    waits = results([predict("a", "...###....", look_ahead_s=10.0)], dataset)
    at_once = results([predict("a", "...###....")], dataset)
    assert waits["detection_delay_s_median"] == at_once["detection_delay_s_median"] + 10.0
    assert (waits["look_ahead_s"], found["look_ahead_s"]) == (10.0, None)


def test_the_operating_point_is_the_highest_threshold_that_finds_enough_episodes(dataset):
    """a's episode is found at 0.9, b's at 0.1 alone; who is healthy has 0.9 twice, 0.1 elsewhere."""
    held_out, alone = SEED_1, [predict("healthy", "##.......", is_one_class=True)]
    half = operating_point(held_out, alone, dataset, sensitivity=0.5)
    assert (half["threshold"], half["episode_sensitivity"], half["n_episodes"]) == (0.9, 0.5, 2)
    assert half["without_va"]["healthy"] == {
        "n_subjects": 1,
        "hours": pytest.approx(18 / 3600),
        "alarms_per_hour": pytest.approx(3600 / 18),
        "windows_per_hour": pytest.approx(2 * 3600 / 18),
    }
    whole = operating_point(held_out, alone, dataset)
    assert (whole["threshold"], whole["episode_sensitivity"]) == (0.1, 1.0)
    assert whole["without_va"]["healthy"]["windows_per_hour"] == pytest.approx(9 * 3600 / 18)
    assert operating_point(held_out, [], dataset) is None
