"""The comparison itself: figures, paired differences, verdicts; the content of ``--json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from metaecg.evaluate.metrics import summary
from metaecg.evaluate.paired import LEVEL, holm, judge, min_subjects, paired_test
from metaecg.experiments.compare_agree import unchecked
from metaecg.experiments.compare_rows import Row, parameters_that_differ
from metaecg.experiments.compare_runs import Run
from metaecg.seeding import numpy_generator

SCHEMA = 1
LOWER_IS_BETTER = ("false_alarms_per_hour",)
WORDS = {
    "auc": "AUC",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "ppv": "PPV",
    "specificity": "specificity",
    "false_alarms_per_hour": "false alarms per hour",
}
"""Metric -> what it is called."""


def compare_rows(rows: Sequence[Row], *, metric: str, n_resamples: int, seed: int) -> dict:
    """Return every figure of a comparison (schema in docs/compare.md).

    All rows stand against the first. With the defaults of the command line the figures of a row and
    the means of the differences are those of ``results.json``, to the last digit; the intervals of
    the differences are wider (`paired.paired_test`).

    Parameters
    ----------
    rows
        The reference first; their runs agree (`compare_rows.check_runs`).
    metric
        A figure that the subjects have.
    n_resamples, seed
        Of the bootstrap over subjects.
    """
    reference, others = rows[0], rows[1:]
    differences = [_difference(reference, row, metric, n_resamples, seed) for row in others]
    corrected = holm([each["p_value"] for each in differences])
    n_compared = sum(p is not None for p in corrected)
    for each, p_holm in zip(differences, corrected, strict=True):
        each["p_holm"] = p_holm
        each["verdict"] = judge(
            each,
            p_corrected=p_holm,
            n_compared=n_compared,
            higher_is_better=metric not in LOWER_IS_BETTER,
        )
        each["words"] = verdict_words(each, n_compared=n_compared)
    runs = list({id(row.run): row.run for row in rows}.values())
    return {
        "schema": SCHEMA,
        "kind": "comparison",
        "metric": metric,
        "higher_is_better": metric not in LOWER_IS_BETTER,
        "n_resamples": n_resamples,
        "seed": seed,
        "correction": "holm" if len(others) > 1 else None,
        **_judged(reference.run),
        "notes": _notes(rows, runs),
        "reference": reference.label,
        "rows": [
            _row(row, difference, metric, n_resamples, seed)
            for row, difference in zip(rows, [None, *differences], strict=True)
        ],
        "parameters": parameters_that_differ(runs),
    }


def verdict_words(difference: Mapping[str, Any], *, n_compared: int = 1) -> str:
    """Return the verdict as it is said: what the subjects can't show is not called equal."""
    verdict, n = difference["verdict"], difference["n"]
    if verdict == "too few subjects":
        many = f" for {n_compared} comparisons" if n_compared > 1 else ""
        needed = f"at least {min_subjects(n_compared)} are needed{many}"
        return f"too few subjects to tell ({n}, {needed})"
    if verdict != "no difference":
        return verdict
    words, p_value = f"no difference that {n} subjects can show", difference["p_value"]
    if judge(difference, p_corrected=p_value, n_compared=1) != "no difference":
        return f"{words} once corrected for all comparisons"
    low, high = difference["ci95"]
    return words if low <= 0 <= high else f"{words}, p = {p_value:.3f}"


def _judged(run: Run) -> dict[str, Any]:
    results = run.results
    return {
        "protocol": results["protocol"],
        "caveat": results.get("caveat") or None,
        "data": results.get("data"),
        "databases": sorted(results["databases"]),
        "n_shots": results["n_shots"],
        "data_manifest_sha256": results["data_manifest_sha256"],
    }


def _row(row: Row, difference: dict | None, metric: str, n_resamples: int, seed: int) -> dict:
    run = row.run
    return {
        "label": row.label,
        "run": run.name,
        "source": run.source,
        "method": row.method,
        "description": row.figures.get("description"),
        "seeds": run.results["seeds"],
        "git_commit": run.results.get("git_commit"),
        "config_hash": run.results.get("config_hash"),
        "n_subjects": len(row.figures["subjects"]),
        "figures": {
            name: _summary(row.of_subjects(name), name, n_resamples, seed)
            for name in dict.fromkeys(("auc", "f1", metric))
        },
        "subjects": row.of_subjects(metric),
        "difference": difference,
    }


def _summary(values: dict[str, float | None], name: str, n_resamples: int, seed: int) -> dict:
    rng = numpy_generator(seed, "bootstrap", name)
    found = summary(values, rng=rng, n_resamples=n_resamples)
    return {key: found[key] for key in ("mean", "ci95", "std", "n")}


def _difference(reference: Row, row: Row, metric: str, n_resamples: int, seed: int) -> dict:
    mine, other = row.of_subjects(metric), reference.of_subjects(metric)
    rng = numpy_generator(seed, "paired", metric)
    found = paired_test(mine, other, rng=rng, n_resamples=n_resamples)
    interval = found["ci95"]
    return {
        **found,
        "n_left_out": len(mine.keys() & other.keys()) - found["n"],
        "half_width": (interval[1] - interval[0]) / 2 if interval else None,
    }


def _notes(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    """Return what a reader must know before believing a verdict."""
    notes = []
    if runs[0].is_demo:
        notes.append("demo data: generated signals; no figure says how it works on people.")
    if runs[0].results.get("caveat"):
        notes.append(f"{runs[0].results['caveat']}.")
    if runs[0].is_of_beats:
        notes.append(
            "figures of V by subject, all subjects with the same weight; the gross figures of "
            "results.json sum over all beats and may say otherwise."
        )
    few = [run for run in runs if len(run.results["seeds"]) < 3]
    if few:
        notes.append(
            "fewer than three seeds: the intervals are over subjects and hold no variation of "
            "training, so training once more may give another verdict."
        )
    if len({str(sorted(run.results["seeds"])) for run in runs}) > 1:
        notes.append("the runs have different seeds; a subject's figure is its mean over them.")
    if len(rows) > 2:
        notes.append(
            f"{len(rows) - 1} comparisons: each interval stands for itself; the verdicts are "
            f"corrected for all of them (Holm, {100 * LEVEL:.0f} % together)."
        )
    return notes + unchecked(runs)
