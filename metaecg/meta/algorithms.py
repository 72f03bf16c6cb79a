"""Meta-learning algorithms: what the inner loop moves, what is learned, how it changes over training.

An engine runs the inner loop; an `Algorithm` says which one. All of them are gradient descent on a
subject's support, and differ in these points:

======== ================ =============== =================================================
name     adapted          inner rate      meta-gradient
======== ================ =============== =================================================
maml     every weight     fixed           of the query loss, through the inner loop
fomaml   every weight     fixed           as maml, second derivatives dropped
anil     the head         fixed           of the query loss, for every weight
meta-sgd every weight     one per weight  as maml, for the rates too
maml++   every weight     one per layer   as maml, for the rates too; at first of the query loss
                          and step        after every step, and without second derivatives
reptile  every weight     fixed           start minus end of the inner loop, over the rate
======== ================ =============== =================================================
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaecg.checks import check_option, check_positive

ALGORITHMS = ("maml", "fomaml", "anil", "meta-sgd", "maml++", "reptile")

RATE_PREFIX = "inner_lr."
"""A learned inner rate stands among the meta-parameters as this and the name of its weight."""

MULTI_STEP_SHARE = 0.15
"""maml++: the query losses of earlier steps lose their weight over this part of the training; 15 of
100 epochs in the paper's released settings."""
FIRST_ORDER_SHARE = 0.5
"""maml++: part of the training without second derivatives; 50 of 100 epochs in [3]_, section 4."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one meta-step does, which may change over a training."""

    first_order: bool
    """Drop second derivatives."""
    loss_weights: tuple[float, ...]
    """Weight of the query loss after inner step 1, 2, ...; they sum to 1. One weight, 1, if the inner
    loop has no step."""

    @property
    def is_multi_step(self) -> bool:
        """Whether another query loss than the last one counts."""
        return any(weight != 0 for weight in self.loss_weights[:-1])


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One of `ALGORITHMS` and its inner loop.

    Parameters
    ----------
    name
        See the table above.
    inner_lr
        Step size of the inner loop; where rates are learned, their start.
    inner_steps
        Steps of plain gradient descent on the support. None at all gives joint training on the
        queries; only maml and fomaml can do that.
    first_order
        Drop second derivatives; fomaml always does, and reptile has none.

    Raises
    ------
    ValueError
        A name that is none, `inner_lr` not above zero, `inner_steps` too few or not whole.

    References
    ----------
    .. [1] C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
       Networks", ICML 2017, algorithm 1 and section 5.2 (first-order approximation).
    .. [2] Z. Li, F. Zhou, F. Chen, H. Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot
       Learning", arXiv:1707.09835, algorithm 1.
    .. [3] A. Antoniou, H. Edwards, A. Storkey, "How to Train Your MAML", ICLR 2019, section 4:
       multi-step loss, derivative-order annealing, per-layer per-step rates.
    .. [4] A. Raghu, M. Raghu, S. Bengio, O. Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020,
       section 4 (ANIL).
    .. [5] A. Nichol, J. Achiam, J. Schulman, "On First-Order Meta-Learning Algorithms",
       arXiv:1803.02999, algorithm 2.

    Examples
    --------
    >>> Algorithm(name="maml", inner_lr=0.05, inner_steps=3).plan(0, n_iterations=100)
    StepPlan(first_order=False, loss_weights=(0.0, 0.0, 1.0))
    >>> late = Algorithm(name="maml++", inner_lr=0.05, inner_steps=2).plan(99, n_iterations=100)
    >>> late
    StepPlan(first_order=False, loss_weights=(0.0, 1.0))
    """

    name: str = "maml"
    inner_lr: float
    inner_steps: int
    first_order: bool = False

    def __post_init__(self) -> None:
        check_option("algorithm", self.name, ALGORITHMS)
        check_positive("inner_lr", self.inner_lr)
        if self.inner_steps != int(self.inner_steps) or self.inner_steps < 0:
            raise ValueError(
                f"inner_steps is {self.inner_steps}; a whole number, 0 or more, was expected."
            )
        if self.inner_steps == 0 and self.name not in ("maml", "fomaml"):
            raise ValueError(
                f"inner_steps is 0, and {self.name} needs at least 1; use maml for joint training."
            )

    @property
    def adapts_head_only(self) -> bool:
        """Whether the inner loop leaves the body alone."""
        return self.name == "anil"

    @property
    def learns_rates(self) -> bool:
        """Whether inner rates are among the meta-parameters."""
        return self.name in ("meta-sgd", "maml++")

    def plan(self, iteration: int, *, n_iterations: int) -> StepPlan:
        """Return what the meta-step `iteration` (from 0) of `n_iterations` does."""
        plan = self.final_plan()
        if self.name != "maml++":
            return plan
        done = iteration / n_iterations
        return replace(
            plan,
            first_order=self.first_order or done < FIRST_ORDER_SHARE,
            loss_weights=_annealed(self.inner_steps, done / MULTI_STEP_SHARE),
        )

    def final_plan(self) -> StepPlan:
        """Return what the last meta-step does; for all but maml++, every meta-step."""
        return StepPlan(
            first_order=self.first_order or self.name == "fomaml",
            loss_weights=(0.0,) * (self.inner_steps - 1) + (1.0,),
        )

    def initial_rates(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the learned rates at their start, named `RATE_PREFIX` + the weight's name.

        Shape of the weight (meta-sgd), ``(inner_steps,)`` (maml++); empty for the others.
        """
        if not self.learns_rates:
            return {}
        return {
            RATE_PREFIX + name: torch.full(
                (self.inner_steps,) if self.name == "maml++" else p.shape,
                self.inner_lr,
                dtype=p.dtype,
                device=p.device,
            )
            for name, p in parameters.items()
        }


def _annealed(n: int, progress: float) -> tuple[float, ...]:
    """Return equal weights at progress 0, all on the last from progress 1, linear between."""
    early = max(0.0, 1.0 - progress) / n
    return (early,) * (n - 1) + (1.0 - early * (n - 1),)


def split_rates(
    parameters: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (weights, learned rates by the name of their weight) of the meta-parameters."""
    weights = {name: p for name, p in parameters.items() if not is_rate(name)}
    rates = {name.removeprefix(RATE_PREFIX): p for name, p in parameters.items() if is_rate(name)}
    return weights, rates


def is_rate(name: str) -> bool:
    """Tell whether a meta-parameter of this name is a learned inner rate."""
    return name.startswith(RATE_PREFIX)


def check_meta_step(algorithm: Algorithm, parameters: Mapping[str, Tensor], plan: StepPlan) -> None:
    """Refuse a plan, or learned rates, that are not for this algorithm.

    Raises
    ------
    ValueError
        Loss weights for another number of inner steps, or for earlier steps under anil or reptile;
        rates that are missing, superfluous or of another shape.
    """
    n = max(1, algorithm.inner_steps)
    if len(plan.loss_weights) != n:
        raise ValueError(
            f"plan.loss_weights is {plan.loss_weights}; {n} were expected, one per inner step."
        )
    if algorithm.name in ("anil", "reptile") and plan.is_multi_step:
        raise ValueError(
            f"plan.loss_weights is {plan.loss_weights}, and {algorithm.name} knows the last query "
            "loss alone; use maml++."
        )
    weights, rates = split_rates(parameters)
    expected = {name: rate.shape for name, rate in algorithm.initial_rates(weights).items()}
    found = {RATE_PREFIX + name: rate.shape for name, rate in rates.items()}
    for name in (expected | found).keys():
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{name} is {_shape_of(found, name)} and {algorithm.name} expects it "
                f"{_shape_of(expected, name)}; pass the weights and "
                "Algorithm.initial_rates(weights)."
            )


def _shape_of(shapes: Mapping[str, torch.Size], name: str) -> str:
    return f"of shape {tuple(shapes[name])}" if name in shapes else "not there"


def head_names(names: Iterable[str]) -> list[str]:
    """Return the names that belong to a network's head."""
    return [name for name in names if name.startswith("head.")]
