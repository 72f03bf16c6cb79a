"""One job of `veb_fewshot`: train the base of one split and seed, judge every method on the test."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from metaecg.data.datasets import Dataset
from metaecg.evaluate.ec57 import BeatPrediction
from metaecg.experiments.va_jobs import JobResult
from metaecg.experiments.veb_base import TrainedBase, train_base
from metaecg.experiments.veb_config import NO_FIGURE, VebConfig
from metaecg.experiments.veb_data import BeatSplit
from metaecg.experiments.veb_methods import Method
from metaecg.experiments.veb_personal import open_patient, predict_patient
from metaecg.models.checkpoints import BaseModel, load_base

ADAPT_COST = 60
"""About how many training steps one guarded personalization takes: for the progress bar alone."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a process needs to know."""

    seed: int
    split: BeatSplit
    methods: dict[str, Method]
    base: str | None = None

    @property
    def name(self) -> str:
        return f"{self.split.split.name}--seed-{self.seed}"

    def cost(self, config: VebConfig) -> int:
        """Return how many units of progress the job reports: about its share of the time."""
        networks = config.folds * config.train.n_repeats
        training = 0 if self.base else networks * config.train.n_steps
        return training + len(self.split.split.test) * ADAPT_COST


def job_stamp(job: Job, config: VebConfig, *, facts: dict) -> str:
    """Return a checksum over everything that decides a job's result; see `va_jobs.job_stamp`."""
    values = config.values(without=NO_FIGURE | {"seeds", "methods"})
    decisive = {"config": values, "job": asdict(job), "facts": facts}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def run_job(
    job: Job,
    config: VebConfig,
    training: Dataset,
    test: Dataset,
    *,
    on_progress: Callable[[int], None],
) -> JobResult:
    """Train (or load) the base of `job`, and judge every method on every test subject."""
    begin = time.perf_counter()
    trained = _base(job, config, training, on_progress)
    predictions = []
    for subject_id in job.split.split.test:
        predictions += predict_subject(job, trained.model, subject_id, config, test)
        on_progress(ADAPT_COST)
    return JobResult(
        predictions=predictions,
        model=trained.model,
        history=trained.history,
        curriculum=trained.held_out,
        seconds=time.perf_counter() - begin,
    )


def predict_subject(
    job: Job, base: BaseModel, subject_id: str, config: VebConfig, test: Dataset
) -> list[BeatPrediction]:
    """Return every method's answer on one subject; without enough V that of the global one alone."""
    patient = open_patient(subject_id, base, config, test, job.split)
    return [
        predict_patient(name, method, base, patient, config, seed=job.seed)
        for name, method in job.methods.items()
        if {method.support, method.query} - {"none", "own"} <= set(patient.tasks)
    ]


def _base(job: Job, config: VebConfig, training: Dataset, on_progress) -> TrainedBase:
    if job.base is not None:
        return TrainedBase(model=load_base(job.base), held_out={})
    return train_base(config, training, job.split.split, seed=job.seed, on_step=on_progress)
