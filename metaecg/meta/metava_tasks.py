"""Plain-SGD inner loops of many tasks at once, for MetaVA as released.

The weights of all tasks are stacked and run under `torch.func.vmap`. On a CPU most of the time
then goes to drawing dropout masks and to moving the encoder's hidden values through memory, so
both have a path of their own here.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.models.backbones.metava import EncoderLayer


@dataclass(frozen=True, kw_only=True)
class Task:
    """One subject's windows in minibatches, (n_minibatches, 4, n_leads, n_samples)."""

    support_x: torch.Tensor
    support_y: torch.Tensor
    query_x: torch.Tensor
    query_y: torch.Tensor


class SeededDropout(nn.Module):
    """Dropout whose masks come from a numpy generator: reproducible, and cheaper on a CPU."""

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        super().__init__()
        self.p, self.rng = p, rng
        self.shape: tuple[int, ...] = ()
        """Of the last input; the caller under vmap draws masks for all tasks from it."""
        self.mask: torch.Tensor | None = None
        """Set from outside under vmap, where a layer can't draw for all tasks itself."""

    def draw(self, *shape: int) -> torch.Tensor:
        """Return float32 factors: 0 where a value is dropped, 1 / (1 - p) elsewhere."""
        size = int(np.prod(shape))
        raw = self.rng.bit_generator.random_raw(-(-size // 4))  # 16 random bits for each value
        bits = torch.from_numpy(raw.view(np.int16)[:size].reshape(shape))
        keep = torch.ge(bits, round(self.p * 2**16) - 2**15, out=torch.empty(shape))
        return keep.mul_(1 / (1 - self.p))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        self.shape = tuple(x.shape)
        mask = self.draw(*x.shape).to(x.device) if self.mask is None else self.mask
        return x * mask


def with_seeded_dropout(network: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Return a copy of `network` whose dropout draws from `rng`; weight names stay."""
    model = copy.deepcopy(network)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, SeededDropout(module.p, rng))
    return model


class _BatchStatistics(nn.Module):
    """Batch-norm in training mode that hands its statistics out instead of folding them in."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(0, 2), keepdim=True)
        centred = x - mean
        variance = centred.square().mean(dim=(0, 2))
        n_values = x.shape[0] * x.shape[2]
        unbiased = variance.detach() * (n_values / max(n_values - 1, 1))
        self.seen = (mean.detach().flatten(), unbiased)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None] + self.bias[:, None]


class StackedFeedForward(torch.autograd.Function):
    """The encoder's feed-forward part for stacked weights, one task after the other.

    One task's hidden values fit the cache, those of all tasks don't. The mask is multiplied into
    the hidden values, so that these alone say in `backward` what was cut: a value is 0 where ReLU
    or dropout cut it.
    """

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, dropout: SeededDropout):
        """Map x (n_tasks, n_tokens, d_model), weights with a leading n_tasks, to x's shape."""
        out = torch.empty_like(x)
        hidden = [torch.addmm(b, one, w.t()) for one, w, b in zip(x, weight1, bias1, strict=True)]
        for task, values in enumerate(hidden):
            values.relu_()
            if dropout.p > 0:
                values.mul_(dropout.draw(*values.shape).to(x.device))
            torch.addmm(bias2[task], values, weight2[task].t(), out=out[task])
        ctx.save_for_backward(x, weight1, weight2, *hidden)
        ctx.scale = 1 / (1 - dropout.p)
        return out

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients of the five tensors."""
        x, weight1, weight2, *hidden = ctx.saved_tensors
        grad_x, grad_w1, grad_w2 = map(torch.empty_like, (x, weight1, weight2))
        grad_b1 = grad.new_empty(weight1.shape[:2])
        cut = torch.empty_like(hidden[0])
        ones = grad.new_ones(1, grad.shape[1])
        for task, values in enumerate(hidden):
            torch.mm(grad[task].t(), values, out=grad_w2[task])
            torch.mm(grad[task] * ctx.scale, weight2[task], out=cut)
            torch.ops.aten.threshold_backward.grad_input(cut, values, 0, grad_input=cut)
            grad_w1[task] = torch.mm(x[task].t(), cut).t()
            torch.mm(ones, cut, out=grad_b1[task : task + 1])
            torch.mm(cut, weight1[task], out=grad_x[task])
        return grad_x, grad_w1, grad_b1, grad_w2, grad.sum(1), None


class _FeedForward(torch.autograd.Function):
    """Leads from inside vmap to `StackedFeedForward`."""

    @staticmethod
    def forward(x, weight1, bias1, weight2, bias2, dropout):
        return torch.zeros_like(x)  # only the dry run that learns shapes gets here

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, x, weight1, bias1, weight2, bias2, dropout):
        flat = x.flatten(1, -2)  # (n_tasks, batch * n_tokens, d_model)
        out = StackedFeedForward.apply(flat, weight1, bias1, weight2, bias2, dropout)
        return out.view(x.shape), 0


def _feed_forward_of(layer: EncoderLayer):
    first, second = layer.linear1, layer.linear2
    return lambda tokens: _FeedForward.apply(
        tokens, first.weight, first.bias, second.weight, second.bias, layer.dropout
    )


class TasksAtOnce:
    """The inner loops of several tasks as one: weights gain a leading dimension of tasks.

    Tasks share nothing but the running statistics of batch-norm, and in training mode nothing
    reads those. So the statistics of every minibatch are collected here and folded in afterwards,
    task by task, by `fold_statistics`.

    Parameters
    ----------
    network
        Read for its structure only.
    n_epochs, learning_rate
        Passes over the support's minibatches, and the rate of plain SGD.
    rng
        Draws the dropout masks.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_epochs: int,
        learning_rate: float,
        rng: np.random.Generator,
    ) -> None:
        self.n_epochs, self.learning_rate = n_epochs, learning_rate
        self.model = with_seeded_dropout(network, rng)
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.BatchNorm1d):
                self.model.set_submodule(name, _BatchStatistics(module))
        self.model.train()
        self.n_windows = 0  # of the minibatch whose shapes the dropout layers hold
        modules = dict(self.model.named_modules())
        self.norms = {n: m for n, m in modules.items() if isinstance(m, _BatchStatistics)}
        layers = [m for m in modules.values() if isinstance(m, EncoderLayer)]
        for layer in layers:
            layer.feed_forward = _feed_forward_of(layer)
        elsewhere = {id(layer.dropout) for layer in layers}
        self.drops = {
            n: m
            for n, m in modules.items()
            if isinstance(m, SeededDropout) and id(m) not in elsewhere
        }

    def adapt_all(self, network: nn.Module, tasks: Sequence[Task]):
        """Adapt copies of `network` to all tasks.

        Returns
        -------
        losses
            Query loss of each task, (n_tasks,).
        gradients
            By parameter name, the mean over tasks of the query gradient at the adapted weights.
        statistics
            For each task, by layer name, (means, variances), each (n_minibatches, n_channels).
        """
        losses = np.zeros(len(tasks))
        statistics: list[dict] = [{} for _ in tasks]
        gradients = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
        shapes = [task.support_x.shape for task in tasks]
        for shape in dict.fromkeys(shapes):  # one-class tasks have fewer minibatches
            rows = [row for row, other in enumerate(shapes) if other == shape]
            found = self._adapt_group(network, [tasks[row] for row in rows])
            losses[rows] = found[0]
            for name, gradient in found[1].items():
                gradients[name] += gradient.sum(0) / len(tasks)
            for row, one_task in zip(rows, found[2], strict=True):
                statistics[row] = one_task
        return losses, gradients, statistics

    def _adapt_group(self, network: nn.Module, tasks: Sequence[Task]):
        device = next(network.parameters()).device
        xs, ys, query_xs, query_ys = (
            torch.stack([getattr(task, name) for task in tasks]).to(device).transpose(0, 1)
            for name in ("support_x", "support_y", "query_x", "query_y")
        )  # (n_minibatches, n_tasks, ...)
        stacked = {
            name: parameter.detach().expand(len(tasks), *parameter.shape).clone()
            for name, parameter in network.named_parameters()
        }
        seen = []
        for _ in range(self.n_epochs):
            for x, y in zip(xs, ys, strict=True):
                _, gradients, statistics = self._gradients(stacked, x, y)
                seen.append(statistics)
                stacked = {
                    n: p.sub(gradients[n], alpha=self.learning_rate) for n, p in stacked.items()
                }
        losses = torch.zeros(len(tasks), device=device)
        total = {name: torch.zeros_like(p) for name, p in stacked.items()}
        for x, y in zip(query_xs, query_ys, strict=True):
            loss, gradients, statistics = self._gradients(stacked, x, y)
            seen.append(statistics)
            losses += loss / len(query_xs)
            total = {n: t.add(gradients[n], alpha=1 / len(query_xs)) for n, t in total.items()}
        return losses.cpu().numpy(), total, _by_task(seen, len(tasks))

    def _gradients(self, stacked: dict, x: torch.Tensor, y: torch.Tensor):
        """Return each task's loss, its gradients, and the batch statistics, for one minibatch."""
        leaves = {name: value.detach().requires_grad_() for name, value in stacked.items()}
        losses, statistics = torch.func.vmap(self._loss)(leaves, self._masks(x), x, y)
        gradients = torch.autograd.grad(
            losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return losses.detach(), dict(zip(leaves, gradients, strict=True)), statistics

    def _loss(self, parameters: dict, masks: dict, x: torch.Tensor, y: torch.Tensor):
        for name, mask in masks.items():
            self.drops[name].mask = mask
        loss = F.cross_entropy(torch.func.functional_call(self.model, parameters, (x,)), y)
        return loss, {name: norm.seen for name, norm in self.norms.items()}

    def _masks(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the dropout masks of one minibatch, (n_tasks, *shape at the layer)."""
        acting = {name: drop for name, drop in self.drops.items() if drop.p > 0}
        if self.n_windows != x.shape[1]:
            self.n_windows = x.shape[1]
            for drop in acting.values():
                drop.mask = None
            with torch.no_grad():  # a dry run to learn the shapes
                self.model(x[0])
        called = {name: drop for name, drop in acting.items() if drop.shape}
        return {name: d.draw(len(x), *d.shape).to(x.device) for name, d in called.items()}


def _by_task(seen: list[dict], n_tasks: int) -> list[dict]:
    """Turn statistics per minibatch, stacked over tasks, into statistics per task."""
    stacked = {
        name: [torch.stack([one[name][part] for one in seen], dim=1) for part in (0, 1)]
        for name in seen[0]
    }  # each (n_tasks, n_minibatches, n_channels)
    return [
        {name: (means[row], variances[row]) for name, (means, variances) in stacked.items()}
        for row in range(n_tasks)
    ]


def fold_statistics(network: nn.Module, statistics: Mapping[str, tuple]) -> None:
    """Fold minibatch statistics into running ones, as if the minibatches had passed in order."""
    for name, (means, variances) in statistics.items():
        norm = network.get_submodule(name)
        keep = 1 - norm.momentum
        n = len(means)
        age = torch.arange(n - 1, -1, -1, dtype=torch.float64, device=means.device)
        weights = norm.momentum * keep**age
        for running, values in ((norm.running_mean, means), (norm.running_var, variances)):
            running.copy_(running.double() * keep**n + weights @ values.double())
        norm.num_batches_tracked += n
