"""How long a patient's detector takes to fit and to answer, from the shipped base and twenty windows.

    python benchmarks/personalize_bench.py [--json FILE] [--base va-base] [--repeats 15]

Ten windows per class of a generated patient; each method is fitted `repeats` times, in turns, in
this process, which never opens a socket. Absolute times are those of the machine at hand; `per_base_pass`
is the ratio to one forward pass of the base over the same windows, in the same run.
"""

import argparse
import json
import socket
import statistics
import time
from pathlib import Path

import numpy as np

from metaecg import Personalizer, load_base

METHODS = ("head", "lora", "full")
N_SHOTS = 10


def make_windows(base, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return windows of beats and of a coarse oscillation, in millivolts, and their class names."""
    t = np.arange(base.preprocessing.n_samples) / base.preprocessing.fs_hz
    beats = [np.exp(-(((t + d) % 0.8 - 0.4) ** 2) / 3e-4) for d in rng.uniform(0, 0.8, N_SHOTS)]
    waves = [np.sin(2 * np.pi * f * t) for f in rng.uniform(3, 6, N_SHOTS)]
    windows = np.stack([*beats, *waves])[:, None] + rng.normal(0, 0.02, (2 * N_SHOTS, 1, len(t)))
    return windows.astype(np.float32), np.repeat(["other", "va"], N_SHOTS)


def refuse_network(*arguments, **options):
    """Stand in for a socket: whoever asks for one has left the machine."""
    raise SystemExit("the base or the personalization opened a socket; it has to work offline")


def seconds_of(call) -> float:
    """Return how long `call` takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(name: str, n_repeats: int) -> list[dict]:
    """Return a row per method, the base's own pass first."""
    base = load_base(name)
    windows, labels = make_windows(base, np.random.default_rng(0))
    calls = {"base_pass": lambda: base.predict_proba(windows)}
    for method in METHODS:
        calls[method] = lambda m=method: Personalizer(base, method=m).fit(windows, labels)
    found = {key: [] for key in calls}
    for _ in range(n_repeats + 1):  # the first round loads what is loaded lazily
        for key, call in calls.items():
            found[key].append(seconds_of(call))
    reference = statistics.median(found["base_pass"][1:])
    return [
        {
            "what": key,
            "first_s": times[0],
            "p50_s": statistics.median(times[1:]),
            "max_s": max(times[1:]),
            "per_base_pass": statistics.median(times[1:]) / reference,
        }
        for key, times in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="va-base")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    socket.socket.connect = refuse_network
    rows = measure(arguments.base, arguments.repeats)
    for row in rows:
        print(
            f"{row['what']:10s} p50 {row['p50_s']:.3f} s, first {row['first_s']:.3f} s, "
            f"max {row['max_s']:.3f} s, {row['per_base_pass']:.0f} passes of the base"
        )
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
