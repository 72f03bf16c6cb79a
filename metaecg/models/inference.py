"""Run a network over windows without training it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from metaecg.errors import AdaptationError

CHUNK = 1024
"""Windows per forward pass; bounds the memory."""


def network_logits(network: nn.Module, windows: np.ndarray, *, n_classes: int) -> np.ndarray:
    """Return logits ``(n_windows, n_classes)`` float64 of normalised windows, in evaluation mode.

    The network's train/eval flags are afterwards as they were. `windows` is float32
    ``(n_windows, n_leads, n_samples)``. Logits that aren't finite are an AdaptationError: NaN would be
    named like any other class.
    """
    result = np.empty((len(windows), n_classes))
    device = next(network.parameters()).device
    with _evaluating(network), torch.inference_mode():
        for start in range(0, len(windows), CHUNK):
            chunk = torch.tensor(windows[start : start + CHUNK], device=device)
            result[start : start + CHUNK] = network(chunk).double().cpu().numpy()
    if not np.isfinite(result).all():
        bad = int(np.argmin(np.isfinite(result).all(axis=1)))
        raise AdaptationError(
            f"the network gives {result[bad].tolist()} for windows[{bad}]; finite logits were expected. "
            "Its weights are damaged, or its training went astray: load it again, or train with a "
            "lower learning rate."
        )
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
