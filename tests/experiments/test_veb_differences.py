"""Differences between methods on beats are taken on the beats that both are judged on."""

import json
from pathlib import Path

import numpy as np
import pytest

from metaecg.evaluate.ec57 import BeatPrediction, method_figures
from metaecg.experiments.veb_methods import METHODS
from metaecg.experiments.veb_outputs import differences

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
ROWS = ["global", "zero-shot", "head", "active+zero-shot", "active+full", "active+full@later"]


def make_table(names: list[str], *, n_hard: dict[str, int]) -> dict:
    """Return figures of two subjects with ten V; `n_hard` of them are in the row and are missed."""
    return {name: _figures(name, n_hard.get(name, 0)) for name in names}


def _figures(name: str, n_hard: int) -> dict:
    predictions = []
    for subject in ("own/a", "own/b"):
        called = np.array(["V"] * 10 + ["N"] * (10 + n_hard))
        letters = np.array(["V"] * 10 + ["N"] * 10 + ["V"] * n_hard)
        predictions.append(
            BeatPrediction(
                method=name,
                seed=0,
                subject_id=subject,
                record_ids=np.full(len(letters), subject),
                start_s=1.0 * np.arange(len(letters)),
                labels=(letters == "V").astype(int),
                is_mixed=np.zeros(len(letters), dtype=bool),
                probabilities=np.where(called == "V", 0.9, 0.1),
                letters=letters,
                called=called,
            )
        )
    return method_figures(predictions, description="")


def test_every_row_is_compared_with_the_base_on_its_own_beats():
    table = make_table(ROWS, n_hard={"active+zero-shot": 4, "active+full": 4})
    found = differences(table)
    assert {name: row["to"] for name, row in found.items()} == {
        "head": "zero-shot",
        "active+full": "active+zero-shot",
    }
    assert found["active+full"]["f1"]["mean"] == 0.0  # hard beats are no fault of the method


def test_without_the_base_the_first_row_on_the_same_beats_is_the_reference():
    found = differences(make_table(["global", "head", "full", "active+lora"], n_hard={"full": 4}))
    assert [(name, row["to"]) for name, row in found.items()] == [("full", "head")]
    assert found["full"]["f1"]["mean"] < 0


@pytest.mark.parametrize("path", sorted(RESULTS.glob("veb_*.json")), ids=lambda path: path.stem)
def test_the_committed_differences_are_those_of_the_committed_subjects(path):
    results = json.loads(path.read_text())
    if isinstance(results, list):
        pytest.skip("figures of the training subjects, no methods to compare")
    assert results["differences"] == differences(results["methods"])
    for name, row in results["differences"].items():
        of, to = METHODS[name], METHODS[row["to"]]
        assert (of.support, of.query) == (to.support, to.query)
