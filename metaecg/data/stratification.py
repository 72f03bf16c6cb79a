"""Train, validation and test by subject for recordings with several labels each."""

from collections.abc import Collection, Sequence

import numpy as np

from metaecg.data.splits import Split
from metaecg.errors import DataError, LeakageError

PAPER_FRACTIONS = (0.08, 0.02, 0.90)
"""Train, validation and test of H-Tuning: a tenth is labelled, a fifth of that is held back."""

SIDES = ("train", "validation", "test")


def multilabel_split(
    labels: np.ndarray,
    subject_ids: Sequence[str],
    *,
    fractions: Sequence[float] = PAPER_FRACTIONS,
    rng: np.random.Generator,
) -> Split:
    """Deal subjects to train, validation and test so that each side has its share of every class.

    Iterative stratification [1]_ with whole subjects in place of records: the class with the fewest
    recordings left is dealt first, each of its subjects (those with most of them first) to the side
    that still misses most of that class, then to the one that misses most recordings; what is still
    equal is drawn. Shares are exact for neither classes nor recordings, since a subject isn't cut
    in two. The released work splits by record, and lets one person stand on two sides.

    Parameters
    ----------
    labels
        Shape ``(n_records, n_classes)``, 0 or 1.
    subject_ids
        The person of each record, shape ``(n_records,)``.
    fractions
        Shares of train, validation and test in the recordings, each at least 0, 1 together.
    rng
        Decides between equals; the same generator gives the same split whatever the order of the
        records.

    Raises
    ------
    DataError
        Shapes or fractions don't fit, or a side that should have a share gets nobody.

    References
    ----------
    .. [1] K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the stratification of multi-label data",
       ECML PKDD 2011, LNCS 6913:145-158.

    Examples
    --------
    >>> split = multilabel_split(np.eye(2)[[0, 1] * 10], [f"s{i:02}" for i in range(20)],
    ...                          fractions=(0.4, 0.1, 0.5), rng=np.random.default_rng(0))
    >>> len(split.train), len(split.validation), len(split.test)
    (8, 2, 10)
    """
    labels, shares = _checked(labels, subject_ids, fractions)
    people, person = np.unique(np.asarray(subject_ids, dtype=str), return_inverse=True)
    counts = np.zeros((len(people), labels.shape[1] + 1))
    np.add.at(counts, person, np.column_stack([labels, np.ones(len(labels))]))
    side = _deal(counts, shares, rng)
    sides = {name: tuple(people[side == i].tolist()) for i, name in enumerate(SIDES)}
    for name, share in zip(SIDES, shares, strict=True):
        if share > 0 and not sides[name]:
            raise DataError(
                f"{name} should get {share:.0%} of {len(labels)} recordings and got nobody of "
                f"{len(people)} subjects. Raise its fraction or use more recordings."
            )
    text = "/".join(f"{100 * share:g}" for share in shares)
    return Split(name=f"multilabel {text}", **sides)


def fold_split(
    strat_fold: np.ndarray,
    subject_ids: Sequence[str],
    *,
    validation: Collection[int] = (9,),
    test: Collection[int] = (10,),
) -> Split:
    """Return the split by PTB-XL's own folds: everything that is neither of the two trains.

    Parameters
    ----------
    strat_fold
        Fold of each record, shape ``(n_records,)``, as in `TwelveLeadSet.strat_fold`.
    subject_ids
        The person of each record.
    validation, test
        Folds of those sides; PTB-XL recommends 9 and 10, whose labels were checked by a person.

    Raises
    ------
    DataError
        A fold isn't there, or nothing is left to train.
    LeakageError
        A subject has records on two sides, or a fold is asked for twice.
    """
    folds, subjects = np.asarray(strat_fold), np.asarray(subject_ids, dtype=str)
    if folds.shape != subjects.shape or folds.ndim != 1:
        raise DataError(
            f"strat_fold has shape {folds.shape} and subject_ids has shape {subjects.shape}; "
            "expected (n_records,) for both."
        )
    there = set(folds.tolist())
    missing = sorted({*validation, *test} - there)
    if missing:
        raise DataError(
            f"the data has no fold {', '.join(map(str, missing))}; it has the folds "
            f"{', '.join(map(str, sorted(there)))}. Name others as validation and test."
        )
    if set(validation) & set(test):
        raise LeakageError(
            f"validation is {sorted(validation)} and test is {sorted(test)}; a fold may be on one "
            "side only."
        )
    train = there - {*validation, *test}
    if not train:
        raise DataError("no fold is left to train on. Leave some out of validation and test.")
    parts = {"train": train, "validation": validation, "test": test}
    sides = {
        name: tuple(np.unique(subjects[np.isin(folds, list(chosen))]).tolist())
        for name, chosen in parts.items()
    }
    return Split(name=f"folds, test {', '.join(map(str, sorted(test)))}", **sides)


def _checked(
    labels: np.ndarray, subject_ids: Sequence[str], fractions: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    labels, shares = np.asarray(labels), np.asarray(fractions, dtype=float)
    if labels.ndim != 2 or len(labels) != len(subject_ids) or not len(labels):
        raise DataError(
            f"labels has shape {labels.shape} for {len(subject_ids)} subject_ids; expected "
            "(n_records, n_classes) with at least one record, and one subject per record."
        )
    if not np.isin(labels, (0, 1)).all():
        odd = labels[~np.isin(labels, (0, 1))][0]
        raise DataError(f"labels holds {odd.item()!r}; expected 0 and 1 only.")
    if shares.shape != (3,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-9:
        raise DataError(
            f"fractions is {tuple(fractions)}; expected three shares (train, validation, test) of "
            "at least 0 that add up to 1."
        )
    return labels, shares


def _deal(counts: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the side of each subject.

    `counts` has a row per subject: recordings with each class, and in the last column all of them,
    which is dealt like a class of its own once the others are done.
    """
    wanted = np.outer(shares, counts.sum(axis=0))  # (n_sides, n_classes + 1): still missing
    side = np.full(len(counts), -1)
    luck = rng.random((len(counts), len(shares) + 1))
    while (side < 0).any():
        left = counts[side < 0].sum(axis=0)
        classes = left[:-1]
        column = int(np.where(classes > 0, classes, np.inf).argmin()) if classes.any() else -1
        free = np.flatnonzero((side < 0) & (counts[:, column] > 0))
        for i in free[np.lexsort((luck[free, -1], -counts[free, column]))]:
            order = np.lexsort((luck[i, :-1], wanted[:, -1], wanted[:, column]))
            side[i] = order[-1]  # misses some: what all sides miss together is still to be dealt
            wanted[side[i]] -= counts[i]
    return side
