"""The server measured from outside: personalization, many patients at once, requests, memory, start.

    python benchmarks/serve_bench.py [--json FILE] [--only personalize,mixed,requests,soak,start]
                                     [--n-patients 1000] [--soak-s 600] [--rate 200]

Every part starts `python -m metaecg.serve` as a process of its own with a store in a temporary
folder, and ends it again. Client, load and server share the machine's cores; what the load itself
takes of them stands in its rows (`load_processor_share`, 1 is one core).

    personalize   20 windows of generated patients, LoRA: from the request until the client sees the
                  finished job; beside it the library's own fit of the same labels, turn by turn
    mixed         windows of 256 patients in one pass, against one adapter after another with PEFT's
                  switching (benchmarks/mixed_batch_bench.py)
    requests      single windows of `--n-patients` patients, Poisson arrivals fixed in advance,
                  latency from when a request was due; beside it an answer without content, higher
                  rates until the server can't follow, and a plain FastAPI app on the library
    soak          the same load for `--soak-s`, a patient's whole life (upload, labels, personalization,
                  stream, deletion) every ten seconds beside it; resident memory each second
    start         `--n-stored` patients' detectors in the store: time to the first good /ready, and
                  memory after all of them were asked for, with a small cache and with a large one

The detectors of the stored patients are made of a few that were fitted (serve_bench_patients.py).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from serve_bench_parts import PARTS, Bench, say

NAMES = ("personalize", "mixed", "requests", "soak", "start")


def mixed(bench: Bench) -> list[dict]:
    """Run the benchmark of the mixed batch in a process of its own and return its rows."""
    import subprocess

    found = bench.folder / "mixed.json"
    script = Path(__file__).parent / "mixed_batch_bench.py"
    subprocess.run(
        [sys.executable, str(script), "--json", str(found)], check=True, stdout=sys.stderr
    )
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    for row in rows:
        if row.pop("summary", False):  # of that file; this one's summary is its own last row
            row["what"] = "summary"
    return [{"part": "mixed", **row} for row in rows]


def run(bench: Bench, parts: list[str]) -> list[dict]:
    """Return the rows of the parts, and last the summary."""
    rows = []
    for name in parts:
        say(f"part {name}")
        rows += mixed(bench) if name == "mixed" else PARTS[name](bench)
    return [*rows, summary(rows)]


def summary(rows: list[dict]) -> dict:
    """Return what is asked for in one row; ``None`` where a part wasn't run."""

    def of(part: str, name: str) -> float | None:
        found = [row[name] for row in rows if row.get("part") == part and name in row]
        return found[0] if found else None

    return {
        "summary": True,
        "personalize_p50_s": of("personalize", "p50_s"),
        "personalize_p99_s": of("personalize", "p99_s"),
        "mixed_batch_speedup": of("mixed", "mixed_batch_speedup"),
        "requests_per_s": of("requests", "requests_per_s"),
        "predict_p99_s": of("requests", "p99_s"),
        "soak_rss_growth_bytes": of("soak", "rss_growth_bytes"),
    }


def chosen(text: str) -> list[str]:
    """Return the parts that ``--only`` names, in the order in which they run."""
    asked = [name.strip() for name in text.split(",")]
    unknown = sorted(set(asked) - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} is no part; expected some of {', '.join(NAMES)}"
        )
    return [name for name in NAMES if name in asked]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write a row of JSON per line there")
    parser.add_argument("--only", type=chosen, default=list(NAMES), metavar="PARTS")
    parser.add_argument("--model", default="va-base")
    parser.add_argument(
        "--n-patients", type=int, default=1000, help="asked about, each its own detector"
    )
    parser.add_argument("--n-stored", type=int, default=10_000, help="of the part start")
    parser.add_argument("--n-personalizations", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument(
        "--requests-s", type=float, default=60.0, help="seconds of the part requests"
    )
    parser.add_argument("--soak-s", type=float, default=600.0, help="seconds of the part soak")
    parser.add_argument("--life-s", type=float, default=10.0, help="between two lives; 0: none")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, print a row per line, and write them if asked."""
    options = vars(parse(argv))
    target, parts = options.pop("json"), options.pop("only")
    with tempfile.TemporaryDirectory(prefix="metaecg-serve-bench-") as folder:
        rows = run(Bench(folder=Path(folder), **options), parts)
    rows.insert(0, {"part": "machine", "n_cores": os.cpu_count(), **options})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    print(lines, end="")
    if target:
        target.write_text(lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
