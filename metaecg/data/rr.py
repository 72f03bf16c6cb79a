"""RR intervals as features of a beat, from the past alone unless asked otherwise."""

import numpy as np

from metaecg.errors import DataError

RR_NAMES = ("rr_s", "rr_to_median", "rr_to_mean", "rr_to_previous")
"""What `rr_features` gives: the interval before the beat in seconds, and its ratio to the median of
the ten intervals before it, to the mean of all intervals before it, and to the one before it."""
RR_NEXT_NAMES = ("next_rr_s", "next_rr_to_median")
"""What ``use_next=True`` adds: the interval after the beat, and its ratio to the same median. Known
one beat later."""

N_RECENT = 10
MAX_RR_S = 3.0
"""A longer interval counts as this long and takes no part in medians and means: a gap, or a pause
beyond which the length says no more."""
FIRST_RR_S = 0.8
"""Stands for the interval before the first beat and after the last one: 75 beats per minute."""


def rr_features(r_peaks_s: np.ndarray, *, use_next: bool = False) -> np.ndarray:
    """Return the RR features of every beat of one recording.

    A ratio without anything to compare with is 1: those of the first two beats, and those of a beat
    before which every interval was longer than `MAX_RR_S`. The first beat's interval is
    `FIRST_RR_S`.

    Parameters
    ----------
    r_peaks_s
        Every R peak of one recording in seconds, also of beats that get no window, strictly
        increasing, shape ``(n_beats,)``.
    use_next
        Add the interval after the beat. The features of a beat are then known only when the next
        beat has come: in a live stream they delay the answer by a beat. The last beat has
        `FIRST_RR_S` there and the ratio 1.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_beats, 4)``, columns `RR_NAMES`, or ``(n_beats, 6)`` with `RR_NEXT_NAMES` behind
        them; float32.

    Raises
    ------
    DataError
        The peaks are not strictly increasing, or not finite.

    Notes
    -----
    Row `i` without `use_next` depends on ``r_peaks_s[: i + 1]`` alone. The mean runs over the
    recording so far, not over the whole of it, as de Chazal et al. have it [1]_: theirs knows the
    future.

    References
    ----------
    .. [1] P. de Chazal, M. O'Dwyer and R. B. Reilly, "Automatic classification of heartbeats using
       ECG morphology and heartbeat interval features", IEEE Trans. Biomed. Eng. 51(7):1196-1206,
       2004.

    Examples
    --------
    >>> rr_features(np.array([1.0, 2.0, 3.0, 3.5, 5.0]))[3:]
    array([[0.5, 0.5, 0.5, 0.5],
           [1.5, 1.5, 1.8, 3. ]], dtype=float32)
    """
    peaks = _checked(r_peaks_s)
    before = np.minimum(np.diff(peaks), MAX_RR_S)  # (n - 1,): before[i] ends at beat i + 1
    known = np.where(before < MAX_RR_S, before, np.nan)
    median = _median_before(known)
    rr = np.concatenate([[FIRST_RR_S], before])[: len(peaks)]
    columns = [
        rr,
        _ratio(rr, median),
        _ratio(rr, _mean_before(known)),
        _ratio(rr, np.concatenate([[np.nan, np.nan], known[:-1]])),
    ]
    if use_next:
        after = np.concatenate([before, [FIRST_RR_S]])[: len(peaks)]
        to_median = _ratio(after, median)
        to_median[-1:] = 1.0
        columns += [after, to_median]
    return np.stack([column[: len(peaks)] for column in columns], axis=1).astype(np.float32)


def rr_names(*, use_next: bool = False) -> tuple[str, ...]:
    """Return the names of the columns of `rr_features`."""
    return RR_NAMES + RR_NEXT_NAMES if use_next else RR_NAMES


def _checked(r_peaks_s: np.ndarray) -> np.ndarray:
    peaks = np.asarray(r_peaks_s, dtype=np.float64)
    if peaks.ndim != 1 or not np.isfinite(peaks).all():
        raise DataError(
            f"r_peaks_s has shape {peaks.shape}; expected finite seconds of shape (n_beats,)."
        )
    if len(peaks) > 1 and np.diff(peaks).min() <= 0:
        at = int(np.argmax(np.diff(peaks) <= 0))
        raise DataError(
            f"r_peaks_s has {peaks[at]:g} s before {peaks[at + 1]:g} s at {at}; expected strictly "
            "increasing positions. Sort them and drop doubles."
        )
    return peaks


def _median_before(known: np.ndarray) -> np.ndarray:
    """Return for every beat the median of the ten intervals before its own, NaN without any."""
    # Beat i's own interval is known[i - 1]; those before it end at known[i - 2].
    padded = np.concatenate([np.full(N_RECENT + 1, np.nan), known[:-1]])
    recent = np.lib.stride_tricks.sliding_window_view(padded, N_RECENT)
    median = np.full(len(recent), np.nan)
    has_any = np.isfinite(recent).any(axis=1)
    median[has_any] = np.nanmedian(recent[has_any], axis=1)
    return median


def _mean_before(known: np.ndarray) -> np.ndarray:
    """Return for every beat the mean of all intervals before its own, NaN without any."""
    total = np.concatenate([[0.0, 0.0], np.nancumsum(known[:-1])])
    count = np.concatenate([[0, 0], np.cumsum(np.isfinite(known[:-1]))])
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _ratio(rr: np.ndarray, to: np.ndarray) -> np.ndarray:
    to = to[: len(rr)]
    return np.where(np.isfinite(to), rr / np.where(np.isfinite(to), to, 1.0), 1.0)
