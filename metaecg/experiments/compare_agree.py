"""May these runs be compared? Protocol, data, held-out subjects and test windows must be the same.

Figures under different rules or on different windows say nothing about which run is better, so
there is no switch that lets them through.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metaecg.evaluate.predictions import Prediction
from metaecg.experiments.compare_runs import Run
from metaecg.experiments.va_methods import CURVE

N_NAMED = 3
"""Subjects or files that a line names; the others are counted."""
GIVEN_BASE = ["base"]
"""The splits of a run with --base."""
DRAWN = "as_published"
"""The protocol under which every seed draws supports of its own, and so test windows of its own."""
_COLUMNS = {"record_ids": "recordings", "start_s": "starts", "labels": "labels"}


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What was judged under a name: subjects, and their test windows or beats."""

    name: str
    subjects: Mapping[str, Mapping] = field(repr=False)
    """Subject -> figures, with ``n_va`` and ``n_other``."""
    predictions: Mapping[tuple, Prediction] = field(repr=False)
    """By subject, and by seed where each draws its own; empty: not at hand."""
    positive: str = "va"
    """What ``n_va`` counts."""


def disagreements(reference: Run, other: Run) -> list[str]:
    """Return every way in which two runs were not judged alike, a line each.

    Protocol, n_shots, databases, checksum of the data, kind of data, splits, held-out subjects and
    their test windows are compared: the windows by number and, where both runs have their
    predictions, by recording, start, label and being mixed. Seeds, commits, methods and parameters
    may differ. Of runs of `veb_fewshot` each method has test beats of its own: `tested_otherwise`.
    """
    found = _settings(reference, other) + _splits(reference, other)
    lines = [f"{other.name} against {reference.name}: {line}" for line in found]
    if reference.is_of_beats or other.is_of_beats:
        return lines
    return lines + tested_otherwise(_tested(reference), _tested(other))


def tested_otherwise(reference: Tested, other: Tested) -> list[str]:
    """Return every way in which the subjects or test windows are others, a line each."""
    found = _subjects(reference, other) + _window_counts(reference, other)
    found += _windows(reference, other)
    return [f"{other.name} against {reference.name}: {line}" for line in found]


def tested_beats(run: Run, method: str, *, name: str) -> Tested:
    """Return what a method of `veb_fewshot` was judged on."""
    mine = [p for p in run.predictions or () if p.method == method]
    return Tested(
        name=name,
        subjects=run.results["methods"][method]["subjects"],
        predictions={(p.subject_id,): p for p in mine},
        positive="V",
    )


def _tested(run: Run) -> Tested:
    """Return what the methods of `va_fewshot` were judged on; a curve has other windows."""
    by_seed = run.results["protocol"] == DRAWN
    mine = [p for p in run.predictions or () if not p.is_one_class and CURVE not in p.method]
    return Tested(
        name=run.name,
        subjects=next(iter(run.results["methods"].values()))["subjects"],
        predictions={(p.subject_id, p.seed if by_seed else 0): p for p in mine},
    )


def unchecked(runs: Sequence[Run]) -> list[str]:
    """Return what could not be checked, and for which runs, a line each."""
    found = []
    without = [run.name for run in runs if run.predictions is None]
    if without and len(runs) > 1:
        found.append(
            f"no predictions.npz of {_names(without)} at hand: its test windows were compared by "
            "subject and number, not one by one."
        )
    without = [run.name for run in runs if not run.facts.get("splits")]
    if without and len(runs) > 1:
        found.append(
            f"no run.json of {_names(without)} at hand: its folds were compared by name alone."
        )
    apart = [run.name for run in runs[1:] if _draws_its_own(runs[0], run)]
    if apart:
        found.append(
            f"the supports of {_names(apart)} were drawn with other seeds: its test windows are "
            "others by the protocol."
        )
    return found


def _settings(reference: Run, other: Run) -> list[str]:
    a, b = reference.results, other.results
    found = []
    for name in ("protocol", "caveat", "data", "n_shots", "r_peaks"):
        if (b.get(name) or None) != (a.get(name) or None):
            found.append(f"{name} is {b.get(name)!r}, not {a.get(name)!r}.")
    if sorted(a["databases"]) != sorted(b["databases"]):
        found.append(f"databases are {_joined(b['databases'])}, not {_joined(a['databases'])}.")
    if a["data_manifest_sha256"] != b["data_manifest_sha256"]:
        found.append(
            f"data_manifest_sha256 is {str(b['data_manifest_sha256'])[:12]}, not "
            f"{str(a['data_manifest_sha256'])[:12]}{_files(reference, other)}."
        )
    return found


def _files(reference: Run, other: Run) -> str:
    a, b = (run.facts.get("data_sha256") or {} for run in (reference, other))
    if not a or not b:
        return ""
    parts = [
        (sorted(name for name in a.keys() & b.keys() if a[name] != b[name]), "have other content"),
        (sorted(b.keys() - a.keys()), f"are in {other.name} alone"),
        (sorted(a.keys() - b.keys()), f"are in {reference.name} alone"),
    ]
    words = [f"{len(names)} files {what} ({_names(names)})" for names, what in parts if names]
    return ": " + ", ".join(words) if words else ""


def _splits(reference: Run, other: Run) -> list[str]:
    """Compare the folds: who is held out together decides who was trained on.

    A base that was given has its training behind it: whom it saw is a parameter of the run.
    """
    names = [list(run.results.get("splits") or ()) for run in (reference, other)]
    if GIVEN_BASE in names:
        return []
    shared = _evaluated(reference) & _evaluated(other)
    a, b = _folds(reference, shared), _folds(other, shared)
    if a is None or b is None:
        same = names[0] == names[1]
        return [] if same else [f"splits are {_joined(names[1])}, not {_joined(names[0])}."]
    moved = sorted(shared - set().union(*(a & b)))
    if not moved:
        return []
    return [f"the folds differ: {len(moved)} subjects are held out with others ({_names(moved)})."]


def _folds(run: Run, subjects: set[str]) -> set[frozenset[str]] | None:
    """Return which of the subjects are held out together; None: not at hand."""
    splits = run.facts.get("splits")
    if not splits:
        return None
    return {frozenset(subjects.intersection(split["test"])) for split in splits.values()}


def _subjects(reference: Tested, other: Tested) -> list[str]:
    a, b = set(reference.subjects), set(other.subjects)
    parts = [(b - a, other.name), (a - b, reference.name)]
    words = [f"{len(who)} in {name} alone ({_names(sorted(who))})" for who, name in parts if who]
    return [f"evaluated subjects differ: {', '.join(words)}."] if words else []


def _window_counts(reference: Tested, other: Tested) -> list[str]:
    a, b, positive = reference.subjects, other.subjects, other.positive
    differ = [
        f"{subject_id} has {b[subject_id]['n_va']} {positive} and {b[subject_id]['n_other']} other, "
        f"not {a[subject_id]['n_va']} and {a[subject_id]['n_other']}"
        for subject_id in sorted(a.keys() & b.keys())
        if any(a[subject_id][key] != b[subject_id][key] for key in ("n_va", "n_other"))
    ]
    if not differ:
        return []
    return [f"test windows of {len(differ)} subjects differ in number: {_names(differ, '; ')}."]


def _windows(reference: Tested, other: Tested) -> list[str]:
    """Compare the test windows themselves; of `as_published` those of the same seed."""
    a, b = reference.predictions, other.predictions
    found = {}
    for key in sorted(a.keys() & b.keys()):
        what = _what_differs(a[key], b[key])
        if what:
            found.setdefault(key[0], what)
    if not found:
        return []
    words = [f"{subject_id} ({what})" for subject_id, what in found.items()]
    return [f"test windows of {len(found)} subjects are others: {_names(words)}."]


def _draws_its_own(reference: Run, other: Run) -> bool:
    """Whether the protocol draws supports by the seed, and the runs share none."""
    shared = set(reference.results["seeds"]) & set(other.results["seeds"])
    return reference.results["protocol"] == DRAWN and not shared


def _what_differs(a: Prediction, b: Prediction) -> str | None:
    if len(a.labels) != len(b.labels):
        return f"{len(b.labels)} windows, not {len(a.labels)}"
    for name, words in _COLUMNS.items():
        mine, their = getattr(a, name), getattr(b, name)
        same = np.isclose(mine, their) if name == "start_s" else mine == their
        if not np.all(same):
            return words
    return None if np.array_equal(a.is_mixed, b.is_mixed) else "mixed windows"


def _evaluated(run: Run) -> set[str]:
    return {s for figures in run.results["methods"].values() for s in figures["subjects"]}


def _names(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return separator.join(names[:N_NAMED]) + more


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names)
