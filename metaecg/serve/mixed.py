"""Windows of many patients through one network, each with its own patient's small change."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from metaecg.models.base_windows import windows_for
from metaecg.serve.mixed_adapters import AdapterReader, LoadedAdapter
from metaecg.serve.mixed_rows import MisfitError, RowNetwork
from metaecg.serve.mixed_whole import WholeNetwork

if TYPE_CHECKING:
    from metaecg.models.checkpoints import BaseModel
    from metaecg.models.rhythm import RhythmChain

CHUNK = 256
"""Windows per pass; bounds the memory."""
ROWS_OF_ONE = 8
"""From so many windows of one patient on, the change is added to the weights once for all."""


class MixedBatch:
    """Logits of windows of different patients in one pass of one network.

    Every row is the same to 1e-5 as its patient's `Personalizer.logits`, whatever else is in the
    batch. Safe between threads, which wait for each other.

    Parameters
    ----------
    base
        The base that all adapters were fitted on.

    Examples
    --------
    >>> mixed = MixedBatch(base)  # doctest: +SKIP
    >>> mixed.logits(windows, [of_anna, of_bert, None]).shape  # doctest: +SKIP
    (3, 2)
    """

    def __init__(self, base: "BaseModel") -> None:
        self.base = base
        self.reader = AdapterReader(base)
        self._rows = RowNetwork(base.new_network(), base.preprocessing.n_samples)
        network = base.new_network()
        self._whole = WholeNetwork(network, can_stack=getattr(network, "supports_vmap", False))
        self._lock = threading.Lock()

    def logits(self, windows: np.ndarray, adapters: Sequence[LoadedAdapter | None]) -> np.ndarray:
        """Return the logits of each window by its own adapter.

        Parameters
        ----------
        windows
            Shape ``(n, n_leads, n_samples)``, millivolts, as `Personalizer.fit` takes them.
        adapters
            One per window; ``None`` is the base itself.

        Returns
        -------
        numpy.ndarray
            Shape ``(n, n_classes)``, float64.

        Raises
        ------
        DataError
            If the windows have another shape, or samples that aren't finite.
        ValueError
            If there are more or fewer adapters than windows.
        """
        windows = windows_for(self.base, windows)
        if len(adapters) != len(windows):
            raise ValueError(f"there are {len(adapters)} adapters for {len(windows)} windows.")
        windows = self.base.preprocessing.normalize_windows(windows)
        result = np.empty((len(windows), len(self.base.classes)))
        with self._lock, torch.inference_mode():
            for start in range(0, len(windows), CHUNK):
                part = slice(start, start + CHUNK)
                x = torch.tensor(windows[part])
                result[part] = self._pass(x, adapters[part]).double().numpy()
        return result

    def model_of(self, adapter: LoadedAdapter | None) -> "PatientModel":
        """Return one patient's detector, to be used like a fitted `Personalizer`."""
        return PatientModel(self, adapter)

    def _pass(self, x: torch.Tensor, adapters: Sequence[LoadedAdapter | None]) -> torch.Tensor:
        is_whole = torch.tensor([a is not None and self._needs_whole(a) for a in adapters])
        if len(adapters) >= ROWS_OF_ONE and all(a is adapters[0] for a in adapters):
            is_whole[:] = adapters[0] is not None
        together = (~is_whole).nonzero()[:, 0]
        logits = torch.empty(len(x), len(self.base.classes))
        if len(together):
            try:
                logits[together] = self._rows.logits(x[together], [adapters[i] for i in together])
            except MisfitError:
                is_whole = torch.tensor([adapter is not None for adapter in adapters])
                logits = self._rows.network(x)
        alone = is_whole.nonzero()[:, 0]
        if len(alone):
            logits[alone] = self._whole.logits(x[alone], [adapters[i] for i in alone])
        return logits

    def _needs_whole(self, adapter: LoadedAdapter) -> bool:
        return not self._rows.can_run(adapter.layout)


class PatientModel:
    """A patient's detector on a `MixedBatch`: logits and settings as a fitted `Personalizer` has."""

    def __init__(self, mixed: MixedBatch, adapter: LoadedAdapter | None) -> None:
        self._mixed = mixed
        self.adapter = adapter

    @property
    def base(self) -> "BaseModel":
        """The base model."""
        return self._mixed.base

    @property
    def rhythm(self) -> str:
        """How it was fitted to judge neighbours; the base alone has ``"none"``."""
        return "none" if self.adapter is None else self.adapter.rhythm

    @property
    def chain_(self) -> "RhythmChain | None":
        """The patient's chain; None with ``rhythm="none"``."""
        return None if self.adapter is None else self.adapter.chain

    @property
    def threshold(self) -> float:
        """Probability of the positive class from which it is named."""
        from metaecg.adapt.in_time import THRESHOLD

        return THRESHOLD if self.adapter is None else self.adapter.threshold

    def logits(self, windows: np.ndarray) -> np.ndarray:
        """Return the logits of windows of this patient; see `MixedBatch.logits`."""
        return self._mixed.logits(windows, [self.adapter] * len(windows))
