"""The inner loop of many tasks, and the meta-gradient by going back over its steps.

With the step ``w[k+1] = w[k] - rate * g[k]`` and `v` the gradient of the query loss in ``w[k+1]``,
that in ``w[k]`` is ``v - H[k] (rate * v)``, where `H[k]` is the Hessian of the support loss. So one
product with each Hessian gives the second-order meta-gradient, and leaving the products out the
first-order one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metaecg.meta.algorithms import RATE_PREFIX, Algorithm, StepPlan, split_rates
from metaecg.meta.engine import MetaBatch, MetaStep, Parameters
from metaecg.meta.stacked import Slope, StackedModel, Weights


@dataclass(frozen=True, kw_only=True)
class Path:
    """The inner loop of T tasks: K slopes, and the K + 1 points before, between and after them."""

    points: list[Weights]
    """The first is shared by the tasks, the others are (T, *shape); in the model's own form."""
    slopes: list[Slope]
    rates: "list[Mapping[str, Tensor | float]]"
    """Of each step, in the model's own form."""


def meta_step(
    model: StackedModel,
    algorithm: Algorithm,
    parameters: Parameters,
    batch: MetaBatch,
    plan: StepPlan,
) -> MetaStep:
    """Adapt the tasks of `batch` and differentiate; the gradients are summed over the tasks."""
    if algorithm.name == "reptile":
        return _reptile(model, algorithm, parameters, batch)
    x, y = batch.support_x, batch.support_y
    path = descend(model, algorithm, parameters, x, y, curved=not plan.first_order)
    queries = _query_slopes(model, path, batch, plan)
    gradients = _back(model, path, queries, algorithm, plan)
    return MetaStep(
        losses=queries[len(path.slopes)].losses,
        support_losses=_support_losses(path, x),
        gradients={name: gradients[name] for name in parameters},
    )


def descend(
    model: StackedModel,
    algorithm: Algorithm,
    parameters: Parameters,
    x: Tensor,
    y: Tensor,
    *,
    curved: bool = False,
) -> Path:
    """Run the inner loop of every task on its windows (T, n, n_leads, n_samples)."""
    weights, learned = split_rates(parameters)
    path = Path(points=[model.pack(weights)], slopes=[], rates=[])
    for step in range(algorithm.inner_steps):
        point = path.points[-1]
        slope = model.slope(point, x, y, shared=step == 0, curved=curved)
        rate = dict.fromkeys(point, algorithm.inner_lr)
        if algorithm.learns_rates:
            rate = model.pack(_rates_at(algorithm, weights, learned, step))
        path.points.append({k: _moved(w, rate[k], slope.gradients[k]) for k, w in point.items()})
        path.slopes.append(slope)
        path.rates.append(rate)
    return path


def _rates_at(algorithm: Algorithm, weights: Weights, learned: Weights, step: int) -> Weights:
    """Return the learned rate of every weight at an inner step, in the shape of the weight."""
    if algorithm.name == "meta-sgd":
        return learned
    return {name: learned[name][step].expand_as(w) for name, w in weights.items()}


def _moved(weight: Tensor, rate: Tensor | float, gradient: Tensor) -> Tensor:
    if isinstance(rate, float):
        return torch.sub(weight, gradient, alpha=rate)
    return weight - rate * gradient


def _query_slopes(
    model: StackedModel, path: Path, batch: MetaBatch, plan: StepPlan
) -> dict[int, Slope]:
    """Return the slope of the query at the points whose loss counts, and at the last one."""
    last = len(path.points) - 1
    first = last + 1 - len(plan.loss_weights)
    counted = [first + i for i, weight in enumerate(plan.loss_weights) if weight]
    return {
        at: model.slope(path.points[at], batch.query_x, batch.query_y, shared=at == 0, curved=False)
        for at in sorted({*counted, last})
    }


def _back(
    model: StackedModel, path: Path, queries: dict[int, Slope], algorithm: Algorithm, plan: StepPlan
) -> dict[str, Tensor]:
    """Return the gradient of the weighted query loss in the start and the learned rates."""
    last = len(path.slopes)
    weight_of = {last - i: w for i, w in enumerate(reversed(plan.loss_weights))}
    v = {k: weight_of[last] * g for k, g in queries[last].gradients.items()}
    of_rates = []
    for step in reversed(range(last)):
        slope, rate = path.slopes[step], path.rates[step]
        if algorithm.learns_rates:
            of_rates.append({k: -(v[k] * slope.gradients[k]).sum(dim=0) for k in v})
        if slope.hessian_product is not None:
            product = slope.hessian_product({k: rate[k] * v[k] for k in v})
        if step == 0:  # the product is a sum over the tasks already
            v = {k: value.sum(dim=0) for k, value in v.items()}
        if slope.hessian_product is not None:
            v = {k: v[k] - product[k] for k in v}
        if step in queries:
            v = {k: v[k] + weight_of[step] * g for k, g in queries[step].gradients.items()}
    if last == 0:
        v = {k: value.sum(dim=0) for k, value in v.items()}
    return {**model.unpack(v), **_gradients_of_rates(model, algorithm, of_rates[::-1])}


def _gradients_of_rates(
    model: StackedModel, algorithm: Algorithm, of_steps: list[Weights]
) -> dict[str, Tensor]:
    """Return the gradient of the learned rates from that of every weight's rate at each step."""
    named = [model.unpack(of_step) for of_step in of_steps]
    if algorithm.name == "maml++":
        return {RATE_PREFIX + k: torch.stack([of[k].sum() for of in named]) for k in named[0]}
    return {RATE_PREFIX + k: sum(of[k] for of in named) for k in (named[0] if named else ())}


def _reptile(
    model: StackedModel, algorithm: Algorithm, parameters: Parameters, batch: MetaBatch
) -> MetaStep:
    """Adapt on support and query together, since Reptile has no split; the way back is a sum."""
    x = torch.cat([batch.support_x, batch.query_x], dim=1)
    y = torch.cat([batch.support_y, batch.query_y], dim=1)
    path = descend(model, algorithm, parameters, x, y)
    end = model.slope(path.points[-1], batch.query_x, batch.query_y, shared=False, curved=False)
    total = {k: sum(slope.gradients[k].sum(dim=0) for slope in path.slopes) for k in path.points[0]}
    return MetaStep(
        losses=end.losses,
        support_losses=_support_losses(path, x),
        gradients=dict(model.unpack(total)),
    )


def _support_losses(path: Path, x: Tensor) -> Tensor:
    losses = [slope.losses for slope in path.slopes]
    return torch.stack(losses) if losses else x.new_zeros(0, len(x))
