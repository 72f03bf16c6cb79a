"""One job of `h_tuning`: one method on one split and seed. Its result goes to disk at once."""

import functools
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np

from metaecg.adapt.h_tuning import HTuning
from metaecg.data.splits import Split
from metaecg.experiments.ht_base import TwelveLeadBase, load_twelve_lead_base
from metaecg.experiments.ht_config import HTConfig
from metaecg.experiments.ht_data import Cohort, cohort
from metaecg.experiments.ht_methods import FineTuning
from metaecg.experiments.ht_training import (
    Course,
    Trainer,
    fine_tune,
    n_steps,
    probabilities,
)
from metaecg.models.folders import write_folder
from metaecg.seeding import derive_seed

FILES = ("job.json", "answers.npz")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a process needs to know, but for the recordings and the base."""

    unaffected_by: ClassVar[frozenset[str]] = frozenset({"distill"})
    """Sections of the configuration that its result doesn't depend on."""

    database: str
    split_kind: str
    split: Split = field(repr=False)
    seed: int
    name_of_method: str
    method: FineTuning

    @property
    def task(self) -> str:
        return f"{self.database}--{self.split_kind}"

    @property
    def stream_seed(self) -> int:
        """The seed of weights, batches and directions: the same for every method."""
        return derive_seed(self.seed, self.database, self.split_kind)

    @property
    def name(self) -> str:
        return f"{self.task}--seed-{self.seed}--{self.name_of_method}"

    def candidates(self, config: HTConfig) -> list[HTuning]:
        """Return the settings to choose from: the grid, or the configured ones alone."""
        mix = config.h_tuning
        plain = HTuning(
            mixing=mix.mixing,
            scale=mix.scale,
            n_samples=mix.n_samples,
            n_first_order=mix.n_first_order,
            direction=self.method.direction,
        )
        if not (mix.grid and self.method.has_grid):
            return [plain]
        return [
            replace(plain, mixing=mixing, scale=scale)
            for mixing in mix.mixing_grid
            for scale in mix.scale_grid
        ]

    def cost(self, config: HTConfig) -> int:
        """Return the most units of progress that the job reports: its steps."""
        n = config.train.batch_size
        return n_steps(self.method, config, n) * len(self.candidates(config))

    def run(self, config: HTConfig, base: TwelveLeadBase, data: Cohort, *, report) -> "JobResult":
        """Do the work; `report` is called with the number of steps since the last call."""
        return run_job(self, config, base, data, report=report)

    def histories(self, facts: dict) -> dict[str, list[float]]:
        """Return name -> loss of each step, from the facts of its result."""
        return {self.name: facts["losses"]}


@dataclass(frozen=True, kw_only=True, eq=False)
class JobResult:
    """What a job leaves behind; the answers are for the records of the split, in order."""

    validation: np.ndarray
    """Probabilities, shape ``(n_validation, n_classes)``."""
    test: np.ndarray
    """Probabilities, shape ``(n_test, n_classes)``; of the chosen network alone."""
    facts: dict
    """Plain JSON: scores, steps, seconds, bytes, parameters, and the settings tried and chosen."""


def job_stamp(job: Job, config: HTConfig, *, facts: dict) -> str:
    """Return a checksum over everything that decides a job's result.

    `facts` are what the configuration doesn't know: data and base, commit, versions. Other seeds,
    methods and databases of the run aren't among it, so that a run with more of them takes up what
    is finished.
    """
    without = {"seeds", "methods", "databases", "splits", "n_resamples", "base", "pretrain"}
    decisive = {
        "config": config.decisive(without=without | job.unaffected_by),
        "device": config.device,
        "job": asdict(job),
        "facts": facts,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def run_job(
    job: Job, config: HTConfig, base: TwelveLeadBase, data: Cohort, *, report: Callable[[int], None]
) -> JobResult:
    """Fine-tune by `job`'s method, choose by the validation, look at the test once."""
    rows, sides = sides_of(job, data)
    trainer, facts = chosen(job, config, base, sides, report)
    n_classes = len(data.records.class_names)
    answers = {
        "validation": probabilities(trainer.network, sides["validation"][0], n_classes),
        "test": probabilities(trainer.network, data.records.signals[rows["test"]], n_classes),
    }
    facts["peak_bytes"] = _peak_bytes(trainer, sides["train"])
    return JobResult(**answers, facts=facts)


def sides_of(job: Job, data: Cohort) -> tuple[dict[str, np.ndarray], dict[str, tuple]]:
    """Return side -> rows, and side -> signals and labels of all sides but the test."""
    rows = job.split.rows(data.records.subject_ids)
    sides = {
        side: (data.records.signals[found], data.records.labels[found])
        for side, found in rows.items()
        if side != "test"
    }
    return rows, sides


def chosen(
    job: Job, config: HTConfig, base: TwelveLeadBase, sides: dict, report: Callable[[int], None]
) -> tuple[Trainer, dict]:
    """Fine-tune with every candidate; return the best by the validation, and the facts."""
    trials, best = [], None
    for settings in job.candidates(config):
        trainer, course = _trial(job, config, base, sides, settings, report)
        trials.append({**_settings(job, settings), "validation_map": course.best_score})
        if best is None or course.best_score > best[1].best_score:
            best = trainer, course, settings
    trainer, course, settings = best
    return trainer, {**_facts(course), "settings": _settings(job, settings), "trials": trials}


def run_in_worker(config: HTConfig, base_folder: Path, job: Job, report) -> JobResult:
    """Run a job with the base and the recordings that its process has open already."""
    base, data = _opened(config, base_folder, job.database)
    return job.run(config, base, data, report=report)


def forget_opened() -> None:
    """Open base and recordings again: an earlier run of this process may have had others there."""
    _opened_text.cache_clear()


def save_result(folder: Path, result: JobResult, *, stamp: str) -> None:
    """Publish a job's result as `folder`, whole or not at all."""
    answers = io.BytesIO()
    np.savez(answers, validation=result.validation, test=result.test)
    facts = json.dumps({"stamp": stamp, **result.facts}).encode()
    write_folder(folder, {"job.json": facts, "answers.npz": answers.getvalue()})


def load_result(folder: Path, *, stamp: str) -> JobResult | None:
    """Return a finished job's result, or None if there is no readable one with this `stamp`."""
    try:
        facts = json.loads((folder / "job.json").read_text())
        if facts.pop("stamp") != stamp:
            return None
        with np.load(folder / "answers.npz", allow_pickle=False) as answers:
            return JobResult(validation=answers["validation"], test=answers["test"], facts=facts)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # damaged: done again


def _trial(job: Job, config: HTConfig, base: TwelveLeadBase, sides: dict, settings, report):
    """Train once; return the trainer, whose network is at its best, and the course."""
    seed = job.stream_seed
    n_classes = sides["train"][1].shape[1]
    trainer = Trainer(
        base.new_network(n_classes=n_classes, seed=derive_seed(seed, "head")),
        job.method,
        config,
        settings=settings,
        n_records=len(sides["train"][1]),
        seed=seed,
    )
    course = fine_tune(
        trainer,
        sides["train"],
        sides["validation"],
        check_every=config.train.check_every,
        patience=config.train.patience,
        seed=seed,
        on_steps=report,
    )
    return trainer, course


def _settings(job: Job, settings: HTuning) -> dict:
    if job.method.gradient == "first-order":
        return {}
    if job.method.first_order_alone:
        settings = replace(settings, mixing=1.0)
    return asdict(settings)


def _facts(course: Course) -> dict:
    return {
        "losses": course.losses,
        "validation_map": {str(step): value for step, value in course.scores.items()},
        "best_step": course.best_step,
        "n_steps": len(course.losses),
        "step_seconds": course.step_seconds,
        "n_trained": course.n_trained,
        "n_per_step": course.n_per_step,
    }


def _peak_bytes(trainer: Trainer, train: tuple[np.ndarray, np.ndarray]) -> int:
    """Measure one more step: the network has answered and isn't needed any more."""
    import torch

    device = next(trainer.network.parameters()).device
    n = trainer.n_per_step
    x = torch.from_numpy(np.ascontiguousarray(train[0][:n])).to(device)
    y = torch.as_tensor(train[1][:n], dtype=torch.float32).to(device)
    return trainer.step_bytes(x, y)


@functools.lru_cache(maxsize=2)
def _opened_text(config_text: str, base_folder: Path, database: str):
    config = HTConfig.model_validate_json(config_text)
    base = load_twelve_lead_base(base_folder)
    return base, cohort(config, database, seen=base.training["subject_ids"])


def _opened(config: HTConfig, base_folder: Path, database: str):
    return _opened_text(config.model_dump_json(), base_folder, database)
