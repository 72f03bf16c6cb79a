"""The few argument checks that every layer uses."""

import difflib
import math
from collections.abc import Iterable

import numpy as np

from metaecg.errors import DataError

MOST_MV = 1e6
"""No sample of a window is beyond it, even of a signal in the steps of a recorder: a broken number."""


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
    """Return `windows` as float32 (n_windows, n_leads, n_samples); refuse what can't be used.

    That is another shape, NaN, infinity, and samples beyond `MOST_MV`.
    """
    windows = np.asarray(windows)
    if windows.ndim != 3:
        raise DataError(
            f"{name} has shape {windows.shape}; expected (n_windows, n_leads, n_samples)."
        )
    with np.errstate(over="ignore"):  # what is too large for float32 is found below
        found = windows.astype(np.float32, copy=False)
    # NaN is neither, and two numbers need no memory beside the windows.
    if not (found.min(initial=0) >= -MOST_MV and found.max(initial=0) <= MOST_MV):
        raise DataError(_why_not(windows, name))
    return found


def _why_not(windows: np.ndarray, name: str) -> str:
    fits = (np.abs(windows) <= MOST_MV).all(axis=(1, 2))  # False for NaN, too
    bad = int(np.argmin(fits))
    if not np.isfinite(windows[bad]).all():
        return (
            f"{name}[{bad}] holds NaN or infinite samples; only measured, finite windows can be "
            "used. Drop it or cut the windows with metaecg.data.prepare_record, which leaves gaps out."
        )
    worst = windows[bad].flat[np.argmax(np.abs(windows[bad]))]
    return (
        f"{name}[{bad}] has a sample of {worst:g} mV; at most {MOST_MV:g} either way was expected. "
        "Drop it, or convert the signal to millivolts."
    )
