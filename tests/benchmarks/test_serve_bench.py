"""The server benchmark: its patients, its arithmetic, and all of its parts on a few patients."""

import json
from pathlib import Path

import numpy as np
import pytest
import serve_bench
import serve_bench_tables
from serve_bench_parts import PARTS, Bench
from serve_bench_patients import expected_probability
from serve_bench_server import growth

ROOT = Path(__file__).parents[2]
SUMMARY = [
    "summary",
    "personalize_p50_s",
    "personalize_p99_s",
    "mixed_batch_speedup",
    "requests_per_s",
    "predict_p99_s",
    "soak_rss_growth_bytes",
]
FEW = {"n_patients": 6, "n_fitted": 2, "rate": 20.0, "life_s": 1.0}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """A benchmark of few patients and a few seconds."""
    return Bench(
        folder=tmp_path_factory.mktemp("bench"),
        n_stored=12,
        n_personalizations=2,
        requests_s=1.0,
        soak_s=3.0,
        n_starts=1,
        ladder=(1.5,),
        caches_mb=(1,),
        **FEW,
    )


def test_the_last_row_has_what_is_asked_for_and_none_where_a_part_was_not_run():
    rows = [
        {"part": "personalize", "what": "server", "p50_s": 0.2, "p99_s": 0.3},
        {"part": "personalize", "what": "library", "p50_s": 9.0, "p99_s": 9.0},
        {"part": "mixed", "n": 256},
        {"part": "mixed", "mixed_batch_speedup": 12.5},
        {"part": "requests", "requests_per_s": 200.0, "p99_s": 0.05},
    ]
    assert list(serve_bench.summary(rows)) == SUMMARY
    assert list(serve_bench.summary(rows).values()) == [True, 0.2, 0.3, 12.5, 200.0, 0.05, None]


def test_parts_are_chosen_by_name_and_run_in_one_order():
    assert serve_bench.chosen("soak, personalize") == ["personalize", "soak"]
    assert serve_bench.chosen(",".join(serve_bench.NAMES)) == list(serve_bench.NAMES)
    with pytest.raises(ValueError, match="soap is no part"):
        try:
            serve_bench.chosen("soap")
        except serve_bench.argparse.ArgumentTypeError as error:
            raise ValueError(str(error)) from error


def test_growth_is_from_the_second_minute_to_the_last():
    time_s = np.arange(0.0, 601.0)
    filling = np.minimum(time_s, 60) * 1e6  # caches that fill in the first minute are no growth
    flat = growth(time_s, 3e8 + filling)
    assert flat["rss_growth_bytes"] == 0
    assert flat["slope_bytes_per_minute"] == pytest.approx(0, abs=1e-3)
    leak = growth(time_s, 3e8 + filling + 1000 * time_s)
    assert leak["rss_growth_bytes"] == pytest.approx(1000 * (570 - 90), rel=0.01)
    assert leak["slope_bytes_per_minute"] == pytest.approx(60_000)


def test_a_short_soak_is_judged_by_its_thirds():
    found = growth([0, 1, 2, 3, 4, 5, 6], [9, 5, 1, 1, 3, 3, 3])
    assert (found["rss_early_bytes"], found["rss_late_bytes"], found["rss_max_bytes"]) == (1, 3, 9)


def test_every_stored_patient_answers_otherwise(bench):
    window = bench.windows[0]
    found = [expected_probability(bench.base, adapter, window) for adapter in bench.adapters]
    assert len({f"{p:.6g}" for p in found}) == bench.n_patients  # some are near 1e-6


def test_the_examples_have_ten_windows_of_either_class(bench):
    for example in bench.examples:
        seconds = {"va": 0.0, "other": 0.0}
        for start_s, stop_s, label in example.marks:
            seconds[label] += stop_s - start_s
        assert seconds == {"va": 20.0, "other": 20.0}
        assert len({start_s % 2.0 for start_s, *_ in example.marks} - {0.0}) == 0


def test_personalizations_through_the_server_are_the_librarys(bench):
    server, fit, library = PARTS["personalize"](bench)
    assert (server["n"], fit["n"], library["n"]) == (2, 2, 2)
    assert "| library: Personalizer.fit_record alone | 2 |" in serve_bench_tables.markdown(
        [library]
    )
    assert server["p50_s"] >= fit["p50_s"] > 0
    assert server["largest_difference_of_probability"] < 1e-4  # thirty steps of rounding


def test_requests_are_answered_as_the_library_would_also_by_the_peer(bench):
    rows = PARTS["requests"](bench)
    assert rows[0]["what"] == "server"
    peers = rows[-2:]
    assert [row["what"][:5] for row in peers] == ["peer:", "peer:"]
    assert [row["n_failed"] for row in rows] == [0] * len(rows)
    assert serve_bench_tables.requests_table(rows).count("\n") == len(rows) + 1
    for row in (rows[0], *peers):
        assert row["largest_difference_of_probability"] < 1e-5, row["what"]


def test_a_soak_has_lives_beside_the_load_and_memory_each_second(bench):
    (row,) = PARTS["soak"](bench)
    assert row["n_failed"] == 0
    assert row["n_lives"] >= 1
    assert row["rss_max_bytes"] >= row["rss_late_bytes"] > 0
    assert serve_bench_tables.soak_table([row]).count("\n") == 2


def test_starts_are_timed_with_an_empty_and_with_a_full_store(bench):
    empty, full = PARTS["start"](bench)
    assert (empty["n_stored"], full["n_stored"]) == (0, 12)
    assert full["rss_after_all_bytes"] > 0
    assert serve_bench_tables.start_table([empty, full]).splitlines()[2].startswith("| 0 | 1 MiB |")
    assert full["stored_adapter_bytes"] > 12 * 1000


def test_the_command_writes_a_row_per_line_and_the_summary_last(monkeypatch, tmp_path, capsys):
    rows = [{"part": "soak", "rss_growth_bytes": 5}]
    monkeypatch.setitem(PARTS, "soak", lambda bench: rows)
    target = tmp_path / "rows.json"
    assert serve_bench.main(["--only", "soak", "--json", str(target)]) == 0
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row.get("part") for row in written] == ["machine", "soak", None]
    assert list(written[-1]) == SUMMARY
    assert written[-1]["soak_rss_growth_bytes"] == 5
    assert capsys.readouterr().out == target.read_text()


def test_the_page_has_the_tables_of_the_committed_figures():
    committed = ROOT / "experiments" / "results" / "serve.json"
    if not committed.exists():
        pytest.skip("experiments/results/serve.json is not there: the page shows no figures")
    rows = [json.loads(line) for line in committed.read_text().splitlines()]
    assert serve_bench_tables.markdown(rows) in (ROOT / "docs" / "results" / "serve.md").read_text()
