"""Two-state hidden Markov smoothing in closed form, in log odds.

A window's `evidence` is the log likelihood ratio of its observation. `decays` say how much of the
state of the window before is left at a window: ``(1 - p_onset - p_end) ** n_steps``, 0 where nothing
is known of it. `p_va` is the share of the positive state in the long run. Nothing multiplies up, so
that no series is too long.
"""

import math

import numpy as np


def predicted_log_odds(log_odds, p_va, decay, *, lib=math):
    """Return the log odds of a later window's state, of which nothing was seen, from today's.

    Parameters
    ----------
    log_odds
        Of the state now.
    p_va
        Share of the positive state in the long run.
    decay
        How much of today is left then, ``(1 - p_onset - p_end) ** n_steps``; 0 gives the log odds
        of `p_va`, whatever was known.
    lib
        ``math`` for numbers, ``numpy`` for arrays; the results may differ in the last bit.
    """
    onset, end = p_va * (1 - decay), (1 - p_va) * (1 - decay)
    odds = lib.exp(log_odds)
    return lib.log((odds * (1 - end) + onset) / (odds * end + (1 - onset)))


def filtered(evidence: list, decays: list, p_va: float, log_odds: float = 0.0) -> list[float]:
    """Return the log odds of each state given its window and those before it."""
    found = []
    for seen, decay in zip(evidence, decays, strict=True):
        known = log_odds if decay else 0.0  # at a start to the bit the same after whatever was
        log_odds = seen + predicted_log_odds(known, p_va, decay)
        found.append(log_odds)
    return found


def smoothed(evidence: list, decays: list, p_va: float, *, start_s=None, lag_s=None) -> np.ndarray:
    """Return the log odds of each state given its window, those before and those after it.

    With `lag_s` and the times `start_s`, only those that start at most `lag_s` later.
    """
    past = filtered(evidence, decays, p_va)
    if lag_s is None:
        # Backwards in time it is the same chain, and a step is as long as from the other side.
        to_next = [*decays[1:], 0.0][: len(decays)]
        back = filtered(evidence[::-1], to_next[::-1], p_va)[::-1]
    else:
        back = _lagged(np.array(evidence), decays, start_s, p_va, lag_s)
    # Both sides hold the window's own evidence and what is known beforehand; once is enough.
    known_before = math.log(p_va / (1 - p_va))
    return np.array(past) + np.array(back) - np.array(evidence) - known_before


def _lagged(
    evidence: np.ndarray, decays: list, start_s: np.ndarray, p_va: float, lag_s: float
) -> np.ndarray:
    """Return the log odds of each state given its window and those up to `lag_s` later.

    All windows go back together: from the last that each may see, a step at a time.
    """
    last = _last_within(start_s, np.array(decays) == 0, lag_s)
    to_next = np.append(decays[1:], 0.0)
    here, known = np.arange(len(evidence)), np.zeros(len(evidence))
    for ahead in range(int((last - here).max(initial=-1)), -1, -1):
        place = np.minimum(here + ahead, last)
        decay = np.where(place < last, to_next[place], 0.0)
        seen = evidence[place] + predicted_log_odds(known, p_va, decay, lib=np)
        known = np.where(here + ahead <= last, seen, known)
    return known


def _last_within(start_s: np.ndarray, is_first: np.ndarray, lag_s: float) -> np.ndarray:
    """Return the last window of the same stretch that starts at most `lag_s` after each one."""
    bounds = [*np.flatnonzero(is_first), len(start_s)]
    last = np.zeros(len(start_s), dtype=np.int64)
    for first, stop in zip(bounds, bounds[1:], strict=False):
        times = start_s[first:stop]
        last[first:stop] = first + np.searchsorted(times, times + lag_s + 1e-6, "right") - 1
    return last
