"""Beats judged as ANSI/AAMI EC57 has it: per class, per record and gross, with false positives per hour."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from metaecg.evaluate import metrics
from metaecg.evaluate.metrics import N_RESAMPLES, NO_BEAT, aami_counts
from metaecg.evaluate.predictions import Prediction
from metaecg.seeding import numpy_generator

FIGURES = ("sensitivity", "ppv", "f1")
COUNTS = ("tp", "fp", "fn")
_AVERAGED = ("auc", *FIGURES, "false_alarms_per_hour")


@dataclass(frozen=True, kw_only=True)
class BeatPrediction(Prediction):
    """What a method says of one subject's test beats; one row per beat.

    `probabilities` are those of V, `labels` say whether it is V, and `is_mixed` marks F and Q, which
    are neither right nor wrong as V. A beat that no annotated one stands for (`NO_BEAT`) is a false
    positive of whatever it is called.
    """

    letters: np.ndarray = field(repr=False)
    """AAMI class of each beat, `metaecg.evaluate.metrics.NO_BEAT` for a false detection."""
    called: np.ndarray = field(repr=False)
    """The class that the method gives it; N stands for all but V where it knows no more."""
    is_refused: bool = False
    """The personalization was refused: this is the base's answer."""
    no_support: str = ""
    """Why no support could be made of the beats that were asked for: this is the base's answer."""
    n_labels: int = 0
    """Beats that a person labelled for it."""
    n_missed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Record to annotated beats by class that are no row, where the whole record is the test; also of
    records without any row."""

    columns: ClassVar[tuple[str, ...]] = (*Prediction.columns, "letters", "called")


def method_figures(
    predictions: Sequence[BeatPrediction], *, classes: Sequence[str] = ("V",), description: str
) -> dict[str, Any]:
    """Return every figure of one method.

    A subject's figure is its mean over the seeds. Gross figures are computed per seed over all test
    beats and averaged; their intervals come from resampling records, counts averaged over seeds.

    Parameters
    ----------
    predictions
        Of one method: all seeds, all subjects; at least one.
    classes
        AAMI classes that the method tells apart from the others, for ``ec57``.
    description
        What the method is, in a sentence.

    Returns
    -------
    dict
        ``veb`` (`FIGURES` of V, gross, with ``ci95``), ``ec57`` (gross and per record, by class),
        ``subjects``, and what `metaecg.evaluate.report` shows of a method.
    """
    by_seed = _by_seed(predictions)
    gross = {name: _gross(by_seed, name) for name in classes}
    subjects = _subjects(predictions)
    pooled_auc = _mean([_auc(ps) for ps in by_seed.values()])
    rate = _mean([_false_positives_per_hour(ps) for ps in by_seed.values()])
    return {
        **{
            f"subject_{name}": metrics.summary(
                {s: values[name] for s, values in subjects.items()},
                rng=numpy_generator(0, "bootstrap", name),
            )
            for name in ("auc", "f1")
        },
        "pooled": {"auc": pooled_auc, **{name: gross["V"][name] for name in FIGURES}},
        "veb": gross["V"],
        "ec57": {"gross": gross, "records": _per_record(by_seed, classes)},
        "false_alarms_per_hour": rate,
        "adapt_seconds_p50": float(np.median([p.adapt_seconds for p in predictions])),
        "trainable_parameters": int(np.median([p.n_trainable for p in predictions])),
        "labels_p50": float(np.median([p.n_labels for p in predictions])),
        "n_refused": sum(p.is_refused for p in predictions),
        "n_no_support": sum(bool(p.no_support) for p in predictions),
        "subjects": subjects,
        "description": description,
    }


def counts_of(predictions: Sequence[BeatPrediction], name: str) -> dict[str, dict[str, int]]:
    """Return record to the ``tp, fp, fn`` of one class; missed beats count as not found."""
    found = {}
    for p in predictions:
        for record_id in dict.fromkeys([*p.record_ids.tolist(), *p.n_missed]):
            mine = p.record_ids == record_id
            counts = aami_counts(p.letters[mine], p.called[mine])[name]
            missed = p.n_missed.get(record_id, {}).get(name, 0)
            found[record_id] = {**{k: counts[k] for k in COUNTS}, "fn": counts["fn"] + missed}
    return found


def figures_of(counts: Mapping[str, float]) -> dict[str, float | None]:
    """Return sensitivity, PPV and F1 of ``tp, fp, fn``; None where nothing is to be judged.

    Examples
    --------
    >>> figures_of({"tp": 8, "fp": 2, "fn": 0})
    {'sensitivity': 1.0, 'ppv': 0.8, 'f1': 0.8888888888888888}
    """
    tp, fp, fn = (counts[name] for name in COUNTS)
    parts = ((tp, tp + fn), (tp, tp + fp), (2 * tp, 2 * tp + fp + fn))
    return {
        name: float(part / whole) if whole else None
        for name, (part, whole) in zip(FIGURES, parts, strict=True)
    }


def interval_of(records: Sequence[Mapping[str, float]], name: str) -> list[float] | None:
    """Return the 95 % interval of a gross figure, resampling records; None below two records."""
    from scipy.stats import bootstrap

    if len(records) < 2:
        return None
    columns = tuple(np.array([r[key] for r in records], dtype=float) for key in COUNTS)

    def gross(tp, fp, fn, axis=-1):
        tp, fp, fn = tp.sum(axis=axis), fp.sum(axis=axis), fn.sum(axis=axis)
        part = 2 * tp if name == "f1" else tp
        whole = {"sensitivity": tp + fn, "ppv": tp + fp, "f1": 2 * tp + fp + fn}[name]
        return np.where(whole > 0, part / np.maximum(whole, 1e-9), 1.0)

    found = bootstrap(
        columns,
        gross,
        paired=True,
        vectorized=True,
        n_resamples=N_RESAMPLES,
        method="percentile",
        rng=numpy_generator(0, "bootstrap", "gross", name),
    )
    return [float(side) for side in found.confidence_interval]


def _gross(by_seed: Mapping[int, Sequence[BeatPrediction]], name: str) -> dict[str, Any]:
    seeds = [counts_of(ps, name) for ps in by_seed.values()]
    sums = [{k: sum(r[k] for r in seed.values()) for k in COUNTS} for seed in seeds]
    each = [figures_of(s) for s in sums]
    averaged = [
        {k: float(np.mean([seed[record][k] for seed in seeds if record in seed])) for k in COUNTS}
        for record in sorted({record for seed in seeds for record in seed})
    ]
    return {
        **{figure: _mean([e[figure] for e in each]) for figure in FIGURES},
        **{k: float(np.mean([s[k] for s in sums])) for k in COUNTS},
        "ci95": {figure: interval_of(averaged, figure) for figure in FIGURES},
        "seeds": {str(seed): e for seed, e in zip(by_seed, each, strict=True)},
    }


def _per_record(
    by_seed: Mapping[int, Sequence[BeatPrediction]], classes: Sequence[str]
) -> dict[str, dict[str, dict]]:
    found: dict[str, dict[str, dict]] = defaultdict(dict)
    for name in classes:
        seeds = [counts_of(ps, name) for ps in by_seed.values()]
        for record_id in seeds[0]:
            mine = [seed[record_id] for seed in seeds if record_id in seed]
            mean = {k: float(np.mean([m[k] for m in mine])) for k in COUNTS}
            each = [figures_of(m) for m in mine]
            figures = {figure: _mean([e[figure] for e in each]) for figure in FIGURES}
            found[record_id][name] = {**figures, **mean}
    return dict(found)


def _subjects(predictions: Sequence[BeatPrediction]) -> dict[str, dict]:
    per_subject: dict[str, dict[str, dict]] = defaultdict(dict)
    refused: dict[str, list[bool]] = defaultdict(list)
    reasons = {p.subject_id: p.no_support for p in predictions}  # what is asked for has no seed
    for p in predictions:
        per_subject[p.subject_id][str(p.seed)] = _one(p)
        refused[p.subject_id].append(p.is_refused)
    found = {}
    for subject_id, seeds in per_subject.items():
        first = next(iter(seeds.values()))
        mean = {name: _mean([values[name] for values in seeds.values()]) for name in _AVERAGED}
        found[subject_id] = {
            **mean,
            "veb": {name: mean[name] for name in FIGURES},
            **{name: first[name] for name in ("n_va", "n_other", "records")},
            "n_refused": sum(refused[subject_id]),
            "no_support": reasons[subject_id],
            "seeds": seeds,
        }
    return found


def _one(p: BeatPrediction) -> dict[str, Any]:
    counts = counts_of([p], "V")
    total = {k: sum(c[k] for c in counts.values()) for k in COUNTS}
    return {
        "auc": _auc([p]),
        **figures_of(total),
        "false_alarms_per_hour": _false_positives_per_hour([p]),
        "n_va": total["tp"] + total["fn"],
        "n_other": int(np.isin(p.letters, ("N", "S", NO_BEAT)).sum()),
        "records": list(counts),
        "is_refused": p.is_refused,
        "n_labels": p.n_labels,
    }


def _auc(predictions: Sequence[BeatPrediction]) -> float | None:
    plain = [p.without_mixed() for p in predictions]
    return metrics.roc_auc(
        np.concatenate([p.labels for p in plain]), np.concatenate([p.probabilities for p in plain])
    )


def _false_positives_per_hour(predictions: Sequence[BeatPrediction]) -> float | None:
    """Return falsely called V per hour of what was tested, gaps in it included."""
    n_false = sum(c["fp"] for p in predictions for c in counts_of([p], "V").values())
    seconds = 0.0
    for p in predictions:
        for record_id in dict.fromkeys(p.record_ids.tolist()):
            times_s = p.start_s[p.record_ids == record_id]
            seconds += float(times_s.max() - times_s.min())
    return n_false * 3600 / seconds if seconds else None


def _by_seed(predictions: Sequence[BeatPrediction]) -> dict[int, list[BeatPrediction]]:
    found: dict[int, list[BeatPrediction]] = defaultdict(list)
    for p in predictions:
        found[p.seed].append(p)
    return dict(found)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
