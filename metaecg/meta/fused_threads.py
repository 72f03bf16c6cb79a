"""Run the chunks of a meta-batch through fused models, one thread each."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.meta.algorithms import Algorithm
from metaecg.meta.engine import MetaBatch, MetaStep
from metaecg.meta.fused import FusedCompactCNN
from metaecg.meta.stacked import Loss, StackedModel
from metaecg.models.backbones.compact_cnn import CompactCNN, ConvBlock

TASKS_AT_ONCE = 4
"""Tasks of a chunk: enough to make the calls cheap, few enough for the processor's caches."""
WIDE, WIDE_TASKS_AT_ONCE = 48, 2
"""Of networks with so many channels two tasks are enough, and take half the memory."""

KNOWN_LAYERS = (CompactCNN, ConvBlock, nn.Sequential, nn.Conv1d, nn.GroupNorm, nn.Linear)


def can_fuse(network: nn.Module, algorithm: Algorithm, loss: Loss) -> bool:
    """Tell whether the fused passes compute what the network, the algorithm and the loss ask for."""
    return (
        type(network) is CompactCNN
        and all(type(module) in KNOWN_LAYERS for module in network.modules())
        and all(p.device.type == "cpu" for p in network.parameters())
        and loss is F.cross_entropy
        and not algorithm.adapts_head_only
    )


class FusedThreads:
    """Fused models of one network, each used by one thread at a time.

    Parameters
    ----------
    network
        One that `can_fuse` says yes to.
    task_chunk
        At most so many tasks at once, all threads together.
    n_threads
        At most so many threads; None: as many as torch uses. The result doesn't depend on it.
    """

    def __init__(
        self, network: CompactCNN, *, task_chunk: int | None, n_threads: int | None
    ) -> None:
        # The same whatever the number of threads, so that the sums are too.
        is_wide = network.blocks[0].conv.out_channels >= WIDE
        at_once = WIDE_TASKS_AT_ONCE if is_wide else TASKS_AT_ONCE
        self.chunk = min(at_once, task_chunk or at_once)
        self.most_chunks = task_chunk // self.chunk if task_chunk else None
        self.n_threads = n_threads
        self._network = network
        self._free: list[FusedCompactCNN] = []

    def map(
        self, function: Callable[[StackedModel, MetaBatch], MetaStep], batch: MetaBatch
    ) -> list[MetaStep]:
        """Return what `function` makes of each chunk of the batch, in their order."""
        parts = list(batch.chunks(self.chunk))
        limits = (self.n_threads or torch.get_num_threads(), self.most_chunks, len(parts))
        n_threads = min(limit for limit in limits if limit is not None)

        def run(part: MetaBatch) -> MetaStep:
            model = self._free.pop() if self._free else FusedCompactCNN(self._network)
            with torch.no_grad():  # a thread has a grad mode of its own
                step = function(model, part)
            self._free.append(model)
            return step

        with _one_torch_thread():
            if n_threads == 1:
                return [run(part) for part in parts]
            with ThreadPoolExecutor(n_threads) as threads:
                return list(threads.map(run, parts))


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch from splitting matrix products that are small and run side by side already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
