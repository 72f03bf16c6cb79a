"""What a base takes: windows of a signal, or rows of beats; anything else is refused at the door."""

import numpy as np
from torch import nn

from metaecg.checks import check_windows
from metaecg.errors import DataError
from metaecg.models.inference import network_logits

CONTEXT, CUTTING = "beat_context", "beat_cutting"
"""Keys of a base's `training` facts: its `BeatContext`, and how its beats are cut. All keys that start
with ``beat_`` decide what is said of beats, and are part of the base's fingerprint."""


def is_for_beats(base) -> bool:
    """Return whether `base` judges beats (rows of `metaecg.data.beat_input`), not windows."""
    return CUTTING in base.training


def beat_facts(base) -> dict:
    """Return what of the `training` facts decides about beats; nothing for a base for windows."""
    return {key: fact for key, fact in base.training.items() if key.startswith("beat_")}


def windows_for(base, windows: np.ndarray) -> np.ndarray:
    """Return `windows` as float32; what `base` doesn't take is a DataError.

    That is another shape, NaN, and for a base for beats a last row with anything behind its numbers:
    a second lead has the shape of a row of numbers and would be read as intervals and likenesses.
    """
    windows = check_windows(windows)
    if windows.shape[1:] != (base.n_leads, base.preprocessing.n_samples):
        raise DataError(_shape_message(base, windows.shape))
    n_numbers = base.architecture_kwargs.get("n_numbers", 0) if is_for_beats(base) else 0
    if n_numbers and windows[:, -1, n_numbers:].any():
        bad = int(np.argmax(windows[:, -1, n_numbers:].any(axis=1)))
        raise DataError(
            f"the last row of windows[{bad}] goes on behind its numbers, as a lead of a signal would; "
            f"this base judges beats: expected {n_numbers} numbers there and zero behind them. Make "
            "the rows with metaecg.data.beat_input.beat_inputs."
        )
    return windows


def base_logits(base, network: nn.Module, windows: np.ndarray) -> np.ndarray:
    """Return the logits ``(n_windows, n_classes)`` of `network`, which takes what `base` takes."""
    windows = base.preprocessing.normalize_windows(windows_for(base, windows))
    return network_logits(network, windows, n_classes=len(base.classes))


def _shape_message(base, shape: tuple[int, ...]) -> str:
    n_rows, n_samples = base.n_leads, base.preprocessing.n_samples
    length = f"{base.preprocessing.window_s:g} s at {base.preprocessing.fs_hz:g} Hz"
    if is_for_beats(base):
        return (
            f"windows has shape {shape}; expected (n_beats, {n_rows}, {n_samples}): the base judges "
            f"beats, {length} each. Cut them with metaecg.data.beats.cut_beats and make the rows with "
            "metaecg.data.beat_input.beat_inputs."
        )
    return (
        f"windows has shape {shape}; expected (n_windows, {n_rows}, {n_samples}): the base takes "
        f"{n_rows} lead(s) and {length}. Cut the windows with the base's preprocessing."
    )
