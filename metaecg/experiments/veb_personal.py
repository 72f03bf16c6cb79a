"""One test subject of `veb_fewshot` under every method: label beats, personalize, judge the rest."""

import time
import warnings
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from metaecg.adapt.guard import Guard, GuardedPersonalizer
from metaecg.adapt.h_tuning import HTuning
from metaecg.adapt.personalize import Personalizer
from metaecg.data.beats import BeatSet
from metaecg.data.datasets import Dataset
from metaecg.errors import NotEnoughWindowsError, PersonalizationRefusedWarning
from metaecg.evaluate.ec57 import BeatPrediction
from metaecg.evaluate.metrics import NO_BEAT
from metaecg.experiments.veb_base import CLASSES
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_data import BeatSplit
from metaecg.experiments.veb_methods import Method
from metaecg.models.beat_detector import BeatDetector
from metaecg.models.checkpoints import BaseModel
from metaecg.seeding import derive_seed
from metaecg.tasks.beat_support import BeatTask, active_task, time_order_task


@dataclass(kw_only=True)
class Patient:
    """A test subject's beats, what a network sees of them, and the beats to label."""

    subject_id: str
    beats: BeatSet = field(repr=False)
    inputs: tuple[np.ndarray, ...] = field(repr=False)
    """By lead."""
    tasks: dict[str, BeatTask] = field(repr=False)
    """By kind of support; empty for a subject that is not eligible."""
    n_missed: dict[str, dict[str, int]]
    fitted: dict[tuple, tuple] = field(default_factory=dict, repr=False)

    def query(self, method: Method) -> np.ndarray:
        """Return the rows that a method is judged on."""
        if method.support == "none":
            return np.arange(len(self.beats))
        if method.query == "time":
            return np.setdiff1d(self.tasks["time"].query, self.tasks[method.support].told)
        return self.tasks[method.support].query


def open_patient(
    subject_id: str, base: BaseModel, config: VebConfig, dataset: Dataset, split: BeatSplit
) -> Patient:
    """Return a test subject with its tasks; none if its first beats in time make no support."""
    beats = split.beats_of(dataset, subject_id)
    tasks = {}
    if not why_not_eligible(subject_id, config, dataset, split):
        parts = split.parts_of(subject_id)
        tasks["time"] = time_order_task(beats, n_shots=config.n_shots, **parts)
        if not parts:
            tasks["active"] = active_task(beats, n_shots=config.n_shots)
    return Patient(
        subject_id=subject_id,
        beats=beats,
        inputs=BeatDetector(base).inputs(beats),
        tasks=tasks,
        n_missed={r.record_id: r.missed for r in split.records_of(dataset, subject_id)},
    )


def why_not_eligible(subject_id: str, config: VebConfig, dataset: Dataset, split: BeatSplit) -> str:
    """Return why nothing can be personalized for a test subject; empty if it can.

    The first beats in time decide for every method: a method whose search fails does not choose its
    own subjects.
    """
    beats = split.beats_of(dataset, subject_id)
    if not len(beats):
        return "no beat that could be cut out: gaps or edges throughout."
    try:
        time_order_task(beats, n_shots=config.n_shots, **split.parts_of(subject_id))
    except NotEnoughWindowsError as error:
        return str(error)
    return ""


def predict_patient(
    name: str, method: Method, base: BaseModel, patient: Patient, config: VebConfig, *, seed: int
) -> BeatPrediction:
    """Return what a method says of its test beats of a patient."""
    log_odds, called, facts = _said(method, base, patient, config, seed)
    query, beats = patient.query(method), patient.beats
    letters = np.where(beats.letters == "", NO_BEAT, beats.letters)[query]
    is_whole = method.support == "none"
    n_labels = len(patient.tasks[method.support].told) if method.is_personal else 0
    return BeatPrediction(
        method=name,
        seed=seed,
        subject_id=patient.subject_id,
        record_ids=beats.record_ids[query],
        start_s=beats.start_s[query],
        labels=(letters == "V").astype(np.int64),
        is_mixed=np.isin(letters, ("F", "Q")),
        probabilities=expit(log_odds[query]),
        letters=letters,
        called=called[query],
        n_missed=patient.n_missed if is_whole else {},
        n_labels=n_labels,
        **facts,
    )


def _said(
    method: Method, base: BaseModel, patient: Patient, config: VebConfig, seed: int
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return log odds and called class of every beat; methods that differ in the query share them."""
    key = (method.adapt, method.support, method.is_guarded, method.uses_labels, seed)
    if key not in patient.fitted:
        patient.fitted[key] = _fit_and_predict(method, base, patient, config, seed)
    return patient.fitted[key]


def _fit_and_predict(method, base, patient: Patient, config: VebConfig, seed: int) -> tuple:
    begin = time.perf_counter()
    model, facts = base, {}
    no_support = patient.tasks[method.support].no_support if method.is_personal else ""
    if no_support:
        facts["no_support"] = no_support
    elif method.adapt is not None:
        model = _personal(method, base, patient, config, seed)
        facts = {"n_trainable": _fitted(model).n_trainable_}
        facts["is_refused"] = bool(getattr(model, "refused_", False))
        facts["adapt_seconds"] = time.perf_counter() - begin
    is_v = patient.beats.letters == "V"
    known = {}
    if method.uses_labels and not facts.get("is_refused"):
        known = {int(row): bool(is_v[row]) for row in patient.tasks[method.support].support}
    detector = BeatDetector(base, model)
    vote = config.context.active_vote if method.support == "active" else 0.0
    log_odds = detector.log_odds(
        patient.beats,
        inputs=patient.inputs,
        known=known,
        vote_weight=vote if known else 0.0,
        mode=config.context.mode,
    )
    called = np.where(log_odds > 0, "V", "N")
    if len(base.classes) > 2:
        others = model.logits(patient.inputs[0])
        others[:, base.classes.index("V")] = -np.inf
        called = np.where(log_odds > 0, "V", np.array(base.classes)[others.argmax(axis=1)])
    return log_odds, called, facts


def _personal(method: Method, base: BaseModel, patient: Patient, config: VebConfig, seed: int):
    """Return a fitted `Personalizer`, guarded if the method is."""
    task, settings = patient.tasks[method.support], config.personalize
    is_h_tuning = method.adapt == "h-tuning"
    personalizer = Personalizer(
        base,
        method=method.adapt,
        n_steps=settings.n_steps,
        lr=settings.lr.get(method.adapt),
        rank=settings.rank,
        h_tuning=HTuning(**settings.h_tuning.model_dump()) if is_h_tuning else None,
        random_state=derive_seed(seed, "personalize", patient.subject_id) % 2**31,
    )
    # Each lead of a labelled beat is a window of its own.
    windows = np.concatenate([lead[task.support] for lead in patient.inputs])
    names = np.tile(support_names(patient, task, base), len(patient.inputs))
    if not (method.is_guarded and config.guard.enabled):
        return personalizer.fit(windows, names)
    limits = config.guard.model_dump(exclude={"enabled"})
    n_so_far = len(patient.beats) if method.support == "active" else task.support.max() + 1
    so_far = np.concatenate([lead[:n_so_far] for lead in patient.inputs])
    guarded = GuardedPersonalizer(personalizer, Guard(**limits))
    with warnings.catch_warnings():
        # results.json and the run's summary say it for every patient; a worker's stderr is nobody's.
        warnings.simplefilter("ignore", PersonalizationRefusedWarning)
        return guarded.fit(
            windows,
            names,
            so_far=so_far,
            groups=np.tile(task.support, len(patient.inputs)),
            subject_id=patient.subject_id,
        )


def _fitted(model) -> Personalizer:
    return getattr(model, "personal_", model)


def support_names(patient: Patient, task: BeatTask, base: BaseModel) -> np.ndarray:
    """Return the class names of the support as the base has them."""
    letters = patient.beats.letters[task.support]
    if base.classes == CLASSES[2]:
        return np.where(letters == "V", "V", "other")
    return letters
