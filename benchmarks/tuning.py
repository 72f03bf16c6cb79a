"""What pruning and a second worker save in a study of small trials on generated patients; in one run.

    python benchmarks/tuning.py [--json FILE] [--n-trials 20] [--seeds 0,1,2] [--budget 6000]

Every study is the whole command `python -m metaecg.experiments.tune`, timed from its start to its end,
with nothing else in common than the prepared windows. They are run in turn:

- TPE with Hyperband, and the same without pruning: seconds of one over seconds of the other;
- a random search of as many trials, without pruning: what its best trial is worth;
- the same random search with two workers: its trials are the same, so the ratio of the trials per
  minute is that of the seconds.

With several seeds each part is run for each; ratios are of the sums, values are medians. On a machine
that is busy with other things the processors' time is the better figure; workers need the other.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDIES = {
    "pruned": ["--sampler", "tpe", "--pruner", "hyperband"],
    "not pruned": ["--sampler", "tpe", "--pruner", "none"],
    "random": ["--sampler", "random", "--pruner", "none"],
    "random, two workers": ["--sampler", "random", "--pruner", "none", "--workers", "2"],
}


def command(options: list[str], *, out: Path, cache: Path, settings) -> list[str]:
    """Return the command line of a study."""
    return [
        *(sys.executable, "-m", "metaecg.experiments.tune", *options),
        *("--out", str(out), "--cache", str(cache), "--n-trials", str(settings.n_trials)),
        *(f"config.budget_windows={settings.budget}", "tracking.enabled=false"),
    ]


def run_study(name: str, seed: int, folder: Path, settings) -> dict:
    """Run a study in a new folder; return its seconds and what it found."""
    out = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    options = [*STUDIES[name], "--seed", str(seed)]
    begin, spent = time.perf_counter(), _cpu_seconds()
    subprocess.run(
        command(options, out=out, cache=folder / "cache", settings=settings),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    times = {"seconds": time.perf_counter() - begin, "cpu_seconds": _cpu_seconds() - spent}
    times = {what: round(seconds, 2) for what, seconds in times.items()}
    study = json.loads((out / "study.json").read_text())
    best = study["trials"][study["best"]]["values"][0]
    return {"what": name, "seed": seed, **times, "best": best, **study["states"]}


def _cpu_seconds() -> float:
    """Return what the processes that were started and have ended took of the processors."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(settings, folder: Path) -> list[dict]:
    """Run every study in turn; return a row each."""
    warm = argparse.Namespace(n_trials=1, budget=settings.budget)
    run_study("random", 10_000, folder, warm)  # prepares the windows, compiles the kernels
    rows = []
    for seed in settings.seeds:
        for name in STUDIES:
            rows.append(run_study(name, seed, folder, settings))
            print(_shown(rows[-1]), file=sys.stderr)
    return rows


def summary(rows: list[dict]) -> dict:
    """Return the ratios and the values that are compared."""

    def seconds(name: str, what: str = "seconds") -> float:
        return sum(row[what] for row in rows if row["what"] == name)

    def best(name: str) -> float:
        return statistics.median(row["best"] for row in rows if row["what"] == name)

    return {
        "pruned_over_not_pruned": round(seconds("pruned") / seconds("not pruned"), 3),
        "pruned_over_not_pruned_cpu": round(
            seconds("pruned", "cpu_seconds") / seconds("not pruned", "cpu_seconds"), 3
        ),
        "best_pruned_median": best("pruned"),
        "best_not_pruned_median": best("not pruned"),
        "best_random_median": best("random"),
        "two_workers_trials_per_minute_over_one": round(
            seconds("random") / seconds("random, two workers"), 3
        ),
    }


def _shown(row: dict) -> str:
    return (
        f"{row['what']:<22}seed {row['seed']}{row['seconds']:>9.1f} s {row['cpu_seconds']:>9.1f} s CPU  best {row['best']:.4f}  "
        f"{row['complete']} complete, {row['pruned']} pruned, {row['failed']} failed"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write rows and summary there")
    parser.add_argument("--n-trials", type=int, default=20)
    parser.add_argument("--budget", type=int, default=6_000, help="training windows of a base")
    parser.add_argument(
        "--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2]
    )
    settings = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(settings, Path(folder))
    content = {
        "n_trials": settings.n_trials,
        "budget_windows": settings.budget,
        "rows": rows,
        "summary": summary(rows),
    }
    print("\n".join(map(_shown, rows)))
    print(json.dumps(content["summary"], indent=1))
    if settings.json:
        settings.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
