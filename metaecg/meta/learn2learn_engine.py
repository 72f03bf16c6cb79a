"""The engine protocol through learn2learn: its wrappers run the inner loop, one task after the other.

It is here to be compared with and trusted: the default engine has the same gradients, faster.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaecg.checks import check_positive
from metaecg.errors import AdaptationError, MissingDependencyError
from metaecg.meta.algorithms import (
    RATE_PREFIX,
    Algorithm,
    StepPlan,
    check_meta_step,
    split_rates,
)
from metaecg.meta.engine import MetaBatch, MetaStep, Parameters, explicit_randomness
from metaecg.meta.stacked import Loss

SCRIPT = "scripts/install_learn2learn"
COMMAND = (
    "pip install 'metaecg[learn2learn]' && pip install --no-deps torchvision==0.16.2 && "
    "pip install --use-pep517 --no-deps --no-build-isolation "
    "--config-settings=--global-option=build_ext learn2learn==0.2.0"
)
"""What `SCRIPT` does, for those who have metaecg from a wheel, without the script."""


class Learn2LearnEngine:
    """Adapt one task after the other with learn2learn's `MAML` or `MetaSGD`.

    The network is copied at every call, and the copy is adapted: the caller's network and tensors
    stay as they are. That includes buffers. Batch norm in train mode uses the statistics of the
    windows that pass at once (a task's support, or its query); the running statistics that it
    gathers belong to the copy and end with it.

    Parameters
    ----------
    network
        Any network: batch norm and recurrent cells too.
    algorithm
        Any but maml++.
    task_chunk
        Taken for the sake of the protocol; tasks run one by one anyway, so it changes nothing.
    loss
        From the network's output and the labels of one task to a number, for inner and outer loop.

    Raises
    ------
    AdaptationError
        The algorithm is maml++, or anil on a network without features and head.
    MissingDependencyError
        learn2learn, or a package that it imports, is not installed.
    ValueError
        `task_chunk` is not above zero.

    References
    ----------
    .. [1] S. M. R. Arnold, P. Mahajan, D. Datta, I. Bunner, K. S. Zarkias, "learn2learn: A Library
       for Meta-Learning Research", arXiv:2008.12284.
    """

    def __init__(
        self,
        network: nn.Module,
        algorithm: Algorithm,
        *,
        task_chunk: int | None = None,
        loss: Loss = F.cross_entropy,
    ) -> None:
        _refuse_what_cannot_run(network, algorithm)
        if task_chunk is not None:
            check_positive("task_chunk", task_chunk)
        self.network = network
        self.algorithm = algorithm
        self.task_chunk = task_chunk
        self.loss = loss
        self._wrappers = import_learn2learn().algorithms

    def meta_gradients(
        self,
        parameters: Parameters,
        batch: MetaBatch,
        *,
        plan: StepPlan | None = None,
        generator: torch.Generator | None = None,
    ) -> MetaStep:
        """Return losses and the mean meta-gradient; see `metaecg.meta.engine.Engine`.

        A weight that `parameters` leaves out takes part as it is, and is not adapted.

        Raises
        ------
        AdaptationError
            The plan counts query losses of earlier steps, as maml++ does; or meta-sgd meets a
            weight that the loss doesn't depend on.
        ValueError
            A plan, or rates, of another algorithm; no generator, and a dropout layer is active.
        """
        plan = plan or self.algorithm.final_plan()
        check_meta_step(self.algorithm, parameters, plan)
        if plan.is_multi_step:
            raise AdaptationError(
                f"the plan's loss_weights are {plan.loss_weights}; the engine learn2learn counts "
                "the query loss after the last step alone. Use meta.engine=func."
            )
        with_rates = self.algorithm.name == "meta-sgd"
        copied = _private_copy(self.network, parameters, with_rates=with_rates)
        total = {name: torch.zeros_like(leaf) for name, leaf in copied.leaves.items()}
        losses, support_losses = [], []
        with explicit_randomness(self.network, generator), torch.enable_grad():
            for task in batch.chunks(1):
                loss, before_steps, gradients = self._task(copied, task, plan)
                losses.append(loss)
                support_losses.append(before_steps)
                for name, gradient in zip(total, gradients, strict=True):
                    total[name] += gradient
        return MetaStep(
            losses=torch.stack(losses),
            support_losses=torch.stack(support_losses, dim=1),
            gradients={name: total[name] / len(batch) for name in parameters},
        )

    def _task(self, copied: "_Copy", task: MetaBatch, plan: StepPlan) -> "_TaskResult":
        """Adapt a clone to one task and differentiate its query loss in the leaves of the copy."""
        support, query = (task.support_x[0], task.support_y[0]), (task.query_x[0], task.query_y[0])
        if self.algorithm.name == "reptile":
            return self._reptile(copied, support, query)
        body, learner = self._clone(copied, first_order=plan.first_order)
        before_steps = self._descend(learner, body(support[0]), support[1])
        loss = self.loss(learner(body(query[0])), query[1])
        leaves = list(copied.leaves.values())
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return loss.detach(), before_steps, gradients

    def _reptile(self, copied: "_Copy", support, query) -> "_TaskResult":
        """Adapt to support and query together; the gradient is start minus end, over the rate."""
        _, learner = self._clone(copied, first_order=True)
        x, y = (torch.cat(sides) for sides in zip(support, query, strict=True))
        before_steps = self._descend(learner, x, y)
        with torch.no_grad():
            loss = self.loss(learner(query[0]), query[1])
            ends = dict(learner.module.named_parameters())
            moved = [start - ends[name] for name, start in copied.leaves.items()]
            return loss, before_steps, [way / self.algorithm.inner_lr for way in moved]

    def _clone(self, copied: "_Copy", *, first_order: bool):
        """Return what runs before the adapted part, and a clone of that part to be adapted."""
        body, wrapper = self._wrapped(copied, first_order=first_order)
        with _without_leaf_warning():
            return body, wrapper.clone()

    def _wrapped(self, copied: "_Copy", *, first_order: bool):
        """Return what runs before the adapted part, and that part in its wrapper."""
        network = copied.network
        if self.algorithm.name == "meta-sgd":
            return _unchanged, self._wrappers.MetaSGD(
                network, lrs=copied.rates, first_order=first_order
            )
        head_only = self.algorithm.adapts_head_only
        wrapper = self._wrappers.MAML(
            network.head if head_only else network,
            lr=self.algorithm.inner_lr,
            first_order=first_order,
            # Without these two, a frozen or unused weight makes `adapt` print a hint and go on to
            # an undefined name.
            allow_nograd=True,
            allow_unused=True,
        )
        return (network.features if head_only else _unchanged), wrapper

    def _descend(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Run the inner loop of one task and return the loss before each step."""
        losses = x.new_zeros(self.algorithm.inner_steps)
        for step in range(self.algorithm.inner_steps):
            loss = self.loss(learner(x), y)
            with _unused_weights_named(), _without_leaf_warning():
                learner.adapt(loss)
            losses[step] = loss.detach()
        return losses


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """A network of our own that holds the values of one meta-step."""

    network: nn.Module
    rates: list[Tensor]
    """One per weight of the network, in its order."""
    leaves: dict[str, Tensor]
    """Meta-parameter to the tensor in which the gradient is taken."""


_TaskResult = tuple[Tensor, Tensor, Iterable[Tensor]]
"""Query loss after the inner loop, support losses (inner_steps,), gradients in the leaves' order."""


def _private_copy(network: nn.Module, parameters: Parameters, *, with_rates: bool) -> _Copy:
    """Copy the network with the values of `parameters`; the other weights are frozen.

    `with_rates`, a frozen weight has a rate of zero instead: `MetaSGD` can't leave one out.
    """
    weights, rates = split_rates(parameters)
    rates = {name: rate.detach().clone().requires_grad_() for name, rate in rates.items()}
    network = copy.deepcopy(network)
    own = dict(network.named_parameters())
    for name, p in own.items():
        p.requires_grad_(with_rates or name in weights)
        if name in weights:
            p.data = weights[name].detach().clone()
    return _Copy(
        network=network,
        rates=[rates.get(name, torch.zeros_like(p)) for name, p in own.items()],
        leaves={name: own[name] for name in weights}
        | {RATE_PREFIX + name: rate for name, rate in rates.items()},
    )


def _unchanged(x: Tensor) -> Tensor:
    return x


@contextmanager
def _without_leaf_warning() -> Iterator[None]:
    """Keep torch from warning, at every clone and step of a recurrent cell, of a `.grad` not there.

    learn2learn moves the cell's weights by a function of `nn.Module` that looks at `.grad`, which
    its clones don't have and nobody needs.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield


@contextmanager
def _unused_weights_named() -> Iterator[None]:
    """Say what to do about the one refusal of `MetaSGD` that its users can meet."""
    try:
        yield
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error):
            raise
        raise AdaptationError(
            "the network has a weight that the loss doesn't depend on, and learn2learn's MetaSGD "
            "takes none. Leave that weight out of the network, or use meta.engine=func."
        ) from error


def _refuse_what_cannot_run(network: nn.Module, algorithm: Algorithm) -> None:
    if algorithm.name == "maml++":
        raise AdaptationError(
            "learn2learn has no maml++: its rates per step and its losses after every step are not "
            "those of any wrapper. Use meta.engine=func, or meta-sgd for learned rates."
        )
    missing = [name for name in ("features", "head") if not hasattr(network, name)]
    if algorithm.adapts_head_only and missing:
        raise AdaptationError(
            f"{type(network).__name__} has no {' and no '.join(missing)}; anil adapts the head on "
            "the features. Use a network of metaecg.models.registry."
        )


def how_to_install(reason: str) -> str:
    """Return what to do where learn2learn can't be imported, with the line to type."""
    return (
        f"meta.engine=learn2learn needs learn2learn 0.2.0, which can't be imported: {reason}. "
        f"In a checkout of metaecg type\n    {SCRIPT}\n  elsewhere, on Python 3.11,\n    {COMMAND}\n"
        "  or use meta.engine=func, which needs neither."
    )


def import_learn2learn():
    """Import learn2learn without two notices that concern no user of ours.

    Raises
    ------
    MissingDependencyError
        It, or a package that it imports, is not installed; the message has the line to type.
    """
    try:
        with _without_gym_notice(), warnings.catch_warnings():
            # torchvision's image reader wants a CUDA build of torch; nothing here reads images.
            warnings.filterwarnings("ignore", "Failed to load image Python extension", UserWarning)
            import learn2learn
    except ImportError as error:
        raise MissingDependencyError(how_to_install(str(error))) from error
    return learn2learn


@contextmanager
def _without_gym_notice() -> Iterator[None]:
    """Keep gym from printing that it is unmaintained: learn2learn's environments are not used.

    gym prints what `gym_notices` holds for its version, so that is empty for the while.
    """
    try:
        from gym_notices.notices import notices
    except ImportError:  # what is missing is for the import of learn2learn to say
        notices = {}
    kept = dict(notices)
    notices.clear()
    try:
        yield
    finally:
        notices.update(kept)
