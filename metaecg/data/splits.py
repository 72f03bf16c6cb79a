"""Subject-disjoint folds and split manifests; a subject on both sides is an error."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metaecg.checks import did_you_mean
from metaecg.errors import DataError, LeakageError


@dataclass(frozen=True, kw_only=True)
class Split:
    """Who trains, who is held out, and, where thresholds or a stop are chosen, who decides that.

    Raises
    ------
    LeakageError
        If a subject stands on two sides.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 per file (``database/name``); empty if the split doesn't fix them."""

    def __post_init__(self) -> None:
        check_disjoint(self.train, self.test, what=f"split {self.name!r}")
        for side in ("train", "test"):
            what = f"split {self.name!r}, {side} and validation"
            check_disjoint(getattr(self, side), self.validation, what=what)

    def rows(self, subject_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return side -> indices into `subject_ids` of the rows of its subjects, in order.

        Examples
        --------
        >>> split = Split(name="s", train=("a",), test=("b", "c"))
        >>> {side: rows.tolist() for side, rows in split.rows(np.array(["b", "a", "b"])).items()}
        {'train': [1], 'validation': [], 'test': [0, 2]}
        """
        return {
            side: np.flatnonzero(np.isin(subject_ids, getattr(self, side)))
            for side in ("train", "validation", "test")
        }


def check_disjoint(train: Iterable[str], test: Iterable[str], *, what: str) -> None:
    """Raise LeakageError if a subject stands on both sides."""
    both = sorted(set(train) & set(test))
    if both:
        raise LeakageError(
            f"{what}: {len(both)} subjects stand on both sides: {', '.join(both[:5])}"
            f"{', ...' if len(both) > 5 else ''}. Every subject may be on one side only; take them "
            "out of the training side."
        )


def make_folds(
    strata: Mapping[str, str], *, n_folds: int, rng: np.random.Generator
) -> tuple[Split, ...]:
    """Deal subjects into folds so that every fold has its share of each stratum.

    Parameters
    ----------
    strata
        Subject to stratum, such as ``{"mitdb/100": "mitdb, one class"}``.
    n_folds
        Number of folds, 2 up to the number of subjects. Every subject is held out exactly once.
    rng
        Decides who goes where within a stratum.
    """
    if not 2 <= n_folds <= len(strata):
        raise DataError(
            f"folds is {n_folds} for {len(strata)} subjects; expected 2 to the number of subjects."
        )
    held_out: list[list[str]] = [[] for _ in range(n_folds)]
    dealt = 0
    for stratum in sorted(set(strata.values())):
        members = sorted(subject for subject, its in strata.items() if its == stratum)
        for i in rng.permutation(len(members)):
            held_out[dealt % n_folds].append(members[i])
            dealt += 1
    everyone = set(strata)
    return tuple(
        Split(name=f"fold-{i}", train=tuple(sorted(everyone - set(test))), test=tuple(sorted(test)))
        for i, test in enumerate(held_out)
    )


def read_manifest(path: str | Path) -> Split:
    """Read a split manifest: ``{"train": [...], "test": [...], "checksums": {file: sha256}}``.

    ``"validation": [...]`` may stand beside them; without it that side is empty.

    Raises
    ------
    DataError
        The file is missing, is no JSON object or lacks a side.
    LeakageError
        A subject stands on two sides.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"the split manifest {path} can't be read: {error}.") from error
    except ValueError as error:
        raise DataError(f"the split manifest {path} is not JSON: {error}.") from error
    sides = {}
    if isinstance(content, dict):
        content.setdefault("validation", [])
    for side in ("train", "test", "validation"):
        subjects = content.get(side) if isinstance(content, dict) else None
        if not isinstance(subjects, list) or not all(isinstance(s, str) for s in subjects):
            raise DataError(
                f"the split manifest {path} has no list of subjects under {side!r}; expected "
                '{"train": ["mitdb/100", ...], "test": [...], "checksums": {...}}.'
            )
        sides[side] = tuple(dict.fromkeys(subjects))
    if not sides["test"]:
        raise DataError(f"the split manifest {path} holds no test subject; expected at least one.")
    checksums = content.get("checksums") or {}
    if not isinstance(checksums, dict) or not all(isinstance(c, str) for c in checksums.values()):
        raise DataError(f"the split manifest {path}: 'checksums' must map file to SHA-256.")
    return Split(name=path.stem, checksums=checksums, **sides)


def write_manifest(path: str | Path, split: Split) -> None:
    """Write a split so that `read_manifest` returns it."""
    content = {
        "schema": 1,
        "train": list(split.train),
        **({"validation": list(split.validation)} if split.validation else {}),
        "test": list(split.test),
        "checksums": dict(split.checksums),
    }
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def check_split(split: Split, subject_ids: Sequence[str], checksums: Mapping[str, str]) -> None:
    """Raise DataError if a split names subjects or file contents that the data doesn't have."""
    named = {*split.train, *split.validation, *split.test}
    unknown = sorted(named - set(subject_ids))
    if unknown:
        raise DataError(
            f"split {split.name!r} names {len(unknown)} subjects that the data doesn't have, first "
            f"{unknown[0]!r}; expected {did_you_mean(unknown[0], subject_ids)}"
        )
    for name, expected in split.checksums.items():
        if name not in checksums:
            raise DataError(
                f"split {split.name!r} fixes the checksum of {name}, which isn't among the "
                f"{len(checksums)} files of the data. Name its database too, or fetch the file."
            )
        if checksums[name] != expected:
            raise DataError(
                f"split {split.name!r}: {name} has the checksum {checksums[name]}, the manifest "
                f"says {expected}. It is another version of the file; fetch the one that was used."
            )
