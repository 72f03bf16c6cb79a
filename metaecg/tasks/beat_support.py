"""Which beats of a patient are labelled, and which are left to judge a detector on."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from metaecg.data.beats import BeatSet
from metaecg.errors import LeakageError, NotEnoughWindowsError
from metaecg.tasks.active import ActiveLabeller, beat_features
from metaecg.tasks.sampler import MIN_TEST_PER_CLASS

OTHER = ("N", "S")
"""Classes that stand for "other"; F and Q are neither V nor other, and in no support."""
MAX_TOLD = 4
"""`active_task` asks for at most so many times the beats of a support."""


@dataclass(frozen=True, kw_only=True)
class BeatTask:
    """Rows of one subject's beats: adapt on `support`, judge on `query`.

    Raises
    ------
    LeakageError
        A beat is in both.
    """

    subject_id: str
    support: np.ndarray
    """At most `n_shots` beats of V and as many others, in the order of time; empty where the search for
    them failed."""
    told: np.ndarray
    """Every beat that a person was asked for, the support among them."""
    query: np.ndarray
    no_support: str = ""
    """Why the support is empty."""

    def __post_init__(self) -> None:
        both = np.intersect1d(self.told, self.query)
        if len(both):
            raise LeakageError(
                f"task of subject {self.subject_id!r}: {len(both)} labelled beats are in the query too."
            )


def time_order_task(
    beats: BeatSet,
    *,
    n_shots: int,
    support_records: Collection[str] = (),
    test_records: Collection[str] = (),
) -> BeatTask:
    """Label the first beats of each class, judge on what follows.

    Parameters
    ----------
    beats
        One subject's beats in the order of time.
    n_shots
        The support is the first so many V and the first so many N or S. Everything up to the last of
        them has to be looked through, but only these count as labelled.
    support_records, test_records
        Recordings that the support and the query come from; none: the query is what follows the
        support, from the first beat on whose window overlaps no window of the support.

    Raises
    ------
    NotEnoughWindowsError
        Too few beats of a class for the support, or fewer than `MIN_TEST_PER_CLASS` V after it.
    """
    among = _in_records(beats, support_records)
    support = _first(beats, among, n_shots)
    if test_records:
        query = np.flatnonzero(_in_records(beats, test_records))
    else:
        end_s = beats.time_s[support].max() + beats.window_s
        query = np.flatnonzero(beats.time_s >= end_s - 1e-9)
    _check_query(beats, query)
    return BeatTask(
        subject_id=str(beats.subject_ids[0]), support=support, told=support, query=query
    )


def active_task(beats: BeatSet, *, n_shots: int) -> BeatTask:
    """Label the beats that `ActiveLabeller` asks for, judge on all others.

    The labeller asks among all beats of the subject and is told V or other (F and Q as they are). It
    ends with `n_shots` of V and of N or S, or after ``MAX_TOLD`` times that many questions. The
    support is the first `n_shots` told of each; whatever more was told counts as a label spent and
    is not judged. A search that finds too few V, or no other beat, leaves an empty support and says so
    in `no_support`: its labels are spent all the same.
    """
    names = np.where(np.isin(beats.letters, OTHER), "other", beats.letters)
    told = _asked(beats, names, n_shots)
    found = {name: told[names[told] == name][:n_shots] for name in ("V", "other")}
    no_support = ""
    if len(found["V"]) < n_shots or not len(found["other"]):
        no_support = (
            f"{len(found['V'])} V and {len(found['other'])} others among the {len(told)} beats asked "
            f"for; {n_shots} of each were looked for."
        )
        found = {}
    return BeatTask(
        subject_id=str(beats.subject_ids[0]),
        support=np.sort(np.concatenate([told[:0], *found.values()])),
        told=np.sort(told),
        query=np.setdiff1d(np.arange(len(beats)), told),
        no_support=no_support,
    )


def _asked(beats: BeatSet, names: np.ndarray, n_shots: int) -> np.ndarray:
    """Return the rows that the labeller asks for, in the order of asking."""
    labeller = ActiveLabeller(beat_features(beats), n_per_class=n_shots)
    told: list[int] = []
    counts = {"V": 0, "other": 0}
    while min(counts.values()) < n_shots and len(told) < MAX_TOLD * 2 * n_shots:
        asked = labeller.next()
        if not len(asked):
            break
        labeller.tell(asked, names[asked].tolist())
        told += asked.tolist()
        for name in names[asked].tolist():
            counts[name] = counts.get(name, 0) + 1
    return np.array(told, dtype=np.int64)


def _first(beats: BeatSet, among: np.ndarray, n_shots: int) -> np.ndarray:
    chosen = []
    for name, letters in (("V", ("V",)), ("other", OTHER)):
        found = np.flatnonzero(among & np.isin(beats.letters, letters))
        if len(found) < n_shots:
            _refuse(beats, name, len(found), n_shots, "")
        chosen.append(found[:n_shots])
    return np.sort(np.concatenate(chosen))


def _in_records(beats: BeatSet, records: Collection[str]) -> np.ndarray:
    if not records:
        return np.ones(len(beats), dtype=bool)
    return np.isin(beats.record_ids, list(records))


def _check_query(beats: BeatSet, query: np.ndarray) -> None:
    n_v = int((beats.letters[query] == "V").sum())
    if n_v < MIN_TEST_PER_CLASS:
        _refuse(beats, "V", n_v, MIN_TEST_PER_CLASS, "after its support")


def _refuse(beats: BeatSet, label: str, n_found: int, n_needed: int, where: str) -> None:
    raise NotEnoughWindowsError(
        subject_id=str(beats.subject_ids[0]),
        label=label,
        n_found=n_found,
        n_needed=n_needed,
        where=where,
    )
