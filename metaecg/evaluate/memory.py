"""How much memory a piece of work holds at its peak: live tensor bytes, or the GPU allocator's peak.

On the CPU every operation that torch dispatches is watched. A storage (the memory behind a tensor
and all its views) is counted once, when it is first seen, and leaves the count when its last
holder lets go of it, be that a variable, a gradient or what autograd keeps for the way back.

Not counted: what a kernel takes and frees within one operation (the workspace of a convolution),
and memory that isn't a tensor's. So the figure is one of the algorithm, the same on every machine.
"""

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Held = nn.Module | torch.optim.Optimizer | torch.Tensor
"""What may hold tensors before the work begins."""


class LiveTensors(TorchDispatchMode):
    """Count the bytes of the tensors that are alive, in a ``with`` block.

    A tensor that was there before the block is counted from the first operation that touches it,
    unless `count` was told of it. Works on fake tensors as well: ``with FakeTensorMode(),
    LiveTensors() as live`` counts without the arithmetic.

    Examples
    --------
    >>> with LiveTensors() as live:
    ...     a = torch.zeros(1000)
    ...     b = a.view(10, 100) + 1
    ...     del a, b
    >>> live.bytes, live.peak_bytes
    (0, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        """Alive now."""
        self.peak_bytes = 0
        """The most that was alive at once."""
        self._sizes: dict[int, int] = {}  # id of a storage -> its bytes

    def count(self, *held: Held) -> None:
        """Count tensors that are there already: of modules, optimizers, or given as they are."""
        for holder in held:
            for tensor in _tensors_of(holder):
                self._see(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and see what it took in and what came out."""
        kwargs = kwargs or {}
        for leaf in tree_iter((args, kwargs)):
            self._see(leaf)
        result = func(*args, **kwargs)
        for leaf in tree_iter((args, kwargs, result)):  # once more: it may have resized an input
            self._see(leaf)
        return result

    def _see(self, leaf: object) -> None:
        if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided:
            return
        storage = leaf.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self._sizes:
            # torch keeps one Python object for a storage as long as that lives, so it stands for it
            weakref.finalize(storage, self._forget, key).atexit = False
        self.bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def peak_memory(work: Callable[[], object], *held: Held, device: str = "cpu") -> int:
    """Return the most bytes that tensors hold at once while ``work()`` runs.

    Parameters
    ----------
    work
        Called once. What it returns is dropped at the end.
    *held
        Modules, optimizers and tensors that are there before and stay: they count from the start,
        gradients and the optimizer's state too. On a GPU they count anyway, as does everything
        else that is there.
    device
        ``"cpu"``: live tensors are counted, see `LiveTensors`. A CUDA device: the peak of torch's
        allocator, workspaces included.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    ValueError
        If the device is neither the CPU nor a CUDA device.

    Examples
    --------
    >>> weights = torch.zeros(1000)
    >>> peak_memory(lambda: weights * 2 + 1, weights)
    12000
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return _allocator_peak(work, device)
    if kind != "cpu":
        raise ValueError(f"device is {device!r}; 'cpu' or a CUDA device was expected.")
    with LiveTensors() as live:
        live.count(*held)
        work()
    return live.peak_bytes


def _allocator_peak(work: Callable[[], object], device: str) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _tensors_of(holder: Held) -> Iterable[torch.Tensor]:
    if isinstance(holder, torch.Tensor):
        yield holder
        if holder.is_leaf and holder.grad is not None:
            yield holder.grad
    elif isinstance(holder, nn.Module):
        for tensor in (*holder.parameters(), *holder.buffers()):
            yield from _tensors_of(tensor)
    else:
        for state in holder.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
