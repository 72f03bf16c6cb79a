"""Judge a beat by the patient's other beats: what is usual for this patient, and what looks alike.

A network's logit of one beat says less than it could: for one patient all normal beats lie higher than
for another, and a kind of beat that comes again is judged anew every time. Two corrections need no
label: the running median of the patient's logits is taken off, and the logits of the beats most
like this one count with its own. Where a person has labelled beats, those count as what they are.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from metaecg.checks import check_option, check_positive
from metaecg.errors import DataError

MODES = ("causal", "offline")
RENEW_EVERY = 10
"""The level is renewed after so many beats: it moves slowly, and medians cost time."""
N_VOTES = 2
"""Labelled beats of each kind that vote: one alone may be an odd one."""
N_BEFORE_AND_AFTER = 2500
"""In the mode ``"offline"`` neighbours are looked for among so many beats before and after one, half an
hour and more to each side: in a day of ECG all would be a hundred thousand for each."""
N_BLOCK = 256
"""Beats whose neighbours are looked for at once."""


@dataclass(frozen=True, kw_only=True)
class BeatContext:
    """How the other beats of a recording count for one of them; learned on training subjects.

    Parameters
    ----------
    threshold
        Log odds from which a beat is called V, after the corrections.
    usual_logit
        Median logit of the training subjects: stands for `n_prior` beats before the first one, at
        least 1.
    n_recent
        Beats that the running median is over.
    n_prior
        How many beats that is: the level of the training subjects fades as beats come.
    level_weight
        Part of the running median's difference to `usual_logit` that is taken off, 0 to 1.
    n_neighbours
        Beats most like one, of which the mean counts.
    n_searched
        Beats before it among which they are looked for.
    neighbour_weight
        Weight of that mean; the beat's own logit has the rest. 0 to 1.
    label_logit
        Log odds of a beat that a person called V; the negative for another one.

    Notes
    -----
    ``"causal"`` uses beats up to the one that is judged; ``"offline"`` the whole recording: the level
    over all of it, neighbours among `N_BEFORE_AND_AFTER` beats to each side.
    """

    threshold: float
    usual_logit: float
    n_recent: int = 1000
    n_prior: int = 20
    level_weight: float = 1.0
    n_neighbours: int = 16
    n_searched: int = 600
    neighbour_weight: float = 0.5
    label_logit: float = 6.0

    def __post_init__(self) -> None:
        for name in ("n_recent", "n_prior", "n_neighbours", "n_searched", "label_logit"):
            check_positive(name, getattr(self, name))
        for name in ("level_weight", "neighbour_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected a number from 0 to 1."
                )

    def to_dict(self) -> dict:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "BeatContext":
        """Rebuild from `to_dict`'s values; an unknown or a missing key is a DataError."""
        names = {field.name for field in fields(cls)}
        if set(values) - names or not {"threshold", "usual_logit"} <= set(values):
            raise DataError(
                f"the context of a base has the keys {sorted(values)}; expected some of "
                f"{sorted(names)}, threshold and usual_logit among them. Update metaecg."
            )
        return cls(**values)

    def log_odds(
        self,
        logits: np.ndarray,
        forms: np.ndarray,
        *,
        record_ids: np.ndarray | None = None,
        known: Mapping[int, bool] | None = None,
        vote_weight: float = 0.0,
        mode: str = "causal",
    ) -> np.ndarray:
        """Return the corrected log odds of V minus `threshold`: above 0 is V.

        Parameters
        ----------
        logits
            Log odds of V by the network, shape ``(n_beats,)``, all beats of whole recordings in
            the order of time.
        forms
            What tells beats apart (`metaecg.data.beat_input.beat_forms`), ``(n_beats, n_features)``.
        record_ids
            Recording of each beat; ``None``: all are of one.
        known
            Row to whether a person called that beat V. They count for every beat of the recording,
            also for those before them; their own log odds are not changed by it.
        vote_weight
            Weight of the nearest labels' vote, 0 to 1: how much nearer the nearest V are than the
            nearest others, of any recording. For labels that stand for every kind of beat; needs
            both.
        mode
            One of `MODES`.

        Returns
        -------
        numpy.ndarray
            Shape ``(n_beats,)``, float64.
        """
        check_option("mode", mode, MODES)
        logits, forms = np.asarray(logits, dtype=np.float64), np.asarray(forms, dtype=np.float32)
        if logits.ndim != 1 or forms.ndim != 2 or len(logits) != len(forms):
            raise DataError(
                f"logits has shape {logits.shape} and forms {forms.shape}; expected (n_beats,) and "
                "(n_beats, n_features)."
            )
        ids = np.zeros(len(logits)) if record_ids is None else np.asarray(record_ids)
        labels = np.zeros(len(logits))
        for row, is_v in (known or {}).items():
            labels[row] = self.label_logit if is_v else -self.label_logit
        found = np.empty(len(logits))
        for record_id in dict.fromkeys(ids.tolist()):
            rows = np.flatnonzero(ids == record_id)
            found[rows] = self._of_record(logits[rows], forms[rows], labels[rows], mode)
        if not vote_weight:
            return found
        vote = self.label_logit * nearest_vote(forms, labels)
        return (1 - vote_weight) * found + vote_weight * vote

    def _of_record(
        self, logits: np.ndarray, forms: np.ndarray, labels: np.ndarray, mode: str
    ) -> np.ndarray:
        shift = self.level_weight * (self._levels(logits, mode) - self.usual_logit)
        own = logits - shift - self.threshold
        told = np.where(labels != 0, labels, own)
        near = self._of_neighbours(own, told, forms, labels != 0, mode)
        return (1 - self.neighbour_weight) * own + self.neighbour_weight * near

    def _levels(self, logits: np.ndarray, mode: str) -> np.ndarray:
        prior = np.full(self.n_prior, self.usual_logit)
        if mode == "offline":
            return np.full(len(logits), np.median(np.concatenate([prior, logits])))
        found = np.empty(len(logits))
        for start in range(0, len(logits), RENEW_EVERY):
            before = logits[max(0, start - self.n_recent) : start]
            found[start : start + RENEW_EVERY] = np.median(np.concatenate([prior, before]))
        return found

    def _of_neighbours(
        self,
        own: np.ndarray,
        told: np.ndarray,
        forms: np.ndarray,
        is_known: np.ndarray,
        mode: str,
    ) -> np.ndarray:
        """Return the mean of each beat and its neighbours; its own label plays no part."""
        found = np.empty(len(own))
        known = np.flatnonzero(is_known)
        for start in range(0, len(own), N_BLOCK):
            rows = np.arange(start, min(start + N_BLOCK, len(own)))
            candidates = self._candidates(rows, len(own), known, mode)
            distances = _squared_distances(forms[rows], forms[candidates])
            open_to = is_known[candidates][None] | self._is_open(rows, candidates, mode)
            open_to &= candidates[None] != rows[:, None]
            distances[~open_to] = np.inf
            found[rows] = self._means(own[rows], told[candidates], distances)
        return found

    def _candidates(self, rows, n_beats: int, known: np.ndarray, mode: str) -> np.ndarray:
        before, after = self._reach(mode)
        first, end = max(0, rows[0] - before), min(n_beats, rows[-1] + after + 1)
        return np.concatenate([known[known < first], np.arange(first, end), known[known >= end]])

    def _reach(self, mode: str) -> tuple[int, int]:
        """Return how many beats before and after one may be its neighbours."""
        if mode == "offline":
            return N_BEFORE_AND_AFTER, N_BEFORE_AND_AFTER
        return self.n_searched, 0

    def _is_open(self, rows, candidates, mode: str) -> np.ndarray:
        before, after = self._reach(mode)
        back = rows[:, None] - candidates[None]
        return (back >= -after) & (back <= before)

    def _means(self, own: np.ndarray, told: np.ndarray, distances: np.ndarray) -> np.ndarray:
        k = min(self.n_neighbours, distances.shape[1] - 1)
        if k < 1:
            return own
        nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
        is_there = np.isfinite(np.take_along_axis(distances, nearest, axis=1))
        total = own + np.where(is_there, told[nearest], 0.0).sum(axis=1)
        return total / (1 + is_there.sum(axis=1))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T


def nearest_vote(forms: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -1 (like the others) to 1 (like V) for every beat, by its nearest labelled beats.

    Parameters
    ----------
    forms
        Shape ``(n_beats, n_features)``.
    labels
        Above 0 for beats labelled V, below 0 for others, 0 without a label. With one of the two
        missing, every vote is 0.

    Examples
    --------
    >>> forms = np.array([[0.0], [1.0], [0.1], [0.5]])
    >>> nearest_vote(forms, np.array([1, -1, 0, 0])).round(2).tolist()
    [1.0, -1.0, 0.98, 0.0]
    """
    v, other = np.flatnonzero(labels > 0), np.flatnonzero(labels < 0)
    if not len(v) or not len(other):
        return np.zeros(len(forms))
    to_v, to_other = _mean_of_nearest(forms, v), _mean_of_nearest(forms, other)
    return (to_other - to_v) / (to_other + to_v + 1e-6)


def _mean_of_nearest(forms: np.ndarray, rows: np.ndarray) -> np.ndarray:
    distances = np.maximum(_squared_distances(forms, forms[rows]), 0.0)
    k = min(N_VOTES, len(rows))
    return np.partition(distances, k - 1, axis=1)[:, :k].mean(axis=1)
