"""Fine-tune the parameters that a method left free, on a handful of windows."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.adapt.methods import trained_parameters
from metaecg.adapt.summed_weights import summed_weights
from metaecg.errors import AdaptationError
from metaecg.seeding import borrowed_torch_stream

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OnStep = Callable[[int, int], None]
"""Called as ``on_step(done, total)``; what it raises ends the training."""


def fine_tune(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    n_steps: int,
    lr: float,
    weight_decay: float,
    generator: torch.Generator,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    dropout: bool = False,
    loss: Loss = F.cross_entropy,
    on_step: OnStep | None = None,
) -> list[float]:
    """Take `n_steps` AdamW steps on the loss; the network is changed in place.

    Batch norm stays in eval mode: its statistics neither come from the twenty windows nor change.
    The same generator state gives the same weights.

    Parameters
    ----------
    network
        Its parameters with ``requires_grad`` are trained.
    x
        Shape ``(n_windows, n_leads, n_samples)``, normalised as the network wants it.
    y
        Shape ``(n_windows,)``, int64, index of the class.
    n_steps
        Steps, not epochs; 0 changes nothing.
    lr, weight_decay
        Of AdamW; the decay is decoupled.
    generator
        Draws the batches and the dropout masks, on the CPU.
    batch_size
        Windows per step, drawn without replacement until all were used; ``None``: all of them.
    micro_batch
        At most so many windows go through the network at once; the gradients of a step's pieces add
        up to that of the whole, as batch norm is in eval mode. ``None``: all windows of the step.
    dropout
        Whether the dropout layers are active.
    loss
        Of logits and labels, a mean over the windows.
    on_step
        Called after each step with the number of steps done and that of all.

    Returns
    -------
    list of float
        The loss before each step, over that step's windows.

    Raises
    ------
    AdaptationError
        If the loss or a parameter is no longer finite, with the number of the step.
    """
    parameters = list(trained_parameters(network).values())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    batches = _batches(len(y), batch_size, generator)
    losses = []
    mode = training_mode(network, dropout=dropout, generator=generator)
    with mode, summed_weights(network, with_gradient=True):
        for step in range(n_steps):
            chosen = next(batches).to(x.device)
            optimizer.zero_grad()
            total = _accumulate(network, x[chosen], y[chosen], loss, micro_batch)
            losses.append(check_finite(total, f"step {step + 1} of {n_steps}", lr))
            optimizer.step()
            if on_step is not None:
                on_step(step + 1, n_steps)
    check_parameters(parameters, f"after {n_steps} steps", lr)
    return losses


def _accumulate(network, x, y, loss: Loss, micro_batch: int | None) -> torch.Tensor:
    """Add the gradient of the mean loss, piece by piece, and return that loss."""
    total = torch.zeros((), device=x.device)
    for start in range(0, len(y), micro_batch or len(y)):
        piece = slice(start, start + (micro_batch or len(y)))
        part = loss(network(x[piece]), y[piece]) * (len(y[piece]) / len(y))
        part.backward()
        total = total + part.detach()
    return total


def check_finite(loss: torch.Tensor, when: str, lr: float) -> float:
    """Return the loss as a number; NaN or infinity is an AdaptationError that says when."""
    value = float(loss.detach())
    if value != value or value in (float("inf"), float("-inf")):
        raise AdaptationError(
            f"the loss is {value} at {when} (lr={lr:g}); a finite loss was expected. Lower lr."
        )
    return value


def check_parameters(parameters: list[torch.Tensor], when: str, lr: float) -> None:
    """Raise AdaptationError if a parameter is no longer finite."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise AdaptationError(
            f"the weights are no longer finite {when} (lr={lr:g}). Lower lr or n_steps."
        )


@contextlib.contextmanager
def training_mode(
    network: nn.Module, *, dropout: bool = False, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Make gradients possible with everything in eval mode, dropout layers apart if wanted.

    Dropout draws from `generator`; the global random state is left as it was.
    """
    network.eval()
    with contextlib.ExitStack() as stack:
        if dropout:
            stack.callback(network.eval)
            for module in network.modules():
                if isinstance(module, (nn.modules.dropout._DropoutNd, nn.RNNBase)):
                    module.train()
            seed = int(torch.randint(2**62, (1,), generator=generator))
            device = next(network.parameters()).device
            stack.enter_context(borrowed_torch_stream(seed, device=device))
        elif any(isinstance(module, nn.RNNBase) for module in network.modules()):
            # cuDNN computes no gradient of a recurrent layer in eval mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _batches(n: int, batch_size: int | None, generator: torch.Generator) -> Iterator[torch.Tensor]:
    if batch_size is None or batch_size >= n:
        everything = torch.arange(n)
        while True:
            yield everything
    while True:
        yield from torch.randperm(n, generator=generator).split(batch_size)


def shuffled_batches(n: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield the indices of batches of one size, in an order drawn anew when too few are left.

    Also where a batch is everything: the mix-order gradient's first order is that of the batch's
    first windows, which must not be the same ones for ever.
    """
    while True:
        for batch in torch.randperm(n, generator=generator).split(size):
            if len(batch) == size:
                yield batch
