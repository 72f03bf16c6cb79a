"""Meta-training: one readable loop."""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from metaecg.data.augment import Augmentation, require_generator
from metaecg.errors import AdaptationError
from metaecg.meta.algorithms import Algorithm, split_rates
from metaecg.meta.engine import Engine, MetaBatch, MetaStep, stack_tasks
from metaecg.meta.training_state import (
    Checkpoint,
    Keeper,
    TrainingState,
    pack,
    refuse_other,
    unpack,
)
from metaecg.tasks.sampler import TaskSampler

OnStep = Callable[[int, dict[str, float]], None]


class Subjects(Protocol):
    """What the loop asks of a curriculum; `metaecg.tasks.curriculum.Curriculum` is one.

    A checkpoint needs its ``state()`` and ``restore(state)`` too.
    """

    def draw(self, iteration: int) -> list[str]:
        """Return the subjects of a meta-batch."""
        ...

    def observe(self, subject_ids: list[str], losses: list[float]) -> None:
        """Take in their losses."""
        ...


@dataclass(frozen=True, kw_only=True)
class MetaTraining:
    """What a meta-training found, beside the weights of the network."""

    rates: dict[str, Tensor]
    """Learned inner rates by the name of their weight; empty where the algorithm learns none."""
    history: list[dict[str, float]] = field(repr=False)
    """What `on_step` was told, iteration by iteration, before an interruption too."""


def meta_train(
    network: nn.Module,
    *,
    engine: Engine,
    sampler: TaskSampler,
    curriculum: Subjects,
    n_iterations: int,
    outer_lr: float,
    weight_decay: float = 1e-4,
    clip_norm: float = 5.0,
    rng: np.random.Generator,
    generator: torch.Generator | None = None,
    augment: Augmentation | None = None,
    augment_generator: torch.Generator | None = None,
    checkpoint: Checkpoint | None = None,
    start: TrainingState | None = None,
    on_step: OnStep | None = None,
) -> MetaTraining:
    """Move the weights of `network` to where a few steps on a new subject's support go far.

    Parameters
    ----------
    network
        Changed in place; a frozen weight stays where it is.
    engine
        Adapts the tasks and gives the meta-gradients. Its algorithm says what each iteration does
        and whether inner rates are learned.
    sampler, curriculum
        Which windows a subject's task holds; which subjects make the next meta-batch.
    n_iterations, outer_lr, weight_decay, clip_norm
        AdamW with a cosine schedule down to zero; gradients are clipped to this total norm. Inner
        rates are learned in the same way, without weight decay: zero is no better guess for them.
    rng
        Draws the windows of the tasks.
    generator
        Source of dropout; required where a dropout layer is active.
    augment
        Changes the windows of every task, as another patient's: one rate, gain and polarity for its
        support and query together, baseline and noise for each window. None: they stay as they are.
    augment_generator
        Draws the changes; required with `augment`.
    checkpoint
        Where to write the state now and then, at the end, and when anything stops the training:
        Ctrl-C, an error, a loss that isn't finite. None: nowhere.
    start
        A state to go on from, as ``checkpoint.load()`` gave it: everything else as in the call that
        was interrupted. The result is that of a training without interruption, bit for bit (the
        same machine and versions provided). `network`, `curriculum`, `rng` and the generators are
        put into the state. None: from the beginning.
    on_step
        Called after each iteration with its number and ``{"loss": ..., "outer_lr": ...}``, and
        ``inner_lr_min`` and ``inner_lr_max`` where rates are learned.

    Raises
    ------
    AdaptationError
        The loss of a task is not finite; the message names the iteration, the subject and the inner
        step, and the weights are those of the iteration before. Likewise, without a subject, for
        the gradient.
    CheckpointError
        `start` is the state of another training; the message says what differs.
    DataError
        The checkpoint can't be written.
    ValueError
        `augment` has no generator.
    """
    require_generator(augment, augment_generator)
    named = {"generator": generator, "augment_generator": augment_generator if augment else None}
    generators = {name: found for name, found in named.items() if found is not None}
    learner = _Learner(network, engine.algorithm, weight_decay=weight_decay, clip_norm=clip_norm)
    history: list[dict[str, float]] = []
    settings = {}
    if checkpoint or start:
        settings = {"n_iterations": n_iterations, "outer_lr": outer_lr, "clip_norm": clip_norm}
        settings |= {"weight_decay": weight_decay, **_facts(learner, engine, sampler, rng)}
        settings |= {"augment": asdict(augment)} if augment else {}
    if start:
        refuse_other(start.settings, settings, where="the state to go on from")
        unpack(start.tensors, network, learner.rates, learner.optimizer, generators)
        curriculum.restore(start.curriculum)
        rng.bit_generator.state = start.random
        history += start.history

    def state() -> TrainingState:
        return TrainingState(
            n_done=len(history),
            tensors=pack(network, learner.rates, learner.optimizer, generators),
            random=rng.bit_generator.state,
            curriculum=curriculum.state(),
            history=list(history),
            settings=settings,
        )

    network.train()
    with Keeper(checkpoint, state, is_written=start is not None) as keeper:
        for iteration in range(len(history), n_iterations):
            lr = outer_lr * (1 + math.cos(math.pi * iteration / n_iterations)) / 2
            subjects = curriculum.draw(iteration)
            batch = stack_tasks([sampler.draw(subject, rng=rng) for subject in subjects])
            if augment:
                batch = _augmented(batch, augment, sampler.windows.fs_hz, augment_generator)
            plan = engine.algorithm.plan(iteration, n_iterations=n_iterations)
            step = engine.meta_gradients(learner.values(), batch, plan=plan, generator=generator)
            problem = _bad_loss(step, batch) or learner.move(step.gradients, lr=lr)
            if problem:
                raise AdaptationError(
                    f"meta-training, iteration {iteration}: {problem}{keeper.advice()}"
                )
            curriculum.observe(subjects, step.losses.tolist())
            history.append(_told(step, lr, learner.rates))
            keeper.hold()
            if on_step:
                on_step(iteration, history[-1])
    learner.optimizer.zero_grad(set_to_none=True)
    network.eval()
    return MetaTraining(rates=split_rates(learner.rates)[1], history=history)


class _Learner:
    """Weights and inner rates, and AdamW that moves them."""

    def __init__(
        self, network: nn.Module, algorithm: Algorithm, *, weight_decay: float, clip_norm: float
    ) -> None:
        weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.rates = algorithm.initial_rates(weights)
        self.parameters = {**weights, **self.rates}
        self.clip_norm = clip_norm
        groups = [{"params": list(weights.values()), "weight_decay": weight_decay}]
        if self.rates:
            groups.append({"params": list(self.rates.values()), "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups)

    def values(self) -> dict[str, Tensor]:
        """Return the meta-parameters, outside of any graph."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def move(self, gradients: Mapping[str, Tensor], *, lr: float) -> str:
        """Take a step; return what is wrong, empty if nothing."""
        for name, p in self.parameters.items():
            p.grad = gradients[name]
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
        if not torch.isfinite(norm):
            return (
                f"the losses are finite, but the norm of the meta-gradient is {norm.item()}. The "
                "weights are those before this iteration; lower meta.inner_lr or use the first-order "
                "gradient."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return ""


def _augmented(
    batch: MetaBatch, augment: Augmentation, fs_hz: float, generator: torch.Generator
) -> MetaBatch:
    """Return the tasks as those of other patients, a new one for each task."""
    n_tasks, n_support = batch.support_y.shape
    windows = torch.cat([batch.support_x, batch.query_x], dim=1)  # (T, n, n_leads, n_samples)
    patients = torch.arange(n_tasks).repeat_interleave(windows.shape[1])
    changed = augment(windows.flatten(0, 1), fs_hz=fs_hz, generator=generator, patients=patients)
    support_x, query_x = changed.view_as(windows).tensor_split([n_support], dim=1)
    return replace(batch, support_x=support_x.contiguous(), query_x=query_x.contiguous())


def _told(step: MetaStep, outer_lr: float, rates: Mapping[str, Tensor]) -> dict[str, float]:
    values = {"loss": step.losses.mean().item(), "outer_lr": outer_lr}
    if rates:
        values["inner_lr_min"] = min(rate.min().item() for rate in rates.values())
        values["inner_lr_max"] = max(rate.max().item() for rate in rates.values())
    return values


def _bad_loss(step: MetaStep, batch: MetaBatch) -> str:
    """Say which loss, the first in the order of the inner loop, is not finite; empty if all are."""
    losses = torch.cat([step.support_losses, step.losses[None]])  # (inner_steps + 1, T)
    bad = (~torch.isfinite(losses)).nonzero()
    if not len(bad):
        return ""
    at, task = bad[0].tolist()
    n_steps = len(step.support_losses)
    where = f"at inner step {at + 1} of {n_steps}, on the support,"
    if at == n_steps:
        where = f"after {n_steps} inner steps, on the query,"
    return (
        f"the loss of subject {batch.subject_ids[task]!r} {where} is {losses[at, task].item()}. The "
        "weights are those before this iteration; lower meta.inner_lr or meta.outer_lr."
    )


def _facts(
    learner: _Learner, engine: Engine, sampler: TaskSampler, rng: np.random.Generator
) -> dict:
    """Return, as JSON values, what must be the same for a training to go on."""
    windows = sampler.windows
    checksum = 0
    for part in (windows.windows, windows.labels, windows.time_s):
        checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
    return {
        "algorithm": asdict(engine.algorithm),
        "engine": type(engine).__name__,
        "parameters": {n: f"{list(p.shape)} {p.dtype}" for n, p in learner.parameters.items()},
        "sampler": {
            "n_shots": sampler.n_shots,
            "n_query": sampler.n_query,
            "chronological": sampler.chronological,
            "overlap_allowed": sampler.overlap_allowed,
            "subject_ids": list(sampler.subject_ids),
            "windows": checksum,
        },
        "rng": type(rng.bit_generator).__name__,
    }
