"""How hard a subject is: the initial loss, the running loss, or how far its classes overlap.

Difficulties are numbers of at least 0, higher is harder; only their order counts, except for the
pacing ``metava``. Nothing here knows a model: losses come from functions that the caller passes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from metaecg.checks import check_option, check_windows
from metaecg.errors import DataError

LossOf = Callable[[str], float]
"""subject_id -> mean loss of the initial model on the subject's windows."""
WindowsOf = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""subject_id -> windows (n, n_leads, n_samples) and labels (n,)."""

BANDS_HZ = (0.5, 2.0, 4.0, 6.0, 8.0, 12.0, 20.0, 40.0)
"""Edges of the bands whose shares of power describe a window: fibrillation and tachycardia lie
between 2 and 8 Hz, the slopes of narrow beats above."""


class RunningLoss:
    """A subject's difficulty as the exponential running mean of its losses while training goes on.

    Parameters
    ----------
    initial
        Difficulty before the first observation, shape ``(n_subjects,)``.
    momentum
        Share of the old mean that is kept at each observation, from 0 (last loss only) to below 1.
        The first observation replaces the initial value.
    """

    def __init__(self, initial: Sequence[float], *, momentum: float = 0.8) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum is {momentum!r}; a number from 0 to below 1 was expected.")
        self.momentum = momentum
        self._values = check_scores(initial).copy()
        self._is_seen = np.zeros(len(self._values), dtype=bool)

    @property
    def scores(self) -> np.ndarray:
        """Difficulty of every subject now, shape ``(n_subjects,)``; a copy."""
        return self._values.copy()

    @property
    def is_seen(self) -> np.ndarray:
        """Which subjects have been observed, shape ``(n_subjects,)``; a copy."""
        return self._is_seen.copy()

    def observe(self, index: Sequence[int], losses: Sequence[float]) -> None:
        """Take in the losses of the subjects `index`; one that occurs twice counts twice."""
        for i, loss in zip(index, losses, strict=True):
            kept = self.momentum if self._is_seen[i] else 0.0
            self._values[i] = kept * self._values[i] + (1.0 - kept) * loss
            self._is_seen[i] = True

    def state(self) -> dict:
        """Return what has been observed so far, as JSON values for `restore`."""
        return {"values": self._values.tolist(), "is_seen": self._is_seen.tolist()}

    def restore(self, state: dict) -> None:
        """Go back to a `state`, of as many subjects."""
        if len(state["values"]) != len(self._values):
            raise ValueError(
                f"the state has {len(state['values'])} subjects; {len(self._values)} were expected."
            )
        self._values = check_scores(state["values"]).copy()
        self._is_seen = np.array(state["is_seen"], dtype=bool)


def initial_loss(subject_ids: Sequence[str], loss_of: LossOf) -> np.ndarray:
    """Return MetaVA's difficulty: the softmax over subjects of the initial model's loss.

    Parameters
    ----------
    subject_ids
        The subjects.
    loss_of
        Mean loss of the initial model on the windows of one subject.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_subjects,)``, above 0, sum 1.

    Notes
    -----
    With a hundred subjects every value is near 0.01, whatever the losses are: the order is what a
    pacing can use.
    """
    losses = _losses(subject_ids, loss_of)
    weights = np.exp(losses - losses.max())
    return weights / weights.sum()


def separability(subject_ids: Sequence[str], windows_of: WindowsOf, *, fs_hz: float) -> np.ndarray:
    """Return how far each subject's classes overlap, measured without any network.

    A linear discriminant on band powers is cross-validated within the subject; the difficulty is
    ``1 - max(0, 2 AUC - 1)``. A subject with fewer than two windows of a class counts as hardest.

    Parameters
    ----------
    subject_ids
        The subjects.
    windows_of
        Windows ``(n, n_leads, n_samples)`` and two-class labels ``(n,)`` of one subject.
    fs_hz
        Sampling rate of the windows.

    Returns
    -------
    numpy.ndarray
        Shape ``(n_subjects,)``, from 0 (classes apart) to 1 (no better than chance).
    """
    return np.array([_overlap(*windows_of(subject), fs_hz=fs_hz) for subject in subject_ids])


def _overlap(windows: np.ndarray, labels: np.ndarray, *, fs_hz: float) -> float:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) > 2:
        raise DataError(
            f"separability needs two classes; a subject has {len(classes)}. Choose another "
            "difficulty."
        )
    if len(classes) < 2 or counts.min() < 2:
        return 1.0
    features = _band_powers(check_windows(windows), fs_hz=fs_hz)
    scores = cross_val_predict(
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        features,
        labels,
        cv=StratifiedKFold(min(5, int(counts.min()))),
        method="decision_function",
    )
    auc = roc_auc_score(labels == classes[1], scores)
    return float(1.0 - max(0.0, 2.0 * auc - 1.0))


def _band_powers(windows: np.ndarray, *, fs_hz: float) -> np.ndarray:
    """Return the log shares of power per band and lead, shape ``(n, n_leads * n_bands)``."""
    power = np.abs(np.fft.rfft(windows - windows.mean(axis=-1, keepdims=True), axis=-1)) ** 2
    frequency = np.fft.rfftfreq(windows.shape[-1], 1.0 / fs_hz)
    bands = [
        power[..., (frequency >= low) & (frequency < high)].sum(axis=-1)
        for low, high in zip(BANDS_HZ[:-1], BANDS_HZ[1:], strict=True)
    ]
    bands = np.stack(bands, axis=-1)  # (n, n_leads, n_bands)
    total = bands.sum(axis=-1, keepdims=True)
    shares = bands / np.where(total > 0, total, 1.0)
    return np.log(shares + 1e-6).reshape(len(windows), -1)


def check_scores(scores: Sequence[float], *, name: str = "difficulty") -> np.ndarray:
    """Return `scores` as float64 (n_subjects,); refuse NaN, infinite and negative numbers."""
    scores = np.asarray(scores, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(scores) | (scores < 0))
    if scores.ndim != 1 or len(bad):
        what = (
            f"[{bad.flat[0]}] is {scores.flat[bad[0]]}"
            if len(bad)
            else f" has shape {scores.shape}"
        )
        raise ValueError(f"{name}{what}; one finite number of at least 0 per subject was expected.")
    return scores


def _losses(subject_ids: Sequence[str], loss_of: LossOf) -> np.ndarray:
    return check_scores([loss_of(subject) for subject in subject_ids], name="loss_of's loss")


def _from_initial_loss(subject_ids, *, loss_of, windows_of, fs_hz):
    return initial_loss(subject_ids, _needed("initial-loss", "loss_of", loss_of))


def _from_running_loss(subject_ids, *, loss_of, windows_of, fs_hz):
    return RunningLoss(_losses(subject_ids, _needed("running-loss", "loss_of", loss_of)))


def _from_separability(subject_ids, *, loss_of, windows_of, fs_hz):
    windows_of = _needed("separability", "windows_of", windows_of)
    return separability(subject_ids, windows_of, fs_hz=_needed("separability", "fs_hz", fs_hz))


def _needed(difficulty: str, name: str, value):
    if value is None:
        raise ValueError(f"the difficulty {difficulty!r} needs {name}, and it was not given.")
    return value


DIFFICULTIES = {
    "initial-loss": _from_initial_loss,
    "running-loss": _from_running_loss,
    "separability": _from_separability,
}


def measure_difficulty(
    name: str,
    subject_ids: Sequence[str],
    *,
    loss_of: LossOf | None = None,
    windows_of: WindowsOf | None = None,
    fs_hz: float | None = None,
) -> "np.ndarray | RunningLoss":
    """Measure the difficulty called `name`; what it doesn't need may be left out and is ignored.

    Parameters
    ----------
    name
        ``initial-loss`` and ``running-loss`` need `loss_of`; ``separability`` needs `windows_of`
        and `fs_hz`.
    subject_ids, loss_of, windows_of, fs_hz
        See `initial_loss` and `separability`.

    Returns
    -------
    numpy.ndarray or RunningLoss
        What `metaecg.tasks.curriculum.Curriculum` takes as `difficulty`.

    Raises
    ------
    ValueError
        If the name is unknown, something it needs is missing or a loss isn't finite.
    """
    build = DIFFICULTIES[check_option("difficulty", name, DIFFICULTIES)]
    return build(subject_ids, loss_of=loss_of, windows_of=windows_of, fs_hz=fs_hz)
