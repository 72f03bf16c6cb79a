"""Distillation in `h_tuning`: a fine-tuned teacher, and small students of it for 12, 3 and 1 leads.

One job per database, split and seed. The teacher is fine-tuned as the method of its name is; every
student learns on the same training side, once from labels and teacher and once from the labels
alone, stops by the validation and is cut down to its leads before it looks at the test.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from metaecg.adapt.distill import REDUCED_LEADS, distill
from metaecg.adapt.methods import merged
from metaecg.evaluate.memory import peak_memory
from metaecg.experiments.ht_base import TwelveLeadBase, random_network
from metaecg.experiments.ht_config import HTConfig
from metaecg.experiments.ht_data import Cohort
from metaecg.experiments.ht_jobs import Job, JobResult, chosen, sides_of
from metaecg.experiments.ht_methods import METHODS
from metaecg.experiments.ht_training import probabilities
from metaecg.models.backbones.cnn_transformer import slim_leads
from metaecg.seeding import derive_seed, numpy_generator, torch_generator

DISTILLATION = "distillation"
"""What stands in a job's name in place of a method."""

TEACHER = "teacher"
LABELS_ONLY = "-labels-only"
"""End of the name of a student that learned without its teacher: the control."""

ANSWERS_TIMED = 20

Report = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class DistillationJob(Job):
    """A teacher, by `method`, and its students.

    The arrays of its result have one axis more, the networks first, in the order of
    ``facts["networks"]``.
    """

    unaffected_by: ClassVar[frozenset[str]] = frozenset()

    def cost(self, config: HTConfig) -> int:
        """Return the most steps that teacher and students take."""
        return super().cost(config) + 2 * len(config.distill.leads) * config.distill.n_steps

    def run(
        self, config: HTConfig, base: TwelveLeadBase, data: Cohort, *, report: Report
    ) -> JobResult:
        """Train all of them; look at the test once per network, after that."""
        rows, sides = sides_of(self, data)
        trainer, facts = chosen(self, config, base, sides, report)
        teacher = merged(trainer.network).eval()
        entries = {TEACHER: (teacher, REDUCED_LEADS[12], {**facts, "size": base.size})}
        for n_leads in config.distill.leads:
            for name, teaching in (("", teacher), (LABELS_ONLY, None)):
                student = _student(self, config, base, teaching, n_leads, sides, report)
                entries[f"student-{n_leads}{name}"] = student
        answers = {
            side: np.stack(
                [
                    probabilities(
                        network, _of_leads(data, rows[side], leads), len(data.records.class_names)
                    )
                    for network, leads, _ in entries.values()
                ]
            )
            for side in ("validation", "test")
        }
        window = data.records.signals[rows["validation"][:1]]
        networks = {
            name: {**found, "n_leads": len(leads), **_costs(network, window[:, list(leads)])}
            for name, (network, leads, found) in entries.items()
        }
        return JobResult(**answers, facts={"networks": networks})

    def histories(self, facts: dict) -> dict[str, list[float]]:
        """Return name -> loss of each step, for teacher and students."""
        return {f"{self.name}--{n}": found["losses"] for n, found in facts["networks"].items()}


def distillation_job(job: Job, config: HTConfig) -> DistillationJob:
    """Return the distillation on the split and seed of `job`."""
    return DistillationJob(
        database=job.database,
        split_kind=job.split_kind,
        split=job.split,
        seed=job.seed,
        name_of_method=DISTILLATION,
        method=METHODS[config.distill.teacher],
    )


def networks_of(job: Job, result: JobResult) -> list[tuple[Job, JobResult]]:
    """Return teacher and students as if each had a job of its own, named by ``name_of_method``."""
    return [
        (
            replace(job, name_of_method=name),
            JobResult(validation=result.validation[i], test=result.test[i], facts=facts),
        )
        for i, (name, facts) in enumerate(result.facts["networks"].items())
    ]


def describe(name: str, facts: dict) -> str:
    """Say in a sentence what a network of the distillation is."""
    if name == TEACHER:
        return f"The network that teaches, {facts['size']}, fine-tuned and merged."
    taught = "the labels alone" if name.endswith(LABELS_ONLY) else "labels and teacher"
    return (
        f"A {facts['size']} network cut down to {facts['n_leads']} lead(s), trained on {taught} "
        f"from {facts['start']}."
    )


def _student(
    job: Job,
    config: HTConfig,
    base: TwelveLeadBase,
    teacher: nn.Module | None,
    n_leads: int,
    sides: dict,
    report: Report,
) -> tuple[nn.Module, tuple[int, ...], dict]:
    """Train one student; return it cut down to its leads, their places, and the facts.

    With and without a teacher the first weights, batches and boxes are the same.
    """
    settings, seed, leads = config.distill, job.stream_seed, REDUCED_LEADS[n_leads]
    student, start = _untrained(base, settings.student, sides["train"][1].shape[1], seed)
    found = distill(
        student.to(config.device),
        teacher,
        *sides["train"],
        n_steps=settings.n_steps,
        rng=numpy_generator(seed, DISTILLATION),
        validation=sides["validation"],
        leads=leads,
        batch_size=config.train.batch_size,
        lr=settings.lr,
        check_every=settings.check_every,
        patience=settings.patience,
        on_step=lambda step, values: report(1),
    )
    facts = {
        "size": settings.student,
        "start": start,
        "losses": found.losses,
        "validation_map": {str(step): value for step, value in found.scores.items()},
        "best_step": found.best_step,
        "n_steps": len(found.losses),
    }
    return slim_leads(student, leads).eval(), leads, facts


def _untrained(base: TwelveLeadBase, size: str, n_classes: int, seed: int) -> tuple[nn.Module, str]:
    """Return a student before its training, and where its weights come from."""
    if size == base.size:
        return base.new_network(n_classes=n_classes, seed=derive_seed(seed, "head")), "the base"
    generator = torch_generator(seed, "student")
    return random_network(size, base.input, n_classes, generator), "random weights"


def _of_leads(data: Cohort, rows: np.ndarray, leads: tuple[int, ...]) -> np.ndarray:
    return data.records.signals[rows][:, list(leads)]


def _costs(network: nn.Module, window: np.ndarray) -> dict:
    """Return parameters, and what the answer to one recording costs on the CPU: a wearable's."""
    network, x = copy.deepcopy(network).cpu(), torch.from_numpy(window)
    seconds = []
    with torch.inference_mode():
        peak = peak_memory(lambda: network(x), network, x)
        for _ in range(ANSWERS_TIMED):
            begin = time.perf_counter()
            network(x)
            seconds.append(time.perf_counter() - begin)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "answer_bytes": peak,
        "answer_seconds": float(np.median(seconds)),
    }
