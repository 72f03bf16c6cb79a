"""Run work on tensors that have a shape and no numbers, so that a large case costs no time."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class OrdinaryNumbers(TorchDispatchMode):
    """Where a program asks a fake tensor for its number, answer 1, then 2, and so on; or True.

    These are finite, and what counts steps has counted on: the program takes the branches of a run
    in which nothing goes wrong. Generators are left out, for there is nothing to draw.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation, or answer."""
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = float if args[0].dtype.is_floating_point else int
            return True if args[0].dtype is torch.bool else kind(next(self._numbers))
        kwargs = {
            k: None if isinstance(v, torch.Generator) else v for k, v in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


@contextmanager
def without_arithmetic(network: nn.Module, *, wanted: bool = True) -> Iterator[None]:
    """Take the numbers out of the network, and give none to what is built in the block.

    The network is of no other use afterwards. Unless `wanted`, nothing happens.
    """
    if not wanted:
        yield
        return
    with FakeTensorMode(), OrdinaryNumbers():
        for module in network.modules():
            for name, p in module.named_parameters(recurse=False):
                hollow = torch.empty(p.shape, dtype=p.dtype)
                setattr(module, name, nn.Parameter(hollow, p.requires_grad))
            for name, b in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(b.shape, dtype=b.dtype))
        yield
