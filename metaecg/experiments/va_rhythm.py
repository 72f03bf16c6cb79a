"""Fit a base's rhythm model: how far the logits of a patient's detector are to be believed in time.

What a base says of subjects that it was trained on tells nothing of that. So the training subjects
are dealt into parts; for each part a base of the same kind is trained on the others, personalized to
its eligible subjects as `deploy` would, and the rhythm model is fitted to what those detectors say
of the windows after the support. Held-out subjects have no part in it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from metaecg.data.datasets import Dataset
from metaecg.data.splits import Split, make_folds
from metaecg.errors import NotEnoughWindowsError
from metaecg.evaluate.protocol import held_out_task
from metaecg.experiments.config import VAConfig
from metaecg.experiments.va_bases import train_base
from metaecg.experiments.va_methods import METHODS
from metaecg.experiments.va_personal import fitted
from metaecg.models.checkpoints import BaseModel
from metaecg.models.inference import network_logits
from metaecg.models.rhythm_fit import RhythmSequence, fit_rhythm
from metaecg.seeding import numpy_generator
from metaecg.tasks.sampler import Task

ADAPTED = METHODS["ensemble+full"]
"""How a patient's detector is made whose logits the rhythm model is fitted to."""
N_PARTS = 2
BUDGET_SHARE = 0.5
"""Of the windows that the base itself sees: its stand-ins see as many of each subject's."""


def with_rhythm(
    base: BaseModel,
    kind: str,
    config: VAConfig,
    dataset: Dataset,
    split: Split,
    *,
    seed: int,
    on_cost: Callable[[int], None] = lambda n_units: None,
) -> BaseModel:
    """Return `base` with a rhythm model that was fitted on the training side of `split` alone.

    Raises
    ------
    DataError
        Too few training subjects are eligible.
    """
    tasks = _tasks(config, dataset, split.train)
    sequences, share = [], round(BUDGET_SHARE * config.budget_windows)
    short = config.model_copy(update={"budget_windows": max(64, share)})
    for part in _parts(dataset, split, eligible=set(tasks), seed=seed):
        stand_in = train_base(kind, short, dataset, part, seed=seed, on_cost=on_cost).model
        held_out = [subject_id for subject_id in part.test if subject_id in tasks]
        sequences += [_sequence(stand_in, tasks[s], config, seed) for s in held_out]
    rhythm = fit_rhythm(sequences, step_s=dataset.windows.window_s)
    training = {**base.training, "rhythm_subject_ids": sorted(tasks)}
    return replace(base, rhythm=rhythm, training=training)


def _tasks(config: VAConfig, dataset: Dataset, subject_ids) -> dict[str, Task]:
    """Return the tasks of those who could be evaluated if they were held out."""
    found = {}
    for subject_id in subject_ids:
        windows = dataset.of_subject(subject_id)
        try:
            found[subject_id] = held_out_task(windows, protocol="deploy", n_shots=config.n_shots)
        except NotEnoughWindowsError:
            continue
    return found


def _parts(dataset: Dataset, split: Split, *, eligible: set[str], seed: int) -> list[Split]:
    database = {record.subject_id: record.database for record in dataset.records}
    strata = {s: f"{database[s]}, {s in eligible}" for s in split.train}
    rng = numpy_generator(seed, split.name, "rhythm", "parts")
    folds = make_folds(strata, n_folds=N_PARTS, rng=rng)
    return [replace(fold, name=f"{split.name}--rhythm-{i}") for i, fold in enumerate(folds)]


def _sequence(base: BaseModel, task: Task, config: VAConfig, seed: int) -> RhythmSequence:
    """Personalize as the methods with context do; return support and test part as one sequence."""
    personal = fitted(base, ADAPTED, task.support, config, seed=seed)
    support, query = task.support, task.query
    normalised = base.preprocessing.normalize_windows(
        np.concatenate([support.windows, query.windows])
    )
    logits = network_logits(personal.network_, normalised, n_classes=len(base.classes))
    is_scored = np.arange(len(logits)) >= len(support)
    return RhythmSequence(
        logits=np.diff(logits, axis=1)[:, 0],
        labels=np.concatenate([support.labels, query.labels]),
        start_s=np.concatenate([support.time_s, query.time_s]),
        record_ids=np.concatenate([support.record_ids, query.record_ids]),
        is_support=~is_scored,
        is_scored=is_scored,
    )
