"""docs/beats.md shows the committed figures; the decisions that quote them quote them rightly."""

import json
import re
import sys
from pathlib import Path

import beats_bench
import pytest
import rpeaks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "scripts"))
import active_beats  # noqa: E402

PAGE = (ROOT / "docs" / "beats.md").read_text()
DECISION = (ROOT / "docs" / "decisions" / "0009-r-peaks.md").read_text()


def committed(name: str):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("rpeaks", rpeaks.markdown),
        ("beats_bench", beats_bench.markdown),
        ("active_beats", active_beats.markdown),
    ],
)
def test_the_page_has_the_table_of_the_committed_figures(name, table):
    assert table(committed(name)) in PAGE


def test_the_decision_quotes_what_each_detector_finds_of_the_ventricular_beats_of_ds1():
    rows = {row["detector"]: row["DS1"]["sensitivity_of"]["V"] for row in committed("rpeaks")}
    quoted = {
        "SleepECG": r"SleepECG finds (\d+) %",
        "wfdb XQRS": r"XQRS (\d+) %",
        "wfdb GQRS": r"GQRS finds (\d+) %",
        "metaecg": r"`manikandan2012` \(Shannon energy, no threshold\) finds (\d+) %",
    }
    for name, pattern in quoted.items():
        assert int(re.search(pattern, DECISION)[1]) == round(100 * rows[name]), name


def test_the_page_quotes_the_labels_needed_with_other_numbers_of_clusters():
    rows = committed("active_beats").values()
    for n in active_beats.OTHER_N_CLUSTERS:
        found = sorted(row["other_n_clusters"][str(n)] for row in rows)
        middle, most = found[len(found) // 2], found[-1]
        assert f"the median is the same ({middle}, at most {most})" in PAGE
