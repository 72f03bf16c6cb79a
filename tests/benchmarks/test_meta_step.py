"""The benchmark of the engines: wrong answers are refused, rows and tables say what was measured."""

import re
from dataclasses import replace

import meta_engine
import pytest
import torch
from meta_step import cases, measure, tables
from meta_step.cases import Case
from meta_step.growth import VARIED, draw, growth_cases

from metaecg.meta.engine import MetaStep

FUNC = Case(engine="func", order="second", width=4, n_tasks=2, n_support=2, n_query=2)
PEER = replace(FUNC, engine="learn2learn")
KEYS = {
    *("engine", "order", "parameters", "seconds"),
    *("ratio_to_learn2learn", "peak_bytes", "share_of_matmul_peak"),
}


def meta_step(*values: float) -> MetaStep:
    gradients = {"w": torch.tensor(values)}
    return MetaStep(losses=torch.zeros(1), support_losses=torch.zeros(1, 1), gradients=gradients)


def growth_rows() -> list[dict]:
    """One row for every point of the plot; seconds grow with the value."""
    found = []
    for field, case in growth_cases(FUNC, ["learn2learn", "func"]):
        n = VARIED[field].index(case.width if field == "parameters" else getattr(case, field)) + 1
        (row,) = measure.rows({case: (float(n), n * 2**20)}, 1e9, varied=field)
        found.append(row)
    return found


def test_a_wrong_meta_gradient_is_not_timed():
    right, nearly, wrong = meta_step(3.0, 4.0), meta_step(3.0, 4.02), meta_step(3.0, 4.5)
    measure.refuse_disagreement({PEER: right, FUNC: nearly})
    with pytest.raises(
        measure.WrongAnswer, match="func and learn2learn at width 4 differ by 1.0e-01"
    ):
        measure.refuse_disagreement({PEER: right, FUNC: wrong})


def test_in_float64_a_meta_gradient_that_is_nearly_right_is_wrong():
    in_float64 = [replace(case, dtype="float64") for case in (PEER, FUNC)]
    steps = dict(zip(in_float64, [meta_step(3.0, 4.0), meta_step(3.0, 4.001)], strict=True))
    with pytest.raises(measure.WrongAnswer, match="differ by 2.0e-04 .* in float64; at most 1e-06"):
        measure.refuse_disagreement(steps)


def test_a_meta_gradient_that_is_no_number_is_not_timed():
    with pytest.raises(measure.WrongAnswer, match="differ by nan"):
        measure.refuse_disagreement({PEER: meta_step(3.0), FUNC: meta_step(float("nan"))})


def test_wrong_answers_are_found_before_anything_is_timed(monkeypatch):
    answers = iter([meta_step(3.0), meta_step(3.1)])
    monkeypatch.setattr(measure, "prepare", lambda case: lambda: next(answers))
    with pytest.raises(measure.WrongAnswer, match="in float64"):
        measure.measure([PEER, FUNC], repeats=1, rate=None)


def test_a_row_has_its_ratio_and_its_share():
    found = {PEER: (3.0, 5), FUNC: (2.0, 7)}
    peer, row = measure.rows(found, rate=FUNC.flops)
    assert set(row) == KEYS
    assert (row["engine"], row["seconds"], row["peak_bytes"]) == ("func", 2.0, 7)
    assert (peer["ratio_to_learn2learn"], row["ratio_to_learn2learn"]) == (1.0, 1.5)
    assert row["share_of_matmul_peak"] == 0.5


def test_without_learn2learn_there_is_no_ratio():
    (row,) = measure.rows({FUNC: (2.0, 7)}, rate=1e9)
    assert row["ratio_to_learn2learn"] is None


def test_another_amount_of_work_is_no_peer():
    found = {replace(PEER, n_tasks=3): (3.0, 5), FUNC: (2.0, 7)}
    assert measure.rows(found, rate=1e9)[1]["ratio_to_learn2learn"] is None


def test_cases_are_measured_once_each_and_the_matmul_rate_beside(monkeypatch):
    monkeypatch.setattr(measure, "peak_growth", lambda prepare, case, *, device: 11)
    monkeypatch.setattr(measure, "MATMUL_SIZE", {"cpu": 8})
    case = replace(FUNC, n_threads=torch.get_num_threads())
    rate = measure.MatmulRate("cpu")
    found = measure.measure([case, case], repeats=2, rate=rate)
    assert len(rate.rates) == 2
    assert list(found) == [case]
    assert found[case][0] > 0 and found[case][1] == 11


def test_every_engine_gets_the_same_numbers():
    one, other = cases.prepare(FUNC)(), cases.prepare(FUNC)()
    assert cases.disagreement(one, other) == 0
    assert len(one.losses) == FUNC.n_tasks and one.support_losses.shape == (5, FUNC.n_tasks)


def test_an_engine_that_is_not_installed_says_why(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("learn2learn is not here")

    monkeypatch.setattr(cases, "build_engine", missing)
    assert cases.absent("learn2learn") == "learn2learn is not here"


def test_growth_rows_say_what_was_varied():
    rows = growth_rows()
    assert set(rows[0]) == KEYS | {"varied", "value"}
    assert [row["value"] for row in rows if row["varied"] == "n_tasks"][::2] == [4, 8, 16, 32]
    sizes = [row["value"] for row in rows if row["varied"] == "parameters"][::2]
    assert sizes == [row["parameters"] for row in rows if row["varied"] == "parameters"][::2]


def test_a_table_for_a_page_has_a_line_for_every_row_and_none_for_the_summary():
    rows = measure.rows({PEER: (3.0, 2**20), FUNC: (2.0, 2**21)}, rate=FUNC.flops)
    page = tables.markdown([*rows, {"summary": True}]).splitlines()
    assert page[0].startswith("| engine | order | parameters | s |")
    assert page[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert page[2:] == [
        "| learn2learn | second | 598 | 3.000 | 1.00 | 1 | 33.3% |",
        "| func | second | 598 | 2.000 | 1.50 | 2 | 50.0% |",
    ]


def test_a_table_of_growth_has_the_engines_side_by_side():
    head, rule, *lines = tables.markdown(growth_rows()).splitlines()
    assert head == "| varied | value | learn2learn s | func s | learn2learn MiB | func MiB |"
    assert lines[:2] == [
        "| n_tasks | 4 | 1.000 | 1.000 | 1 | 1 |",
        "| n_tasks | 8 | 2.000 | 2.000 | 2 | 2 |",
    ]


def test_the_plot_is_a_small_svg_with_both_engines(tmp_path):
    draw(growth_rows(), tmp_path / "growth.svg")
    text = (tmp_path / "growth.svg").read_text()
    assert "learn2learn" in text and "inner steps" in text
    assert len(text) < 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "x.svg"], "add --growth"),
        (["--sizes", "8k"], "'8k'.* known are 7k, 29k, 112k"),
        (["--repeats", "0"], "0 was given; 1 or more"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        meta_engine.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_earlier_rows_are_shown_without_measuring(tmp_path, capsys):
    (tmp_path / "rows.json").write_text("[]")
    assert meta_engine.main(["--show", str(tmp_path / "rows.json"), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| engine | order |")
