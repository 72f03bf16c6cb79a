"""What MLflow tracking costs a run of `va_fewshot`: the same run with and without it, in pairs.

    python benchmarks/tracking_cost.py [--json FILE] [--pairs 3] [--uri URI] [key.subkey=value ...]

The run is the README's on generated patients (two processes), each time
in a process of its own and a folder of its own; patients and windows are prepared once before. The
two ways take turns in going first. Without --uri the store is an SQLite file that every run makes
anew, the dearest case: its tables have to be made. Beside the ratio stand the seconds that the run
waited for tracking in its own process, and the processor time of all processes and of the one that
sends.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = """
import json, resource, sys, time
import psutil
from metaecg.experiments import tracking, tracking_process, va_fewshot

spent, sending, depth = [0.0], [0.0], [0]
close = tracking_process.SendingProcess.close

def closing(self, **options):
    sending[0] += sum(psutil.Process(self.pid).cpu_times()[:2])
    close(self, **options)

def timed(function):
    def call(*arguments, **options):
        begin = time.perf_counter()
        depth[0] += 1
        try:
            return function(*arguments, **options)
        finally:
            depth[0] -= 1
            if not depth[0]:
                spent[0] += time.perf_counter() - begin
    return call

for name in ("__init__", "params", "tags", "history", "metrics", "artifacts", "datasets", "model", "end"):
    setattr(tracking.Tracker, name, timed(getattr(tracking.Tracker, name)))
tracking_process.SendingProcess.close = closing
begin = time.perf_counter()
code = va_fewshot.main(sys.argv[2:])
seconds = time.perf_counter() - begin
found = {"code": code, "seconds": seconds, "waited_s": spent[0], "sending_processor_s": sending[0]}
print(json.dumps(found), file=open(sys.argv[1], "w"))
"""


def run(folder: Path, cache: Path, settings: list[str]) -> dict[str, float]:
    """Run the recipe in a process of its own; return seconds, and processor seconds of all of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    places = ["--cache", str(cache), "--out", str(folder / "run")]
    command = [sys.executable, "-c", RUN, str(folder / "seconds.json"), *places, *settings]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads((folder / "seconds.json").read_text())
    if found.pop("code") or (folder / "run" / "tracking-missing").exists():
        raise SystemExit("a run failed, or not everything arrived; its words are above")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"whole_s": wall, "processor_s": used, **found}


def measure(n_pairs: int, uri: str | None, settings: list[str]) -> dict:
    """Return seconds of every run, and the ratio of each pair."""
    pairs = []
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"
        small = ["budget_windows=64", "--methods", "zero-shot", "max_folds=1"]
        ways = {"without": ["tracking.enabled=false"], "with": [f"tracking.uri={uri or 'null'}"]}
        run(_new(place), cache, [*settings, *small, *ways["without"]])  # prepares the windows
        for i in range(n_pairs):
            pair = {}
            for way in sorted(ways, reverse=bool(i % 2)):
                folder = _new(place)
                pair[way] = run(folder, cache, [*settings, *ways[way]])
                shutil.rmtree(folder)
            pair["ratio"] = pair["with"]["whole_s"] / pair["without"]["whole_s"]
            pairs.append(pair)
            print(f"pair {i + 1} of {n_pairs}: {pair['ratio']:.4f}", file=sys.stderr)
    return summary(pairs)


def summary(pairs: list[dict]) -> dict:
    """Return medians over the pairs, and the pairs."""

    def median(way: str, name: str) -> float:
        return round(statistics.median(pair[way][name] for pair in pairs), 3)

    names = ("whole_s", "seconds", "waited_s", "processor_s", "sending_processor_s")
    return {
        "ratio": round(statistics.median(pair["ratio"] for pair in pairs), 4),
        **{way: {name: median(way, name) for name in names} for way in ("without", "with")},
        "waited_share": round(
            statistics.median(p["with"]["waited_s"] / p["without"]["whole_s"] for p in pairs), 5
        ),
        "n_cores": os.cpu_count(),
        "pairs": pairs,
    }


def _new(place: str) -> Path:
    return Path(tempfile.mkdtemp(dir=place))


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write what was measured there")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--uri", help="an MLflow store; default: an SQLite file of the run's own")
    parser.add_argument("settings", nargs="*", metavar="key.subkey=value", help="of va_fewshot")
    arguments = parser.parse_args(argv)
    found = measure(arguments.pairs, arguments.uri, arguments.settings)
    for way in ("without", "with"):
        print(
            f"{way:<8} {found[way]['whole_s']:8.2f} s, processor {found[way]['processor_s']:8.2f} s"
        )
    tracked = found["with"]
    print(
        f"ratio {found['ratio']:.4f}; waited for tracking {tracked['waited_s']:.2f} s, processor of the "
        f"process that sends {tracked['sending_processor_s']:.2f} s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
