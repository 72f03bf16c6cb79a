"""A stretch of a stored signal as a page draws it: its samples, or an envelope where they are many."""

import numpy as np

from metaecg.serve.store import Store
from metaecg.serve.store_rows import RecordingInfo
from metaecg.serve.store_signal import OVERVIEW_SAMPLES

DIGITS = 5
"""Of a shown millivolt: a hundredth of a microvolt, below the noise of any electrode."""


def shown_signal(
    store: Store,
    where: tuple[int, str, str],
    info: RecordingInfo,
    start: int,
    stop: int,
    max_points: int,
) -> dict:
    """Return the judged lead between two samples, with at most `max_points` points.

    Parameters
    ----------
    store
        The store.
    where
        Organisation, patient, recording.
    info
        What is known of the recording.
    start, stop
        Samples, half open.
    max_points
        As many samples or fewer are given as they are; more as lowest and highest value of
        stretches of equal length. A peak is never lost.

    Returns
    -------
    dict
        The fields of `metaecg.serve.schemas_recordings.SignalOut`.
    """
    n_samples = stop - start
    if n_samples <= max_points:
        signal = store.read_signal(*where, start=start, stop=stop, lead=info.lead)[0]
        found = {"kind": "samples", "value_mv": _shown(signal)}
        at = np.arange(start, stop)
    else:
        at, low, high = _envelope(store, where, info, start, stop, max_points)
        found = {"kind": "envelope", "minimum_mv": _shown(low), "maximum_mv": _shown(high)}
    return {
        "start_s": start / info.fs_hz,
        "stop_s": stop / info.fs_hz,
        "fs_hz": info.fs_hz,
        "time_s": np.round(at / info.fs_hz, 6).tolist(),
        **found,
    }


def _envelope(
    store: Store, where, info: RecordingInfo, start: int, stop: int, max_points: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first sample, lowest and highest value of each stretch."""
    length = -(-(stop - start) // max_points)
    if length < OVERVIEW_SAMPLES:
        signal = store.read_signal(*where, start=start, stop=stop, lead=info.lead)[0]
        low, high = lowest(signal, length), highest(signal, length)
        return start + length * np.arange(len(low)), low, high
    # Whole pairs of the overview, one more where start and stop lie within some.
    first, last = start // OVERVIEW_SAMPLES, -(-stop // OVERVIEW_SAMPLES)
    n_pairs = -(-(last - first) // max_points)
    minimum, maximum = store.read_overview(*where, lead=info.lead, start=first, stop=last)
    low, high = lowest(minimum, n_pairs), highest(maximum, n_pairs)
    return (first + n_pairs * np.arange(len(low))) * OVERVIEW_SAMPLES, low, high


def lowest(values: np.ndarray, length: int) -> np.ndarray:
    """Return the lowest of each `length` values; NaN where all are.

    Examples
    --------
    >>> lowest(np.array([3.0, np.nan, 1.0, 2.0, np.nan]), 2).tolist()
    [3.0, 1.0, nan]
    """
    return np.fmin.reduceat(values, np.arange(0, len(values), length))


def highest(values: np.ndarray, length: int) -> np.ndarray:
    """Return the highest of each `length` values; NaN where all are."""
    return np.fmax.reduceat(values, np.arange(0, len(values), length))


def _shown(values: np.ndarray) -> list[float]:
    return np.round(values.astype(np.float64), DIGITS).tolist()
