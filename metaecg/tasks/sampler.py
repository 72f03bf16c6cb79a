"""Few-shot tasks of one subject: the support to learn from, the query to be judged on."""

from dataclasses import dataclass

import numpy as np

from metaecg.checks import did_you_mean
from metaecg.data.windows import WindowSet
from metaecg.errors import DataError, LeakageError, NotEnoughWindowsError

GAP_S = 2.0
"""``deploy``: the test part starts at least this long after the last support window ends."""
MIN_TEST_PER_CLASS = 5
"""``deploy``: a subject with fewer test windows of a class is not eligible."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Windows of one subject: adapt on `support`, judge on `query`.

    Raises
    ------
    LeakageError
        A query window overlaps a support window, unless `overlap_allowed` (``as_published`` only).
    """

    subject_id: str
    support: WindowSet
    query: WindowSet
    overlap_allowed: bool = False

    def __post_init__(self) -> None:
        if not self.overlap_allowed:
            _check_no_overlap(self)


def deploy_task(windows: WindowSet, *, n_shots: int) -> Task:
    """Split a held-out subject in time, as a clinic would: label the first minutes, run on the rest.

    Parameters
    ----------
    windows
        One subject's windows in the order of time, none overlapping another.
    n_shots
        The support is the first `n_shots` windows of the positive class (class 1) and as many of
        class 0, evenly spread among those before the last of these positives.

    Returns
    -------
    Task
        The query is everything that starts at least `GAP_S` after the last support window ends.

    Raises
    ------
    NotEnoughWindowsError
        Too few windows of a class for the support, or fewer than `MIN_TEST_PER_CLASS` after it.
    DataError
        The windows are of several subjects, out of order or overlap.

    References
    ----------
    docs/protocol.md, ``deploy``, rules 2 and 4.
    """
    _check_order(windows)
    support = _deploy_support(windows, n_shots)
    end_s = windows.time_s[support].max() + windows.window_s
    query = np.flatnonzero(windows.time_s >= end_s + GAP_S - 1e-9)
    subject_id = _only_subject(windows)
    for label, name in enumerate(windows.classes):
        n_found = int((windows.labels[query] == label).sum())
        if n_found < MIN_TEST_PER_CLASS:
            raise NotEnoughWindowsError(
                subject_id=subject_id,
                label=name,
                n_found=n_found,
                n_needed=MIN_TEST_PER_CLASS,
                where="after its support",
            )
    return Task(subject_id=subject_id, support=windows.select(support), query=windows.select(query))


def published_task(windows: WindowSet, *, n_shots: int, rng: np.random.Generator) -> Task:
    """Draw the support at random and judge on the rest, overlapping windows included (optimistic).

    References
    ----------
    MetaVA's released procedure; docs/protocol.md, ``as_published``.
    """
    subject_id = _only_subject(windows)
    chosen = []
    for label, name in enumerate(windows.classes):
        found = np.flatnonzero(windows.labels == label)
        needed = n_shots + MIN_TEST_PER_CLASS
        if len(found) < needed:
            raise NotEnoughWindowsError(
                subject_id=subject_id, label=name, n_found=len(found), n_needed=needed
            )
        chosen.append(rng.choice(found, n_shots, replace=False))
    support = np.sort(np.concatenate(chosen))
    query = np.setdiff1d(np.arange(len(windows)), support)
    return Task(
        subject_id=subject_id,
        support=windows.select(support),
        query=windows.select(query),
        overlap_allowed=True,
    )


class TaskSampler:
    """Draw training tasks from many subjects, one subject at a time.

    Support and query hold `n_shots` and `n_query` windows of each class, so that every task has
    positives. The support is drawn without replacement. The query comes from other windows, with
    replacement only where a class has fewer than `n_query` of them left.

    Parameters
    ----------
    windows
        Training subjects' windows, normalised.
    n_shots, n_query
        Windows per class.
    overlap_allowed
        The windows overlap (``as_published``): a query window may then overlap a support window.
    chronological
        Draw a moment, the support before and the query after it, as in use. Where a subject's
        classes leave no such moment, support and query are drawn from all of its windows.

    Attributes
    ----------
    subject_ids
        Subjects with at least ``n_shots + 1`` windows of each class, in the order of the data.
    ineligible
        The other subjects, with the reason.
    """

    def __init__(
        self,
        windows: WindowSet,
        *,
        n_shots: int,
        n_query: int,
        chronological: bool = True,
        overlap_allowed: bool = False,
    ) -> None:
        self.windows = windows
        self.n_shots = n_shots
        self.n_query = n_query
        self.chronological = chronological
        self.overlap_allowed = overlap_allowed
        self.subject_ids: list[str] = []
        self.ineligible: dict[str, str] = {}
        self._places: dict[str, list[np.ndarray]] = {}
        for subject_id in dict.fromkeys(windows.subject_ids.tolist()):
            self._admit(subject_id)

    def draw(self, subject_id: str, *, rng: np.random.Generator) -> Task:
        """Draw a task of one subject.

        Raises
        ------
        NotEnoughWindowsError
            The subject has too few windows of a class.
        """
        places = self._places.get(subject_id)
        if places is None:
            raise self._too_few(subject_id)
        early, late = self._sides(places, rng)
        support = [rng.choice(found, self.n_shots, replace=False) for found in early]
        query = []
        for found, taken in zip(late, support, strict=True):
            # Each occurs once; without saying so, setdiff1d takes most of the time of a draw.
            left = np.setdiff1d(np.sort(found), taken, assume_unique=True)
            query.append(rng.choice(left, self.n_query, replace=len(left) < self.n_query))
        return Task(
            subject_id=subject_id,
            support=self.windows.select(np.concatenate(support)),
            query=self.windows.select(np.concatenate(query)),
            overlap_allowed=self.overlap_allowed,
        )

    def _admit(self, subject_id: str) -> None:
        found = np.flatnonzero(self.windows.subject_ids == subject_id)
        found = found[np.argsort(self.windows.time_s[found], kind="stable")]
        labels = self.windows.labels[found]
        places = [found[labels == label] for label in range(len(self.windows.classes))]
        if min(len(p) for p in places) > self.n_shots:
            self.subject_ids.append(subject_id)
            self._places[subject_id] = places
        else:
            self.ineligible[subject_id] = str(self._too_few(subject_id))

    def _too_few(self, subject_id: str) -> DataError:
        found = self.windows.labels[self.windows.subject_ids == subject_id]
        counts = [int((found == label).sum()) for label in range(len(self.windows.classes))]
        if not len(found):
            known = did_you_mean(subject_id, self.subject_ids)
            return DataError(f"subject {subject_id!r} has no windows here; expected {known}")
        label = int(np.argmin(counts))
        return NotEnoughWindowsError(
            subject_id=subject_id,
            label=self.windows.classes[label],
            n_found=counts[label],
            n_needed=self.n_shots + 1,
        )

    def _sides(self, places: list[np.ndarray], rng: np.random.Generator):
        """Return where the support and where the query may come from, per class."""
        times = [self.windows.time_s[found] for found in places]
        first = max(t[self.n_shots - 1] for t in times)  # enough of each class up to here
        last = min(t[-1] for t in times)  # at least one of each class from here on
        if not self.chronological or first >= last:
            return places, places
        moment = rng.uniform(first, last)
        early = [p[t <= moment] for p, t in zip(places, times, strict=True)]
        late = [p[t > moment] for p, t in zip(places, times, strict=True)]
        return early, late


def _deploy_support(windows: WindowSet, n_shots: int) -> np.ndarray:
    subject_id = _only_subject(windows)
    if n_shots < 1:
        raise ValueError(f"n_shots is {n_shots}; expected at least 1.")
    positive = np.flatnonzero(windows.labels == 1)
    if len(positive) < n_shots:
        raise NotEnoughWindowsError(
            subject_id=subject_id, label=windows.classes[1], n_found=len(positive), n_needed=n_shots
        )
    positive = positive[:n_shots]
    negative = np.flatnonzero(windows.labels[: positive[-1]] == 0)
    if len(negative) < n_shots:
        raise NotEnoughWindowsError(
            subject_id=subject_id,
            label=windows.classes[0],
            n_found=len(negative),
            n_needed=n_shots,
            where=f"before its {windows.classes[1]} window number {n_shots}",
        )
    spread = np.round(np.linspace(0, len(negative) - 1, n_shots)).astype(int)
    return np.sort(np.concatenate([positive, negative[spread]]))


def _only_subject(windows: WindowSet) -> str:
    names = np.unique(windows.subject_ids).tolist()
    if len(names) != 1:
        raise DataError(
            f"a task is made of one subject's windows; found {len(names)}: {names[:5]}."
        )
    return names[0]


def _check_order(windows: WindowSet) -> None:
    steps = np.diff(windows.time_s)
    if len(steps) and steps.min() < windows.window_s - 1e-6:
        at = int(steps.argmin())
        raise DataError(
            f"the windows of subject {_only_subject(windows)!r} at {windows.time_s[at]:.2f} s and "
            f"{windows.time_s[at + 1]:.2f} s are out of order or overlap; expected the order of time "
            "and no overlap. Take them from Dataset.of_subject, cut without dense_va."
        )


def _check_no_overlap(task: Task) -> None:
    support = np.sort(task.support.time_s)
    query = task.query.time_s
    place = np.searchsorted(support, query)
    before = np.abs(query - support[np.maximum(place - 1, 0)])
    after = np.abs(support[np.minimum(place, len(support) - 1)] - query)
    nearest = np.minimum(before, after)
    if len(query) and nearest.min() < task.support.window_s - 1e-6:
        at = float(query[nearest.argmin()])
        raise LeakageError(
            f"task of subject {task.subject_id!r}: the query window at {at:.2f} s overlaps a support "
            "window. A window may stand on one side only."
        )
