"""The protocol that meta-learning engines share: tasks in, losses and meta-gradients out.

A meta-batch holds T tasks of equal size, one of a subject each. An engine adapts every task on its
support and differentiates the loss on its query with respect to the shared starting point.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from metaecg.checks import check_option
from metaecg.meta.algorithms import Algorithm, StepPlan
from metaecg.seeding import borrowed_torch_stream
from metaecg.tasks.sampler import Task

Parameters = Mapping[str, Tensor]
"""Weights of the network by name, and learned inner rates (`metaecg.meta.algorithms`)."""

ENGINES = ("func", "learn2learn")


@dataclass(frozen=True, kw_only=True)
class MetaBatch:
    """Tasks of equal size, stacked: windows (T, n, n_leads, n_samples), labels (T, n)."""

    subject_ids: tuple[str, ...]
    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __len__(self) -> int:
        return len(self.subject_ids)

    def chunks(self, size: int | None) -> "Iterator[MetaBatch]":
        """Yield the tasks in order, at most `size` at a time; None: all at once."""
        size = size or len(self)
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield MetaBatch(
                subject_ids=self.subject_ids[part],
                support_x=self.support_x[part],
                support_y=self.support_y[part],
                query_x=self.query_x[part],
                query_y=self.query_y[part],
            )


@dataclass(frozen=True, kw_only=True)
class MetaStep:
    """What one meta-step found out."""

    losses: Tensor
    """Query loss of each task after the whole inner loop, shape (T,)."""
    support_losses: Tensor
    """Support loss of each task before each inner step, shape (inner_steps, T)."""
    gradients: dict[str, Tensor]
    """Mean meta-gradient over the tasks, by the name of the meta-parameter."""


class Engine(Protocol):
    """What the training loop asks of an engine."""

    algorithm: Algorithm

    def meta_gradients(
        self,
        parameters: Parameters,
        batch: MetaBatch,
        *,
        plan: StepPlan | None = None,
        generator: torch.Generator | None = None,
    ) -> MetaStep:
        """Adapt every task from `parameters`, which stay as they are, and differentiate.

        Parameters
        ----------
        parameters
            Network weights to learn and, where the algorithm learns them, inner rates.
        plan
            Defaults to the algorithm's last plan.
        generator
            Source of dropout; required where a dropout layer is active.
        """
        ...


def build_engine(
    name: str, network: nn.Module, algorithm: Algorithm, *, task_chunk: int | None = None
) -> Engine:
    """Return the engine `name` (one of `ENGINES`) for `network`.

    Raises
    ------
    AdaptationError
        The engine can't run this network or algorithm; the message says which one can.
    MissingDependencyError
        learn2learn is not installed; the message has the line to type.
    """
    if check_option("meta.engine", name, ENGINES) == "learn2learn":
        from metaecg.meta.learn2learn_engine import Learn2LearnEngine

        return Learn2LearnEngine(network, algorithm, task_chunk=task_chunk)
    from metaecg.meta.func_engine import FuncEngine

    return FuncEngine(network, algorithm, task_chunk=task_chunk)


def stack_tasks(tasks: Sequence[Task]) -> MetaBatch:
    """Stack tasks of equal size into tensors."""

    def column(side: str, name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(getattr(task, side), name) for task in tasks]))

    return MetaBatch(
        subject_ids=tuple(task.subject_id for task in tasks),
        support_x=column("support", "windows"),
        support_y=column("support", "labels"),
        query_x=column("query", "windows"),
        query_y=column("query", "labels"),
    )


@contextmanager
def explicit_randomness(network: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Let the network's dropout draw from `generator`, leaving the global random state as it was.

    Raises
    ------
    ValueError
        A dropout layer is active and there is no generator.
    """
    name = _active_dropout(network)
    if name is None:
        yield
        return
    if generator is None:
        raise ValueError(
            f"layer {name!r} drops values at random, and generator is None; pass a "
            "torch.Generator, so that the same seed gives the same result."
        )
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with borrowed_torch_stream(int(seed), device=next(network.parameters()).device):
        yield


def _active_dropout(network: nn.Module) -> str | None:
    for name, module in network.named_modules():
        if module.training and _dropout_rate(module):
            return name
    return None


def _dropout_rate(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    return module.dropout if isinstance(module, nn.RNNBase | nn.MultiheadAttention) else 0.0
