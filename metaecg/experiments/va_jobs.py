"""One job of `va_fewshot`: train a base, personalize it to each held-out subject, predict.

Jobs are independent of each other: a fold, a seed and a kind of base each. They run in their own
processes and their results go to disk at once, so that a stop loses at most the jobs under way.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from metaecg.data.datasets import Dataset
from metaecg.data.splits import Split
from metaecg.errors import DataError, MetaECGError
from metaecg.evaluate.predictions import Prediction, load_predictions, save_predictions
from metaecg.evaluate.protocol import held_out_task
from metaecg.experiments.config import NO_FIGURE, VAConfig
from metaecg.experiments.va_bases import (
    ADAPT_COST,
    Looks,
    TrainedBase,
    shuffle_labels,
    train_base,
    training_cost,
)
from metaecg.experiments.va_methods import Method
from metaecg.meta.training_state import Checkpoint
from metaecg.models.checkpoints import BaseModel, load_base
from metaecg.seeding import derive_seed, numpy_generator


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a process needs to know."""

    kind: str
    seed: int
    split: Split
    methods: dict[str, Method]
    eligible: tuple[str, ...]
    """Held-out subjects to personalize for."""
    one_class: tuple[str, ...]
    """Held-out subjects without VA: false alarms of the unadapted base."""
    base: str | None = None
    """An existing base (name or folder) instead of training one."""

    @property
    def name(self) -> str:
        return f"{self.split.name}--seed-{self.seed}--{self.kind}"

    def cost(self, config: VAConfig) -> int:
        """Return how many units of progress the job reports: about its share of the time."""
        training = 0 if self.base else training_cost(self.kind, config)
        return training + len(self.methods) * len(self.eligible) * ADAPT_COST


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job leaves behind."""

    predictions: list[Prediction]
    model: BaseModel
    history: list[dict[str, float]]
    curriculum: dict | None
    seconds: float


def job_stamp(job: Job, config: VAConfig, *, facts: dict) -> str:
    """Return a checksum over everything that decides a job's result.

    `facts` are what the configuration does not know: data checksum, commit, versions, the
    fingerprint of a given base.

    That leaves out which other seeds, methods and folds a run has: a finished job can be taken up by
    a run with more of them.
    """
    decisive = _decisive(job, config, facts)
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def job_checkpoint(job: Job, config: VAConfig, *, facts: dict) -> Checkpoint | None:
    """Return where the job's meta-training keeps its state; None if it has no such training.

    It belongs to what decides the job's result, as its stamp does, but for the personalization that
    follows the training.
    """
    if job.base is not None or not job.kind.startswith("maml"):
        return None
    decisive = _decisive(job, config, facts)
    del decisive["config"]["personalize"]
    for name in ("methods", "eligible", "one_class"):
        del decisive["job"][name]
    return Checkpoint(path=config.out / "jobs" / f"{job.name}.safetensors", made_with=decisive)


def _decisive(job: Job, config: VAConfig, facts: dict) -> dict:
    values = config.values(without=NO_FIGURE | {"seeds", "methods", "max_folds"})
    return {"config": values, "job": asdict(job), "facts": facts}


def run_job(
    job: Job,
    config: VAConfig,
    dataset: Dataset,
    *,
    on_progress: Callable[[int], None],
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    looks: Looks | None = None,
) -> JobResult:
    """Train (or load) the base of `job` and evaluate every method on every held-out subject.

    The state of a meta-training is kept in `checkpoint`; with `resume` it goes on from there.
    `looks` see the base while it is being trained.
    """
    begin = time.perf_counter()
    trained = _base(job, config, dataset, on_progress, checkpoint, resume, looks)
    return JobResult(
        predictions=predict_held_out(job, trained.model, config, dataset, on_progress=on_progress),
        model=trained.model,
        history=trained.history,
        curriculum=trained.curriculum,
        seconds=time.perf_counter() - begin,
    )


def predict_held_out(
    job: Job,
    base: BaseModel,
    config: VAConfig,
    dataset: Dataset,
    *,
    on_progress: Callable[[int], None] = lambda n_units: None,
) -> list[Prediction]:
    """Evaluate every method of `job` on every held-out subject, starting from `base`."""
    predictions = []
    for name, method in job.methods.items():
        for subject_id in job.eligible:
            predictions.append(_predict(name, method, job, base, subject_id, config, dataset))
            on_progress(ADAPT_COST)
        if method.adapt is None:
            predictions += [
                _false_alarms_alone(name, job, base, subject_id, dataset)
                for subject_id in job.one_class
            ]
    return predictions


def save_result(folder: Path, result: JobResult, *, stamp: str) -> None:
    """Publish a job's result as `folder`, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_predictions(building / "predictions.npz", result.predictions)
        result.model.save(building / "base")
        facts = {
            "stamp": stamp,
            "history": result.history,
            "curriculum": result.curriculum,
            "seconds": result.seconds,
        }
        (building / "job.json").write_text(json.dumps(facts))
        with open(building / "job.json", "rb") as written:
            os.fsync(written.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(building, folder)
    except OSError as error:
        raise DataError(
            f"the result of {folder.name} can't be written to {folder.parent}: {error}. Free some "
            "space there and give the same command again: what is finished is kept."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_result(folder: Path, *, stamp: str) -> JobResult | None:
    """Return a finished job's result, or None if there is no readable one with this `stamp`."""
    try:
        facts = json.loads((folder / "job.json").read_text())
        if facts.pop("stamp") != stamp:
            return None
        return JobResult(
            predictions=load_predictions(folder / "predictions.npz"),
            model=load_base(folder / "base"),
            **facts,
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, MetaECGError):
        return None  # damaged: done again


def _base(
    job: Job, config: VAConfig, dataset: Dataset, on_progress, checkpoint, resume: bool, looks
) -> TrainedBase:
    if job.base is not None:
        return TrainedBase(model=load_base(job.base))
    return train_base(
        job.kind,
        config,
        dataset,
        job.split,
        seed=job.seed,
        on_cost=on_progress,
        checkpoint=checkpoint,
        resume=resume,
        looks=looks,
    )


def _predict(
    name: str,
    method: Method,
    job: Job,
    base: BaseModel,
    subject_id: str,
    config: VAConfig,
    dataset: Dataset,
) -> Prediction:
    rng = numpy_generator(job.seed, "support", subject_id)  # the same for every method
    windows = dataset.of_subject(subject_id)
    task = held_out_task(windows, protocol=config.protocol, n_shots=config.n_shots, rng=rng)
    support, query = task.support, task.query
    if job.kind == "shuffled":
        support = shuffle_labels(support, job.seed, f"support of {subject_id}")
    begin = time.perf_counter()
    predict, n_trainable, threshold = _personal(method, base, support, config, job.seed, subject_id)
    seconds = time.perf_counter() - begin
    return Prediction(
        method=name,
        seed=job.seed,
        subject_id=subject_id,
        record_ids=query.record_ids,
        start_s=query.start_s,
        labels=query.labels,
        is_mixed=query.is_mixed,
        probabilities=predict(query.windows)[:, 1],
        threshold=threshold,
        adapt_seconds=seconds if method.adapt else 0.0,
        n_trainable=n_trainable,
    )


def _personal(
    method: Method, base: BaseModel, support, config: VAConfig, seed: int, subject_id: str
):
    """Return a function from windows to probabilities, the trained parameters and the threshold."""
    if method.adapt is None:
        return base.predict_proba, 0, 0.5
    if method.adapt == "metava":
        return _personal_metava(method, base, support, derive_seed(seed, "metava", subject_id))
    from metaecg.adapt.h_tuning import HTuning
    from metaecg.adapt.personalize import Personalizer

    settings, is_h_tuning = config.personalize, method.adapt == "h-tuning"
    personal = Personalizer(
        base,
        method=method.adapt,
        n_steps=settings.n_steps,
        lr=settings.lr,
        rank=settings.rank,
        micro_batch=settings.micro_batch,
        freeze=settings.freeze,
        h_tuning=HTuning(**settings.h_tuning.model_dump()) if is_h_tuning else None,
        prefine=settings.prefine if method.prefine else None,
        random_state=derive_seed(seed, "personalize", subject_id) % 2**31,
    ).fit(support.windows, support.labels, time_s=support.time_s)
    return personal.predict_proba, personal.n_trainable_, personal.threshold


def _personal_metava(method: Method, base: BaseModel, support, seed: int):
    from metaecg.meta.metava_released import adapt_metava_released
    from metaecg.models.inference import network_logits, softmax

    normalise = base.preprocessing.normalize_windows
    network = adapt_metava_released(
        base.new_network(),
        normalise(support.windows),
        support.labels,
        seed=seed,
        prefine=method.prefine,
    )

    def predict(windows: np.ndarray) -> np.ndarray:
        logits = network_logits(network, normalise(windows), n_classes=len(base.classes))
        return softmax(logits)

    return predict, sum(p.numel() for p in network.parameters()), 0.5


def _false_alarms_alone(
    name: str, job: Job, base: BaseModel, subject_id: str, dataset: Dataset
) -> Prediction:
    windows = dataset.of_subject(subject_id)
    return Prediction(
        method=name,
        seed=job.seed,
        subject_id=subject_id,
        record_ids=windows.record_ids,
        start_s=windows.start_s,
        labels=windows.labels,
        is_mixed=windows.is_mixed,
        probabilities=base.predict_proba(windows.windows)[:, 1],
        is_one_class=True,
    )
