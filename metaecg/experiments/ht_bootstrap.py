"""Resample seeds and patients together, the same way for every method, so differences are paired.

`metaecg.evaluate.multilabel` has the figures themselves; here they are computed for a thousand
resamples at once, each a weight per record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metaecg.evaluate.multilabel import FIGURES

CHUNK = 250
"""Resamples computed together; bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one method said about the test records of one seed."""

    labels: np.ndarray = field(repr=False)
    """Shape ``(n_records, n_classes)``, 0 or 1."""
    probabilities: np.ndarray = field(repr=False)
    thresholds: np.ndarray = field(repr=False)
    """Shape ``(n_classes,)``, from the validation."""
    subject_ids: np.ndarray = field(repr=False)
    undetermined: tuple[str, ...] = ()
    """Classes that no validation record has: their threshold is 0.5, by default."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What was drawn: how often each seed and each patient counts, in every resample."""

    seeds: np.ndarray
    """Shape ``(n_resamples, n_seeds)``."""
    patients: dict[str, np.ndarray] = field(repr=False)
    """Patient -> shape ``(n_resamples,)``."""

    def weights(self, subject_ids: np.ndarray) -> np.ndarray:
        """Return the weight of each record, ``(n_resamples, n_records)``."""
        return np.stack([self.patients[subject] for subject in subject_ids.tolist()], axis=1)


def draw(
    subject_ids: Sequence[str], *, n_seeds: int, n_resamples: int, rng: np.random.Generator
) -> Draws:
    """Draw seeds and patients with replacement; each patient comes with all of their records."""
    people = sorted(set(subject_ids))
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_resamples)
    patients = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), n_resamples)
    return Draws(seeds=seeds, patients=dict(zip(people, patients.T.astype(float), strict=True)))


def resampled(tested: Sequence[Answers], draws: Draws) -> dict[str, np.ndarray]:
    """Return figure -> its value in each resample, ``(n_resamples,)``; NaN where undefined.

    Parameters
    ----------
    tested
        Of one method, one for each seed; a resample's value is the mean over the drawn seeds.
    draws
        From `draw` over all patients who are tested under any seed.
    """
    of_seeds = [_figures_in_chunks(each, draws.weights(each.subject_ids)) for each in tested]
    found = {}
    for name in FIGURES:
        values = np.stack([of_seed[name] for of_seed in of_seeds], axis=1)
        weights = np.where(np.isnan(values), 0.0, draws.seeds)
        total = weights.sum(axis=1)
        sums = (weights * np.nan_to_num(values)).sum(axis=1)
        found[name] = np.where(total > 0, sums / np.maximum(total, 1), np.nan)
    return found


def interval(values: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval of the defined values; None if there is none."""
    defined = values[~np.isnan(values)]
    return np.percentile(defined, (2.5, 97.5)).tolist() if len(defined) else None


def paired_intervals(
    mine: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> dict[str, list[float] | None]:
    """Return figure -> interval of the difference, resample by resample."""
    return {name: interval(mine[name] - other[name]) for name in FIGURES}


def weighted_figures(tested: Answers, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return figure -> its value under each row of weights, as `multilabel_metrics` defines it.

    Parameters
    ----------
    weights
        Shape ``(n_resamples, n_records)``: how often each record counts, whole numbers.
    """
    labels = tested.labels.astype(bool)
    flagged = tested.probabilities >= tested.thresholds
    tp = weights @ (flagged & labels)  # (n_resamples, n_classes)
    fp = weights @ (flagged & ~labels)
    fn = weights @ (~flagged & labels)
    has_one = tp + fn > 0
    areas = [
        _areas(labels[:, k], tested.probabilities[:, k], weights) for k in range(labels.shape[1])
    ]
    auc, ap = (np.stack(each, axis=1) for each in zip(*areas, strict=True))
    f2 = np.where(has_one, 5 * tp / np.maximum(5 * tp + fp + 4 * fn, 1), np.nan)
    g2 = np.where(has_one, tp / np.maximum(tp + fp + 2 * fn, 1), np.nan)
    ranking, coverage = _by_record(labels, tested.probabilities)
    n = weights.sum(axis=1)
    by_record = [
        np.where(n > 0, weights @ v / np.maximum(n, 1), np.nan) for v in (ranking, coverage)
    ]
    values = [*(_mean_of_defined(each) for each in (auc, ap, f2, g2)), *by_record]
    return dict(zip(FIGURES, values, strict=True))


def _figures_in_chunks(tested: Answers, weights: np.ndarray) -> dict[str, np.ndarray]:
    parts = [
        weighted_figures(tested, weights[start : start + CHUNK])
        for start in range(0, len(weights), CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIGURES}


def _areas(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return AUC and average precision of one class under each row of weights."""
    order = np.argsort(-probabilities, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(probabilities[order])) + 1])
    ordered, positive = weights[:, order], labels[order]
    new_tp = np.add.reduceat(ordered * positive, starts, axis=1)  # per group of equal values
    new_fp = np.add.reduceat(ordered * ~positive, starts, axis=1)
    tp, fp = new_tp.cumsum(axis=1), new_fp.cumsum(axis=1)
    n_positive, n_negative = tp[:, -1], fp[:, -1]
    precision = tp / np.maximum(tp + fp, 1)
    ap = (new_tp * precision).sum(axis=1) / np.maximum(n_positive, 1)
    auc = (new_fp * (tp - new_tp / 2)).sum(axis=1) / np.maximum(n_positive * n_negative, 1)
    ap = np.where(n_positive > 0, ap, np.nan)
    return np.where(n_positive * n_negative > 0, auc, np.nan), ap


def _by_record(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ranking loss and coverage of each record."""
    above = probabilities[:, None, :] >= probabilities[:, :, None]  # [record, of class, this one]
    wrong = (above & ~labels[:, None, :] & labels[:, :, None]).sum(axis=(1, 2))
    n_pairs = labels.sum(axis=1) * (~labels).sum(axis=1)
    ranks = np.where(labels, above.sum(axis=2), 0)
    return np.where(n_pairs > 0, wrong / np.maximum(n_pairs, 1), 0.0), ranks.max(axis=1)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the classes (columns) that are defined; NaN where none is."""
    defined = ~np.isnan(values)
    n = defined.sum(axis=1)
    return np.where(n > 0, np.nan_to_num(values).sum(axis=1) / np.maximum(n, 1), np.nan)
