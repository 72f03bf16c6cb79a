"""Meta-training: one readable loop."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from metaecg.errors import AdaptationError
from metaecg.meta.engine import Engine, MetaBatch, stack_tasks
from metaecg.tasks.curriculum import Curriculum
from metaecg.tasks.sampler import TaskSampler

OnStep = Callable[[int, dict[str, float]], None]


def meta_train(
    network: nn.Module,
    *,
    engine: Engine,
    sampler: TaskSampler,
    curriculum: Curriculum,
    n_iterations: int,
    outer_lr: float,
    weight_decay: float = 1e-4,
    clip_norm: float = 5.0,
    rng: np.random.Generator,
    on_step: OnStep | None = None,
) -> None:
    """Move the weights of `network` to where a few steps on a new subject's support go far.

    Parameters
    ----------
    network
        Changed in place.
    engine
        Adapts the tasks and gives the meta-gradients.
    sampler, curriculum
        Which windows a subject's task holds; which subjects make the next meta-batch.
    n_iterations, outer_lr, weight_decay, clip_norm
        AdamW with a cosine schedule down to zero; gradients are clipped to this total norm.
    rng
        Draws the windows of the tasks.
    on_step
        Called with the iteration and ``{"loss": ..., "outer_lr": ...}``.

    Raises
    ------
    AdaptationError
        The loss of a task is not finite; the message names the iteration and the subject, and the
        weights are those of the iteration before. Likewise, without a subject, for the gradient.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=outer_lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_iterations)
    network.train()
    for iteration in range(n_iterations):
        subjects = curriculum.draw(iteration)
        batch = stack_tasks([sampler.draw(subject, rng=rng) for subject in subjects])
        values = {name: p.detach() for name, p in parameters.items()}
        step = engine.meta_gradients(values, batch)
        losses, gradients = step.losses, step.gradients
        check_finite(losses, batch, iteration)
        for name, p in parameters.items():
            p.grad = gradients[name]
        norm = nn.utils.clip_grad_norm_(parameters.values(), clip_norm)
        _check_gradient(norm, iteration)
        optimizer.step()
        curriculum.observe(subjects, losses.tolist())
        if on_step:
            on_step(
                iteration, {"loss": losses.mean().item(), "outer_lr": schedule.get_last_lr()[0]}
            )
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    network.eval()


def check_finite(losses: torch.Tensor, batch: MetaBatch, iteration: int) -> None:
    """Raise AdaptationError if a task's loss is not finite."""
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if bad:
        raise AdaptationError(
            f"meta-training, iteration {iteration}: the loss of subject "
            f"{batch.subject_ids[bad[0]]!r} is {losses[bad[0]].item()}. The weights are those before "
            "this iteration; lower meta.inner_lr or meta.outer_lr."
        )


def _check_gradient(norm: torch.Tensor, iteration: int) -> None:
    if not torch.isfinite(norm):
        raise AdaptationError(
            f"meta-training, iteration {iteration}: the losses are finite, but the norm of the "
            f"meta-gradient is {norm.item()}. The weights are those before this iteration; lower "
            "meta.inner_lr or use the first-order gradient."
        )
