"""The reading of the figures on beats shows the committed ones."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results" / "veb.md").read_text()
RESULTS = json.loads((ROOT / "experiments" / "results" / "veb_aami.json").read_text())
TABLES = runpy.run_path(str(ROOT / "experiments" / "scripts" / "veb_table.py"))


@pytest.mark.parametrize("name", ["methods_table", "subjects_table"])
def test_the_tables_of_the_page_are_those_of_the_committed_figures(name):
    assert TABLES[name](RESULTS) in PAGE


def test_the_page_says_how_many_seeds_it_rests_on():
    words = {1: "One seed", 2: "Two seeds", 3: "Three seeds"}[len(RESULTS["seeds"])]
    assert words in PAGE


def test_every_figure_of_what_is_reached_is_in_the_table():
    found = {f"{m['veb']['f1']:.3f}" for m in RESULTS["methods"].values()}
    asked = PAGE.partition("## What is reached")[2].partition("## What was tried")[0]
    reached = re.findall(r"\*\*no\*\*: (0\.\d{3})", asked)
    assert len(reached) == 3 and set(reached) <= found
    assert reached[0] == f"{RESULTS['methods']['global']['veb']['f1']:.3f}"
