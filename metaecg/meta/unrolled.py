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
    """The first is shared by the tasks, the others are (T, *shape)."""
    slopes: list[Slope]


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
    weights, rates = split_rates(parameters)
    x, y = batch.support_x, batch.support_y
    path = descend(model, algorithm, parameters, x, y, curved=not plan.first_order)
    queries = _query_slopes(model, path, batch, plan)
    gradients = _back(path, queries, algorithm, rates, plan)
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
    weights, rates = split_rates(parameters)
    points, slopes = [weights], []
    for step in range(algorithm.inner_steps):
        slope = model.slope(points[-1], x, y, shared=step == 0, curved=curved)
        rate = rates_at(algorithm, weights, rates, step)
        points.append({k: w - rate[k] * slope.gradients[k] for k, w in points[-1].items()})
        slopes.append(slope)
    return Path(points=points, slopes=slopes)


def rates_at(
    algorithm: Algorithm, weights: Weights, rates: Weights, step: int
) -> Mapping[str, Tensor | float]:
    """Return the rate of every weight at an inner step."""
    if not algorithm.learns_rates:
        return dict.fromkeys(weights, algorithm.inner_lr)
    return {k: rates[k][step] if algorithm.name == "maml++" else rates[k] for k in weights}


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


def _back(path: Path, queries, algorithm, rates, plan: StepPlan) -> dict[str, Tensor]:
    """Return the gradient of the weighted query loss in the start and the rates."""
    last = len(path.points) - 1
    weight_of = {last - i: w for i, w in enumerate(reversed(plan.loss_weights))}
    v = {k: weight_of[last] * g for k, g in queries[last].gradients.items()}
    of_rates = {RATE_PREFIX + k: torch.zeros_like(rate) for k, rate in rates.items()}
    for step in reversed(range(last)):
        slope, rate = path.slopes[step], rates_at(algorithm, path.points[0], rates, step)
        _add_to_rates(of_rates, v, slope, algorithm, step)
        if step in queries:
            at_query = queries[step].gradients
        if slope.hessian_product is not None:
            product = slope.hessian_product({k: rate[k] * v[k] for k in v})
        if step == 0:
            v = {k: value.sum(dim=0) for k, value in v.items()}
        if slope.hessian_product is not None:
            v = {k: v[k] - product[k] for k in v}
        if step in queries:
            v = {k: v[k] + weight_of[step] * at_query[k] for k in v}
    if last == 0:
        v = {k: value.sum(dim=0) for k, value in v.items()}
    return {**v, **of_rates}


def _add_to_rates(of_rates, v: Weights, slope: Slope, algorithm: Algorithm, step: int) -> None:
    for name in of_rates:
        key = name.removeprefix(RATE_PREFIX)
        product = v[key] * slope.gradients[key]
        if algorithm.name == "maml++":
            of_rates[name][step] -= product.sum()
        else:
            of_rates[name] -= product.sum(dim=0)


def _reptile(
    model: StackedModel, algorithm: Algorithm, parameters: Parameters, batch: MetaBatch
) -> MetaStep:
    """Adapt on support and query together, since Reptile has no split; the way back is a sum."""
    x = torch.cat([batch.support_x, batch.query_x], dim=1)
    y = torch.cat([batch.support_y, batch.query_y], dim=1)
    path = descend(model, algorithm, parameters, x, y)
    end = model.slope(path.points[-1], batch.query_x, batch.query_y, shared=False, curved=False)
    return MetaStep(
        losses=end.losses,
        support_losses=_support_losses(path, x),
        gradients={
            name: sum(slope.gradients[name].sum(dim=0) for slope in path.slopes)
            for name in parameters
        },
    )


def _support_losses(path: Path, x: Tensor) -> Tensor:
    losses = [slope.losses for slope in path.slopes]
    return torch.stack(losses) if losses else x.new_zeros(0, len(x))
