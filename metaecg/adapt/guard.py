"""Refuse a personalization that its own support speaks against; the base's answer stays then.

Labels of twenty windows can mislead: an artefact among them, a kind of beat that isn't there. What
the patient's labelled and unlabelled windows can tell before anything is used:

    held out    fitted to a part of the support, the detector must judge the rest of it no worse than
                the base does
    change      on the patient's windows so far, labelled or not, it must not name more of them
                otherwise than the base than is usual among training subjects
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from metaecg.adapt.in_time import named
from metaecg.adapt.personalize import NAMELESS, Personalizer
from metaecg.adapt.support import label_index, windows_of_each
from metaecg.checks import check_positive
from metaecg.errors import PersonalizationRefusedWarning
from metaecg.models.inference import softmax


@dataclass(frozen=True, kw_only=True)
class Guard:
    """When a personalization is refused.

    Parameters
    ----------
    n_parts
        Parts that the support is cut into, each held out once; a class with fewer windows has fewer.
    max_more_errors
        How many more windows of the support it may get wrong, held out, than the base.
    max_loss_rise
        How much its mean log loss on them may be above the base's.
    max_changed
        Part of the patient's windows so far that it may name otherwise than the base, 0 to 1. The
        default of 1 refuses nothing for it: what is usual, training subjects must tell.
    """

    n_parts: int = 5
    max_more_errors: int = 0
    max_loss_rise: float = 0.0
    max_changed: float = 1.0

    def __post_init__(self) -> None:
        if check_positive("n_parts", self.n_parts) < 2:
            raise ValueError(f"n_parts is {self.n_parts!r}; at least 2 was expected.")
        if not 0 <= self.max_changed <= 1:
            raise ValueError(f"max_changed is {self.max_changed!r}; expected a number from 0 to 1.")


class GuardedPersonalizer(ClassifierMixin, BaseEstimator):
    """A `Personalizer` that keeps the base where fitting would make it worse.

    Parameters
    ----------
    personalizer
        An unfitted `Personalizer` without a `rhythm`; it is cloned.
    guard
        When to refuse; ``None``: as `Guard()` has it.

    Attributes
    ----------
    refused_
        Whether the base's answer is kept.
    reasons_
        Why, one sentence each; empty if it isn't refused.
    checks_
        What was measured: ``held_out`` with ``errors`` and ``loss`` of base and personal detector,
        None where a part of the support leaves too few of a class to fit on; ``changed``, a part
        of the windows so far.
    personal_, fitted_base_
        The fitted `Personalizer`, refused or not, and its base.

    Examples
    --------
    >>> personal = GuardedPersonalizer(Personalizer(base))  # doctest: +SKIP
    >>> personal.fit(windows, labels, so_far=unlabelled).refused_  # doctest: +SKIP
    False
    """

    def __init__(self, personalizer: Personalizer, guard: Guard | None = None) -> None:
        self.personalizer = personalizer
        self.guard = guard

    def fit(
        self,
        windows: np.ndarray,
        labels: Sequence,
        *,
        time_s: np.ndarray | None = None,
        so_far: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        subject_id: str = NAMELESS,
    ) -> "GuardedPersonalizer":
        """Fit, and check what was fitted.

        Parameters
        ----------
        windows, labels, time_s
            As for `Personalizer.fit`; in the order of time.
        so_far
            The patient's windows until now, without labels, shape as `windows`; ``None``: the change
            is measured on the support alone.
        groups
            Shape ``(n_windows,)``: windows with the same number, such as two leads of one beat, have
            one label and are held out together; ``None``: each by itself.
        subject_id
            Who it is, for the warning.

        Returns
        -------
        GuardedPersonalizer
            Itself.

        Raises
        ------
        ValueError
            The `Personalizer` has a `rhythm`; otherwise as `Personalizer.fit`.

        Warns
        -----
        PersonalizationRefusedWarning
            The personalization is refused, and why.
        """
        if self.personalizer.rhythm != "none":
            raise ValueError(
                f"rhythm is {self.personalizer.rhythm!r}; a guard judges windows by themselves. Use "
                "rhythm='none'."
            )
        index = label_index(labels, self.personalizer.base.classes, n_windows=len(windows))
        self.personal_ = clone(self.personalizer).fit(
            windows, index, time_s=time_s, subject_id=subject_id
        )
        self.checks_ = {
            "held_out": self._held_out(np.asarray(windows), index, time_s, groups, subject_id),
            "changed": self._changed(windows if so_far is None else so_far),
        }
        self.reasons_ = tuple(self._reasons())
        self.refused_ = bool(self.reasons_)
        self.fitted_base_ = self.personal_.fitted_base_
        self.classes_ = self.personal_.classes_
        if self.refused_:
            warnings.warn(
                f"the personalization for {subject_id!r} is refused, the base's answer is kept: "
                f"{' '.join(self.reasons_)} Check the labels, or label other windows.",
                PersonalizationRefusedWarning,
                stacklevel=2,
            )
        return self

    @property
    def base(self):
        """The base model."""
        return self.personalizer.base

    def logits(self, windows: np.ndarray) -> np.ndarray:
        """Return the logits of the patient's network, or the base's where it was refused."""
        check_is_fitted(self, "refused_")
        return (self.fitted_base_ if self.refused_ else self.personal_).logits(windows)

    def predict_proba(self, windows: np.ndarray) -> np.ndarray:
        """Return the class probabilities, shape ``(n_windows, n_classes)``."""
        return softmax(self.logits(windows))

    def predict(self, windows: np.ndarray) -> np.ndarray:
        """Return the class names, shape ``(n_windows,)``, by the `Personalizer`'s threshold."""
        return self.classes_[self._named(self.logits(windows))]

    def _named(self, logits: np.ndarray) -> np.ndarray:
        return named(softmax(logits), self.personal_.classes_, self.personal_.threshold)

    def _held_out(
        self, windows: np.ndarray, index: np.ndarray, time_s, groups, subject_id: str
    ) -> dict | None:
        groups = np.arange(len(index)) if groups is None else groups
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        parts = parts_of_support(index[first], (self.guard or Guard()).n_parts)
        if parts is None:
            return None
        parts = parts[group]
        if not _can_be_fitted(parts, index, n_each=windows_of_each(self.personalizer.prefine)):
            return None
        logits = np.empty((len(index), len(self.base.classes)))
        for part in np.unique(parts):
            rest, out = parts != part, parts == part
            times_s = None if time_s is None else np.asarray(time_s)[rest]
            fitted = clone(self.personalizer).fit(
                windows[rest], index[rest], time_s=times_s, subject_id=subject_id
            )
            logits[out] = fitted.logits(windows[out])
        both = {"base": self.base.logits(windows), "personal": logits}
        return {who: judged(found, self._named(found), index) for who, found in both.items()}

    def _changed(self, windows: np.ndarray) -> float:
        if not len(windows):
            return 0.0
        before = self._named(self.base.logits(windows))
        return float((self._named(self.personal_.logits(windows)) != before).mean())

    def _reasons(self) -> list[str]:
        guard = self.guard or Guard()
        found, held_out = [], self.checks_["held_out"]
        if held_out:
            base, personal = held_out["base"], held_out["personal"]
            if personal["errors"] > base["errors"] + guard.max_more_errors:
                found.append(
                    f"fitted to a part of the support it gets {personal['errors']} of the others wrong, "
                    f"the base {base['errors']}."
                )
            if personal["loss"] > base["loss"] + guard.max_loss_rise:
                found.append(
                    f"its loss on held-out windows of the support is {personal['loss']:.3f}, the base's "
                    f"{base['loss']:.3f}."
                )
        if self.checks_["changed"] > guard.max_changed:
            found.append(
                f"it names {self.checks_['changed']:.1%} of the windows so far otherwise than the base; "
                f"at most {guard.max_changed:.1%} is usual."
            )
        return found


def parts_of_support(index: np.ndarray, n_parts: int) -> np.ndarray | None:
    """Return the part of every window, dealt in turn within each class; None if one has a single.

    Examples
    --------
    >>> parts_of_support(np.array([0, 0, 1, 0, 1]), 2).tolist()
    [0, 1, 0, 0, 1]
    """
    counts = np.bincount(index)
    if counts[counts > 0].min() < 2:
        return None
    parts = np.empty(len(index), dtype=np.int64)
    for label in np.unique(index):
        mine = np.flatnonzero(index == label)
        parts[mine] = np.arange(len(mine)) % n_parts
    return parts


def _can_be_fitted(parts: np.ndarray, index: np.ndarray, *, n_each: int) -> bool:
    """Return whether each part leaves at least `n_each` windows of every class that there is."""
    return all(
        (index[parts != part] == label).sum() >= n_each
        for part in np.unique(parts)
        for label in np.unique(index)
    )


def judged(logits: np.ndarray, named_as: np.ndarray, index: np.ndarray) -> dict[str, float]:
    """Return how many windows are named wrongly, and the mean log loss."""
    own = softmax(logits)[np.arange(len(index)), index]
    return {
        "errors": int((named_as != index).sum()),
        "loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
    }
