"""Running statistics of batch norm, gathered after a training that could not gather them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def gather_running_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of batch norm by those of the given windows.

    Meta-training moves weights alone, and the statistics of its tasks end with each task; a network
    in use would normalise by what it had before. Without batch norm nothing happens, and no batch
    is asked for.

    Parameters
    ----------
    network
        Changed in place; left in eval mode.
    batches
        Windows (n, n_leads, n_samples), each with at least two windows. Every batch weighs the same.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    if norms:
        with torch.no_grad():
            for x in batches:
                network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
