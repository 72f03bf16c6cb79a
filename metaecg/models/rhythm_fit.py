"""Fit a rhythm model to subjects whose logits come from a network that never saw them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from metaecg.errors import DataError, LeakageError
from metaecg.models.rhythm import (
    BOUND,
    END_RANGE,
    ONSET_RANGE,
    RhythmModel,
    checked_support,
    shrunk,
    support_counts,
)

MIN_SUBJECTS = 5
"""Seven numbers are chosen."""

GRID = {
    "temperature": (2.0, 3.0, 4.0, 6.0),
    "bias": (0.0, 1.0, 2.0, 3.0),
    "p_onset": (0.03, 0.1, 0.2),
    "p_end": (0.1, 0.2, 0.4),
    "strength_onset": (30.0, 100.0, 300.0, 1000.0),
    "strength_end": (3.0, 10.0, 30.0, 100.0),
}
"""What is tried, in all combinations. A simplex search from the best of them lowered the loss on the
subjects it saw by sliding along a ridge (a higher bias, more frequent rhythms) to the limits, another
place for every choice of subjects; the grid's ends keep it where rhythms make sense."""
THRESHOLDS = np.arange(1, 100) / 100
NEAR_BEST = 0.005
"""F1 within which thresholds count as equally good; the middle of them is least of an accident."""
CHUNK = 2**21
"""Numbers in an array of several parameter sets at once; bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class RhythmSequence:
    """All windows of one subject in the order of time, as its detector saw them.

    The logits must be of a network that was trained without the subject, adapted to its support as
    it will be in use: those of training subjects are surer than a patient's will ever be.

    Raises
    ------
    DataError
        If the columns have different lengths, a number is not finite or a label neither 0 nor 1.
    LeakageError
        If a window of the support is scored.
    """

    logits: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``: logit of the positive class minus the other's."""
    labels: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``: 1 for the positive class, else 0."""
    start_s: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``: seconds on the subject's one clock."""
    record_ids: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``: another recording starts anew."""
    is_support: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``, bool: the patient's chain comes from these."""
    is_scored: np.ndarray = field(repr=False)
    """Shape ``(n_windows,)``, bool: the loss and F1 are taken over these."""

    def __post_init__(self) -> None:
        start_s, labels = checked_support(self.start_s, self.labels)
        columns = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        columns |= {"start_s": start_s, "labels": labels}
        columns["logits"] = columns["logits"].astype(np.float64)
        shapes = {name: column.shape for name, column in columns.items()}
        if len(set(shapes.values())) != 1 or not np.isfinite(columns["logits"]).all():
            raise DataError(
                f"the columns of a sequence have the shapes {shapes}; one row per window and "
                "finite logits were expected."
            )
        for name in ("is_support", "is_scored"):
            columns[name] = columns[name].astype(bool)
        both = int((columns["is_support"] & columns["is_scored"]).sum())
        if both:
            raise LeakageError(
                f"{both} windows of a sequence are both in the support and scored. Score windows "
                "that come after the support."
            )
        for name, column in columns.items():
            object.__setattr__(self, name, column)


def fit_rhythm(sequences: Sequence[RhythmSequence], *, step_s: float) -> RhythmModel:
    """Return the rhythm model that fits several subjects best; nothing is drawn at random.

    All but the threshold minimise the log loss of the offline posterior on the scored windows, over
    the combinations of `GRID`; then the threshold is the middle of those whose F1 is within 0.005 of
    the best. Loss and F1 are means over subjects, each weighs the same; a subject without a positive
    scored window has no F1.

    Parameters
    ----------
    sequences
        One per subject, five at least with scored windows.
    step_s
        Seconds from the start of one window to the start of the next.

    Raises
    ------
    DataError
        If there are fewer than five subjects, or none of them has positive scored windows.

    Notes
    -----
    The time grows with the longest sequence, and hardly with their number.
    """
    sequences = [s for s in sequences if s.is_scored.any()]
    if len(sequences) < MIN_SUBJECTS:
        raise DataError(
            f"{len(sequences)} subjects have scored windows; at least {MIN_SUBJECTS} were expected "
            "to tell how rhythms begin and end in others. Add subjects."
        )
    if not any((s.labels & s.is_scored).any() for s in sequences):
        raise DataError(
            "no scored window of any subject is positive; some were expected for the threshold. "
            "Add subjects with both classes."
        )
    subjects = _Subjects(sequences, step_s)
    grid = np.array(list(itertools.product(*GRID.values())))
    best = grid[subjects.losses(grid).argmin()]
    threshold = _best_threshold(subjects.posteriors(best[None])[:, 0], subjects)
    values = dict(zip(GRID, best.tolist(), strict=True))
    return RhythmModel(**values, threshold=threshold, step_s=step_s)


class _Subjects:
    """Many sequences side by side, shape (n_most, n_subjects); the shorter ones end in nothing."""

    def __init__(self, sequences: Sequence[RhythmSequence], step_s: float) -> None:
        shape = max(len(s.logits) for s in sequences), len(sequences)
        self.logits, self.labels = np.zeros(shape), np.zeros(shape, bool)
        self.is_scored = np.zeros(shape, bool)
        self.steps = np.full(shape, np.inf)  # since the window before; inf: starts anew
        for place, s in enumerate(sequences):
            n = len(s.logits)
            for name in ("logits", "labels", "is_scored"):
                getattr(self, name)[:n, place] = getattr(s, name)
            gaps = np.diff(s.start_s)
            steps = np.maximum(np.round(gaps / step_s), 1)
            goes_on = (gaps > 0) & (s.record_ids[1:] == s.record_ids[:-1])
            self.steps[1:n, place] = np.where(goes_on, steps, np.inf)
        counts = [
            support_counts(s.start_s[s.is_support], s.labels[s.is_support], step_s)
            for s in sequences
        ]
        self.n_runs, self.n_va, self.n_other = np.array(counts, dtype=np.float64).T

    def posteriors(self, parameters: np.ndarray) -> np.ndarray:
        """Return the offline log odds, ``(n_most, n_sets, n_subjects)``; see `RhythmModel`.

        `parameters` has shape ``(n_sets, 6)``. The recursion is that of `smoothed`, on odds: they
        stay within exp(29), so that a step needs no logarithm.
        """
        temperature, bias, p_onset, p_end, strength_onset, strength_end = parameters.T[:, :, None]
        onset = shrunk(self.n_runs, self.n_other, p_onset, strength_onset, ONSET_RANGE)
        end = shrunk(self.n_runs, self.n_va, p_end, strength_end, END_RANGE)
        share = onset / (onset + end)
        decays = (1 - onset - end) ** self.steps[:, None]
        evidence = BOUND * np.tanh((self.logits[:, None] - bias) / (temperature * BOUND))
        likelihood = np.exp(evidence)
        past = _filtered_odds(likelihood, decays, share)
        to_next = np.concatenate([decays[1:], np.zeros_like(decays[:1])])
        back = _filtered_odds(likelihood[::-1], to_next[::-1], share)[::-1]
        return np.log(past) + np.log(back) - evidence - np.log(share / (1 - share))

    def losses(self, parameters: np.ndarray) -> np.ndarray:
        """Return the mean over subjects of the mean log loss, one per parameter set."""
        n_at_once = max(1, CHUNK // self.logits.size)
        found = []
        for start in range(0, len(parameters), n_at_once):
            log_odds = self.posteriors(parameters[start : start + n_at_once])
            wrong = np.where(self.labels[:, None], -log_odds, log_odds)
            loss = np.logaddexp(0, wrong) * self.is_scored[:, None]
            found.append((loss.sum(axis=0) / self.is_scored.sum(axis=0)).mean(axis=1))
        return np.concatenate(found)


def _filtered_odds(likelihood: np.ndarray, decays: np.ndarray, share: np.ndarray) -> np.ndarray:
    onset, end = share * (1 - decays), (1 - share) * (1 - decays)
    stays, stays_out = 1 - end, 1 - onset
    found, odds = np.empty_like(likelihood), np.ones_like(likelihood[0])
    for i in range(len(likelihood)):
        odds = (odds * stays[i] + onset[i]) / (odds * end[i] + stays_out[i]) * likelihood[i]
        found[i] = odds
    return found


def _best_threshold(log_odds: np.ndarray, subjects: _Subjects) -> float:
    """Return the middle of the thresholds around the best one whose mean F1 is near the best."""
    scores = []
    for column, labels, kept in zip(
        log_odds.T, subjects.labels.T, subjects.is_scored.T, strict=True
    ):
        labels, probabilities = labels[kept], 1 / (1 + np.exp(-column[kept]))
        if labels.any():
            flagged = probabilities[:, None] >= THRESHOLDS
            hits = (flagged & labels[:, None]).sum(axis=0)
            scores.append(2 * hits / (flagged.sum(axis=0) + labels.sum()))
    mean = np.mean(scores, axis=0)
    low = high = int(mean.argmax())
    is_near = mean >= mean.max() - NEAR_BEST
    while low > 0 and is_near[low - 1]:
        low -= 1
    while high < len(is_near) - 1 and is_near[high + 1]:
        high += 1
    return round(float(THRESHOLDS[low] + THRESHOLDS[high]) / 2, 4)
