"""Pre-fine-tuning: move the initialisation towards one patient before fine-tuning starts.

MetaVA describes it one way and its released code does another; both are here.

    intended    adapt on the earlier part of the support, judge on the later part, and move the
                initialisation so that adapting it serves the later part (a step of MAML, with the
                second-order gradient)
    released    plain gradient steps on the whole support

Both act on the parameters with ``requires_grad`` and change the network in place.
"""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaecg.adapt.methods import trained_parameters
from metaecg.adapt.support import checked_times
from metaecg.adapt.training import Loss, check_finite, check_parameters, training_mode
from metaecg.errors import NotEnoughWindowsError

PREFINES = ("released", "intended")


def prefine_released(
    network: nn.Module,
    support_x: torch.Tensor,
    support_y: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
    n_rounds: int = 5,
    adapt_lr: float = 1e-3,
    update_lr: float = 1e-3,
    batch_size: int = 8,
    loss: Loss = F.cross_entropy,
) -> list[float]:
    """Pre-fine-tune as MetaVA's released code does; it equals ``2 * n_rounds`` plain SGD steps.

    Each round copies the initialisation, takes one step of `adapt_lr` on the support, and sets
    the initialisation to that copy less `update_lr` times the gradient there, on the same support.
    As the next round starts from there, nothing distinguishes the two steps: there is no gradient
    through the adaptation and no window held out. Batch norm stays in eval mode.

    Parameters
    ----------
    network
        Changed in place.
    support_x, support_y
        Shapes ``(n_windows, n_leads, n_samples)`` and ``(n_windows,)``.
    generator
        Shuffles the windows into minibatches before every step; ``None``: in the given order.
    n_rounds, adapt_lr, update_lr, batch_size
        Of the released code. A step sums the gradients of the minibatches' mean losses, all
        taken at the same weights: three of them for twenty windows.
    loss
        Of logits and labels.

    Returns
    -------
    list of float
        The sum of the minibatches' losses before each of the ``2 * n_rounds`` steps.

    Raises
    ------
    AdaptationError
        If a loss or a parameter is no longer finite.
    """
    parameters = list(trained_parameters(network).values())
    losses = []
    with training_mode(network):
        for step in range(2 * n_rounds):
            lr = update_lr if step % 2 else adapt_lr
            order = _order(len(support_y), generator).to(support_x.device)
            total = sum(loss(network(support_x[i]), support_y[i]) for i in order.split(batch_size))
            losses.append(check_finite(total, f"step {step + 1} of prefine_released", lr))
            gradients = torch.autograd.grad(
                total, parameters, allow_unused=True, materialize_grads=True
            )
            _step(parameters, gradients, lr)
    check_parameters(parameters, "after prefine_released", update_lr)
    return losses


def prefine_intended(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    time_s: np.ndarray,
    *,
    n_rounds: int = 5,
    inner_steps: int = 3,
    inner_lr: float = 1e-2,
    outer_lr: float = 1e-2,
    first_order: bool = False,
    loss: Loss = F.cross_entropy,
) -> list[float]:
    """Move the initialisation so that adapting it to the earlier windows serves the later ones.

    Each round adapts on the earlier half of every class by `inner_steps` SGD steps, computes the
    loss of the adapted network on the later half, and takes one SGD step on the initialisation
    with the gradient of that loss through the adaptation.

    Parameters
    ----------
    network
        Changed in place.
    x, y
        Shapes ``(n_windows, n_leads, n_samples)`` and ``(n_windows,)``.
    time_s
        Shape ``(n_windows,)``: the subject's own time of each window, in seconds.
    n_rounds, inner_steps, inner_lr, outer_lr
        Rounds; steps of the adaptation, its learning rate; learning rate of the initialisation.
    first_order
        Leave out the derivative of the adaptation itself.
    loss
        Of logits and labels.

    Returns
    -------
    list of float
        The later part's loss after the adaptation, before each round's update.

    Raises
    ------
    NotEnoughWindowsError
        If a class has one window only.
    AdaptationError
        If a loss or a parameter is no longer finite.
    """
    early, later = (torch.from_numpy(part).to(x.device) for part in split_in_time(y, time_s))
    start = trained_parameters(network)
    losses = []
    with training_mode(network), _twice_differentiable(x.device):
        for round_ in range(n_rounds):
            adapted = start
            for _ in range(inner_steps):
                inner = loss(functional_call(network, adapted, (x[early],)), y[early])
                adapted = _adapted(adapted, inner, inner_lr, first_order)
            outer = loss(functional_call(network, adapted, (x[later],)), y[later])
            where = f"round {round_ + 1} of prefine_intended"
            losses.append(check_finite(outer, where, outer_lr))
            gradients = torch.autograd.grad(
                outer, list(start.values()), allow_unused=True, materialize_grads=True
            )
            _step(list(start.values()), gradients, outer_lr)
    check_parameters(list(start.values()), "after prefine_intended", outer_lr)
    return losses


def split_in_time(y: torch.Tensor, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split windows into the earlier and the later half of every class present.

    Returns
    -------
    early, later
        Sorted int64 indices. Of an odd number the earlier half has one more.

    Raises
    ------
    NotEnoughWindowsError
        If a class has one window only.
    DataError
        If `time_s` doesn't go with `y` or is not finite.
    """
    labels = y.cpu().numpy()
    time_s = checked_times(time_s, n_windows=len(labels))
    early, later = [], []
    for label in np.unique(labels):
        found = np.flatnonzero(labels == label)
        if len(found) < 2:
            raise NotEnoughWindowsError(
                subject_id="new patient",
                label=str(label),
                n_found=len(found),
                n_needed=2,
                where="to split in time for prefine='intended'",
            )
        found = found[np.argsort(time_s[found], kind="stable")]
        half = (len(found) + 1) // 2
        early.append(found[:half])
        later.append(found[half:])
    return np.sort(np.concatenate(early)), np.sort(np.concatenate(later))


def _adapted(parameters: dict, loss: torch.Tensor, lr: float, first_order: bool) -> dict:
    gradients = torch.autograd.grad(
        loss,
        list(parameters.values()),
        create_graph=not first_order,
        allow_unused=True,
        materialize_grads=True,
    )
    return {name: p - lr * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}


def _step(parameters: list[nn.Parameter], gradients, lr: float) -> None:
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(lr * gradient)


def _order(n: int, generator: torch.Generator | None) -> torch.Tensor:
    return torch.arange(n) if generator is None else torch.randperm(n, generator=generator)


@contextlib.contextmanager
def _twice_differentiable(device: torch.device):
    """Keep to kernels that have a second derivative: fused attention and cuDNN's RNN have none."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
