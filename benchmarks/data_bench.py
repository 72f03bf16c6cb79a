"""Prepare mitdb, vfdb and cudb with metaecg, beside the loop that a user would write; in one run.

    python benchmarks/data_bench.py --data DIR [--json FILE] [--repeats 3]

Both sides read every record, keep one lead at 200 Hz between 0.5 and 40 Hz, cut windows of two
seconds and label them. The plain loop does it in one process with wfdb and scipy, reading only the
lead it needs. metaecg also checks every file (SHA-256, the header's checksums) and writes a cache;
"open from the cache" is what every later run costs. The three are measured in turn, so that a
machine that gets slower does so for all; the files have been read once before.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import wfdb
from scipy import signal

from metaecg.data.databases import choose_lead
from metaecg.data.datasets import find_records, prepare

DATABASES = ("mitdb", "vfdb", "cudb")
FS_HZ, WINDOW_S = 200, 2
VA = ("(VT", "(VF", "(VFL", "(VFIB")


def plain_loop(root: Path, folder: Path) -> int:
    """Prepare the databases with wfdb and scipy alone, and keep the result as the cache does."""
    sos = signal.butter(4, [0.5, 40.0], btype="bandpass", fs=FS_HZ, output="sos")
    all_windows, all_labels = [], []
    for path in find_records(root, DATABASES):
        windows, labels = plain_record(path, sos)
        all_windows.append(windows)
        all_labels.append(labels)
    np.save(folder / "windows.npy", np.concatenate(all_windows))
    np.save(folder / "labels.npy", np.concatenate(all_labels))
    return sum(len(windows) for windows in all_windows)


def plain_record(path: Path, sos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows (n, 400) and labels of one record."""
    lead = choose_lead(path.parent.name, wfdb.rdheader(str(path)).sig_name)
    record = wfdb.rdrecord(str(path), channels=[lead])
    marks = wfdb.rdann(str(path), "atr")
    ratio = Fraction(FS_HZ, int(record.fs))
    measured = np.nan_to_num(record.p_signal[:, 0])
    resampled = signal.resample_poly(measured, ratio.numerator, ratio.denominator)
    filtered = signal.sosfiltfilt(sos, resampled)
    n = FS_HZ * WINDOW_S
    windows = filtered[: len(filtered) // n * n].reshape(-1, n).astype(np.float32)
    return windows, plain_labels(marks, record.fs, len(filtered))[: len(windows)]


def plain_labels(marks, fs_hz: float, n_samples: int) -> np.ndarray:
    """Return whether VA covers at least half of each window."""
    is_va = np.zeros(n_samples, dtype=bool)
    for sample, symbol, note in zip(marks.sample, marks.symbol, marks.aux_note, strict=True):
        at = int(sample * FS_HZ / fs_hz)
        if symbol in "[]":
            is_va[at:] = symbol == "["
        elif symbol == "+":
            is_va[at:] = note.strip("\x00") in VA
    n = FS_HZ * WINDOW_S
    return is_va[: n_samples // n * n].reshape(-1, n).mean(axis=1) >= 0.5


def timed(work) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(root: Path, repeats: int) -> list[dict]:
    """Return one row per way, medians over the repeats, measured in turn."""
    seconds: dict[str, list[float]] = {}

    def note(what: str, work) -> None:
        seconds.setdefault(what, []).append(timed(work))

    plain_record(find_records(root, DATABASES)[0], signal.butter(1, 0.1, output="sos"))  # imports
    for file in (f for slug in DATABASES for f in (root / slug).iterdir()):
        file.read_bytes()  # no way pays for the first reading from the disk
    for i in range(repeats):
        with tempfile.TemporaryDirectory() as cache:

            def run(cache=cache):
                return prepare(root, DATABASES, cache_root=cache, n_workers=2)

            def plain(folder=Path(cache)):
                return plain_loop(root, folder)

            note("plain loop, wfdb and scipy, one process, saved", plain)
            note("metaecg, cold: 2 threads, cache written", run)
            note("metaecg, opened from the cache", run)
        print(f"repeat {i + 1} of {repeats} done", file=sys.stderr)
    medians = {what: statistics.median(times) for what, times in seconds.items()}
    plain = next(iter(medians.values()))
    return [
        {"what": what, "seconds": round(s, 4), "ratio_to_plain_loop": round(s / plain, 4)}
        for what, s in medians.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of mitdb, vfdb and cudb")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    rows = measure(args.data, args.repeats)
    for row in rows:
        print(f"{row['what']:<42}{row['seconds']:>9.3f} s{row['ratio_to_plain_loop']:>9.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
