"""The inner loop of many subjects at once, and the protocol that engines share.

A meta-batch holds T tasks of equal size. The `func` engine adapts all of them together: every task
has its own copy of the weights, stacked along a first dimension and carried by `torch.func.vmap`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from metaecg.checks import check_positive
from metaecg.errors import AdaptationError
from metaecg.tasks.sampler import Task

Parameters = Mapping[str, Tensor]


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


class Engine(Protocol):
    """What the training loop asks of an engine."""

    def meta_gradients(
        self, parameters: Parameters, batch: MetaBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the query loss of each task after adaptation, shape (T,), and the gradient of
        their mean with respect to `parameters`."""
        ...


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


class FuncEngine:
    """MAML with `torch.func`: the tasks of a meta-batch are adapted together.

    Parameters
    ----------
    network
        Any network without batch statistics in training (batch norm couples the windows of a task
        and would keep running statistics per task; group norm is the usual replacement) and without
        a recurrent cell, which `torch.func.vmap` can't stack.
    inner_lr, inner_steps
        Plain gradient descent on the support; no step at all gives joint training on the queries.
    first_order
        Drop the second derivatives (FOMAML).
    task_chunk
        At most so many tasks at once; the gradients are the same, the peak memory is lower.
    loss
        From the network's output and the labels of one task to a number, for inner and outer loop.

    Raises
    ------
    AdaptationError
        The network holds batch norm, or says itself (`supports_vmap`) that it can't be stacked.
    ValueError
        `inner_lr` or `task_chunk` is not above zero, or `inner_steps` is negative.

    References
    ----------
    .. [1] C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
       Networks", ICML 2017, algorithm 1 and section 5.2 (first-order approximation).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        inner_lr: float,
        inner_steps: int,
        first_order: bool = False,
        task_chunk: int | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        _refuse_what_cannot_be_stacked(network)
        if inner_steps < 0:
            raise ValueError(f"inner_steps is {inner_steps}; 0 or more was expected.")
        if task_chunk is not None:
            check_positive("task_chunk", task_chunk)
        self.network = network
        self.inner_lr = check_positive("inner_lr", inner_lr)
        self.inner_steps = inner_steps
        self.first_order = first_order
        self.task_chunk = task_chunk
        self.loss = loss

    def meta_gradients(
        self, parameters: Parameters, batch: MetaBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the query loss of each task, shape (T,), and the gradient of their mean."""
        chunk = self.task_chunk or len(batch)
        losses, total = [], None
        for start in range(0, len(batch), chunk):
            part = [
                column[start : start + chunk]
                for column in (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
            ]
            gradients, part_losses = grad(self._sum_of_losses, has_aux=True)(
                dict(parameters), *part
            )
            losses.append(part_losses)
            total = gradients if total is None else {k: total[k] + g for k, g in gradients.items()}
        return torch.cat(losses), {name: g / len(batch) for name, g in total.items()}

    def adapt(self, parameters: Parameters, support_x: Tensor, support_y: Tensor) -> Parameters:
        """Return the weights after the inner loop on one task's support (n, n_leads, n_samples)."""
        adapted = dict(parameters)
        for _ in range(self.inner_steps):
            gradients = grad(self._loss)(adapted, support_x, support_y)
            if self.first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            adapted = {k: v - self.inner_lr * gradients[k] for k, v in adapted.items()}
        return adapted

    def _loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(functional_call(self.network, dict(parameters), (x,)), y)

    def _sum_of_losses(self, parameters, support_x, support_y, query_x, query_y):
        def one_task(sx, sy, qx, qy):
            return self._loss(self.adapt(parameters, sx, sy), qx, qy)

        losses = vmap(one_task, randomness="different")(support_x, support_y, query_x, query_y)
        return losses.sum(), losses.detach()


def _refuse_what_cannot_be_stacked(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise AdaptationError(
                f"layer {name!r} is {type(module).__name__}: its statistics would mix the windows of "
                "a task and can't be kept per task. Use a network with group norm (compact-cnn, or "
                "resnet1d-18 with norm='group')."
            )
    if not getattr(network, "supports_vmap", True):
        raise AdaptationError(
            f"{type(network).__name__} can't run with the weights of many tasks stacked "
            "(supports_vmap is False: recurrent cells have no such form). Use compact-cnn, net1d, or "
            "resnet1d-18 with norm='group'."
        )
