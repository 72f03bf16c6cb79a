"""What nobody was told changes no answer: every label behind the support is replaced, and nothing moves.

The shipped bases are personalized twice by the recipes' own functions: with the labels as they are, and
with another label wherever no person was asked. Bit for bit, probabilities, calls, thresholds and
refusals have to be the same.
"""

from dataclasses import replace

import numpy as np
import pytest

from metaecg import load_base
from metaecg.data.beats import AAMI_CLASSES, prepare_beats
from metaecg.data.datasets import Dataset, prepare
from metaecg.data.demo import write_demo_database
from metaecg.data.splits import Split
from metaecg.experiments import va_personal, veb_personal
from metaecg.experiments.config import VAConfig, build_config
from metaecg.experiments.va_methods import BASE_ONLY_METHODS, points_of_curve
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_data import BeatSplit
from metaecg.experiments.veb_methods import METHODS
from metaecg.models.beat_detector import BeatDetector
from metaecg.tasks.sampler import deploy_task

FEW_STEPS = {"personalize": {"n_steps": 5}}
VA_METHODS = {
    name: BASE_ONLY_METHODS[name]
    for name in "zero-shot+offline head full+causal full+offline lora+offline prefine+full h-tuning".split()
} | points_of_curve("full+offline", [0, 1, 10], table=BASE_ONLY_METHODS)
VEB_METHODS = (
    "global zero-shot labels head full lora+unguarded active+labels active+head active+full@later"
).split()
JUDGED = (
    "record_ids start_s probabilities threshold called is_refused n_labels n_trainable look_ahead_s"
).split()
"""All that a method says; the labels beside it are what it is judged by."""


def assert_same_answer(one, other, name: str) -> None:
    for field in JUDGED:
        if hasattr(one, field):
            same = np.array_equal(getattr(one, field), getattr(other, field))
            assert same, f"{name}: {field} depends on a label that nobody was told"


def with_labels(dataset: Dataset, labels: np.ndarray) -> Dataset:
    """Return one subject's data with other labels in the windows, and with no marks beside them."""
    windows = replace(dataset.windows, labels=labels, is_mixed=~dataset.windows.is_mixed)
    return Dataset(windows=windows, records=tuple(replace(r, episodes=()) for r in dataset.records))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo_database(tmp_path_factory.mktemp("leak"), n_subjects=2).parent


# --- two-second windows --------------------------------------------------------------------------


def va_answers(dataset: Dataset, subject_id: str) -> dict:
    config, base = build_config(FEW_STEPS, VAConfig), load_base("va-base")
    return {
        name: va_personal.predict_subject(
            name, method, "given", 0, base, subject_id, config, dataset
        )
        for name, method in VA_METHODS.items()
    }


def check_va(root, database: str, subject_id: str) -> None:
    dataset = prepare(root, [database], load_base("va-base").preprocessing, only=[subject_id])
    windows = dataset.of_subject(subject_id)
    dataset = replace(dataset, windows=windows)
    told_until = deploy_task(windows, n_shots=10).support.time_s.max()
    changed = np.where(windows.time_s > told_until, 1 - windows.labels, windows.labels)
    before = va_answers(dataset, subject_id)
    after = va_answers(with_labels(dataset, changed), subject_id)
    for name, answer in before.items():
        assert not (answer.labels == after[name].labels).any(), name
        assert_same_answer(answer, after[name], name)


def test_no_answer_on_windows_depends_on_a_label_behind_the_support(demo):
    check_va(demo, "demo", "demo/demo01")


@pytest.mark.real
def test_no_answer_on_a_real_patients_windows_depends_on_a_label_behind_the_support(real_data):
    check_va(real_data, "mitdb", "mitdb/207")


def test_one_label_of_the_test_part_in_the_support_is_found(demo, monkeypatch):
    honest = va_personal._support_and_query

    def leaky(*arguments):
        support, query = honest(*arguments)
        labels = support.labels.copy()
        if len(labels) > 2:  # else a class might be gone
            labels[-1] = query.labels[-1]
        return replace(support, labels=labels), query

    monkeypatch.setattr(va_personal, "_support_and_query", leaky)
    with pytest.raises(AssertionError, match="depends on a label that nobody was told"):
        check_va(demo, "demo", "demo/demo01")


# --- beats ---------------------------------------------------------------------------------------


def open_patient(dataset: Dataset, subject_id: str):
    split = BeatSplit(split=Split(name="one", train=(), test=(subject_id,)))
    config = VebConfig.model_validate(FEW_STEPS)
    return veb_personal.open_patient(subject_id, load_base("veb-base"), config, dataset, split)


def veb_answer(name: str, patient):
    config, base = VebConfig.model_validate(FEW_STEPS), load_base("veb-base")
    return veb_personal.predict_patient(name, METHODS[name], base, patient, config, seed=0)


def is_hidden(method, patient) -> np.ndarray:
    """Return which beats' labels no person was asked for, by the time a method has its support.

    Whoever looks for the first V and others in time sees every beat up to the last of them.
    """
    rows = np.arange(len(patient.beats))
    hidden = np.ones(len(rows), dtype=bool)
    if method.support == "active":
        hidden &= ~np.isin(rows, patient.tasks["active"].told)
    if method.support == "time" or method.query == "time":
        hidden &= rows > patient.tasks["time"].support.max()
    return hidden


def changed_labels(labels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return every hidden label replaced by another class, drawn anew for each beat."""
    n_classes = len(AAMI_CLASSES)
    steps = np.random.default_rng(0).integers(1, n_classes, len(labels))
    return np.where(hidden, (labels + steps) % n_classes, labels)


def check_veb(root, database: str, subject_id: str, *, names=VEB_METHODS) -> list[bool]:
    """Return which of the methods were refused."""
    cutting = BeatDetector(load_base("veb-base")).cutting
    dataset = prepare_beats(root, [database], n_leads=2, only=[subject_id], **cutting)
    dataset = replace(dataset, windows=dataset.of_subject(subject_id))
    patient, others, refused = open_patient(dataset, subject_id), {}, []
    for name in names:
        asked = (METHODS[name].support, METHODS[name].query)
        if asked not in others:
            labels = changed_labels(dataset.windows.labels, is_hidden(METHODS[name], patient))
            others[asked] = open_patient(with_labels(dataset, labels), subject_id)
        answer, other = veb_answer(name, patient), veb_answer(name, others[asked])
        assert not (answer.letters == other.letters).any(), name
        assert_same_answer(answer, other, name)
        refused.append(answer.is_refused)
    return refused


def test_no_answer_on_beats_depends_on_a_label_that_nobody_was_told(demo):
    refused = [*check_veb(demo, "demo", "demo/demo01"), *check_veb(demo, "demo", "demo/demo02")]
    assert any(refused) and not all(refused)  # both ways of the guard were looked at


@pytest.mark.real
def test_no_answer_on_a_real_patients_beats_depends_on_a_label_that_nobody_was_told(real_data):
    names = ("global", "labels", "head", "active+labels", "active+head@later")
    check_veb(real_data, "mitdb", "mitdb/233", names=names)


def test_one_label_of_a_test_beat_in_the_support_is_found(demo, monkeypatch):
    honest = veb_personal.support_names

    def leaky(patient, task, base):
        names = honest(patient, task, base).copy()
        names[-1] = "V" if patient.beats.letters[task.query[-1]] == "V" else "other"
        return names

    monkeypatch.setattr(veb_personal, "support_names", leaky)
    with pytest.raises(AssertionError, match="depends on a label that nobody was told"):
        check_veb(demo, "demo", "demo/demo01")
