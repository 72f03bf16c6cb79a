"""The meta-learned bases: their budget, their curriculum, and going on after an interruption."""

from dataclasses import replace

import numpy as np

from metaecg.experiments.config import MetaConfig, VAConfig
from metaecg.seeding import numpy_generator, torch_generator

META_COST = 70
"""About how many supervised steps one meta-iteration takes: for progress and the order of jobs."""


def n_meta(config: VAConfig) -> int:
    """Return the iterations that see the rest of the budget of windows."""
    meta = config.meta
    per_task = _windows_per_task(meta, n_support=2 * config.n_shots, n_query=2 * meta.n_query)
    share = (1 - meta.warm_start) * config.budget_windows
    return max(5, round(share / (meta.meta_batch_size * per_task)))


def _windows_per_task(meta: MetaConfig, *, n_support: int, n_query: int) -> float:
    """Count a task's windows once per pass through the whole network that trains it."""
    if (
        meta.algorithm == "anil"
    ):  # the inner loop repeats the head alone, which costs next to nothing
        return n_support + n_query
    if meta.algorithm == "reptile":  # no split: the inner loop runs on both
        return (n_support + n_query) * meta.inner_steps
    query_passes = 1.0
    if meta.algorithm == "maml++":  # for a part of the training, after every inner step
        from metaecg.meta.algorithms import MULTI_STEP_SHARE

        query_passes += (meta.inner_steps - 1) * MULTI_STEP_SHARE
    return n_support * meta.inner_steps + n_query * query_passes


def meta_learn(
    kind,
    config,
    windows,
    fold,
    seed,
    on_step,
    *,
    warm_start,
    augment=None,
    checkpoint=None,
    resume=False,
    watch=None,
):
    """Return a meta-learned network and the curriculum that it saw, None for a plain one.

    Parameters
    ----------
    kind, config, windows, fold, seed, on_step
        As for every trainer of `metaecg.experiments.va_bases`.
    warm_start
        (share of the budget, on_step) -> network.
    augment
        A `metaecg.data.augment.Augmentation` of the training tasks, or None. The curriculum measures
        how hard a subject is, and batch norm its running statistics, on the windows as they are.
    checkpoint
        A `metaecg.meta.training_state.Checkpoint`, or None.
    resume
        Go on from the checkpoint, if there is one: the warm start is not repeated, and `on_step` is
        told at once what has been before.
    watch
        None, or called after every iteration with the share of the budget that is spent and the
        network as it is.
    """
    from metaecg.meta.algorithms import Algorithm
    from metaecg.meta.engine import build_engine
    from metaecg.meta.loop import meta_train

    meta, course = config.meta, []
    start = checkpoint.load() if checkpoint and resume else None
    if start:
        network = warm_start(0.0, None)  # its weights come from the checkpoint
        _retell(start, on_step)
    else:

        def record(step, values):
            course.append(values)
            on_step(step, values)

        network = warm_start(meta.warm_start, record)
    sampler = _make_sampler(config, windows, fold)
    algorithm = Algorithm(
        name=meta.algorithm,
        inner_lr=meta.inner_lr,
        inner_steps=meta.inner_steps,
        first_order=meta.first_order,
    )
    curriculum = _make_curriculum(
        kind, config, network, sampler, fold, seed, is_restored=bool(start)
    )
    notes = start.notes if start else {"warm_start": course}

    def told(step, values):
        on_step(step, values, META_COST)
        if watch:
            watch(meta.warm_start + (1 - meta.warm_start) * (step + 1) / n_meta(config), network)

    meta_train(
        network,
        engine=build_engine(meta.engine, network, algorithm, task_chunk=meta.task_chunk),
        sampler=sampler,
        curriculum=curriculum,
        n_iterations=n_meta(config),
        outer_lr=meta.outer_lr,
        rng=numpy_generator(seed, fold, "meta", "tasks"),
        generator=torch_generator(seed, fold, "meta", "dropout"),
        augment=augment,
        augment_generator=torch_generator(seed, fold, "meta", "augment"),
        checkpoint=replace(checkpoint, notes=notes) if checkpoint else None,
        start=start,
        on_step=told,
    )
    _refresh_batch_norm(network, sampler, fold, seed)
    return network, curriculum.to_dict() if kind == "maml+curriculum" else None


def _refresh_batch_norm(network, sampler, fold: str, seed: int) -> None:
    """Give batch norm the running statistics of one task of each training subject."""
    import torch

    from metaecg.meta.batch_norm import gather_running_statistics

    rng = numpy_generator(seed, fold, "meta", "batch norm")
    tasks = (sampler.draw(subject, rng=rng) for subject in sampler.subject_ids)
    sides = ([task.support.windows, task.query.windows] for task in tasks)
    gather_running_statistics(network, (torch.from_numpy(np.concatenate(pair)) for pair in sides))


def _retell(start, on_step) -> None:
    for step, values in enumerate(start.notes["warm_start"]):
        on_step(step, values)
    for step, values in enumerate(start.history):
        on_step(step, values, META_COST)


def _make_sampler(config: VAConfig, windows, fold: str):
    from metaecg.errors import DataError
    from metaecg.tasks.sampler import TaskSampler

    sampler = TaskSampler(
        windows,
        n_shots=config.n_shots,
        n_query=config.meta.n_query,
        chronological=config.meta.chronological,
        overlap_allowed=config.protocol == "as_published",
    )
    if len(sampler.subject_ids) < 2:
        reasons = "; ".join(list(sampler.ineligible.values())[:2])
        raise DataError(
            f"{fold}: {len(sampler.subject_ids)} training subjects have enough windows of both "
            f"classes for a task; meta-learning needs at least 2 ({reasons}). Add subjects, lower "
            "n_shots, or leave the maml methods out."
        )
    return sampler


class RecordedCurriculum:
    """A curriculum that remembers which subjects it drew, for the report."""

    def __init__(self, curriculum, title: str) -> None:
        self._curriculum = curriculum
        self._difficulty = [float(d) for d in curriculum.difficulty]
        self._title = title
        self._draws: list[list[int]] = []

    def draw(self, iteration: int) -> list[str]:
        """Draw as the curriculum does, and remember."""
        subjects = self._curriculum.draw(iteration)
        self._draws.append([self._curriculum.subject_ids.index(s) for s in subjects])
        return subjects

    def observe(self, subject_ids, losses) -> None:
        """Hand the losses on."""
        self._curriculum.observe(subject_ids, losses)

    def state(self) -> dict:
        """Return the curriculum's state and what is remembered, as JSON values."""
        return {
            "curriculum": self._curriculum.state(),
            "difficulty": self._difficulty,
            "draws": list(self._draws),
        }

    def restore(self, state: dict) -> None:
        """Go back to a `state`."""
        self._curriculum.restore(state["curriculum"])
        self._difficulty, self._draws = state["difficulty"], list(state["draws"])

    def to_dict(self) -> dict:
        """Return what the report plots."""
        return {
            "subjects": list(self._curriculum.subject_ids),
            "difficulty": self._difficulty,
            "draws": self._draws,
            "title": self._title,
        }


def _make_curriculum(
    kind, config, network, sampler, fold: str, seed: int, *, is_restored: bool
) -> RecordedCurriculum:
    from metaecg.tasks.curriculum import Curriculum

    settings, uniform = config.curriculum, kind != "maml+curriculum"
    curriculum = Curriculum(
        sampler.subject_ids,
        pacing="none" if uniform else settings.pacing,
        difficulty=_difficulty(config, network, sampler, is_known=uniform or is_restored),
        n_iterations=n_meta(config),
        meta_batch_size=config.meta.meta_batch_size,
        rng=numpy_generator(seed, fold, "meta", "curriculum"),
    )
    return RecordedCurriculum(
        curriculum, f"{settings.pacing} pacing by {settings.difficulty}, {fold}, seed {seed}"
    )


def _difficulty(config, network, sampler, *, is_known: bool):
    """Measure how hard the training subjects are; the test side is not at hand here.

    If it `is_known`, because nothing asks for it or a checkpoint holds it, it is zero for all.
    """
    from torch import from_numpy
    from torch.nn.functional import cross_entropy

    from metaecg.models.inference import network_logits
    from metaecg.tasks.curriculum import RunningLoss, measure_difficulty

    if is_known:
        zeros = np.zeros(len(sampler.subject_ids))
        return RunningLoss(zeros) if config.curriculum.difficulty == "running-loss" else zeros

    def windows_of(subject_id: str) -> tuple[np.ndarray, np.ndarray]:
        mine = sampler.windows.of_subject(subject_id)
        return mine.windows, mine.labels

    def loss_of(subject_id: str) -> float:
        windows, labels = windows_of(subject_id)
        logits = network_logits(network, windows, n_classes=len(sampler.windows.classes))
        # Both classes weigh the same: else the share of VA would decide what counts as hard.
        weight = 1.0 / np.bincount(labels, minlength=len(sampler.windows.classes))
        return cross_entropy(from_numpy(logits), from_numpy(labels), from_numpy(weight)).item()

    return measure_difficulty(
        config.curriculum.difficulty,
        sampler.subject_ids,
        loss_of=loss_of,
        windows_of=windows_of,
        fs_hz=sampler.windows.fs_hz,
    )
