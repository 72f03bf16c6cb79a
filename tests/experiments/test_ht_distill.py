"""Teacher and students of `h_tuning`: what they start from, what they see, what is reported."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from metaecg.data.splits import Split
from metaecg.data.twelve_lead_input import TwelveLeadInput
from metaecg.data.twelve_lead_set import TwelveLeadSet
from metaecg.experiments import ht_distill, ht_jobs, ht_outputs, ht_tables
from metaecg.experiments.ht_base import TwelveLeadBase, random_network
from metaecg.experiments.ht_config import HTConfig
from metaecg.experiments.ht_data import Cohort
from metaecg.experiments.ht_methods import METHODS

NAMES = ["teacher", "student-12", "student-12-labels-only", "student-1", "student-1-labels-only"]
N_CLASSES, N_SAMPLES = 3, 256
INPUT = TwelveLeadInput(fs_hz=100.0, n_samples=N_SAMPLES)
SMALL = {
    "train": {"n_steps": 2, "batch_size": 6, "check_every": 2},
    "distill": {"enabled": True, "leads": [12, 1], "n_steps": 3, "check_every": 2},
    "n_resamples": 100,
    "seeds": [0],
    "methods": ["head"],
}


def make_base() -> TwelveLeadBase:
    network = random_network("tinylight", INPUT, 5, torch.Generator().manual_seed(1)).eval()
    facts = {"subject_ids": ["nobody"], "n_records": 1, "database": "ptbxl_subset", "n_steps": 1}
    return TwelveLeadBase(
        network=network, size="tinylight", class_names=tuple("abcde"), input=INPUT, training=facts
    )


def make_cohort(n: int = 24) -> Cohort:
    """Return recordings, one per subject; each has one statement, which a lead tells."""
    labels = np.eye(N_CLASSES, dtype=np.uint8)[np.arange(n) % N_CLASSES]
    signals = np.random.default_rng(7).standard_normal((n, 12, N_SAMPLES)).astype(np.float32)
    signals[np.arange(n), np.arange(n) % N_CLASSES] += 2.0
    ids = np.array([f"s-{i:02d}" for i in range(n)])
    records = TwelveLeadSet(
        signals=signals,
        fs_hz=100.0,
        unit="sd",
        record_ids=ids,
        subject_ids=ids,
        subjects_known=True,
        labels=labels,
        class_names=("x", "y", "z"),
        statements=(("x",),) * n,
        strat_fold=None,
        reports=("",) * n,
        sources=np.array(["ptb-xl"] * n),
        label_sources=np.array(["original"] * n),
        dropped={},
    )
    return Cohort(database="ptbxl_subset", records=records)


def make_job(config: HTConfig) -> ht_distill.DistillationJob:
    ids = [f"s-{i:02d}" for i in range(24)]
    split = Split(
        name="s", train=tuple(ids[:12]), validation=tuple(ids[12:18]), test=tuple(ids[18:])
    )
    method = METHODS["head"]
    plain = ht_jobs.Job(
        database="ptbxl_subset", split_kind="patients", split=split, seed=0,
        name_of_method="head", method=method,
    )  # fmt: skip
    return ht_distill.distillation_job(plain, config)


def run(**distill) -> ht_jobs.JobResult:
    config = HTConfig(**{**SMALL, "distill": {**SMALL["distill"], **distill}})
    return make_job(config).run(config, make_base(), make_cohort(), report=lambda n: None)


@pytest.fixture(scope="module")
def result() -> ht_jobs.JobResult:
    return run()


def test_every_student_has_a_twin_that_learned_from_the_labels_alone(result):
    assert list(result.facts["networks"]) == NAMES
    assert result.validation.shape == result.test.shape == (5, 6, N_CLASSES)
    assert not np.array_equal(result.test[1], result.test[2])


def test_a_student_is_cut_down_to_its_leads(result):
    found = result.facts["networks"]
    assert [found[name]["n_leads"] for name in NAMES] == [12, 12, 12, 1, 1]
    assert found["student-1"]["parameters"] < found["student-12"]["parameters"]
    assert found["student-1"]["answer_bytes"] < found["teacher"]["answer_bytes"]


def test_a_student_for_one_lead_answers_by_that_lead_alone(monkeypatch):
    seen = []
    real = ht_distill.probabilities

    def watching(network, signals, n_classes):
        seen.append(signals)
        return real(network, signals, n_classes)

    monkeypatch.setattr(ht_distill, "probabilities", watching)
    run(leads=[1])
    lead_i = make_cohort().records.signals[18:, :1]
    assert [each.shape[1] for each in seen] == [12, 1, 1] * 2
    assert np.array_equal(seen[-1], lead_i)


def test_a_student_for_one_lead_does_not_learn_from_the_others():
    config, answers = HTConfig(**{**SMALL, "distill": {**SMALL["distill"], "leads": [1]}}), []
    for noise in (0.0, 5.0):
        data = make_cohort()
        data.records.signals[:, 1:] += noise
        found = make_job(config).run(config, make_base(), data, report=lambda n: None)
        answers.append(found.test)
    teacher, _, alone = range(3)
    assert not np.array_equal(answers[0][teacher], answers[1][teacher])
    assert np.array_equal(answers[0][alone], answers[1][alone])


def test_the_test_is_looked_at_once_per_network_after_all_training(monkeypatch):
    events = []
    real_distill, real_answers = ht_distill.distill, ht_distill.probabilities
    records = make_cohort().records.signals

    def training(student, teacher, windows, labels, **settings):
        assert np.array_equal(windows, records[:12])
        assert np.array_equal(settings["validation"][0], records[12:18])
        events.append("training")
        return real_distill(student, teacher, windows, labels, **settings)

    def answering(network, signals, n_classes):
        is_test = signals[0, 0, 0] == records[18, 0, 0]
        events.append("test" if is_test else "validation")
        return real_answers(network, signals, n_classes)

    monkeypatch.setattr(ht_distill, "distill", training)
    monkeypatch.setattr(ht_distill, "probabilities", answering)
    run()
    assert events == ["training"] * 4 + ["validation"] * 5 + ["test"] * 5


def test_students_and_their_twins_start_alike_and_the_teacher_is_in_evaluation_mode(monkeypatch):
    starts, teachers, draws = [], [], []

    def watching(student, teacher, windows, labels, *, rng, **settings):
        starts.append(student.head.weight.detach().clone())
        teachers.append(teacher)
        draws.append(rng.bit_generator.state["state"])
        return real(student, teacher, windows, labels, rng=rng, **settings)

    real = ht_distill.distill
    monkeypatch.setattr(ht_distill, "distill", watching)
    run()
    assert all(torch.equal(starts[0], each) for each in starts)
    assert [each is None for each in teachers] == [False, True] * 2
    assert not any(module.training for module in teachers[0].modules())
    assert all(each == draws[0] for each in draws)


def test_the_same_seed_gives_the_same_students(result):
    again = run()
    assert np.array_equal(again.test, result.test)


def test_a_low_rank_teacher_teaches_merged(monkeypatch):
    teachers = []
    real = ht_distill.distill

    def watching(student, teacher, *arguments, **settings):
        teachers.append(teacher)
        return real(student, teacher, *arguments, **settings)

    monkeypatch.setattr(ht_distill, "distill", watching)
    run(teacher="h-tuning", leads=[12])
    assert not any("lora" in name for name, _ in teachers[0].named_parameters())


def test_a_student_of_another_size_says_that_it_starts_from_random_weights():
    found = run(student="tiny", leads=[1]).facts["networks"]["student-1"]
    assert (found["size"], found["start"]) == ("tiny", "random weights")


def test_a_result_comes_back_from_disk_as_it_was_kept(result, tmp_path):
    ht_jobs.save_result(tmp_path / "job", result, stamp="abc")
    again = ht_jobs.load_result(tmp_path / "job", stamp="abc")
    assert np.array_equal(again.test, result.test)
    assert again.facts == json.loads(json.dumps(result.facts))


def test_methods_do_not_depend_on_the_distillation_and_students_do():
    config, other = (HTConfig(distill={"n_steps": n}) for n in (3, 4))
    job = make_job(config)
    plain = ht_jobs.Job(
        database=job.database, split_kind=job.split_kind, split=job.split, seed=0,
        name_of_method="head", method=METHODS["head"],
    )  # fmt: skip
    stamps = [
        [ht_jobs.job_stamp(each, c, facts={}) for c in (config, other)] for each in (plain, job)
    ]
    assert stamps[0][0] == stamps[0][1]
    assert stamps[1][0] != stamps[1][1]


@pytest.fixture(scope="module")
def assembled(result) -> dict:
    config = HTConfig(**SMALL)
    job = make_job(config)
    head = ht_jobs.Job(
        database=job.database, split_kind=job.split_kind, split=job.split, seed=0,
        name_of_method="head", method=METHODS["head"],
    )  # fmt: skip
    base, data = make_base(), make_cohort()
    truth = data.records.labels[18:].astype(float)
    said = result.test.copy()
    said[0], said[1], said[2] = truth, 1 - truth, 0.5  # the teacher is right, its student never
    result = replace(result, test=said)
    done = {
        head.name: (head, head.run(config, base, data, report=lambda n: None)),
        job.name: (job, result),
    }
    return ht_outputs.assemble(config, base, {"ptbxl_subset": data}, done, commit="abc")


def test_the_figures_of_teacher_and_students_lie_beside_the_methods(assembled):
    task = assembled["tasks"]["ptbxl_subset--patients"]
    assert list(task["methods"]) == ["head"]
    found = task["distillation"]
    assert list(found["networks"]) == NAMES
    assert found["teacher"] == "full"
    student, teacher = found["networks"]["student-1"], found["networks"]["teacher"]
    assert student["parameters"] < teacher["parameters"]
    assert "1 lead(s), trained on labels and teacher from the base" in student["description"]
    for figures in found["networks"].values():
        assert 0 <= figures["macro_f2"]["mean"] <= 1
        assert "losses" not in figures["runs"]["0"]


def test_differences_are_to_the_teacher_and_to_the_twin(assembled):
    found = assembled["tasks"]["ptbxl_subset--patients"]["distillation"]["networks"]
    aucs = [found[name]["macro_auc"]["mean"] for name in NAMES[:3]]
    assert aucs == [1.0, 0.0, 0.5]
    student = found["student-12"]
    assert student["difference"]["macro_auc"]["mean"] == -1.0
    assert student["difference"]["macro_auc"]["ci95"] == [-1.0, -1.0]
    assert student["difference_to_labels_only"]["macro_auc"]["mean"] == -0.5
    assert not {"teacher", "student-12-labels-only"} & {
        name for name, figures in found.items() if "difference_to_labels_only" in figures
    }


def test_the_table_names_every_network(assembled):
    text = ht_tables.summary_table(assembled)
    assert all(f"| {name} |" in text for name in NAMES)
    assert "AUC - teacher" in text
