"""Rows whose adapters have whole weights of their own: stacked weights, or one adapter at a time."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metaecg.serve.mixed_adapters import LoadedAdapter, stacked

STACKED_BYTES = 64 * 2**20
"""Of whole weights side by side, at most."""
ROWS_PER_ADAPTER = 4
"""With so many rows per adapter one pass per adapter is as fast as stacked weights."""


class WholeNetwork:
    """A network that runs with the weights that adapters give.

    Parameters
    ----------
    network
        In eval mode. Its weights are read, never changed.
    can_stack
        Whether to try `torch.func.vmap` over stacked weights.
    """

    def __init__(self, network: nn.Module, *, can_stack: bool) -> None:
        self.network = network
        self._can_stack = can_stack
        self._own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self._n_bytes = sum(t.numel() * t.element_size() for t in self._own.values())

    def logits(self, x: Tensor, adapters: Sequence[LoadedAdapter]) -> Tensor:
        """Return the logits of rows, each by its own adapter's weights."""
        rows: dict[LoadedAdapter, list[int]] = defaultdict(list)
        for i, adapter in enumerate(adapters):
            rows[adapter].append(i)
        if self._can_stack and len(adapters) < ROWS_PER_ADAPTER * len(rows):
            try:
                return self._stacked(x, adapters)
            except (RuntimeError, NotImplementedError):
                self._can_stack = False  # a layer of it has no rule for stacked weights
        parts = {adapter: self._one(x[own], adapter) for adapter, own in rows.items()}
        found = torch.empty(len(x), next(iter(parts.values())).shape[-1])
        for adapter, own in rows.items():
            found[own] = parts[adapter]
        return found

    def _one(self, x: Tensor, adapter: LoadedAdapter) -> Tensor:
        weights = {name: stack[0] for name, stack in self._weights([adapter]).items()}
        return functional_call(self.network, weights, (x,))

    def _stacked(self, x: Tensor, adapters: Sequence[LoadedAdapter]) -> Tensor:
        found, at_once = [], max(1, STACKED_BYTES // self._n_bytes)
        for start in range(0, len(x), at_once):
            part = slice(start, start + at_once)
            found.append(self._of_one_layout(x[part], adapters[part]))
        return torch.cat(found)

    def _of_one_layout(self, x: Tensor, adapters: Sequence[LoadedAdapter]) -> Tensor:
        by_layout = defaultdict(list)
        for i, adapter in enumerate(adapters):
            by_layout[adapter.layout].append(i)
        found = None
        for rows in by_layout.values():
            weights = self._weights([adapters[i] for i in rows])

            def run(own, window):
                return functional_call(self.network, own, (window[None],))[0]

            logits = vmap(run)(weights, x[rows])
            found = logits.new_empty(len(x), logits.shape[-1]) if found is None else found
            found[rows] = logits
        return found

    def _weights(self, adapters: Sequence[LoadedAdapter]) -> dict[str, Tensor]:
        """Return the tensors that adapters of one layout change, one copy per adapter."""
        layout = adapters[0].layout
        places = {**layout.whole, **layout.statistics}
        found = {name: stacked(place, adapters) for name, place in places.items()}
        scale = torch.tensor([adapter.scale for adapter in adapters])[:, None, None]
        for layer, (a, b) in layout.low_rank.items():
            base = self._own[f"{layer}.weight"].detach()
            a, b = (stacked(place, adapters).flatten(2) for place in (a, b))
            weight = torch.baddbmm(base.flatten(1).expand(len(a), -1, -1), b * scale, a)
            found[f"{layer}.weight"] = weight.view(-1, *base.shape)
        return found
