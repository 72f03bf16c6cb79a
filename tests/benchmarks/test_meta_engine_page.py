"""docs/meta_engine.md shows the committed figures, and these fit together."""

import json
import re
import shlex
from pathlib import Path

import meta_engine
import pytest
from meta_step.cases import Case
from meta_step.tables import markdown

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "meta_engine.md").read_text()


def committed(name: str) -> list[dict]:
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["meta_engine", "meta_engine_growth"])
def test_the_page_has_the_table_of_the_committed_figures(name):
    assert markdown(committed(name)) in PAGE


def test_shares_of_the_matmul_rate_follow_from_the_seconds():
    *rows, facts = committed("meta_engine")
    flops = {(work["order"], work["parameters"]): work["flops"] for work in facts["flops"]}
    for row in rows:
        share = flops[row["order"], row["parameters"]] / row["seconds"] / facts["matmul_flop_per_s"]
        assert row["share_of_matmul_peak"] == pytest.approx(share, abs=2e-4)


def test_ratios_follow_from_the_seconds_of_learn2learn():
    *rows, _ = committed("meta_engine")
    peers = {
        (r["order"], r["parameters"]): r["seconds"] for r in rows if r["engine"] == "learn2learn"
    }
    for row in rows:
        ratio = peers[row["order"], row["parameters"]] / row["seconds"]
        assert row["ratio_to_learn2learn"] == pytest.approx(ratio, abs=2e-3)


def test_the_committed_figures_are_of_the_work_that_is_done_today():
    *_, facts = committed("meta_engine")
    widths = meta_engine.SIZES.values()
    cases = [Case(engine="", order=o, width=w) for w in widths for o in meta_engine.ORDERS]
    today = [{"order": c.order, "parameters": c.parameters, "flops": c.flops} for c in cases]
    assert facts["flops"] == today


def test_the_commands_of_the_page_are_understood():
    commands = re.findall(r"^python benchmarks/meta_engine\.py (.+)$", PAGE, flags=re.M)
    assert len(commands) == 2
    for command in commands:
        args = meta_engine.parse_args(shlex.split(command))
        assert (ROOT / args.json).exists()
