"""How long it takes to prepare the beats of mitdb, annotated and detected, and to open them again.

    python benchmarks/beats_bench.py --data DIR [--json FILE] [--repeats 3]

44 records, one lead each, 22 hours: reading, checksums, filtering, R peaks, windows, RR features, the
cache; two threads. Seconds of the processor (both threads together) and of the clock, which others on
the machine make longer. Medians over the repeats, measured in turn; the files have been read once
before.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from metaecg.data.beats import R_PEAKS, prepare_beats


def timed(work) -> tuple[float, float, int]:
    """Return the processor's and the clock's seconds of a preparation, and its number of beats."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    n_beats = len(work().windows)
    return time.process_time() - begin_cpu, time.perf_counter() - begin, n_beats


def measure(root: Path, repeats: int) -> list[dict]:
    """Return one row per way, medians over the repeats."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    n_beats: dict[str, int] = {}
    prepare_beats(root, ["mitdb"], r_peaks="detected")  # imports, first reading from the disk
    for i in range(repeats):
        for r_peaks in R_PEAKS:
            with tempfile.TemporaryDirectory() as cache:

                def run(cache=cache, r_peaks=r_peaks):
                    return prepare_beats(root, ["mitdb"], r_peaks=r_peaks, cache_root=cache)

                for what in ("prepared", "opened from the cache"):
                    *took, n_beats[r_peaks] = timed(run)
                    times.setdefault((r_peaks, what), []).append(took)
        print(f"repeat {i + 1} of {repeats} done", file=sys.stderr)
    rows = []
    for (r_peaks, what), found in times.items():
        cpu_seconds, seconds = (statistics.median(column) for column in zip(*found, strict=True))
        n, cpu_seconds = n_beats[r_peaks], round(cpu_seconds, 4)
        row = {"r_peaks": r_peaks, "what": what, "n_beats": n, "cpu_seconds": cpu_seconds}
        rows.append({**row, "seconds": round(seconds, 4), "beats_per_cpu_second": n / cpu_seconds})
    return rows


def markdown(rows: list[dict]) -> str:
    """Return the rows as the table of docs/beats.md."""
    lines = [
        "| R peaks | | beats | CPU s | beats per CPU s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['r_peaks']} | {row['what']} | {row['n_beats']:,} | {row['cpu_seconds']:.2f} | "
            f"{row['beats_per_cpu_second']:,.0f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mitdb")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    rows = measure(args.data, args.repeats)
    print(markdown(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
