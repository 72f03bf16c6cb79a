"""Is one detector better than another? Paired over subjects, so that their spread cancels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metaecg.evaluate.metrics import N_RESAMPLES, bootstrap_mean, interval

MIN_SUBJECTS = 6
"""With five, all differences have the same sign by chance in 1 of 16 comparisons: whoever is better
there need not be so elsewhere. With six it is 1 of 32, below 5 %."""

LEVEL = 0.05
VERDICTS = ("better", "worse", "no difference", "too few subjects")


def paired_difference(
    a: Mapping[str, float | None],
    b: Mapping[str, float | None],
    *,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, Any]:
    """Return the mean of ``a - b`` over the subjects that both have, with its 95 % interval.

    The difference is taken subject by subject. A subject whose value is None (undefined) on one
    side is left out of both.

    Parameters
    ----------
    a, b
        subject_id -> value.
    rng
        Draws the resamples of the percentile bootstrap over subjects.
    n_resamples
        How many; the smallest p-value is ``2 / (n_resamples + 1)``.

    Returns
    -------
    dict
        ``mean``, ``ci95`` = [lo, hi] (None below two subjects), ``n``, the shared subjects, and
        ``p_value``, two-sided, of the same resamples: twice the share of resampled means at or
        beyond 0, with what was measured counted as one of them so that it is never 0. It is below
        0.05 where the interval leaves 0 out (but for the last resample or two at the border).

    Examples
    --------
    >>> import numpy as np
    >>> a, b = {"s1": 0.9, "s2": 0.8, "s3": None}, {"s1": 0.8, "s2": 0.7, "s3": 0.5}
    >>> found = paired_difference(a, b, rng=np.random.default_rng(0))
    >>> round(found["mean"], 3), found["n"]
    (0.1, 2)
    """
    shared = [key for key in sorted(a.keys() & b.keys()) if None not in (a[key], b[key])]
    gains = np.array([a[key] - b[key] for key in shared], float)
    found = bootstrap_mean(gains, rng=rng, n_resamples=n_resamples)
    return {
        "mean": float(gains.mean()) if shared else None,
        "ci95": interval(found),
        "n": len(shared),
        "p_value": _p_value(found.bootstrap_distribution) if found else None,
    }


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for looking more than once (Holm's step-down method).

    The chance of one or more false findings among all of them stays below the level, whatever the
    dependence between them. None (no test was possible) stays None and is not counted.

    References
    ----------
    .. [1] S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal
       of Statistics 6(2):65-70, 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = [place for place, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(tested, key=lambda place: p_values[place])):
        largest = max(largest, (len(tested) - rank) * p_values[place])
        corrected[place] = min(1.0, largest)
    return corrected


def _p_value(means: np.ndarray) -> float:
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return min(1.0, 2 * (int(tail) + 1) / (len(means) + 1))


def judge(
    difference: Mapping[str, Any],
    *,
    p_corrected: float | None,
    n_compared: int,
    higher_is_better: bool = True,
) -> str:
    """Return one of `VERDICTS` on what `paired_difference` found.

    A difference is real if its interval leaves 0 out and, with more than one comparison, it also
    survives the correction for them.

    Parameters
    ----------
    difference
        From `paired_difference`.
    p_corrected
        Its p-value after `holm` over all comparisons.
    n_compared
        How many comparisons there are.
    higher_is_better
        False for a figure such as false alarms.
    """
    if difference["n"] < MIN_SUBJECTS:
        return "too few subjects"
    low, high = difference["ci95"]
    if low <= 0 <= high or (n_compared > 1 and p_corrected >= LEVEL):
        return "no difference"
    return "better" if (low > 0) is higher_is_better else "worse"
