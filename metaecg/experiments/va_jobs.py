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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

from metaecg.data.datasets import Dataset
from metaecg.data.splits import Split
from metaecg.errors import DataError, MetaECGError
from metaecg.evaluate.predictions import Prediction, load_predictions, save_predictions
from metaecg.experiments.config import NO_FIGURE, VAConfig
from metaecg.experiments.va_bases import (
    ADAPT_COST,
    RHYTHM_COST,
    Looks,
    TrainedBase,
    train_base,
    training_cost,
)
from metaecg.experiments.va_methods import Method
from metaecg.experiments.va_personal import false_alarms_alone, is_on_curve, predict_subject
from metaecg.meta.training_state import Checkpoint
from metaecg.models.checkpoints import BaseModel, load_base


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
    in_time: bool = False
    """The base is for methods with context, even if none of them is evaluated here."""

    @property
    def name(self) -> str:
        return f"{self.split.name}--seed-{self.seed}--{self.kind}"

    @property
    def needs_rhythm(self) -> bool:
        """Whether its base gets a rhythm model: a method counts on it, or the base is written."""
        return self.base is None and (self.in_time or any(m.context for m in self.methods.values()))

    def cost(self, config: VAConfig) -> int:
        """Return how many units of progress the job reports: about its share of the time."""
        training = 0 if self.base else training_cost(self.kind, config)
        if self.needs_rhythm:
            training += round(RHYTHM_COST * training)
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
            if is_on_curve(method, dataset.of_subject(subject_id)):
                predictions.append(
                    predict_subject(
                        name, method, job.kind, job.seed, base, subject_id, config, dataset
                    )
                )
            on_progress(ADAPT_COST)
        if method.adapt is None and not method.curve:
            predictions += [
                false_alarms_alone(name, method, job.seed, base, subject_id, dataset)
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


def load_result(
    folder: Path, *, stamp: str, kind: type[Prediction] = Prediction
) -> JobResult | None:
    """Return a finished job's result, or None if there is no readable one with this `stamp`."""
    try:
        facts = json.loads((folder / "job.json").read_text())
        if facts.pop("stamp") != stamp:
            return None
        return JobResult(
            predictions=load_predictions(folder / "predictions.npz", kind),
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
    trained = train_base(
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
    if not job.needs_rhythm:
        return trained
    from metaecg.experiments.va_rhythm import with_rhythm

    model = with_rhythm(
        trained.model, job.kind, config, dataset, job.split, seed=job.seed, on_cost=on_progress
    )
    return replace(trained, model=model)
