"""docs/h_tuning.md shows the committed figures of the memory benchmark."""

import json
import re
from pathlib import Path

import pytest
from h_tuning.tables import markdown

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "h_tuning.md").read_text()
ROWS = json.loads((ROOT / "experiments" / "results" / "h_tuning_memory.json").read_text())


def test_the_page_has_the_tables_of_the_committed_figures():
    assert markdown(ROWS) in PAGE


def test_the_figures_are_of_a_real_run_at_the_published_size():
    *rows, facts = ROWS
    assert facts["summary"] is True and facts["fake"] is False and facts["n_samples"] == 6144
    training = [row for row in rows if row["part"] == "training"]
    assert {(row["size"], row["batch"]) for row in training} == {("medium", 128)}


def test_the_ratios_of_the_summary_follow_from_the_rows():
    *rows, facts = ROWS
    peak = {(r["method"], r["at_once"]): r["peak_bytes"] for r in rows if r["part"] == "training"}
    full = peak["full", None]
    ratios = {"": full / peak["h-tuning", None], "_chunked": full / peak["h-tuning", 16]}
    for name, ratio in ratios.items():
        found = facts[f"memory_ratio_full_over_htuning{name}"]
        assert found == pytest.approx(ratio, rel=1e-3)


def test_the_words_of_the_page_round_the_summary():
    facts = ROWS[-1]
    full, chunked = re.search(
        r"holds ([\d.]+) times as much as\nH-Tuning.*?, (\d+) times", PAGE, re.S
    ).groups()
    assert float(full) == round(facts["memory_ratio_full_over_htuning"], 1)
    assert int(chunked) == round(facts["memory_ratio_full_over_htuning_chunked"])
    faster, less = re.search(
        r"one window (\d+)\ntimes as fast.*?holds (\d+) times less", PAGE, re.S
    ).groups()
    assert int(faster) == round(facts["latency_ratio_teacher_over_student"])
    assert int(less) == round(facts["memory_ratio_teacher_over_student"])
