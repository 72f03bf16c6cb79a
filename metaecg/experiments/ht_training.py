"""Fine-tune a network by one method of `h_tuning`, stop and choose by the validation alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaecg.adapt.batch_norm_modes import batch_norms
from metaecg.adapt.distill import mean_average_precision
from metaecg.adapt.h_tuning import (
    WEIGHT_DECAY,
    HTuning,
    learning_rate,
    rate_factor,
    shallow_and_deep,
)
from metaecg.adapt.methods import prepare_network, running_statistics, trained_parameters
from metaecg.adapt.mix_order import MixOrder
from metaecg.adapt.training import check_finite, check_parameters, shuffled_batches
from metaecg.errors import AdaptationError
from metaecg.evaluate.memory import peak_memory
from metaecg.experiments.ht_config import HTConfig
from metaecg.experiments.ht_methods import FineTuning
from metaecg.models.inference import network_logits
from metaecg.seeding import derive_seed, torch_generator

PREDICT_CHUNK = 64
"""Recordings per forward pass when predicting; bounds the memory at the larger sizes."""

loss_of = F.binary_cross_entropy_with_logits


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a fine-tuning went."""

    losses: list[float] = field(repr=False)
    """Of each step that was taken."""
    scores: dict[int, float]
    """Step -> mean average precision on the validation after that step."""
    best_step: int
    """Whose weights the network has now."""
    step_seconds: float
    """Median of a step, the validation left out."""
    n_trained: int
    """Parameters that learn."""
    n_per_step: int
    """Recordings in a step."""

    @property
    def best_score(self) -> float:
        """The validation's mean average precision at `best_step`."""
        return self.scores[self.best_step]


class FirstOrder:
    """Backpropagation, of all recordings of a step at once or in pieces."""

    def __init__(self, network: nn.Module, *, micro_batch: int | None, batch_norm: str) -> None:
        self.network, self.micro_batch, self.batch_norm = network, micro_batch, batch_norm
        self.parameters = list(trained_parameters(network).values())

    def backward(self, x: Tensor, y: Tensor) -> float:
        """Put the gradient of the mean loss into ``.grad``; return that loss."""
        self.network.eval()
        for norm in batch_norms(self.network):
            norm.train(self.batch_norm == "train")
        for parameter in self.parameters:
            parameter.grad = None
        total, size = 0.0, self.micro_batch or len(x)
        for x_piece, y_piece in zip(x.split(size), y.split(size), strict=True):
            part = loss_of(self.network(x_piece), y_piece) * (len(x_piece) / len(x))
            part.backward()
            total += float(part.detach())
        self.network.eval()
        return total


class Trainer:
    """One network, one method: takes steps, and knows what one costs.

    Parameters
    ----------
    network
        A copy of the base with a new head; changed in place.
    method, config
        What learns, and how.
    settings
        Of the mix-order gradient; its `mixing` is 1 where the method says so.
    n_records
        Recordings of the training side.
    seed
        Of low-rank layers, batches and directions.
    """

    def __init__(
        self,
        network: nn.Module,
        method: FineTuning,
        config: HTConfig,
        *,
        settings: HTuning,
        n_records: int,
        seed: int,
    ) -> None:
        train = config.train
        low_rank = {"rank": train.rank} if method.trained == "h-tuning" else {}
        self.network = prepare_network(
            network,
            method.trained,
            freeze=method.freeze,
            seed=derive_seed(seed, "low-rank") % 2**31,
            **low_rank,
        ).to(config.device)
        self.parameters = list(trained_parameters(self.network).values())
        self.n_per_step = min(train.batch_size, n_records)
        self.n_steps = n_steps(method, config, self.n_per_step)
        self.lr = _rate(method, config, self.n_per_step)
        self.gradient = _gradient(self.network, method, config, settings, seed)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.lr, weight_decay=WEIGHT_DECAY)

    def step(self, x: Tensor, y: Tensor, n_done: int) -> float:
        """Take one step; return its loss."""
        self.optimizer.param_groups[0]["lr"] = self.lr * rate_factor(n_done, self.n_steps)
        loss = self.gradient.backward(x, y)
        check_finite(torch.tensor(loss), f"step {n_done + 1} of {self.n_steps}", self.lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def step_bytes(self, x: Tensor, y: Tensor) -> int:
        """Return the peak of live bytes in one more step, which changes the network."""
        held = (self.network, self.optimizer, x, y)
        device = str(x.device)
        return peak_memory(lambda: self.step(x, y, self.n_steps - 1), *held, device=device)


def fine_tune(
    trainer: Trainer,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    check_every: int,
    patience: int,
    seed: int,
    on_steps: Callable[[int], None] = lambda n: None,
) -> Course:
    """Take steps until the validation has not become better for `patience` looks.

    Afterwards the network has the weights and the statistics of its best look.

    Parameters
    ----------
    train, validation
        Signals ``(n_records, 12, n_samples)`` and labels ``(n_records, n_classes)`` of 0 and 1.
    seed
        Of the batches, which are the same for every method.
    on_steps
        Called after every look with the steps since the last one.

    Raises
    ------
    AdaptationError
        A loss or a weight is not finite.
    """
    device = next(trainer.network.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(train[0]))
    y = torch.as_tensor(train[1], dtype=torch.float32)
    batches = shuffled_batches(len(y), trainer.n_per_step, torch_generator(seed, "batches"))
    losses, seconds, scores, best = [], [], {}, None
    for step in range(1, trainer.n_steps + 1):
        chosen = next(batches)
        x_batch, y_batch = x[chosen].to(device), y[chosen].to(device)
        begin = time.perf_counter()
        losses.append(trainer.step(x_batch, y_batch, step - 1))
        seconds.append(time.perf_counter() - begin)
        if step % check_every and step < trainer.n_steps:
            continue
        on_steps((step - 1) % check_every + 1)
        check_parameters(trainer.parameters, f"after step {step}", trainer.lr)
        scores[step] = score(trainer.network, *validation)
        if best is None or scores[step] > scores[best[0]]:
            best = step, _state(trainer.network)
        if sum(looked > best[0] for looked in scores) >= patience:
            break
    _restore(trainer.network, best[1])
    return Course(
        losses=losses,
        scores=scores,
        best_step=best[0],
        step_seconds=float(np.median(seconds)),
        n_trained=sum(p.numel() for p in trainer.parameters),
        n_per_step=trainer.n_per_step,
    )


def score(network: nn.Module, signals: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean average precision over the classes that occur among `labels`."""
    return mean_average_precision(labels, probabilities(network, signals, labels.shape[1]))


def probabilities(network: nn.Module, signals: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the probability of every statement, ``(n_records, n_classes)`` float64."""
    found = np.empty((len(signals), n_classes))
    for start in range(0, len(signals), PREDICT_CHUNK):
        piece = slice(start, start + PREDICT_CHUNK)
        logits = network_logits(network, signals[piece], n_classes=n_classes)
        found[piece] = 0.5 * (1 + np.tanh(0.5 * logits))  # the logistic function, no overflow
    if not np.isfinite(found).all():
        raise AdaptationError("the network's answers are not finite; finite ones were expected.")
    return found


def step_forwards(method: FineTuning, config: HTConfig, n: int) -> int:
    """Return what a step over `n` recordings costs, in recordings passed forwards.

    A backward pass counts as two forward passes; that of the last layers alone as nothing.
    """
    if method.trained == "head":
        return n
    if method.gradient == "first-order":
        return 3 * n
    mix = config.h_tuning
    return 2 * n * mix.n_samples + 3 * mix.n_first_order


def n_steps(method: FineTuning, config: HTConfig, n: int) -> int:
    """Return how many steps a method may take at most, by the budget."""
    if config.train.budget == "steps":
        return config.train.n_steps
    return max(1, round(config.train.n_steps * 3 * n / step_forwards(method, config, n)))


def _rate(method: FineTuning, config: HTConfig, n: int) -> float:
    train = config.train
    if method.trained == "h-tuning":
        return learning_rate(n) if train.lr is None else train.lr
    return train.lr_full if method.trained == "full" else train.lr_head


def _gradient(
    network: nn.Module, method: FineTuning, config: HTConfig, settings: HTuning, seed: int
) -> FirstOrder | MixOrder:
    if method.gradient == "first-order":
        return FirstOrder(network, micro_batch=method.micro_batch, batch_norm=method.batch_norm)
    shallow, deep = shallow_and_deep(network)
    return MixOrder(
        network,
        loss_of,
        shallow=shallow,
        deep=deep,
        mixing=1.0 if method.first_order_alone else settings.mixing,
        scale=settings.scale,
        n_samples=settings.n_samples,
        n_first_order=settings.n_first_order,
        chunk=config.h_tuning.chunk if method.is_chunked else None,
        direction=method.direction,
        generator=torch_generator(seed, "directions"),
    )


def _state(network: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in _moving(network)]


def _restore(network: nn.Module, state: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, kept in zip(_moving(network), state, strict=True):
            tensor.copy_(kept)


def _moving(network: nn.Module) -> list[Tensor]:
    statistics = [tensor for _, tensor in running_statistics(network)]
    return [*trained_parameters(network).values(), *statistics]
