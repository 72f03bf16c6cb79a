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
from metaecg.meta.fused_kernels import EPS
from metaecg.meta.stacked import Loss, StackedModel
from metaecg.models.backbones.compact_cnn import N_GROUPS, CompactCNN, ConvBlock

TASKS_AT_ONCE = 4
"""Tasks of a chunk: enough to make the calls cheap, few enough for the processor's caches."""
MANY_CHANNELS, TASKS_OF_MANY_CHANNELS = 48, 2
"""Of networks with so many channels two tasks are enough, and take half the memory."""

DTYPES = (torch.float32, torch.float64)


def can_fuse(network: nn.Module, algorithm: Algorithm, loss: Loss) -> bool:
    """Tell whether the fused passes compute what the network, the algorithm and the loss ask for."""
    return (
        type(network) is CompactCNN
        and loss is F.cross_entropy
        and not algorithm.adapts_head_only
        and type(network.blocks) is nn.Sequential
        and all(_is_plain(block) for block in network.blocks)
        and type(network.head) is nn.Linear
        and network.head.bias is not None
        and not any(_has_hooks(module) for module in network.modules())
        and all(p.device.type == "cpu" and p.dtype in DTYPES for p in network.parameters())
    )


def _is_plain(block: nn.Module) -> bool:
    """Tell whether the passes know the form of all of a block's layers."""
    if type(block) is not ConvBlock:
        return False
    conv, norm = block.conv, block.norm
    return type(conv) is nn.Conv1d and type(norm) is nn.GroupNorm and _is_known(conv, norm)


def _is_known(conv: nn.Conv1d, norm: nn.GroupNorm) -> bool:
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    return (
        (conv.padding, conv.padding_mode) == ((kernel // 2,), "zeros")
        and (conv.dilation, conv.groups, conv.bias) == ((1,), 1, None)
        and stride <= kernel  # so that every row of the input is in a patch
        and (norm.num_groups, norm.eps, norm.affine) == (N_GROUPS, EPS, True)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
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
        has_many = network.blocks[0].conv.out_channels >= MANY_CHANNELS
        at_once = TASKS_OF_MANY_CHANNELS if has_many else TASKS_AT_ONCE
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
            model = self._take()
            with torch.no_grad():  # a thread has a grad mode of its own
                step = function(model, part)
            self._free.append(model)
            return step

        with _one_torch_thread():
            if n_threads == 1:
                return [run(part) for part in parts]
            with ThreadPoolExecutor(n_threads) as threads:
                return list(threads.map(run, parts))

    def _take(self) -> FusedCompactCNN:
        try:
            return self._free.pop()  # asking first whether there is one leaves time to lose it
        except IndexError:
            return FusedCompactCNN(self._network)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch from splitting matrix products that are small and run side by side already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
