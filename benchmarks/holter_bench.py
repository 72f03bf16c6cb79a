"""How long 24 hours of one-lead ECG at 250 Hz take: R peaks, beats, predictions.

    python benchmarks/holter_bench.py --data DIR [--base veb-base] [--hours 24] [--json FILE] [--threads 2]

The recording is made of DS2's recordings of mitdb, resampled to 250 Hz, end to end, again and again
until it is long enough. What is timed starts with the signal in memory: the detector, filtering and
cutting, the inputs, the network, the context. Nothing of it is known before, but the first call's imports.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly

from metaecg.data.beat_input import beat_inputs
from metaecg.data.beats import cut_beats
from metaecg.data.labels import DS2
from metaecg.data.records import Record, read_record
from metaecg.data.rpeaks import detect_r_peaks
from metaecg.models.beat_detector import BeatDetector
from metaecg.models.checkpoints import load_base

FS_HZ = 250.0
UP, DOWN = 25, 36  # of mitdb's 360 Hz


def long_recording(root: Path, hours: float) -> Record:
    """Return recordings of DS2 end to end, at 250 Hz."""
    n_samples = round(hours * 3600 * FS_HZ)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < n_samples:
        for name in DS2:
            signal_mv = read_record(root / "mitdb" / name, annotations=False).signal_mv[0]
            parts.append(resample_poly(signal_mv, UP, DOWN).astype(np.float32))
    signal_mv = np.concatenate(parts)[:n_samples]
    return Record(
        record_id="holter",
        subject_id="holter",
        signal_mv=signal_mv[None],
        fs_hz=FS_HZ,
        lead_names=("MLII",),
        annotations=None,
        database="holter",
    )


def measure(record: Record, detector: BeatDetector) -> dict:
    """Return the seconds of each part, and what came out."""
    times = [time.perf_counter()]
    peaks = detect_r_peaks(record.signal_mv[0], fs_hz=record.fs_hz)
    times.append(time.perf_counter())
    beats, _ = cut_beats(record, r_peaks=peaks, **detector.cutting)
    times.append(time.perf_counter())
    inputs = beat_inputs(beats)
    times.append(time.perf_counter())
    log_odds = detector.log_odds(beats, inputs=inputs)
    times.append(time.perf_counter())
    seconds = dict(zip(("peaks", "beats", "inputs", "predictions"), np.diff(times), strict=True))
    return {
        "seconds": {name: round(float(s), 2) for name, s in seconds.items()},
        "total_s": round(times[-1] - times[0], 2),
        "n_peaks": len(peaks),
        "n_beats": len(beats),
        "n_v": int((log_odds > 0).sum()),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mitdb")
    parser.add_argument("--base", default="veb-base", help="published name or folder")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    detector = BeatDetector(load_base(args.base))
    measure(long_recording(args.data, 0.02), detector)  # imports
    record = long_recording(args.data, args.hours)
    load = os.getloadavg()[0]
    found = {
        "hours": args.hours,
        "fs_hz": FS_HZ,
        "threads": args.threads,
        **measure(record, detector),
    }
    found |= {"n_cores": os.cpu_count(), "load_before": round(load, 2)}
    print(json.dumps(found, indent=1))
    if load > 1:
        print(f"the machine was busy: load {load:.1f} before the measurement", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
