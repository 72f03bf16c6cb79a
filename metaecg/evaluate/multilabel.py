"""Figures for recordings with several labels each, with their undefined cases named.

A class that the data can't judge (nobody has it) is left out of a macro mean and listed; it never
counts as 0 or 1. A class is flagged when its probability is at or above its threshold, and
`best_thresholds` chooses thresholds by the same rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaecg.checks import check_positive
from metaecg.errors import DataError

FIGURES = ("macro_auc", "mean_ap", "macro_f2", "macro_g2", "ranking_loss", "coverage")
"""Every figure; of the last two less is better."""

BETA = 2.0
"""Weight of a miss against a false alarm in F and G, as in the PhysioNet Challenges and H-Tuning."""

DEFAULT_THRESHOLD = 0.5
"""For a class that validation has no positive of."""


def multilabel_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    thresholds: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Return every figure, overall and by class.

    Parameters
    ----------
    labels
        Shape ``(n_records, n_classes)``, 0 or 1.
    probabilities
        Same shape, finite. Any score with a fitting threshold will do: AUC, AP, ranking loss and
        coverage look at the order alone.
    thresholds
        Shape ``(n_classes,)``, from validation; see `best_thresholds`.
    class_names
        One per column.

    Returns
    -------
    dict
        `FIGURES`: means over the classes that are defined, None if no class is; ranking loss and
        coverage are means over records. ``classes``: name -> ``auc, ap, f2, g2, n_positives``.
        ``left_out``: names of the classes without a positive, which have no figure, and
        ``no_negative``: names of those that everybody has, which have no AUC.

    Notes
    -----
    With beta = 2: F = 5 TP / (5 TP + FP + 4 FN), G = TP / (TP + FP + 2 FN). Ranking loss is the
    share of wrongly ordered pairs of a class that a record has and one that it hasn't, equals
    counting as wrong; a record with all classes or none counts 0, as in scikit-learn. Coverage is
    how many classes, from the most probable down, have to be taken until all true ones are among
    them. AP is the sum of precision over steps of recall, without interpolation.

    References
    ----------
    .. [1] G. Tsoumakas, I. Katakis, I. Vlahavas, "Mining multi-label data", in: Data Mining and
       Knowledge Discovery Handbook, Springer, 2010, pp. 667-685.
    .. [2] N. Strodthoff, P. Wagner, T. Schaeffter, W. Samek, "Deep learning for ECG analysis:
       benchmarks and insights from PTB-XL", IEEE JBHI 25(5):1519-1528, 2021 (F and G).
    """
    judged = _Judged(labels, probabilities, thresholds)
    if len(class_names) != judged.labels.shape[1]:
        raise DataError(
            f"class_names has {len(class_names)} names for {judged.labels.shape[1]} columns of "
            "labels; expected one each."
        )
    weights = np.ones(len(judged.labels))
    by_class = judged.by_class(weights)
    n_positives = judged.labels.sum(axis=0)
    pairs = list(zip(class_names, n_positives.tolist(), strict=True))
    return {
        **_overall(judged, by_class, weights),
        "classes": {
            name: {
                **{key: _or_none(values[i]) for key, values in by_class.items()},
                "n_positives": count,
            }
            for i, (name, count) in enumerate(pairs)
        },
        "left_out": [name for name, count in pairs if count == 0],
        "no_negative": [name for name, count in pairs if count == len(weights)],
    }


def best_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, *, beta: float = BETA
) -> tuple[np.ndarray, list[int]]:
    """Return the threshold of each class that maximises F-beta; use validation, never test.

    Only probabilities that occur are tried, with ``>=`` as everywhere here. Among equals the
    highest is taken, which flags fewest.

    Parameters
    ----------
    labels, probabilities
        Shape ``(n_records, n_classes)``, as in `multilabel_metrics`.
    beta
        How many times worse a miss is than a false alarm.

    Returns
    -------
    thresholds
        Shape ``(n_classes,)``, float64; `DEFAULT_THRESHOLD` where there is no positive.
    undetermined
        Columns of the classes without a positive.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[1, 0], [1, 0], [0, 0]])
    >>> best_thresholds(labels, np.array([[0.9, 0.1], [0.4, 0.2], [0.3, 0.3]]))
    (array([0.4, 0.5]), [1])
    """
    check_positive("beta", beta)
    judged = _Judged(labels, probabilities, None)
    thresholds = np.full(judged.labels.shape[1], DEFAULT_THRESHOLD)
    undetermined = []
    for column, ranking in enumerate(judged.rankings):
        tp, fp = ranking.counts(np.ones(len(judged.labels)))
        if tp[-1] == 0:
            undetermined.append(column)
            continue
        scores = _f_beta(tp, fp, tp[-1] - tp, beta)
        thresholds[column] = ranking.values[int(np.argmax(scores))]
    return thresholds, undetermined


def bootstrap_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    subject_ids: Sequence[str],
    *,
    thresholds: np.ndarray,
    rng: np.random.Generator,
    n_resamples: int = 1000,
) -> dict[str, list[float] | None]:
    """Return the 95 % interval of every figure: percentile bootstrap over subjects.

    Subjects are drawn with replacement, each with all of its records, since two records of one
    person aren't independent. A resample without a positive of a class leaves that class out.

    Returns
    -------
    dict
        `FIGURES` -> [low, high]; None below two subjects or where the figure is undefined.
    """
    judged = _Judged(labels, probabilities, thresholds)
    people, person = np.unique(np.asarray(subject_ids, dtype=str), return_inverse=True)
    if len(person) != len(judged.labels):
        raise DataError(
            f"subject_ids has {len(person)} entries for {len(judged.labels)} records; expected one "
            "each."
        )
    if len(people) < 2:
        return dict.fromkeys(FIGURES)
    draws = {name: [] for name in FIGURES}
    for _ in range(int(check_positive("n_resamples", n_resamples))):
        times = np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people))
        weights = times[person].astype(float)
        for name, value in _overall(judged, judged.by_class(weights), weights).items():
            draws[name].append(value)
    return {name: _interval(values) for name, values in draws.items()}


@dataclass(frozen=True)
class _Ranking:
    """Records of one class from the most probable down, equal ones in one group."""

    order: np.ndarray
    starts: np.ndarray
    values: np.ndarray  # the probability of each group, falling
    positive: np.ndarray  # in that order

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return true and false positives when everything down to each group is flagged."""
        weights = weights[self.order]
        hits = np.add.reduceat(weights * self.positive, self.starts)
        alarms = np.add.reduceat(weights * ~self.positive, self.starts)
        return np.cumsum(hits), np.cumsum(alarms)


def _ranking(labels: np.ndarray, probabilities: np.ndarray) -> _Ranking:
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1])
    return _Ranking(order, starts, values[starts], labels[order])


class _Judged:
    """Labels and probabilities, checked and ranked once, so that any weights are quick."""

    def __init__(self, labels, probabilities, thresholds) -> None:
        self.labels, self.probabilities = _checked(labels, probabilities)
        self.rankings = [
            _ranking(self.labels[:, i], self.probabilities[:, i])
            for i in range(self.labels.shape[1])
        ]
        if thresholds is None:
            return
        thresholds = np.asarray(thresholds, dtype=np.float64)
        if thresholds.shape != self.labels.shape[1:] or not np.isfinite(thresholds).all():
            raise DataError(
                f"thresholds has shape {thresholds.shape} for {self.labels.shape[1]} classes; "
                "expected one finite number per class, from best_thresholds on validation."
            )
        self.flagged = self.probabilities >= thresholds
        self.ranking_losses, self.coverages = _by_record(self.labels, self.probabilities)

    def by_class(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return figure -> one value per class, NaN where it is undefined."""
        areas = [_areas(*ranking.counts(weights)) for ranking in self.rankings]
        auc, ap = np.array(areas).T
        tp = weights @ (self.flagged & self.labels)
        fp = weights @ (self.flagged & ~self.labels)
        fn = weights @ (~self.flagged & self.labels)
        defined = tp + fn > 0
        f2 = np.where(defined, _f_beta(tp, fp, fn, BETA), np.nan)
        g2 = np.where(defined, tp / np.maximum(tp + fp + BETA * fn, 1e-300), np.nan)
        return {"auc": auc, "ap": ap, "f2": f2, "g2": g2}


def _areas(tp: np.ndarray, fp: np.ndarray) -> tuple[float, float]:
    """Return AUC and average precision of cumulative counts; NaN where undefined."""
    if tp[-1] == 0:
        return np.nan, np.nan
    new_tp, new_fp = np.diff(tp, prepend=0.0), np.diff(fp, prepend=0.0)
    flagged = np.maximum(tp + fp, 1e-300)  # groups that nobody drew may come first
    ap = float((new_tp * tp / flagged).sum() / tp[-1])
    if fp[-1] == 0:
        return np.nan, ap
    return float((new_fp * (tp - new_tp / 2)).sum() / (tp[-1] * fp[-1])), ap


def _f_beta(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, beta: float) -> np.ndarray:
    """Return (1 + b²) TP / ((1 + b²) TP + FP + b² FN), 0 for 0/0, which callers leave out."""
    hits = (1 + beta**2) * tp
    return hits / np.maximum(hits + fp + beta**2 * fn, 1e-300)


def _by_record(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ranking loss and coverage of each record, shape ``(n_records,)`` each."""
    losses, coverages = np.zeros(len(labels)), np.zeros(len(labels))
    for i, (mine, scores) in enumerate(zip(labels, probabilities, strict=True)):
        if not mine.any():
            continue
        coverages[i] = (scores >= scores[mine].min()).sum()
        if not mine.all():
            losses[i] = (scores[mine][:, None] <= scores[~mine]).mean()
    return losses, coverages


def _overall(
    judged: _Judged, by_class: dict[str, np.ndarray], weights: np.ndarray
) -> dict[str, float | None]:
    macro = [_mean(by_class[name]) for name in ("auc", "ap", "f2", "g2")]
    records = [
        float(np.average(values, weights=weights))
        for values in (judged.ranking_losses, judged.coverages)
    ]
    return dict(zip(FIGURES, [*macro, *records], strict=True))


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _interval(values: list[float | None]) -> list[float] | None:
    found = [value for value in values if value is not None]
    return [float(end) for end in np.percentile(found, (2.5, 97.5))] if found else None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `labels` as bool and `probabilities` as float64; refuse what can't be judged."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != probabilities.shape or not labels.size:
        raise DataError(
            f"labels has shape {labels.shape} and probabilities has shape {probabilities.shape}; "
            "expected (n_records, n_classes) for both, with at least one of each."
        )
    if not np.isfinite(probabilities).all():
        row, column = np.argwhere(~np.isfinite(probabilities))[0]
        raise DataError(
            f"probabilities[{row}, {column}] is {probabilities[row, column]}; expected finite "
            "numbers."
        )
    if not np.isin(labels, (0, 1)).all():
        odd = labels[~np.isin(labels, (0, 1))][0]
        raise DataError(f"labels holds {odd.item()!r}; expected 0 and 1 only.")
    return labels.astype(bool), probabilities
