"""Every figure that a report shows, with its undefined cases named.

A figure that the data can't answer is ``None``, never 0 and never 1: the AUC of a subject with
one class, the sensitivity without a positive, the false alarms of a subject without a negative.
A window is flagged when its probability of ``va`` is at or above the threshold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metaecg.checks import check_positive
from metaecg.errors import DataError

N_RESAMPLES = 2000
"""Bootstrap resamples: each end of a normal interval then has a Monte Carlo error of 1.5 % of its
width (sqrt(0.025 * 0.975 / 2000) over the normal density at 1.96, divided by 3.92)."""

ADJACENT_S = 1e-3
"""Two windows touch when the gap is below 1 ms, far under one sample at any rate in use."""

AAMI_CLASSES = ("N", "S", "V", "F", "Q")
NO_BEAT = "O"
"""True class of a detection that no annotated beat stands for, EC57's letter."""

NOT_FALSE_POSITIVE = {"V": ("F", "Q"), "S": ("Q",)}
"""Called class -> true classes that EC57 leaves out of its false positives."""

Interval = tuple[str, float, float]
"""Record id, start and stop in seconds within the recording."""


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the area under the ROC curve, ties counted half; None when one class is missing.

    Parameters
    ----------
    labels
        Shape ``(n_windows,)``, 1 for ``va``, 0 for ``other``.
    probabilities
        Shape ``(n_windows,)``; only their order counts.
    """
    from sklearn.metrics import roc_auc_score

    labels, probabilities = _checked(labels, probabilities)
    if labels.all() or not labels.any():
        return None
    return float(roc_auc_score(labels, probabilities))


def f1(labels: np.ndarray, probabilities: np.ndarray, *, threshold: float) -> float | None:
    """Return 2 TP / (2 TP + FP + FN).

    0.0 when something was true or flagged and no true positive came of it; None when nothing
    was true and nothing was flagged.
    """
    tp, fp, fn, _ = _counts(labels, probabilities, threshold)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def sensitivity(labels: np.ndarray, probabilities: np.ndarray, *, threshold: float) -> float | None:
    """Return TP / (TP + FN); None when no window is labelled ``va``."""
    tp, _, fn, _ = _counts(labels, probabilities, threshold)
    return _ratio(tp, tp + fn)


def ppv(labels: np.ndarray, probabilities: np.ndarray, *, threshold: float) -> float | None:
    """Return TP / (TP + FP); None when no window is flagged."""
    tp, fp, _, _ = _counts(labels, probabilities, threshold)
    return _ratio(tp, tp + fp)


def subject_metrics(
    labels: np.ndarray, probabilities: np.ndarray, *, threshold: float, window_s: float
) -> dict[str, float | int | None]:
    """Return every window figure of one subject, or of the pooled windows of many.

    Parameters
    ----------
    labels, probabilities
        Shape ``(n_windows,)``, as in `roc_auc`.
    threshold
        A window at or above it is flagged.
    window_s
        Length of a window in seconds. Windows must not overlap, or the hours are overcounted.

    Returns
    -------
    dict
        ``auc, f1, sensitivity, ppv, specificity`` (None when undefined),
        ``false_alarms_per_hour`` (falsely flagged windows per hour of rhythm labelled
        ``other``; None without such rhythm), ``n_va`` and ``n_other`` (windows).
    """
    check_positive("window_s", window_s)
    tp, fp, fn, tn = _counts(labels, probabilities, threshold)
    hours_other = (fp + tn) * window_s / 3600.0
    return {
        "auc": roc_auc(labels, probabilities),
        "f1": f1(labels, probabilities, threshold=threshold),
        "sensitivity": _ratio(tp, tp + fn),
        "ppv": _ratio(tp, tp + fp),
        "specificity": _ratio(tn, tn + fp),
        "false_alarms_per_hour": _ratio(fp, hours_other),
        "n_va": tp + fn,
        "n_other": fp + tn,
    }


def false_alarm_episodes(
    start_s: np.ndarray,
    record_ids: np.ndarray,
    labels: np.ndarray,
    flagged: np.ndarray,
    window_s: float,
) -> list[Interval]:
    """Return the runs of touching flagged windows in which no window is labelled ``va``.

    A nurse hears one alarm per run, however many windows long. A window that is not flagged,
    a gap between windows or another recording ends a run. A run that holds one window labelled
    ``va`` is an alarm with a cause and is left out whole.

    Parameters
    ----------
    start_s
        Window starts within their recording in seconds, shape ``(n_windows,)``, any order.
    record_ids, labels, flagged
        Shape ``(n_windows,)``: recording, 1 for ``va``, True where the detector flags.
    window_s
        Length of a window in seconds.

    Returns
    -------
    list of (record_id, start_s, stop_s)
        In order of recording and time.
    """
    check_positive("window_s", window_s)
    start_s, record_ids, labels, flagged = _aligned(start_s, record_ids, labels, flagged)
    order = np.lexsort((start_s, record_ids))
    runs: list[list[int]] = []
    alarm = None  # the last window, while its alarm still sounds
    for window in order:
        if not flagged[window]:
            alarm = None
            continue
        if alarm is None or not _touch(alarm, window, start_s, record_ids, window_s):
            runs.append([])
        runs[-1].append(int(window))
        alarm = window
    return [
        (str(record_ids[run[0]]), float(start_s[run[0]]), float(start_s[run[-1]] + window_s))
        for run in runs
        if not labels[run].any()
    ]


def episode_metrics(
    episodes: Sequence[Interval],
    start_s: np.ndarray,
    record_ids: np.ndarray,
    labels: np.ndarray,
    flagged: np.ndarray,
    *,
    window_s: float,
    lookahead_s: float,
) -> dict[str, Any]:
    """Count the annotated episodes that were found, and how late.

    An episode counts when at least one test window labelled ``va`` overlaps it, and is found
    when any of those windows is flagged. One that began before the first test window of its
    recording counts for the sensitivity, but has no delay: its onset was not watched.

    Parameters
    ----------
    episodes
        Annotated ``(record_id, start_s, stop_s)``, seconds within the recording.
    start_s, record_ids, labels, flagged
        The test windows, as in `false_alarm_episodes`.
    window_s
        Length of a window in seconds.
    lookahead_s
        How much signal after the window its filter needs, in seconds: part of the delay.

    Returns
    -------
    dict
        ``n_episodes``, ``n_found`` and ``delays_s``: for every found episode whose onset was
        watched, end of its first flagged window + `lookahead_s` - onset, in seconds.
    """
    check_positive("window_s", window_s)
    start_s, record_ids, labels, flagged = _aligned(start_s, record_ids, labels, flagged)
    n_episodes, n_found, delays_s = 0, 0, []
    for record_id, onset_s, stop_s in episodes:
        in_record = record_ids == record_id
        overlaps = in_record & (start_s < stop_s) & (start_s + window_s > onset_s)
        windows = overlaps & (labels == 1)
        if not windows.any():
            continue
        n_episodes += 1
        hits_s = start_s[windows & flagged]
        n_found += bool(len(hits_s))
        if len(hits_s) and onset_s >= start_s[in_record].min():
            delays_s.append(float(hits_s.min() + window_s + lookahead_s - onset_s))
    return {"n_episodes": n_episodes, "n_found": n_found, "delays_s": delays_s}


def summary(
    values: Mapping[str, float | None],
    *,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, Any]:
    """Summarise one figure over subjects, every subject with the same weight.

    Subjects whose value is None (undefined for them) are left out and not counted in ``n``.

    Parameters
    ----------
    values
        subject_id -> value; higher is better.
    rng
        Draws the bootstrap resamples.

    Returns
    -------
    dict
        ``mean``; ``std`` (n - 1 below the line); ``worst`` (the smallest); ``ci95`` = [lo, hi]
        of the mean, percentile bootstrap over subjects; ``n``. With no subject all are None
        but ``n``; with one subject ``std`` and ``ci95`` are None.
    """
    found = np.array([values[key] for key in sorted(values) if values[key] is not None], float)
    n = len(found)
    return {
        "mean": float(found.mean()) if n else None,
        "std": float(found.std(ddof=1)) if n > 1 else None,
        "worst": float(found.min()) if n else None,
        "ci95": interval(bootstrap_mean(found, rng=rng, n_resamples=n_resamples)),
        "n": n,
    }


def bootstrap_mean(values: np.ndarray, *, rng: np.random.Generator, n_resamples: int):
    """Resample `values`, shape (n_subjects,), and return scipy's result; None below two subjects."""
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    return bootstrap((values,), np.mean, n_resamples=n_resamples, method="percentile", rng=rng)


def interval(found) -> list[float] | None:
    """Return [lo, hi] of what `bootstrap_mean` found, if anything."""
    return [float(side) for side in found.confidence_interval] if found else None


def aami_counts(true: Sequence[str], predicted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Count beats per AAMI class as EC57 does, gross (all beats in one sum).

    A true F or Q called V is not a false positive of V, and a true Q called S is not one of S:
    a fusion beat is partly ventricular, and what nobody can name can't be called wrongly. They
    are left out of the PPV, yet a V called F or Q is still a miss. EC57 names only V and S;
    N, F and Q are counted without exceptions. A false detection (true `NO_BEAT`) is a false
    positive of the class that it is called.

    Parameters
    ----------
    true, predicted
        AAMI letters ``N S V F Q``, one per beat, same length; in `true` also `NO_BEAT`.

    Returns
    -------
    dict
        class -> ``tp, fn, fp, sensitivity, ppv, f1``; None where the class has no such beat.

    References
    ----------
    .. [1] ANSI/AAMI EC57:1998, Testing and reporting performance results of cardiac rhythm and
       ST segment measurement algorithms; its reference implementation is WFDB's ``bxb``:
       VEB false positives = Nv + Sv (+ Ov + Xv), SVEB = Ns + Vs + Fs (+ Os + Xs).
    .. [2] P. de Chazal, M. O'Dwyer, R. B. Reilly, "Automatic classification of heartbeats using
       ECG morphology and heartbeat interval features", IEEE TBME 51(7):1196-1206, 2004.
    """
    true = _checked_beats("true", true, (*AAMI_CLASSES, NO_BEAT))
    predicted = _checked_beats("predicted", predicted, AAMI_CLASSES)
    if len(true) != len(predicted):
        raise DataError(
            f"true has {len(true)} beats and predicted has {len(predicted)}; expected one "
            "prediction per beat."
        )
    counts = {}
    for name in AAMI_CLASSES:
        wrong_calls = true[(predicted == name) & (true != name)]
        tp = int(((true == name) & (predicted == name)).sum())
        fn = int((true == name).sum()) - tp
        fp = int((~np.isin(wrong_calls, NOT_FALSE_POSITIVE.get(name, ()))).sum())
        counts[name] = {
            "tp": tp,
            "fn": fn,
            "fp": fp,
            "sensitivity": _ratio(tp, tp + fn),
            "ppv": _ratio(tp, tp + fp),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        }
    return counts


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _counts(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> tuple[int, int, int, int]:
    """Return TP, FP, FN, TN."""
    labels, probabilities = _checked(labels, probabilities)
    flagged = probabilities >= threshold
    tp, fp = int((flagged & labels).sum()), int((flagged & ~labels).sum())
    return tp, fp, int(labels.sum()) - tp, int((~labels).sum()) - fp


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `labels` as bool and `probabilities` as float64; refuse what can't be counted."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != probabilities.shape:
        raise DataError(
            f"labels has shape {labels.shape} and probabilities has shape {probabilities.shape}; "
            "expected (n_windows,) for both. Pass the probability of 'va' alone."
        )
    if not np.isfinite(probabilities).all():
        where = int(np.argmin(np.isfinite(probabilities)))
        raise DataError(
            f"probabilities[{where}] is {probabilities[where]}; expected finite numbers."
        )
    if not np.isin(labels, (0, 1)).all():
        odd = labels[~np.isin(labels, (0, 1))][0]
        raise DataError(f"labels holds {odd!r}; expected 0 (other) and 1 (va) only.")
    return labels.astype(bool), probabilities


def _aligned(
    start_s: np.ndarray, record_ids: np.ndarray, labels: np.ndarray, flagged: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    columns = {
        "start_s": np.asarray(start_s, dtype=np.float64),
        "record_ids": np.asarray(record_ids, dtype=str),
        "labels": np.asarray(labels),
        "flagged": np.asarray(flagged, dtype=bool),
    }
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        text = ", ".join(f"{name} {shape}" for name, shape in lengths.items())
        raise DataError(f"the windows' columns have different shapes: {text}; expected one.")
    return tuple(columns.values())


def _touch(
    first: int, second: int, start_s: np.ndarray, record_ids: np.ndarray, window_s: float
) -> bool:
    gap_s = start_s[second] - (start_s[first] + window_s)
    return record_ids[first] == record_ids[second] and gap_s < ADJACENT_S


def _checked_beats(name: str, beats: Sequence[str], expected: tuple[str, ...]) -> np.ndarray:
    beats = np.asarray(beats, dtype=str)
    known = np.isin(beats, expected)
    if not known.all():
        where = int(np.argmin(known))
        raise DataError(
            f"{name}[{where}] is {str(beats[where])!r}; expected one of {', '.join(expected)}. "
            "Map the annotation symbols to AAMI classes first."
        )
    return beats
