"""Which part of a network moves during one step: batch norm's statistics, gradients, modes.

Each context manager leaves the network as it was found, also after an error.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn


@contextlib.contextmanager
def left_as_found(network: nn.Module) -> Iterator[None]:
    """Put every module's mode back; after an error batch norm's statistics too, exactly."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [buffer for norm in batch_norms(network) for buffer in norm.buffers()]
    copies = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)
        raise
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def gradients_for(network: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let exactly `parameters` need a gradient; without any, no graph is recorded.

    What comes before the first of them in the network then keeps no activation alive, whatever
    the network looks like: nothing has to be cut at a layer.
    """
    before = [(p, p.requires_grad) for p in network.parameters()]
    wanted = {id(parameter) for parameter in parameters}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        with torch.enable_grad():
            yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


@contextlib.contextmanager
def batch_statistics(
    norms: Sequence[nn.Module], n_pieces: int
) -> Iterator[Callable[[float], None]]:
    """Run batch-norm layers in train mode: by the statistics of what passes, which they record.

    A batch that passes in pieces is normalised piece by piece, each by its own statistics. The
    running statistics still make one move per batch, towards the pooled mean and variance: with
    the variance between the pieces, so that they don't depend on how the batch was cut (at the
    first batch norm; a later one sees what the earlier ones normalised piece by piece).

    Yields
    ------
    callable
        To be called after each piece with its share of the batch.

    Notes
    -----
    A piece counts by its windows and its variance is taken without bias, so the pooled variance
    is right up to one part in the number of values per channel.
    """
    pools = [_Pool(norm) for norm in norms if n_pieces > 1 and norm.running_mean is not None]

    def record(share: float) -> None:
        for pool in pools:
            pool.add(share)

    try:
        for norm in norms:
            norm.train()
        yield record
        for pool in pools:
            pool.move()
    finally:
        for pool in pools:
            pool.norm.momentum = pool.momentum
        for norm in norms:
            norm.eval()


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Return the batch-norm layers of a network."""
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class _Pool:
    """The statistics of one batch-norm layer over the pieces of a batch."""

    def __init__(self, norm: nn.Module) -> None:
        self.norm, self.momentum = norm, norm.momentum
        self.before = norm.running_mean.clone(), norm.running_var.clone()
        self.n_before = int(norm.num_batches_tracked)
        self.pieces = []
        norm.momentum = 1.0  # the running statistics become those of the last piece

    def add(self, share: float) -> None:
        if int(self.norm.num_batches_tracked) > self.n_before:  # else the forward passes it by
            piece = self.norm.running_mean.clone(), self.norm.running_var.clone()
            self.pieces.append((share, *piece))

    def move(self) -> None:
        if not self.pieces:
            return
        mean = sum(share * piece for share, piece, _ in self.pieces)
        within = sum(share * var for share, _, var in self.pieces)
        between = sum(share * (piece - mean).square() for share, piece, _ in self.pieces)
        momentum = 1 / (self.n_before + 1) if self.momentum is None else self.momentum
        self.norm.running_mean.copy_(self.before[0].lerp(mean, momentum))
        self.norm.running_var.copy_(self.before[1].lerp(within + between, momentum))
        self.norm.num_batches_tracked.fill_(self.n_before + 1)
