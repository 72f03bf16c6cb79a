"""What MLflow tracking costs a run of `va_fewshot`: the same run with and without it, side by side.

    python benchmarks/tracking_cost.py [--json FILE] [--pairs 3] [--uri URI] [-- OPTION ... key=value ...]

The run is the README's on generated patients (two processes) unless options say otherwise; patients
and windows are prepared once before. On a shared machine the same run takes ten percent more or less
from one minute to the next, more than what is to be measured. So the two runs of a pair take turns
on the whole machine, half a second each: while one has its turn, all processes of the other are
stopped. What the machine does meanwhile happens to both, and each run's time is the sum of its
turns. Beside every pair of with and without stands a control, without against without, measured the
same way: it shows what the way of measuring can tell.

Without --uri the store is an SQLite file that every run makes anew, the dearest case: its tables
have to be made. The sampling of the machine goes by the clock, so it is twice as frequent here as
when the run is alone. At last a run with tracking, alone, counts the seconds that it waited for tracking
in its own process, and the processor time of the process that sends.
"""

import argparse
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TURN_S = 0.5

RUN = """
import json, sys, time
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
tracking.warm_up = timed(tracking.warm_up)
tracking_process.SendingProcess.close = closing
code = va_fewshot.main(sys.argv[2:])
found = {"code": code, "waited_s": spent[0], "sending_processor_s": sending[0]}
print(json.dumps(found), file=open(sys.argv[1], "w"))
"""


class Run:
    """A run of the recipe in a session of its own, so that all its processes can be stopped."""

    def __init__(self, folder: Path, cache: Path, settings: list[str]) -> None:
        self._facts, self._left = folder / "facts.json", folder / "run" / "tracking-missing"
        places = ["--cache", str(cache), "--out", str(folder / "run")]
        self._command = [sys.executable, "-c", RUN, str(self._facts), *places, *settings]
        self._process: subprocess.Popen | None = None
        self._ended: int | None = None
        self.seconds, self.usage, self.is_over = 0.0, None, False

    def turn(self, limit_s: float | None) -> None:
        """Let it run until it ends or `limit_s` is over, and stop it; None: to its end."""
        begin = time.perf_counter()
        if self._process is None:
            self._start()
        else:
            os.killpg(self._process.pid, signal.SIGCONT)
        if select.select([self._ended], [], [], limit_s)[0]:
            self.is_over = True
        else:
            os.killpg(self._process.pid, signal.SIGSTOP)
        self.seconds += time.perf_counter() - begin
        if self.is_over:
            self._reap()

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self._ended = os.pidfd_open(self._process.pid)

    def _reap(self) -> None:
        _, status, self.usage = os.wait4(self._process.pid, 0)
        os.close(self._ended)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode or self.facts["code"] or self._left.exists():
            raise SystemExit("a run failed, or not everything arrived; its words are above")

    @property
    def facts(self) -> dict[str, float]:
        return json.loads(self._facts.read_text())

    def figures(self) -> dict[str, float]:
        """Return its seconds, and the processor seconds of all its processes."""
        used = self.usage.ru_utime + self.usage.ru_stime
        return {"whole_s": round(self.seconds, 3), "processor_s": round(used, 3)}

    def kill(self) -> None:
        """End it, wherever it is."""
        if self._process is not None and not self.is_over:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def side_by_side(runs: list[Run]) -> None:
    """Let runs take turns until all are over."""
    try:
        while left := [run for run in runs if not run.is_over]:
            for run in left:
                run.turn(TURN_S)
    finally:
        for run in runs:
            run.kill()


def measure(n_pairs: int, uri: str | None, settings: list[str]) -> dict:
    """Return seconds of every run, the ratio of each pair and of each control, and a run alone."""
    ways = {"without": ["tracking.enabled=false"], "with": [f"tracking.uri={uri or 'null'}"]}
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place) / "cache"

        def make(way: str, *more: str) -> Run:
            folder = Path(tempfile.mkdtemp(dir=place))
            return Run(folder, cache, [*settings, *more, *ways[way]])

        make("without", "budget_windows=64", "--methods", "zero-shot", "max_folds=1").turn(None)
        pairs, controls = [], []
        for i in range(n_pairs):
            pairs.append(_pair(make, ("with", "without"), i, f"pair {i + 1} of {n_pairs}"))
            controls.append(_pair(make, ("without", "without"), i, "control"))
            for folder in Path(place).glob("tmp*"):
                shutil.rmtree(folder)
        alone = make("with")
        alone.turn(None)
        return summary(pairs, controls, {**alone.figures(), **alone.facts})


def _pair(make, ways: tuple[str, str], i: int, name: str) -> dict:
    """Return the figures of two runs and the ratio; who has the first turn changes with `i`."""
    first, second = runs = [make(way) for way in ways]
    side_by_side(runs[::-1] if i % 2 else runs)
    ratio = first.seconds / second.seconds
    print(f"{name}: {ratio:.4f}", file=sys.stderr, flush=True)
    return {"ratio": round(ratio, 4), "first": first.figures(), "second": second.figures()}


def summary(pairs: list[dict], controls: list[dict], alone: dict) -> dict:
    """Return mean ratios with what they are uncertain by, and everything that was measured."""
    return {
        "turn_s": TURN_S,
        "n_cores": os.cpu_count(),
        "with_over_without": spread(pair["ratio"] for pair in pairs),
        "control": spread(pair["ratio"] for pair in controls),
        "alone_with": {k: round(v, 3) for k, v in alone.items() if k != "code"},
        "pairs": pairs,
        "controls": controls,
    }


def spread(found) -> dict[str, float]:
    """Return the mean of ratios, its standard error (more than one ratio), smallest and largest."""
    ratios = list(found)
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    figures = {"mean": statistics.mean(ratios), "standard_error": error}
    figures |= {"min": min(ratios), "max": max(ratios)}
    return {name: round(value, 4) for name, value in figures.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write what was measured there")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--uri", help="an MLflow store; default: an SQLite file of the run's own")
    parser.add_argument("settings", nargs="*", metavar="OPTION|key=value", help="of va_fewshot")
    arguments = parser.parse_args(argv)
    found = measure(arguments.pairs, arguments.uri, arguments.settings)
    for name in ("with_over_without", "control"):
        figures = found[name]
        print(
            f"{name:<18} {figures['mean']:.4f} +- {figures['standard_error']:.4f} "
            f"({figures['min']:.4f} to {figures['max']:.4f})"
        )
    alone = found["alone_with"]
    print(
        f"alone, with tracking: {alone['whole_s']:.1f} s, of that {alone['waited_s']:.2f} s waited for "
        f"it; processor of the process that sends {alone['sending_processor_s']:.2f} s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
