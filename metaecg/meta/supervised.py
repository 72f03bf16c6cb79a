"""Supervised pre-training: the plain baseline that meta-learning has to beat."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.data.augment import Augmentation, require_generator
from metaecg.data.windows import WindowSet
from metaecg.errors import AdaptationError, DataError
from metaecg.seeding import borrowed_torch_stream

OnStep = Callable[[int, dict[str, float]], None]


def pretrain(
    network: nn.Module,
    windows: WindowSet,
    *,
    n_steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float = 1e-2,
    rng: np.random.Generator,
    generator: torch.Generator,
    augment: Augmentation | None = None,
    augment_generator: torch.Generator | None = None,
    n_signals: int | None = None,
    label_smoothing: float = 0.0,
    on_step: OnStep | None = None,
) -> None:
    """Train `network` in place on all windows of all training subjects.

    A batch holds each class in equal parts. Within a class every subject weighs with the square
    root of its number of windows, so that long recordings don't drown the others. Signals are
    turned upside down at random: an electrode may be swapped.

    Parameters
    ----------
    windows
        Training windows, normalised.
    n_steps, lr, weight_decay
        AdamW with one-cycle learning rate.
    batch_size
        Windows per step, rounded down to a multiple of the number of classes.
    rng
        Draws the batches.
    generator
        Draws the polarity; its seed also starts the network's dropout, if there is any.
    augment
        Changes the windows of every batch, each as a patient of its own, before the polarity is
        drawn (its own polarity makes no difference then). None: they stay as they are.
    augment_generator
        Draws the changes; required with `augment`.
    n_signals
        Rows of a window that are signals and are turned; those behind them stay. ``None``: all.
    label_smoothing
        Of the cross entropy, 0 to below 1.
    on_step
        Called with the step and ``{"loss": ..., "lr": ...}``.

    Raises
    ------
    DataError
        No training subject has a window of one of the classes.
    ValueError
        A batch has no room for a window of each class, or `augment` has no generator.
    AdaptationError
        The loss, or a weight after the last step, is not finite.
    """
    require_generator(augment, augment_generator)
    draw = _balanced_batches(windows, batch_size, rng)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=n_steps)
    network.train()
    device = next(network.parameters()).device
    with borrowed_torch_stream(generator.initial_seed(), device=device):
        for step in range(n_steps):
            index = draw()
            x = torch.from_numpy(np.ascontiguousarray(windows.windows[index]))
            if augment:
                x = augment(x, fs_hz=windows.fs_hz, generator=augment_generator)
            sign = torch.randint(0, 2, (len(x), 1, 1), generator=generator) * 2.0 - 1.0
            x[:, :n_signals] *= sign  # a copy: the caller's windows stay
            y = torch.from_numpy(windows.labels[index])
            loss = F.cross_entropy(network(x), y, label_smoothing=label_smoothing)
            if not torch.isfinite(loss):
                raise AdaptationError(
                    f"pre-training, step {step}: the loss is {loss.item()}; lower pretrain.lr."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if on_step:
                on_step(step, {"loss": loss.item(), "lr": schedule.get_last_lr()[0]})
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
    if not all(torch.isfinite(p).all() for p in network.parameters()):
        raise AdaptationError(
            f"pre-training: the last of {n_steps} steps left weights that are not finite; lower "
            "pretrain.lr."
        )
    network.eval()


def _balanced_batches(windows: WindowSet, batch_size: int, rng) -> Callable[[], np.ndarray]:
    n_classes = len(windows.classes)
    if batch_size < n_classes:
        raise ValueError(
            f"batch_size is {batch_size}; a batch holds each of {n_classes} classes, so at least "
            f"{n_classes} was expected."
        )
    pools = []
    for label, name in enumerate(windows.classes):
        found = np.flatnonzero(windows.labels == label)
        if len(found) == 0:
            raise DataError(f"the training subjects have no window of class {name!r}.")
        _, subject, count = np.unique(
            windows.subject_ids[found], return_inverse=True, return_counts=True
        )
        weight = 1 / np.sqrt(count[subject])
        pools.append((found, np.cumsum(weight / weight.sum())))

    def draw() -> np.ndarray:
        parts = []
        for found, cumulative in pools:
            at = np.searchsorted(cumulative, rng.random(batch_size // n_classes), side="right")
            parts.append(found[np.minimum(at, len(found) - 1)])
        return np.concatenate(parts)

    return draw
