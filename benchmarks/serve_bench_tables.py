"""Print the tables of docs/results/serve.md from the rows of the server benchmark.

python benchmarks/serve_bench_tables.py experiments/results/serve.json
"""

import json
import sys
from pathlib import Path

MIB = 2**20


def markdown(rows: list[dict]) -> str:
    """Return a table per part that was run, each under its name."""
    tables = {
        name: table([r for r in rows if r.get("part") == name]) for name, table in TABLES.items()
    }
    return "\n\n".join(f"`{name}`:\n\n{text}" for name, text in tables.items() if text)


def personalize_table(rows: list[dict]) -> str:
    """Return seconds per personalization."""
    head = ["", "n", "p50", "p99", "longest"]
    return _table(
        head, [[r["what"], r["n"], _s(r["p50_s"]), _s(r["p99_s"]), _s(r["max_s"])] for r in rows]
    )


def mixed_table(rows: list[dict]) -> str:
    """Return seconds per way to judge the mixed batch, and what they say together."""
    lines = [[f"`{r['what']}`", _ms(r["p50_s"])] for r in rows if "p50_s" in r]
    lines += [
        ["times as fast as switching", f"{r['mixed_batch_speedup']:.1f}"]
        for r in rows
        if "mixed_batch_speedup" in r
    ]
    return _table(["", "p50"], lines)


def requests_table(rows: list[dict]) -> str:
    """Return rates and latencies."""
    head = ["", "offered per s", "answered per s", "failed", "p50", "p99", "longest"]
    head += ["server's share of a core", "its time per request", "load's share", "server's memory"]
    return _table(
        head,
        [
            [
                r["what"],
                f"{r['offered_per_s']:.0f}",
                f"{r['requests_per_s']:.0f}",
                r["n_failed"],
                _ms(r["p50_s"]),
                _ms(r["p99_s"]),
                _ms(r["max_s"]),
                f"{r['server_processor_share']:.2f}",
                _ms(r["server_processor_s_per_request"]),
                f"{r['load_processor_share']:.2f}",
                _mib(r["rss_bytes"]),
            ]
            for r in rows
        ],
    )


def soak_table(rows: list[dict]) -> str:
    """Return latencies and memory of the soak."""
    head = ["seconds", "requests", "failed", "lives", "p99", "second minute", "last minute"]
    head += ["growth", "slope per minute"]
    return _table(
        head,
        [
            [
                f"{r['soak_s']:g}",
                r["n_requests"],
                r["n_failed"],
                r["n_lives"],
                _ms(r["p99_s"]),
                _mib(r["rss_early_bytes"]),
                _mib(r["rss_late_bytes"]),
                _mib(r["rss_growth_bytes"]),
                f"{r['slope_bytes_per_minute'] / MIB:.2f} MiB",
            ]
            for r in rows
        ],
    )


def start_table(rows: list[dict]) -> str:
    """Return time to start and memory, by what is stored and the bound of the cache."""
    head = [
        "stored",
        "cache",
        "start",
        "longest start",
        "memory at start",
        "after all were asked for",
    ]
    return _table(
        head,
        [
            [
                r["n_stored"],
                f"{r['cache_mb']} MiB",
                _s(r["start_p50_s"]),
                _s(r["start_max_s"]),
                _mib(r["rss_at_start_bytes"]),
                _mib(r.get("rss_after_all_bytes")),
            ]
            for r in rows
        ],
    )


TABLES = {
    "personalize": personalize_table,
    "mixed": mixed_table,
    "requests": requests_table,
    "soak": soak_table,
    "start": start_table,
}


def _table(head: list[str], lines: list[list]) -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)


def _s(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f} s"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"


def _mib(n_bytes: float | None) -> str:
    return "–" if n_bytes is None else f"{n_bytes / MIB:.0f} MiB"


def main(path: str) -> None:
    """Print the tables of a file of rows."""
    print(markdown([json.loads(line) for line in Path(path).read_text().splitlines()]))


if __name__ == "__main__":
    main(sys.argv[1])
