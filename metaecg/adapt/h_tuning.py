"""H-Tuning: mix-order steps on low-rank layers and biases, first order on the last layers.

The paper's optimiser is in `metaecg.adapt.mix_order`, the low-rank layers in `metaecg.adapt.methods`;
here they become a way to fine-tune. Unlike the other methods this one moves the running statistics
of batch norm: they are gathered in the zeroth-order passes, over the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.adapt.methods import plain_name, trained_parameters
from metaecg.adapt.mix_order import MixOrder
from metaecg.adapt.training import Loss, OnStep, check_parameters, shuffled_batches, training_mode

N_STEPS = 200
"""Of `Personalizer`: at the published learning rates, some thousand steps in the paper, the 30 steps
of the other methods leave twenty windows half learned."""
BATCH_SIZE = 128
"""Windows of a step where there are as many, as published."""
WEIGHT_DECAY = 0.01
"""Of AdamW, decoupled, as published."""
WARM_UP = 0.01
"""Part of the steps in which the learning rate rises, as published."""

LARGE_BATCH = 64
SMALL_BATCH_LR, LARGE_BATCH_LR = 1e-3, 2e-3
"""Of AdamW, with up to `LARGE_BATCH` windows in a step, and with more; as published."""


@dataclass(frozen=True, kw_only=True)
class HTuning:
    """How the shallow layers' gradient is put together; the defaults are the paper's.

    The controls are settings: ``mixing=1`` (first order alone), ``direction="random"`` (the
    zeroth-order step with a random sign), and ``method="lora"`` with a `micro_batch` (first order
    on all windows, a few at a time).

    Parameters
    ----------
    mixing
        Weight of the first-order gradient, 0 to 1 (lambda in the paper).
    scale
        Length of the perturbation, times a standard normal, above 0 (mu).
    n_samples
        Directions that one step measures (n).
    n_first_order
        Windows of the batch whose gradient is computed through all layers (N1).
    direction
        ``"measured"``, or ``"random"``: a random sign in place of the measured difference.
    batch_norm
        ``"train"``: fresh statistics in the zeroth-order passes, which move the running ones.
        ``"eval"``: the base's stay, everywhere; `micro_batch` then changes nothing but rounding.
    """

    mixing: float = 0.85
    scale: float = 1e-3
    n_samples: int = 1
    n_first_order: int = 2
    direction: str = "measured"
    batch_norm: str = "train"


DEFAULTS = HTuning()

NamedParameters = list[tuple[str, nn.Parameter]]


def shallow_and_deep(network: nn.Module) -> tuple[NamedParameters, NamedParameters]:
    """Return what is trained outside and inside the last layers of a prepared network.

    The last layers are those that the network's own ``deep_modules`` names (M = 2 in the paper: the
    two linear layers at the end), else its ``head`` alone.
    """
    deep_modules: Sequence[str] = getattr(network, "deep_modules", ("head",))
    shallow, deep = [], []
    for name, parameter in trained_parameters(network).items():
        is_deep = any(plain_name(name).startswith(f"{module}.") for module in deep_modules)
        (deep if is_deep else shallow).append((name, parameter))
    return shallow, deep


def learning_rate(batch_size: int) -> float:
    """Return the published learning rate for so many windows in a step."""
    return LARGE_BATCH_LR if batch_size > LARGE_BATCH else SMALL_BATCH_LR


def rate_factor(step: int, n_steps: int) -> float:
    """Return the part of the learning rate at a step: a straight rise, then a straight fall to 0.

    Examples
    --------
    >>> [rate_factor(step, 5) for step in range(6)]
    [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    >>> rate_factor(0, 200), rate_factor(1, 200), rate_factor(101, 200)
    (0.5, 1.0, 0.5)
    """
    n_rising = max(1, round(WARM_UP * n_steps))
    if step < n_rising:
        return (step + 1) / n_rising
    return (n_steps - step) / max(1, n_steps - n_rising)


def h_tune(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    n_steps: int,
    generator: torch.Generator,
    lr: float | None = None,
    weight_decay: float = WEIGHT_DECAY,
    batch_size: int = BATCH_SIZE,
    micro_batch: int | None = None,
    settings: HTuning = DEFAULTS,
    loss: Loss = F.cross_entropy,
    on_step: OnStep | None = None,
) -> list[float]:
    """Take `n_steps` AdamW steps with mix-order gradients; the network is changed in place.

    Batch norm has fresh statistics in the zeroth-order passes, which move its running ones; the
    first-order pass uses those. Dropout is off: two passes with different masks would differ by
    more than the perturbation. The same generator state gives the same weights.

    Parameters
    ----------
    network
        From `prepare_network` with ``"h-tuning"``; any other works, its parameters with
        ``requires_grad`` are trained.
    x
        Shape ``(n_windows, n_leads, n_samples)``, normalised as the network wants it.
    y
        Shape ``(n_windows,)``, int64, index of the class; or whatever `loss` takes.
    n_steps
        Steps, not epochs; 0 changes nothing.
    generator
        Draws batches and directions, on the CPU.
    lr
        Highest learning rate; it rises in the first hundredth of the steps and then falls to 0
        (`rate_factor`). ``None``: `learning_rate` of the step's windows.
    weight_decay
        Of AdamW, decoupled.
    batch_size
        Windows per step, all of them if there are fewer. Every step has equally many, in random
        order: the last ones of an order, too few for a batch, wait for the next order.
    micro_batch
        At most so many windows at once in the zeroth-order passes: `MixOrder`'s ``chunk``.
    settings
        How the gradients are mixed.
    loss
        Of outputs and labels, a mean over the windows.
    on_step
        Called after each step with the number of steps done and that of all.

    Returns
    -------
    list of float
        The loss of each step, as the stepper measured it.

    Raises
    ------
    AdaptationError
        If a loss or a parameter is no longer finite.
    ValueError
        If a setting is out of range, such as more first-order windows than there are in a step.
    """
    shallow, deep = shallow_and_deep(network)
    n_each = min(batch_size, len(y))
    lr = learning_rate(n_each) if lr is None else lr
    stepper = MixOrder(
        network,
        loss,
        shallow=shallow,
        deep=deep,
        mixing=settings.mixing,
        scale=settings.scale,
        n_samples=settings.n_samples,
        n_first_order=settings.n_first_order,
        chunk=micro_batch,
        direction=settings.direction,
        batch_norm=settings.batch_norm,
        generator=generator,
    )
    parameters = [parameter for _, parameter in (*shallow, *deep)]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    batches = shuffled_batches(len(y), n_each, generator)
    losses = []
    with training_mode(network):
        for step in range(n_steps):
            chosen = next(batches).to(x.device)
            optimizer.param_groups[0]["lr"] = lr * rate_factor(step, n_steps)
            losses.append(stepper.backward(x[chosen], y[chosen]))
            optimizer.step()
            if on_step is not None:
                on_step(step + 1, n_steps)
    check_parameters(parameters, f"after {n_steps} steps", lr)
    return losses
