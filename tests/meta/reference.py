"""A meta-step as its definition reads: one task after the other, on autograd's tape, nothing shared
with the engines. What the engines answer is compared with it."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaecg.meta.engine import MetaBatch, MetaStep
from metaecg.models.registry import build_network


class SmoothNet(nn.Module):
    """Convolution, group norm and tanh: no corner, so second derivatives exist everywhere.

    `drop` values of the features are dropped, `drop_head` before the last layer of the head.
    """

    def __init__(self, *, drop: float = 0.0, drop_head: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 5, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.dropout = nn.Dropout(drop)
        self.head = nn.Sequential(nn.Dropout(drop_head), nn.Linear(4, 3))

    def features(self, x):
        return self.dropout(torch.tanh(self.norm(self.conv(x))).mean(dim=-1))

    def forward(self, x):
        return self.head(self.features(x))


def make_smooth(*, seed: int = 3, **kwargs) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmoothNet(**kwargs).double()


def make_registered(name: str, **kwargs) -> nn.Module:
    """A network of the registry for windows (1, 50) of two classes, float64."""
    return build_network(
        name,
        n_leads=1,
        n_samples=50,
        fs_hz=50.0,
        n_classes=2,
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    ).double()


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in network.named_parameters()}


def make_batch(*, n_tasks=3, n_leads=2, n_samples=16, n_classes=3, seed=7) -> MetaBatch:
    generator = torch.Generator().manual_seed(seed)

    def side(n):
        shape = (n_tasks, n, n_leads, n_samples)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x, torch.randint(n_classes, (n_tasks, n), generator=generator)

    (support_x, support_y), (query_x, query_y) = side(5), side(4)
    return MetaBatch(
        subject_ids=tuple(f"s-{i}" for i in range(n_tasks)),
        support_x=support_x,
        support_y=support_y,
        query_x=query_x,
        query_y=query_y,
    )


def explicit_step(
    network: nn.Module,
    weights: dict[str, torch.Tensor],
    batch: MetaBatch,
    *,
    rate_of,
    rates: dict[str, torch.Tensor] | None = None,
    inner_steps: int,
    first_order: bool = False,
    loss_weights: tuple[float, ...] | None = None,
    loss=F.cross_entropy,
) -> MetaStep:
    """Differentiate the weighted query losses through the inner loop.

    `rate_of(rates, name, step)` is the inner rate; `rates` are learned beside the weights. First
    order is the same graph with the inner gradients taken for constants.
    """
    weights = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    rates = {name: r.detach().clone().requires_grad_() for name, r in (rates or {}).items()}
    loss_weights = loss_weights or (0.0,) * (inner_steps - 1) + (1.0,)
    total, losses, support_losses = 0.0, [], []
    for i in range(len(batch)):

        def loss_at(point, side, i=i):
            x, y = getattr(batch, f"{side}_x")[i], getattr(batch, f"{side}_y")[i]
            return loss(functional_call(network, point, (x,)), y)

        point, before, after = weights, [], []
        for step in range(inner_steps):
            value = loss_at(point, "support")
            slope = torch.autograd.grad(value, list(point.values()), create_graph=True)
            if first_order:
                slope = [g.detach() for g in slope]
            point = {
                name: w - rate_of(rates, name, step) * g
                for (name, w), g in zip(point.items(), slope, strict=True)
            }
            before.append(value.detach())
            after.append(loss_at(point, "query"))
        after = after or [loss_at(point, "query")]
        total = total + sum(w * q for w, q in zip(loss_weights, after, strict=True))
        losses.append(after[-1].detach())
        support_losses.append(torch.stack(before) if before else batch.support_x.new_zeros(0))
    meta = weights | {f"inner_lr.{name}": rate for name, rate in rates.items()}
    slopes = torch.autograd.grad(total / len(batch), list(meta.values()), materialize_grads=True)
    return MetaStep(
        losses=torch.stack(losses),
        support_losses=torch.stack(support_losses, dim=1),
        gradients=dict(zip(meta, slopes, strict=True)),
    )


def constant(inner_lr: float):
    """The same rate for every weight and step."""
    return lambda rates, name, step: inner_lr


def for_head_only(inner_lr: float):
    """ANIL as MAML: the body's rate is zero."""
    return lambda rates, name, step: inner_lr if name.startswith("head.") else 0.0


def explicit_reptile(network, weights, batch, *, inner_lr, inner_steps):
    """Start minus end of descent on support and query together, over the rate; mean over tasks."""
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    losses, support_losses = [], []
    for sx, sy, qx, qy in zip(
        batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True
    ):
        point, before = weights, []
        for _ in range(inner_steps):
            point = {name: w.detach().requires_grad_() for name, w in point.items()}
            output = functional_call(network, point, (torch.cat([sx, qx]),))
            value = F.cross_entropy(output, torch.cat([sy, qy]))
            slope = torch.autograd.grad(value, list(point.values()))
            point = {n: w - inner_lr * g for (n, w), g in zip(point.items(), slope, strict=True)}
            before.append(value.detach())
        for name, start in weights.items():
            total[name] += (start - point[name].detach()) / inner_lr / len(batch)
        losses.append(F.cross_entropy(functional_call(network, point, (qx,)), qy).detach())
        support_losses.append(torch.stack(before))
    return MetaStep(
        losses=torch.stack(losses),
        support_losses=torch.stack(support_losses, dim=1),
        gradients=total,
    )


def assert_same_step(found: MetaStep, expected: MetaStep, *, rtol=1e-9, atol=1e-12) -> None:
    """Losses, support losses and every gradient agree, shapes included, and no tape is left."""
    near = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(found.losses, expected.losses, **near)
    torch.testing.assert_close(found.support_losses, expected.support_losses, **near)
    assert list(found.gradients) == list(expected.gradients)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            found.gradients[name], gradient, **near, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert not any(t.requires_grad for t in (found.losses, *found.gradients.values()))
