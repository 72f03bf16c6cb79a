"""Which beats are labelled, and which are judged."""

from dataclasses import replace

import numpy as np
import pytest

from metaecg.data.beats import BeatSet
from metaecg.data.labels import AAMI_CLASSES
from metaecg.data.rr import rr_features, rr_names
from metaecg.errors import LeakageError, NotEnoughWindowsError
from metaecg.tasks.beat_support import BeatTask, active_task, time_order_task


def make_beats(letters: str, *, record_ids=None) -> BeatSet:
    """One beat a second, each 0.5 s long, its form by its letter."""
    n, peaks_s = len(letters), 1.0 + np.arange(len(letters))
    form = {name: np.random.default_rng(i).normal(size=50) for i, name in enumerate("NSVFQ")}
    noise = 0.01 * np.random.default_rng(9).normal(size=(n, 1, 50))
    return BeatSet(
        windows=(np.stack([form[name] for name in letters])[:, None] + noise).astype(np.float32),
        labels=np.array([AAMI_CLASSES.index(name) for name in letters]),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.full(n, "own/p"),
        record_ids=np.full(n, "own/p") if record_ids is None else np.asarray(record_ids),
        start_s=peaks_s - 0.2,
        time_s=peaks_s - 0.2,
        sample=(100 * peaks_s).astype(np.int64),
        symbols=np.array(list(letters)),
        rr=rr_features(peaks_s),
        rr_names=rr_names(),
        before_s=0.2,
        fs_hz=100.0,
        window_s=0.5,
    )


def test_the_first_beats_of_each_class_are_taken_and_what_follows_is_judged():
    task = time_order_task(make_beats("NSNVFNVN" + "VN" * 5), n_shots=2)
    assert task.support.tolist() == [0, 1, 3, 6]
    assert task.query.tolist() == list(range(7, 18))


def test_fusion_beats_are_in_no_support_but_are_judged():
    beats = make_beats("FNNVFVF" + "VNF" * 5)
    task = time_order_task(beats, n_shots=2)
    assert set(beats.letters[task.support]) == {"N", "V"}
    assert "F" in beats.letters[task.query]


def test_a_beat_whose_window_overlaps_the_support_is_not_judged():
    beats = replace(make_beats("NNVV" + "NV" * 6), window_s=1.5)
    assert time_order_task(beats, n_shots=2).query.tolist() == list(range(5, 16))


def test_one_recording_gives_the_support_and_another_the_test():
    letters = "NNVVNV" + "NV" * 6
    beats = make_beats(letters, record_ids=["own/day1"] * 6 + ["own/day2"] * 12)
    task = time_order_task(
        beats, n_shots=2, support_records=["own/day1"], test_records=["own/day2"]
    )
    assert task.support.tolist() == [0, 1, 2, 3]
    assert task.query.tolist() == list(range(6, 18))


def test_a_patient_with_too_few_ventricular_beats_is_named_with_both_numbers():
    with pytest.raises(NotEnoughWindowsError, match="'own/p' has 1 windows of class 'V'.*needs 2"):
        time_order_task(make_beats("NNNNV"), n_shots=2)


def test_a_patient_with_nothing_left_to_judge_is_refused():
    with pytest.raises(NotEnoughWindowsError, match="4 windows of class 'V' after its support"):
        time_order_task(make_beats("NNVV" + "NV" * 4), n_shots=2)


def test_the_library_finds_rare_beats_with_few_labels_and_all_others_are_judged():
    letters = ("N" * 19 + "V") * 15
    task = active_task(make_beats(letters), n_shots=3)
    names = np.array(list(letters))[task.support].tolist()
    assert (names.count("V"), names.count("N")) == (3, 3)
    assert len(task.told) <= 20  # in the order of time it would be 60
    assert sorted([*task.told, *task.query]) == list(range(300))


def test_a_labelled_beat_in_the_query_is_leakage():
    with pytest.raises(LeakageError, match="1 labelled beats are in the query"):
        BeatTask(
            subject_id="p", support=np.array([1]), told=np.array([1, 2]), query=np.array([2, 3])
        )


def test_a_search_that_finds_too_few_ventricular_beats_leaves_an_empty_support_and_says_why():
    """Two V among 300, and eight questions for each of three wanted: all asked for, none judged."""
    letters = "N" * 149 + "V" + "N" * 149 + "V"
    task = active_task(make_beats(letters), n_shots=3)
    assert not len(task.support)
    assert task.no_support.startswith("2 V and 3 others among the 24 beats asked for; 3 of each")
    assert len(task.told) == 24
    assert sorted([*task.told, *task.query]) == list(range(300))
