"""What `tune` needs to know of a recipe: its space, its data, and what a trial is worth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from metaecg.data.datasets import Dataset
from metaecg.data.splits import Split
from metaecg.data.windows import WindowSet
from metaecg.errors import LeakageError
from metaecg.experiments.tune_space import Space

RECIPES = {"va_fewshot": "metaecg.experiments.va_space"}
"""Recipe to the module whose ``RECIPE`` describes it; the search space is declared there."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a trial achieved on one meta-validation subject."""

    subject_id: str
    auc: float
    f1: float
    adapt_seconds: float
    adapter_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Development subjects to train on, and those that judge a trial."""

    split: Split
    eligible: tuple[str, ...]
    """Subjects of the test side with enough windows of both classes."""


@dataclass(frozen=True, kw_only=True)
class Development(Dataset):
    """The windows of the subjects that a study may learn from and choose by.

    Those of the held-out subjects are not in here, and asking for them is an error.

    Raises
    ------
    LeakageError
        If a recording of a held-out subject is among the records.
    """

    held_out: frozenset[str]

    def __post_init__(self) -> None:
        self.refuse(set(self.subject_ids) | set(self.windows.subject_ids.tolist()))

    def of_subject(self, subject_id: str) -> WindowSet:
        """Return one subject's windows in the order of time; a held-out one is a LeakageError."""
        self.refuse({subject_id})
        return super().of_subject(subject_id)

    def refuse(self, subject_ids: set[str]) -> None:
        """Raise LeakageError if a held-out subject is among `subject_ids`."""
        both = sorted(self.held_out & subject_ids)
        if both:
            raise LeakageError(
                f"{both[0]!r} is held out, and tuning asked for that subject"
                f"{f' and {len(both) - 1} others' if len(both) > 1 else ''}; expected development "
                "subjects alone. Leave the held-out ones to the evaluation after tuning."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as `tune` sees it. A configuration is the recipe's own, resolved and checked."""

    name: str
    resolve: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    """(section ``config``, places) -> the configuration that all trials share."""
    space: Callable[..., Space]
    """(configuration, fixed=, given=) -> the space of a study, in the order in which a trial asks.
    ``fixed`` are the fields that aren't searched, ``given`` is the section ``space``."""
    asks: Callable[[str, Mapping[str, Any], Any], bool]
    """(field, values chosen so far, configuration) -> whether the field matters in this branch."""
    defaults: Callable[[Space, Any], dict[str, Any]]
    """(space, configuration) -> the configuration as a trial, as far as it lies in the space."""
    with_values: Callable[[Any, Mapping[str, Any]], Any]
    """(configuration, chosen values) -> the configuration of a trial."""
    decisive: Callable[[Any], dict[str, Any]]
    """configuration -> JSON values that decide a trial's figures."""
    final: Callable[..., Any]
    """(configuration of a trial, split=, out=) -> one that scores the held-out subjects once."""
    hold_out: Callable[[Any, list[int]], Split]
    """(configuration, folds) -> who develops (train) and who is held out (test)."""
    develop: Callable[[Any, Split], Development]
    """(configuration, split) -> the windows of the development subjects alone."""
    inner_folds: Callable[[Any, Development, int], tuple[Fold, ...]]
    """(configuration, development, n) -> subject-disjoint folds among the development subjects."""
    evaluate: Callable[..., list[Score]]
    """(configuration of a trial, development, fold, seed=, shares=, show=) -> a score per subject
    that judges. At each share of the budget ``show(share, scores)`` is told how things stand."""


def get_recipe(name: str) -> Recipe:
    """Return a recipe of `RECIPES`."""
    return import_module(RECIPES[name]).RECIPE
