"""The few argument checks that every layer uses."""

import difflib
import math
from collections.abc import Iterable

import numpy as np

from metaecg.errors import DataError


def check_positive(name: str, value: float) -> float:
    """Return `value` if it is a finite number above zero, else raise ValueError naming `name`."""
    if not (isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; a finite number above 0 was expected.")
    if value <= 0:
        raise ValueError(f"{name} is {value!r}; a number above 0 was expected.")
    return value


def check_option(name: str, value: str, options: Iterable[str]) -> str:
    """Return `value` if it is one of `options`, else raise ValueError with the nearest name."""
    options = sorted(options)
    if value in options:
        return value
    raise ValueError(f"{name} is {value!r}; expected {did_you_mean(value, options)}")


def did_you_mean(value: object, options: Iterable[str]) -> str:
    """Say which names exist and which of them is nearest to `value`."""
    options = sorted(options)
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"one of {', '.join(options)}.{hint}"


def check_windows(windows: np.ndarray, *, name: str = "windows") -> np.ndarray:
    """Return `windows` as float32 (n_windows, n_leads, n_samples); refuse other shapes and NaN."""
    windows = np.asarray(windows)
    if windows.ndim != 3:
        raise DataError(
            f"{name} has shape {windows.shape}; expected (n_windows, n_leads, n_samples)."
        )
    if not np.isfinite(windows).all():
        bad = int(np.argmax(~np.isfinite(windows).all(axis=(1, 2))))
        raise DataError(
            f"{name}[{bad}] holds NaN or infinite samples; only measured, finite windows can be "
            "used. Drop it or cut the windows with metaecg.data.prepare_record, which leaves gaps out."
        )
    return windows.astype(np.float32, copy=False)
