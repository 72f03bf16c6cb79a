"""The default engine: the tasks of a meta-batch are adapted together, with `torch.func`.

Every task has its own copy of the weights, stacked along a first dimension and carried by
`torch.func.vmap`. A compact CNN on the CPU runs through passes of its own (`metaecg.meta.fused`),
which give the same in less time.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn import functional as F

from metaecg.checks import check_option, check_positive
from metaecg.errors import AdaptationError
from metaecg.meta.algorithms import (
    Algorithm,
    StepPlan,
    check_meta_step,
    head_names,
    split_rates,
)
from metaecg.meta.engine import MetaBatch, MetaStep, Parameters, explicit_randomness
from metaecg.meta.fused_threads import FusedThreads, can_fuse
from metaecg.meta.stacked import Loss, VmapModel
from metaecg.meta.unrolled import meta_step


class FuncEngine:
    """Adapt the tasks of a meta-batch together with `torch.func`.

    Parameters
    ----------
    network
        Any network without batch statistics in training (batch norm couples the windows of a task
        and would keep running statistics per task; group norm is the usual replacement) and without
        a recurrent cell, which `torch.func.vmap` can't stack. Under anil the body is shared by the
        tasks, and a recurrent cell does no harm there.
    algorithm
        What the inner loop adapts and what is learned.
    task_chunk
        At most so many tasks at once; the gradients are the same (dropout draws other values), the
        peak memory is lower.
    loss
        From the network's output and the labels of one task to a number, for inner and outer loop.
    backend
        ``"auto"``: the fused passes where they apply (a compact CNN on the CPU under cross-entropy,
        any algorithm but anil), else ``"vmap"``, which can be asked for as well.
    n_threads
        Threads of the fused passes; None: as many as torch uses. The result doesn't depend on it.

    Raises
    ------
    AdaptationError
        The network holds batch norm, or says itself (`supports_vmap`) that it can't be stacked, or
        has no features and head for anil.
    ValueError
        `task_chunk` or `n_threads` is not above zero, or `backend` is unknown. At a meta-step:
        a weight that the network doesn't have.
    """

    def __init__(
        self,
        network: nn.Module,
        algorithm: Algorithm,
        *,
        task_chunk: int | None = None,
        loss: Loss = F.cross_entropy,
        backend: str = "auto",
        n_threads: int | None = None,
    ) -> None:
        _refuse_what_cannot_run(network, algorithm)
        check_option("backend", backend, ("auto", "vmap"))
        for name, value in (("task_chunk", task_chunk), ("n_threads", n_threads)):
            if value is not None:
                check_positive(name, value)
        self.network = network
        self.algorithm = algorithm
        self.task_chunk = task_chunk
        self.loss = loss
        self.model = VmapModel(network, loss)
        self.fused = None
        if backend == "auto" and can_fuse(network, algorithm, loss):
            self.fused = FusedThreads(network, task_chunk=task_chunk, n_threads=n_threads)

    def meta_gradients(
        self,
        parameters: Parameters,
        batch: MetaBatch,
        *,
        plan: StepPlan | None = None,
        generator: torch.Generator | None = None,
    ) -> MetaStep:
        """Return losses and the mean meta-gradient; see `metaecg.meta.engine.Engine`."""
        plan = plan or self.algorithm.final_plan()
        check_meta_step(self.algorithm, parameters, plan)
        _refuse_unknown_weights(self.network, parameters)
        # No tape outside torch.func's own: it would hold the graph of every chunk to the end.
        with torch.no_grad(), explicit_randomness(self.network, generator):
            steps = self._steps(parameters, batch, plan)
        return MetaStep(
            losses=torch.cat([step.losses for step in steps]),
            support_losses=torch.cat([step.support_losses for step in steps], dim=1),
            gradients={
                name: sum(step.gradients[name] for step in steps) / len(batch)
                for name in parameters
            },
        )

    def _steps(self, parameters: Parameters, batch: MetaBatch, plan: StepPlan) -> list[MetaStep]:
        if self.fused is None:
            return [self._chunk(parameters, part, plan) for part in batch.chunks(self.task_chunk)]
        return self.fused.map(
            lambda model, part: meta_step(model, self.algorithm, parameters, part, plan), batch
        )

    def _chunk(self, parameters: Parameters, batch: MetaBatch, plan: StepPlan) -> MetaStep:
        """Like `meta_gradients`, with the sum of the gradients in place of their mean."""
        if self.algorithm.adapts_head_only:
            return self._through_features(parameters, batch, plan)
        return meta_step(self.model, self.algorithm, parameters, batch, plan)

    def _through_features(
        self, parameters: Parameters, batch: MetaBatch, plan: StepPlan
    ) -> MetaStep:
        """Run the body once over the windows of all tasks: under anil they share it."""
        windows = torch.cat([batch.support_x, batch.query_x], dim=1)
        n_support = batch.support_x.shape[1]

        def summed(parameters):
            named = {f"network.{name}": p for name, p in parameters.items()}
            features = functional_call(_Body(self.network), named, (windows.flatten(0, 1),))
            support, query = features.unflatten(0, windows.shape[:2]).tensor_split([n_support], 1)
            head = {k.removeprefix("head."): parameters[k] for k in head_names(parameters)}
            one_task = self._head_loop(head, first_order=plan.first_order)
            losses, support_losses = vmap(one_task, randomness="different")(
                support, batch.support_y, query, batch.query_y
            )
            return losses.sum(), (losses.detach(), support_losses)

        gradients, (losses, support_losses) = grad(summed, has_aux=True)(dict(parameters))
        return MetaStep(losses=losses, support_losses=support_losses.T, gradients=gradients)

    def _head_loop(self, head: Parameters, *, first_order: bool):
        """Return the function from the features of one task to its query and support losses."""

        def loss_of(weights, features, y):
            return self.loss(functional_call(self.network.head, weights, (features,)), y)

        def one_task(support, support_y, query, query_y):
            weights, losses = dict(head), []
            for _ in range(self.algorithm.inner_steps):
                slope, loss = grad_and_value(loss_of)(weights, support, support_y)
                if first_order:
                    slope = {name: g.detach() for name, g in slope.items()}
                weights = {k: w - self.algorithm.inner_lr * slope[k] for k, w in weights.items()}
                losses.append(loss.detach())
            return loss_of(weights, query, query_y), torch.stack(losses)

        return one_task


class _Body(nn.Module):
    """Call a network's features instead of its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


def _refuse_what_cannot_run(network: nn.Module, algorithm: Algorithm) -> None:
    for name, module in network.named_modules():
        if _keeps_statistics(module):
            raise AdaptationError(
                f"layer {name!r} is {type(module).__name__}: its statistics can't be kept "
                "apart for tasks that run together. Use a network with group norm (compact-cnn, or "
                "resnet1d-18 with norm='group'), or the engine learn2learn, which takes one task "
                "after the other."
            )
    if algorithm.adapts_head_only:
        _refuse_without_features(network)
    elif not getattr(network, "supports_vmap", True):
        raise AdaptationError(
            f"{type(network).__name__} can't run with the weights of many tasks stacked "
            "(supports_vmap is False: recurrent cells have no such form). Use compact-cnn, net1d, or "
            "resnet1d-18 with norm='group'; or the engine learn2learn, which takes one task after "
            "the other."
        )


def _refuse_unknown_weights(network: nn.Module, parameters: Parameters) -> None:
    known = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    unknown = sorted(split_rates(parameters)[0].keys() - known)
    if unknown:
        raise ValueError(
            f"parameters holds {unknown[0]!r}, which {type(network).__name__} has no weight for; "
            "pass names of network.named_parameters()."
        )


def _keeps_statistics(module: nn.Module) -> bool:
    """Tell whether a layer is batch norm, or another norm with running statistics."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def _refuse_without_features(network: nn.Module) -> None:
    missing = [name for name in ("features", "head") if not hasattr(network, name)]
    if missing:
        raise AdaptationError(
            f"{type(network).__name__} has no {' and no '.join(missing)}; anil adapts the head on "
            "the features. Use a network of metaecg.models.registry."
        )
