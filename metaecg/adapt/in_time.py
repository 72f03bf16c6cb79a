"""A patient's detector in time: its windows judged together, by the base's rhythm model."""

from typing import TYPE_CHECKING

import numpy as np

from metaecg.adapt.support import checked_times
from metaecg.checks import check_option
from metaecg.errors import DataError
from metaecg.models.inference import softmax
from metaecg.models.rhythm import RhythmChain, RhythmFilter

if TYPE_CHECKING:
    from metaecg.adapt.personalize import Personalizer

RHYTHMS = ("none", "causal", "offline")
THRESHOLD = 0.5
"""Where no rhythm model brings its own."""


def positive_index(classes) -> int:
    """Return the place of the positive one of two classes: ``"va"`` if there is one, else 1."""
    names = list(classes)
    return names.index("va") if "va" in names else 1


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
        _difference(base, logits), time_s, chain=chain, record_ids=record_ids, mode=rhythm
    )
    return _both_classes(base, log_odds)


class PersonalStream:
    """One patient's windows as they come: each judged by itself and those before it.

    Made by `Personalizer.stream`. The network sees one window at a time, so that its logits may
    differ in the last digits from those of many windows at once.
    """

    def __init__(self, personal: "Personalizer", state: dict | None = None) -> None:
        self._personal = personal
        self._filter = RhythmFilter(personal.base.rhythm, personal.chain_)
        if state is not None:
            found = RhythmFilter.from_dict(state)
            if (found.model, found.chain) != (self._filter.model, self._filter.chain):
                raise ValueError(
                    f"the state belongs to a stream with {found.model} and {found.chain}; this "
                    f"detector has {self._filter.model} and {self._filter.chain}. Start a new "
                    "stream, or load the detector that the state came from."
                )
            self._filter = found

    def step(
        self, window: np.ndarray, time_s: float, *, record_id: str | None = None
    ) -> np.ndarray:
        """Return the class probabilities of the next window, shape ``(2,)``, float64.

        Parameters
        ----------
        window
            Shape ``(n_leads, n_samples)``, as one of `Personalizer.predict_proba`'s.
        time_s
            When it starts, seconds. A time that doesn't move on, or another recording, starts anew.
        record_id
            Which recording it is from, if there are several.
        """
        base = self._personal.base
        logits = self._personal.logits(np.asarray(window)[None])
        log_odds = self._filter.step(_difference(base, logits)[0], time_s, record_id=record_id)
        return _both_classes(base, np.array([log_odds]))[0]

    def to_dict(self) -> dict:
        """Return where the stream stands as JSON values, for `Personalizer.stream`."""
        return self._filter.to_dict()


def _difference(base, logits: np.ndarray) -> np.ndarray:
    positive = positive_index(base.classes)
    return logits[:, positive] - logits[:, 1 - positive]


def _both_classes(base, log_odds: np.ndarray) -> np.ndarray:
    both = np.zeros((len(log_odds), 2))
    both[:, positive_index(base.classes)] = log_odds
    return softmax(both)
