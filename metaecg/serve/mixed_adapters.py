"""One patient's adapter in memory: its numbers in one row, and where in the network they belong.

Adapters of the same method and the same layers have their numbers at the same places
(`Layout`, shared by them), so that those of many patients are stacked as rows of one matrix.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

from metaecg.adapt.methods import RANKS, plain_name
from metaecg.adapt.personalize import Personalizer
from metaecg.errors import CheckpointError
from metaecg.serve.adapter_file import opened, unpacked

if TYPE_CHECKING:
    from metaecg.models.checkpoints import BaseModel
    from metaecg.models.rhythm import RhythmChain

OVERHEAD_BYTES = 2048
"""Of the objects around an adapter's bytes, roughly."""
MAX_LAYOUTS = 256
LOW_RANK = (".lora_A.weight", ".lora_B.weight")
STRUCTURE = ("method", "rank", "target_modules", "freeze")
"""Parameters of a `Personalizer` that decide which tensors there are."""


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in a row of numbers."""

    start: int
    shape: tuple[int, ...]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the tensor in a row of numbers, a view."""
        return numbers[self.start : self.start + prod(self.shape)].reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Layout:
    """Which numbers adapters of one kind have, and where; names are those of the base's network."""

    method: str
    low_rank: dict[str, tuple[Place, Place]]
    """Layer -> A and B of its low-rank change."""
    whole: dict[str, Place]
    """Parameter -> what takes its place."""
    statistics: dict[str, Place]
    """Buffer -> what takes its place (running statistics of batch norm)."""
    floats: slice
    """Bytes of the file's numbers that are float32."""
    n_bytes: int
    """Of all of the file's numbers."""

    @cached_property
    def rank(self) -> int:
        """Of the low-rank changes, which all have the same; 0 without any."""
        return max((a.shape[0] for a, _ in self.low_rank.values()), default=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedAdapter:
    """A patient's detector without its base, ready for `metaecg.serve.mixed.MixedBatch`."""

    layout: Layout
    numbers: np.ndarray
    """Shape ``(n,)``, float32, read only: a view of the adapter's own bytes."""
    scale: float
    """Of the low-rank change: alpha / rank."""
    threshold: float
    rhythm: str
    chain: "RhythmChain | None"
    version: int
    digest: str
    """SHA-256 of its bytes, in hex."""
    n_bytes: int
    """Memory that it takes, the objects around it included."""

    @property
    def method(self) -> str:
        """What was trained."""
        return self.layout.method


def stacked(place: Place, adapters: Sequence[LoadedAdapter]) -> torch.Tensor:
    """Return a tensor of adapters of one layout, one behind the other, ``(n, *shape)``."""
    return torch.from_numpy(np.stack([place.of(adapter.numbers) for adapter in adapters]))


class AdapterReader:
    """Turns the bytes of adapters into `LoadedAdapter`; the first one of a kind is checked whole.

    Parameters
    ----------
    base
        Whose adapters they are.
    """

    def __init__(self, base: "BaseModel") -> None:
        self.base = base
        self._layouts: OrderedDict[tuple, Layout] = OrderedDict()

    def read(self, data: bytes, *, version: int = 0, digest: str = "") -> LoadedAdapter:
        """Return the adapter that `metaecg.serve.adapter_file.adapter_bytes` gave.

        Raises
        ------
        CheckpointError
            If the bytes are damaged, or belong to another base.
        """
        table, document, offset = opened(data)
        if document["base_fingerprint"] != self.base.fingerprint:
            raise CheckpointError(
                f"the adapter belongs to the base {document['base_fingerprint']}; this base is "
                f"{self.base.fingerprint}. Serve the base it was fitted on, or personalize again."
            )
        layout = self._layout(data, table, document)
        raw = np.frombuffer(data, dtype=np.uint8)[offset:]
        if len(raw) != layout.n_bytes:
            raise CheckpointError(
                f"the adapter has {len(raw)} bytes of numbers where its table says "
                f"{layout.n_bytes}. Export it again."
            )
        numbers = raw[layout.floats].view(np.float32)
        if not np.isfinite(numbers).all():
            raise CheckpointError("the adapter holds numbers that aren't finite. Fit it again.")
        return LoadedAdapter(
            layout=layout,
            numbers=numbers,
            version=version,
            digest=digest or hashlib.sha256(data).hexdigest(),
            n_bytes=len(data) + OVERHEAD_BYTES,
            **_settings(document, self.base),
        )

    def of(self, personal: Personalizer) -> LoadedAdapter:
        """Return the adapter of a fitted `Personalizer`."""
        from metaecg.serve.adapter_file import adapter_bytes

        return self.read(adapter_bytes(personal))

    def _layout(self, data: bytes, table: dict, document: dict) -> Layout:
        params = document["params"]
        structure = [params.get(name) for name in STRUCTURE] + [document.get("adapted_layers")]
        key = (json.dumps(structure), json.dumps(table, sort_keys=True))
        layout = self._layouts.get(key)
        if layout is None:
            # Whatever of names and shapes a Personalizer of this base would refuse, it refuses here.
            Personalizer.from_document(*unpacked(data), self.base)
            layout = _layout_of(table, document["method"])
            self._layouts[key] = layout
            while len(self._layouts) > MAX_LAYOUTS:
                self._layouts.popitem(last=False)
        return layout


def _layout_of(table: dict, method: str) -> Layout:
    """Return the layout of a table that safetensors has read and a `Personalizer` has taken."""
    spans = [facts["data_offsets"] for facts in table.values() if facts["dtype"] == "F32"]
    start, stop = min(span[0] for span in spans), max(span[1] for span in spans)
    if sum(end - begin for begin, end in spans) != stop - start or start % 4:
        raise CheckpointError(
            "the adapter's float32 tensors don't lie one behind the other. Export it again."
        )
    pairs: dict[str, dict[str, Place]] = {}
    whole, statistics = {}, {}
    for name, facts in table.items():
        if facts["dtype"] != "F32":
            continue  # counts of batches, which change no output
        place = Place((facts["data_offsets"][0] - start) // 4, tuple(facts["shape"]))
        kind = next((end for end in LOW_RANK if name.endswith(end)), None)
        if kind is not None:
            pairs.setdefault(plain_name(name.removesuffix(kind)), {})[kind] = place
        elif name.endswith((".running_mean", ".running_var")):
            statistics[plain_name(name)] = place
        else:
            whole[plain_name(name)] = place
    low_rank = {layer: tuple(pair[end] for end in LOW_RANK) for layer, pair in pairs.items()}
    return Layout(
        method=method,
        low_rank=low_rank,
        whole=whole,
        statistics=statistics,
        floats=slice(start, stop),
        n_bytes=max(facts["data_offsets"][1] for facts in table.values()),
    )


def _settings(document: dict, base: "BaseModel") -> dict:
    """Return what of a document differs between adapters of one layout."""
    from metaecg.adapt.in_time import check_rhythm, default_threshold
    from metaecg.models.rhythm import RhythmChain

    params = document["params"]
    method, rhythm = params["method"], params.get("rhythm", "none")
    try:
        check_rhythm(rhythm, base)
        scale = _scale(method, params) if method in RANKS else 1.0
        threshold = params.get("threshold")
        threshold = default_threshold(rhythm, base) if threshold is None else float(threshold)
        if not 0 <= threshold <= 1 or not np.isfinite(scale):
            raise ValueError(f"threshold is {threshold}, alpha / rank is {scale}.")
        chain = None if rhythm == "none" else RhythmChain.from_dict(document.get("rhythm_chain"))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"the adapter describes what this base can't be given: {error} Export it again."
        ) from error
    return {"scale": scale, "threshold": threshold, "rhythm": rhythm, "chain": chain}


def _scale(method: str, params: dict) -> float:
    """Return alpha / rank as `metaecg.adapt.methods.prepare_network` has it."""
    rank = RANKS[method] if params.get("rank") is None else params["rank"]
    alpha = params.get("alpha")
    if alpha is None:
        alpha = 2 * rank if method == "lora" else rank
    return float(alpha / rank)
