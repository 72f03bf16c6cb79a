"""One pass of a network in which every row has its own small change: the changes add up.

    low-rank     y + s B_i (A_i x)      after a Conv1d or a Linear, as batched matrix products
    bias         y + (b_i - b)          after any layer whose bias is added at its end
    weight       W_i x + b_i            in place of a Linear's answer

The layers themselves run once for all rows. The bodies of compact networks run through compiled code
that takes any change of theirs (`metaecg.serve.mixed_fused`). What is left (all weights of another
network trained, statistics of batch norm moved, a bias inside a recurrent cell) is left to
`metaecg.serve.mixed_whole`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaecg.adapt.methods import READS_CHILD_WEIGHTS
from metaecg.serve.mixed_adapters import Layout, LoadedAdapter, stacked
from metaecg.serve.mixed_fused import FusedBody, RowNumbers, can_fuse

ADDS_ITS_BIAS_LAST = (nn.Conv1d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d)
Change = Callable[[Tensor, Tensor], Tensor]
"""From a layer's input and output rows to the output rows as they should be."""


class MisfitError(RuntimeError):
    """The network doesn't run its layers row by row; never leaves this package."""


class RowNetwork:
    """A network of its own whose layers can be changed row by row for one pass.

    Not to be used by two threads at once.

    Parameters
    ----------
    network
        A copy that nobody else uses, in eval mode.
    n_samples
        Of its windows.
    """

    def __init__(self, network: nn.Module, n_samples: int) -> None:
        self.network = network
        self._bodies = _fused_bodies(network, n_samples)
        self._fused = {name for body in self._bodies for name in body.parameters}
        self._layers = _changeable(network)
        self._changes: dict[str, list[tuple[Tensor | None, Change]]] = {}
        self._n_rows = 0
        for name, layer in self._layers.items():
            layer.register_forward_hook(partial(self._after, name))

    def can_run(self, layout: Layout) -> bool:
        """Tell whether all that adapters of this layout change is a change of rows."""
        if layout.statistics or any(name not in self._layers for name in layout.low_rank):
            return False
        return all(self._is_addable(name) for name in layout.whole)

    def logits(self, x: Tensor, adapters: Sequence[LoadedAdapter | None]) -> Tensor:
        """Return the logits of rows, each with its own adapter's changes.

        Raises
        ------
        MisfitError
            If a layer that should be changed wasn't called once with all rows.
        """
        self._changes = self._changes_of(adapters)
        self._n_rows, self._called = len(x), defaultdict(int)
        numbers = RowNumbers.of(adapters) if self._bodies else None
        for body in self._bodies:
            body.rows = numbers
        try:
            logits = self.network(x)
        finally:
            changes, self._changes = self._changes, {}
            for body in self._bodies:
                body.rows = None
        if any(self._called[name] != 1 for name in changes):
            raise MisfitError("a layer wasn't called once")
        return logits

    def _is_addable(self, name: str) -> bool:
        layer, _, kind = name.rpartition(".")
        is_linear = isinstance(self._layers.get(layer), nn.Linear)
        return name in self._fused or layer in self._layers and (kind == "bias" or is_linear)

    def _after(self, name: str, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        changes = self._changes.get(name)
        if changes is None:
            return None
        (x,) = inputs
        if len(x) != self._n_rows:
            raise MisfitError(f"{name} was called with {len(x)} rows of {self._n_rows}")
        self._called[name] += 1
        for rows, change in changes:
            if rows is None:
                output = change(x, output)
            else:
                output[rows] = change(x[rows], output[rows])
        return output

    def _changes_of(self, adapters) -> dict[str, list[tuple[Tensor | None, Change]]]:
        found = defaultdict(list)
        for layout, numbers in by_layout(adapters).items():
            everything = len(numbers) == len(adapters)
            rows = None if everything else torch.tensor(numbers)
            own = [adapters[i] for i in numbers]
            for name, change in self._changes_in(layout, own):
                found[name].append((rows, change))
        return dict(found)

    def _changes_in(self, layout: Layout, adapters: list[LoadedAdapter]):
        """Yield layer and change of the rows that adapters of one layout have."""
        scale = torch.tensor([adapter.scale for adapter in adapters])[:, None, None]
        for name, (a, b) in layout.low_rank.items():
            if f"{name}.weight" not in self._fused:
                a, b = (stacked(place, adapters).flatten(2) for place in (a, b))
                yield name, partial(_add_low_rank, self._layers[name], a, b * scale)
        whole = {name: place for name, place in layout.whole.items() if name not in self._fused}
        for name in dict.fromkeys(name.rpartition(".")[0] for name in whole):
            layer, own = self._layers[name], {}
            for kind in ("weight", "bias"):
                place = whole.get(f"{name}.{kind}")
                own[kind] = None if place is None else stacked(place, adapters)
            if own["weight"] is not None:
                yield name, partial(_replace_linear, layer, own["weight"], own["bias"])
            else:
                yield name, partial(_add_bias, layer, own["bias"] - layer.bias)


def by_layout(adapters: Sequence[LoadedAdapter | None]) -> dict[Layout, list[int]]:
    """Return the rows of each layout, those of the base left out."""
    found: dict[Layout, list[int]] = defaultdict(list)
    for i, adapter in enumerate(adapters):
        if adapter is not None:
            found[adapter.layout].append(i)
    return dict(found)


def _fused_bodies(network: nn.Module, n_samples: int) -> list[FusedBody]:
    """Let the compact bodies of a network run through compiled code; return what stands for them."""
    found = []
    for name, module in network.named_modules():
        if can_fuse(module, n_samples):
            module.features = FusedBody(name, module)
            found.append(module.features)
    return found


def _changeable(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose answer can be changed after the call, by name."""
    found = {}
    for name, layer in network.named_modules():
        parents = [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)]
        is_read = any(isinstance(network.get_submodule(p), READS_CHILD_WEIGHTS) for p in parents)
        if type(layer) in ADDS_ITS_BIAS_LAST and not is_read:
            found[name] = layer
    return found


def _add_low_rank(layer: nn.Module, a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        rows = x.reshape(len(x), -1, x.shape[-1])  # (n, positions, in)
        change = torch.bmm(torch.bmm(rows, a.mT), b.mT)
        return y + change.view_as(y)
    inner = torch.bmm(a, _patches(layer, x))  # (n, rank, positions)
    return torch.baddbmm(y, b, inner)


def _patches(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Return what the kernel sees at each position, ``(n, in * kernel, positions)``."""
    if conv.kernel_size == (1,) and conv.stride == (1,) and conv.padding == (0,):
        return x
    padded = F.pad(x, _padding(conv))
    patches = padded.unfold(-1, conv.kernel_size[0], conv.stride[0])  # (n, in, positions, kernel)
    return patches.permute(0, 1, 3, 2).reshape(len(x), -1, patches.shape[2])


def _padding(conv: nn.Conv1d) -> tuple[int, int]:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        total = conv.kernel_size[0] - 1
        return total // 2, total - total // 2
    return conv.padding[0], conv.padding[0]


def _replace_linear(
    layer: nn.Linear, weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor
) -> Tensor:
    rows = x.reshape(len(x), -1, x.shape[-1])
    found = torch.bmm(rows, weight.mT)
    if layer.bias is not None:
        found = found + (layer.bias if bias is None else bias[:, None])
    return found.view_as(y)


def _add_bias(layer: nn.Module, change: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Add to the channels, which are the last axis of a Linear or LayerNorm and the second else."""
    if isinstance(layer, nn.Linear | nn.LayerNorm):
        return y + change.reshape(len(y), *[1] * (y.ndim - change.ndim), *change.shape[1:])
    return y + change.reshape(*change.shape, *[1] * (y.ndim - 2))
