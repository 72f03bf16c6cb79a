"""Where the errors of a finished run of va_fewshot lie, and what the best thresholds would give.

    python experiments/scripts/va_ceiling.py runs/va --method ensemble+full+offline [--json FILE]

The oracle rows choose thresholds by the test labels: they are no figures of a detector but bounds of
what a better threshold could give. Errors are counted by how far the window lies from the next change
of label, for a mark set by hand is right to a second or two.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from metaecg.evaluate.predictions import Prediction, load_predictions

NEAR_WINDOWS = 1
"""A window at most so many windows from a change of label is near it."""


def f1_of(labels: np.ndarray, flagged: np.ndarray) -> float:
    """Return F1; 0 where nothing is right."""
    both = int((flagged & (labels == 1)).sum())
    return 2 * both / max(1, int(flagged.sum()) + int((labels == 1).sum()))


def best_f1(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the highest F1 of any threshold."""
    return max(f1_of(labels, scores >= threshold) for threshold in np.unique(scores))


def near_change(p: Prediction) -> np.ndarray:
    """Return which windows lie beside a change of label, mixed ones included."""
    change = np.flatnonzero(np.diff(p.labels) != 0)
    near = np.array(p.is_mixed, dtype=bool)
    for place in change:
        near[max(0, place - NEAR_WINDOWS + 1) : place + NEAR_WINDOWS + 1] = True
    return near


def counts_of(p: Prediction) -> dict:
    """Return the errors of one subject and seed."""
    wrong, near = p.flagged != (p.labels == 1), near_change(p)
    return {
        "n": len(p.labels),
        "n_va": int(p.labels.sum()),
        "f1": f1_of(p.labels, p.flagged),
        "f1_best_threshold": best_f1(p.labels, p.probabilities),
        "f1_far_from_changes": f1_of(p.labels[~near], p.flagged[~near]),
        "missed": int((wrong & (p.labels == 1)).sum()),
        "false": int((wrong & (p.labels == 0)).sum()),
        "errors_near_changes": int((wrong & near).sum()),
        "near_changes": int(near.sum()),
    }


def summarise(predictions: list[Prediction]) -> dict:
    """Return the means over subjects of the means over seeds, and every subject."""
    by_subject: dict[str, list[dict]] = {}
    for p in predictions:
        by_subject.setdefault(p.subject_id, []).append(counts_of(p))
    subjects = {
        name: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for name, rows in sorted(by_subject.items())
    }
    mean = {
        key: float(np.mean([row[key] for row in subjects.values()]))
        for key in ("f1", "f1_best_threshold", "f1_far_from_changes")
    }
    wrong = sum(row["missed"] + row["false"] for row in subjects.values())
    near = sum(row["errors_near_changes"] for row in subjects.values())
    share = sum(row["near_changes"] for row in subjects.values())
    return {
        **mean,
        "share_of_errors_near_changes": near / wrong if wrong else None,
        "share_of_windows_near_changes": share / sum(row["n"] for row in subjects.values()),
        "subjects": subjects,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", action="append", required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    every = [p for p in load_predictions(arguments.out / "predictions.npz") if not p.is_one_class]
    for method in arguments.method:
        found[method] = summarise([p for p in every if p.method == method])
        print(f"\n{method}")
        for key, value in found[method].items():
            if key != "subjects":
                print(f"  {key:32s} {value:.3f}")
        print(
            f"  {'subject':14s} {'n':>5s} {'va':>5s} {'F1':>6s} {'best':>6s} {'missed':>7s} {'false':>6s}"
        )
        rows = sorted(found[method]["subjects"].items(), key=lambda item: item[1]["f1"])
        for name, row in rows:
            print(
                f"  {name:14s} {row['n']:5.0f} {row['n_va']:5.0f} {row['f1']:6.3f} "
                f"{row['f1_best_threshold']:6.3f} {row['missed']:7.1f} {row['false']:6.1f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
