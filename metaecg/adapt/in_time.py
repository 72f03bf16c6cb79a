"""A patient's detector in time: its windows judged together, by the base's rhythm model."""

import numpy as np

from metaecg.adapt.support import checked_times
from metaecg.checks import check_option
from metaecg.errors import DataError
from metaecg.models.inference import softmax
from metaecg.models.rhythm import RhythmChain

RHYTHMS = ("none", "causal", "offline")
THRESHOLD = 0.5
"""Where no rhythm model brings its own."""


def positive_index(classes) -> int:
    """Return the place of the positive one of two classes: ``"va"`` if there is one, else 1."""
    names = list(classes)
    return names.index("va") if "va" in names else 1


def check_threshold(threshold: float) -> float:
    """Return `threshold` if it is a number from 0 to 1, else raise ValueError."""
    is_number = isinstance(threshold, (int, float, np.integer, np.floating))
    if not is_number or not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}; a number from 0 to 1 was expected.")
    return threshold


def named(probabilities: np.ndarray, classes, threshold: float) -> np.ndarray:
    """Return the index of the class that each row of `probabilities` stands for.

    Of two classes the positive one from `threshold` on, of more the most probable.
    """
    if len(classes) != 2:
        return probabilities.argmax(axis=1)
    positive = positive_index(classes)
    is_positive = probabilities[:, positive] >= check_threshold(threshold)
    return np.where(is_positive, positive, 1 - positive)


def check_rhythm(rhythm: str, base) -> None:
    """Raise ValueError if `rhythm` is no choice, or `base` has no model for it."""
    check_option("rhythm", rhythm, RHYTHMS)
    if rhythm != "none" and base.rhythm is None:
        raise ValueError(
            f"rhythm is {rhythm!r}, but the base has no rhythm model. Set rhythm='none', or take a "
            "base that has one (metaecg.models.rhythm_fit.fit_rhythm makes it)."
        )


def default_threshold(rhythm: str, base) -> float:
    """Return the threshold of the base's rhythm model where it is used, else one half."""
    model = None if rhythm == "none" else getattr(base, "rhythm", None)
    return THRESHOLD if model is None else model.threshold


def chain_of_support(base, index: np.ndarray, time_s: np.ndarray) -> RhythmChain:
    """Return how often the patient's rhythms begin and end; `index` is into the base's classes."""
    return base.rhythm.for_patient(time_s, index == positive_index(base.classes))


def times_of_support(
    time_s: np.ndarray | None, n_windows: int, *, rhythm: str, prefine: str | None
) -> np.ndarray | None:
    """Return the checked starts of the support's windows; missing ones are refused if needed."""
    if rhythm != "none":
        return needed_times(time_s, rhythm=rhythm, n_windows=n_windows)
    if time_s is not None:
        return checked_times(time_s, n_windows=n_windows)
    if prefine == "intended":
        raise DataError(
            "prefine='intended' splits the windows in time, but time_s is None. Hand over "
            "time_s, the start of each window in seconds, or use prefine='released'."
        )
    return None


def needed_times(time_s: np.ndarray | None, *, rhythm: str, n_windows: int) -> np.ndarray:
    """Return the checked starts of the windows; without them a rhythm can't be followed."""
    if time_s is None:
        raise DataError(
            f"rhythm={rhythm!r} judges windows by their neighbours in time, but time_s is None. "
            "Hand over time_s, the start of each window in seconds, or use rhythm='none'."
        )
    return checked_times(time_s, n_windows=n_windows)


def probabilities_in_time(
    base,
    chain: RhythmChain,
    logits: np.ndarray,
    time_s: np.ndarray,
    *,
    record_ids: np.ndarray | None,
    rhythm: str,
) -> np.ndarray:
    """Return the posterior probabilities ``(n_windows, 2)`` of logits of the same shape."""
    log_odds = base.rhythm.posterior(
        logit_difference(base, logits), time_s, chain=chain, record_ids=record_ids, mode=rhythm
    )
    return both_classes(base, log_odds)


def logit_difference(base, logits: np.ndarray) -> np.ndarray:
    """Return the logits of the positive class minus those of the other one, shape ``(n_windows,)``."""
    positive = positive_index(base.classes)
    return logits[:, positive] - logits[:, 1 - positive]


def both_classes(base, log_odds: np.ndarray) -> np.ndarray:
    """Return the probabilities ``(n_windows, 2)`` of log odds of the positive class."""
    both = np.zeros((len(log_odds), 2))
    both[:, positive_index(base.classes)] = log_odds
    return softmax(both)
