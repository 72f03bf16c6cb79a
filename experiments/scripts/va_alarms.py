"""How many episodes of which length a finished run of va_fewshot finds, and what that costs in false alarms.

    python experiments/scripts/va_alarms.py runs/va --data DIR [--json FILE]

First, at the threshold of each method: the share of the episodes found, by their length. Then, where subjects
without VA were tested: false alarms per hour on those of mitdb, at the threshold that finds 95 % of the
episodes that last at least so long. That threshold is read off the test part, as a point of a curve is: no
other figure uses it.
"""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from metaecg.data.datasets import Dataset, prepare
from metaecg.evaluate.operating_point import (
    TestedEpisode,
    alarms_without_va,
    tested_episodes,
    threshold_that_finds,
)
from metaecg.evaluate.predictions import Prediction, load_predictions

LENGTHS_S = (0.0, 4.0, 10.0, 30.0)
"""Limits of the lengths of episodes, seconds: two windows, five, and what a monitor calls sustained."""


def found_by_length(episodes: list[TestedEpisode]) -> list[dict]:
    """Return the number of episodes and the share found, by length."""
    rows = []
    for low, high in pairwise((*LENGTHS_S, math.inf)):
        found = [e.is_found for e in episodes if low <= e.length_s < high]
        share = float(np.mean(found)) if found else None
        rows.append({"from_s": low, "n": len(found), "found": share})
    return rows


def alarms_by_length(
    episodes: list[TestedEpisode], without_va: list[Prediction], window_s: float
) -> list[dict]:
    """Return the false alarms per hour where 95 % of the episodes of at least a length are found."""
    rows = []
    for low in LENGTHS_S:
        highest = np.array([e.highest for e in episodes if e.length_s >= low])
        threshold = threshold_that_finds(highest)
        alarms = alarms_without_va(without_va, threshold, window_s)["alarms_per_hour"]
        rows.append(
            {"at_least_s": low, "n": len(highest), "threshold": threshold, "per_hour": alarms}
        )
    return rows


def summarise(predictions: list[Prediction], dataset: Dataset) -> dict:
    """Return both tables of one method, by seed."""
    window_s, seeds = dataset.windows.window_s, {}
    for seed in sorted({p.seed for p in predictions}):
        of_seed = [p for p in predictions if p.seed == seed]
        episodes = tested_episodes([p for p in of_seed if not p.is_one_class], dataset)
        without_va = [
            p for p in of_seed if p.is_one_class and p.subject_id.split("/")[0] == "mitdb"
        ]
        seeds[seed] = {"found": found_by_length(episodes)}
        if without_va:
            seeds[seed]["without_va"] = alarms_by_length(episodes, without_va, window_s)
    return seeds


def show(method: str, seeds: dict) -> None:
    """Print a line per seed."""
    for seed, tables in seeds.items():
        found = [
            f">={row['from_s']:g} s: {row['found']:.2f} of {row['n']}" for row in tables["found"]
        ]
        print(f"{method} seed {seed}: " + ", ".join(found))
        for row in tables.get("without_va", ()):
            print(
                f"    95 % of {row['n']} of at least {row['at_least_s']:g} s: "
                f"{row['per_hour']:.2f} false alarms per hour (threshold {row['threshold']:.3f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = json.loads((arguments.out / "results.json").read_text())
    dataset = prepare(arguments.data, results["databases"])
    every = load_predictions(arguments.out / "predictions.npz")
    found = {}
    for method in [name for name in results["methods"] if "@" not in name]:
        found[method] = summarise([p for p in every if p.method == method], dataset)
        show(method, found[method])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
