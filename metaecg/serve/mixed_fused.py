"""The bodies of compact networks through the compiled rows of `metaecg.serve.mixed_kernels`."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from metaecg.models.backbones.compact_cnn import N_GROUPS, CompactBody, ConvBlock
from metaecg.serve import mixed_kernels as kernels
from metaecg.serve.mixed_adapters import Layout, LoadedAdapter

ROWS_PER_THREAD = 16
"""Fewer windows are faster on one thread."""


@dataclass(frozen=True, kw_only=True)
class RowNumbers:
    """The numbers of the adapters of some rows, each adapter once."""

    which: np.ndarray
    """Which adapter each row has, -1 for the base."""
    flat: np.ndarray
    """The numbers of all adapters, one behind the other."""
    starts: np.ndarray
    """Where each adapter's numbers start in `flat`."""
    ranks: np.ndarray
    scales: np.ndarray
    of_layout: dict[Layout, list[int]]
    """The adapters of each layout."""

    @classmethod
    def of(cls, adapters: Sequence[LoadedAdapter | None]) -> "RowNumbers":
        """Gather the numbers of each row's adapter."""
        places: dict[LoadedAdapter, int] = {}
        which = [-1 if a is None else places.setdefault(a, len(places)) for a in adapters]
        own = list(places)
        flat = np.concatenate([a.numbers for a in own]) if own else np.zeros(1, np.float32)
        ends = np.cumsum([0, *(len(a.numbers) for a in own)])
        of_layout: dict[Layout, list[int]] = defaultdict(list)
        for place, adapter in enumerate(own):
            of_layout[adapter.layout].append(place)
        return cls(
            which=np.array(which, np.int64),
            flat=flat,
            starts=ends[:-1],
            ranks=np.array([adapter.layout.rank for adapter in own], np.int64),
            scales=np.array([adapter.scale for adapter in own], np.float32),
            of_layout=dict(of_layout),
        )


class FusedBody:
    """What stands for the `features` of one `CompactBody`.

    Parameters
    ----------
    name
        Of the body in its network; empty if it is the network itself.
    body
        One that `can_fuse` says yes to.
    """

    def __init__(self, name: str, body: CompactBody) -> None:
        self.rows: RowNumbers | None = None
        """Whose numbers the next pass takes; None: nobody's."""
        prefix = f"{name}." if name else ""
        self._layers = [f"{prefix}blocks.{i}" for i in range(len(body.blocks))]
        self._geometry = geometry_of(body)
        convs, norms = [b.conv for b in body.blocks], [b.norm for b in body.blocks]
        self._weights = np.concatenate([_as_runs(conv) for conv in convs])
        width = max(norm.num_channels for norm in norms)
        self._gammas, self._betas = (np.zeros((len(norms), width), np.float32) for _ in range(2))
        for layer, norm in enumerate(norms):
            self._gammas[layer, : norm.num_channels] = norm.weight.detach().numpy()
            self._betas[layer, : norm.num_channels] = norm.bias.detach().numpy()
        self._offsets: WeakKeyDictionary[Layout, np.ndarray] = WeakKeyDictionary()

    @property
    def parameters(self) -> dict[str, tuple[int, int]]:
        """Names of the parameters whose changes it makes, with layer and column of `offsets`."""
        columns = {
            "conv.weight": kernels.WEIGHT,
            "norm.weight": kernels.GAMMA,
            "norm.bias": kernels.BETA,
        }
        return {
            f"{layer}.{name}": (i, column)
            for i, layer in enumerate(self._layers)
            for name, column in columns.items()
        }

    @property
    def low_rank_layers(self) -> dict[str, int]:
        """Names of the layers whose low-rank changes it makes, with their place."""
        return {f"{layer}.conv": i for i, layer in enumerate(self._layers)}

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``(n, 2 * C)`` of windows ``(n, n_leads, n_samples)``."""
        rows = self.rows or RowNumbers.of([None] * len(x))
        offsets = np.empty((len(rows.starts), len(self._layers), 5), np.int64)
        for layout, places in rows.of_layout.items():
            own = self._of(layout)
            offsets[places] = np.where(own >= 0, own + rows.starts[places, None, None], -1)
        out = np.empty((len(x), 2 * self._geometry[-1, kernels.N_OUT]), np.float32)
        signal = np.ascontiguousarray(x.numpy())

        def run(part: slice) -> None:
            kernels.run_rows(
                signal[part],
                rows.which[part],
                rows.flat,
                offsets,
                rows.ranks,
                rows.scales,
                self._weights,
                self._gammas,
                self._betas,
                self._geometry,
                N_GROUPS,
                out[part],
            )

        _in_threads(run, len(x))
        return torch.from_numpy(out)

    def _of(self, layout: Layout) -> np.ndarray:
        """Return where the tensors of each layer start in a row of numbers, -1 where there are none."""
        if layout not in self._offsets:
            found = np.full((len(self._layers), 5), -1, np.int64)
            for name, layer in self.low_rank_layers.items():
                if name in layout.low_rank:
                    a, b = layout.low_rank[name]
                    found[layer, kernels.A], found[layer, kernels.B] = a.start, b.start
            for name, (layer, column) in self.parameters.items():
                if name in layout.whole:
                    found[layer, column] = layout.whole[name].start
            self._offsets[layout] = found
        return self._offsets[layout]


def can_fuse(body: nn.Module, n_samples: int) -> bool:
    """Tell whether the compiled rows compute what a network's body does."""
    if not isinstance(body, CompactBody) or type(body.blocks) is not nn.Sequential:
        return False
    if not all(type(block) is ConvBlock and _is_known(block) for block in body.blocks):
        return False
    return bool((geometry_of(body, n_samples)[:, kernels.LENGTH_OUT] >= kernels.TILE).all())


def geometry_of(body: CompactBody, n_samples: int | None = None) -> np.ndarray:
    """Return the shapes of a body's layers, a row each (`metaecg.serve.mixed_kernels`)."""
    rows, length = [], body.n_samples if n_samples is None else n_samples
    for block in body.blocks:
        conv = block.conv
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        found = (length + 2 * (kernel // 2) - kernel) // stride + 1
        size = -(-kernel * conv.in_channels // kernels.LANES) * kernels.LANES
        rows.append((conv.in_channels, conv.out_channels, kernel, stride, length, found, size))
        length = found
    return np.array(rows, np.int64)


def _as_runs(conv: nn.Conv1d) -> np.ndarray:
    """Return a convolution's weights as runs of (kernel, n_in), filled up with zeros, one vector."""
    runs = conv.weight.detach().transpose(1, 2).flatten(1).numpy()
    size = -(-runs.shape[1] // kernels.LANES) * kernels.LANES
    return np.pad(runs, ((0, 0), (0, size - runs.shape[1]))).reshape(-1)


def _is_known(block: ConvBlock) -> bool:
    conv, norm = block.conv, block.norm
    (kernel,) = conv.kernel_size
    return (
        (type(conv), type(norm)) == (nn.Conv1d, nn.GroupNorm)
        and (conv.padding, conv.padding_mode) == ((kernel // 2,), "zeros")
        and (conv.dilation, conv.groups, conv.bias) == ((1,), 1, None)
        and (norm.num_groups, norm.eps, norm.affine) == (N_GROUPS, kernels.EPS, True)
        and conv.out_channels % kernels.TILE == 0
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type == "cpu"
    )


def _in_threads(run: Callable[[slice], None], n_rows: int) -> None:
    """Run parts of the rows side by side, on as many threads as torch has."""
    n_threads = min(torch.get_num_threads(), n_rows // ROWS_PER_THREAD)
    if n_threads < 2:
        run(slice(0, n_rows))
        return
    edges = np.linspace(0, n_rows, n_threads + 1).astype(int)
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(run, [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]))
