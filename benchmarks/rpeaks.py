"""Detectors of R peaks on mitdb, and how long they take for a day; in one run.

    python benchmarks/rpeaks.py --data DIR [--json FILE] [--hours 24] [--only NAME,NAME]

Accuracy: the records of mitdb without paced beats, those of DS1 (by which the choice was made), of
DS2, and all 44; the lead that `read_record` chooses, whole records. A detection counts if it and an annotated beat are each other's nearest and at most 150 ms
apart (EC57); inside ventricular flutter (record 207) nothing is counted, as EC57 says. `offset` is the
median distance of a detection to the annotated position, for all beats and for ventricular ones.
Time: record 100 at 250 Hz, repeated to the length asked for, in one process: seconds of the processor
and of the clock, which differ where others use the machine too.

A detector whose package is not installed is left out, with a line on stderr: what metaecg needs
has all but SleepECG (`pip install sleepecg`).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from metaecg.data.datasets import find_records
from metaecg.data.labels import AAMI_CLASSES, DS1, DS2, VA_START, VA_STOP, beat_labels
from metaecg.data.records import Record, read_record
from metaecg.data.rpeaks import detect_r_peaks, match_beats

Detector = Callable[[np.ndarray, float], np.ndarray]
FS_HZ = 250


def xqrs(lead: np.ndarray, fs_hz: float) -> np.ndarray:
    """Return the peaks of wfdb's XQRS."""
    from wfdb.processing import XQRS

    detector = XQRS(sig=lead.astype(float), fs=fs_hz)
    detector.detect(verbose=False)
    return np.asarray(detector.qrs_inds)


def gqrs(lead: np.ndarray, fs_hz: float) -> np.ndarray:
    """Return the peaks of wfdb's GQRS."""
    from wfdb.processing import gqrs_detect

    return np.asarray(gqrs_detect(sig=lead.astype(float), fs=fs_hz))


def of_neurokit(method: str) -> Detector:
    """Return one of NeuroKit2's detectors with the cleaning that belongs to it."""

    def detect(lead: np.ndarray, fs_hz: float) -> np.ndarray:
        import neurokit2

        fs_hz = int(fs_hz)
        clean = neurokit2.ecg_clean(lead, sampling_rate=fs_hz, method=method)
        return neurokit2.ecg_peaks(clean, sampling_rate=fs_hz, method=method)[1]["ECG_R_Peaks"]

    return detect


def sleepecg(lead: np.ndarray, fs_hz: float) -> np.ndarray:
    """Return the peaks of SleepECG's detector, written in C."""
    from sleepecg import detect_heartbeats

    return detect_heartbeats(lead.astype(float), fs_hz)


DETECTORS: dict[str, tuple[str, Detector]] = {
    "metaecg": ("neurokit2", lambda lead, fs_hz: detect_r_peaks(lead, fs_hz=fs_hz)),
    "SleepECG": ("sleepecg", sleepecg),
    "wfdb XQRS": ("wfdb", xqrs),
    "wfdb GQRS": ("wfdb", gqrs),
    "NeuroKit2 neurokit": ("neurokit2", of_neurokit("neurokit")),
    "NeuroKit2 pantompkins1985": ("neurokit2", of_neurokit("pantompkins1985")),
    "NeuroKit2 hamilton2002": ("neurokit2", of_neurokit("hamilton2002")),
}
"""Name -> the package that it needs and what runs it. ``metaecg`` is what was chosen: NeuroKit2's
``manikandan2012`` piece by piece."""
SETS = {"DS1": DS1, "DS2": DS2, "all": (*DS1, *DS2)}


def outside_flutter(record: Record, places: np.ndarray) -> np.ndarray:
    """Return the samples of `places` that no ``[ ]`` encloses."""
    marks = record.annotations
    is_inside = np.zeros(len(places), dtype=bool)
    for sample, symbol in zip(marks.sample, marks.symbol, strict=True):
        if symbol in (VA_START, VA_STOP):
            is_inside[places >= sample] = symbol == VA_START
    return places[~is_inside]


def count(record: Record, detect: Detector) -> tuple[dict[str, int], list[np.ndarray]]:
    """Return the counts of one record and the offsets (seconds) of all and of ventricular beats."""
    sample, label = beat_labels(record.annotations)
    found = outside_flutter(record, np.sort(detect(record.signal_mv[0], record.fs_hz)))
    of = match_beats(found / record.fs_hz, sample / record.fs_hz)
    hits = of[of >= 0]
    offsets = np.abs(found[of >= 0] - sample[hits]) / record.fs_hz
    counts = {"tp": len(hits), "fp": int((of < 0).sum()), "fn": len(sample) - len(hits)}
    for name in AAMI_CLASSES:
        counts[f"n_{name}"] = int((label == name).sum())
        counts[f"found_{name}"] = int((label[hits] == name).sum())
    return counts, [offsets, offsets[label[hits] == "V"]]


def accuracy(results: list[tuple[dict[str, int], list[np.ndarray]]]) -> dict:
    """Return gross sensitivity and PPV, sensitivity per class and offsets over some records."""
    counts, offsets = zip(*results, strict=True)
    total = {key: sum(c[key] for c in counts) for key in counts[0]}
    of_all, of_v = (np.concatenate(found) for found in zip(*offsets, strict=True))
    return {
        **{key: total[key] for key in ("tp", "fp", "fn")},
        "sensitivity": total["tp"] / (total["tp"] + total["fn"]),
        "ppv": total["tp"] / (total["tp"] + total["fp"]),
        "worst_f1": min(f1(c) for c in counts),
        "sensitivity_of": {c: total[f"found_{c}"] / total[f"n_{c}"] for c in AAMI_CLASSES},
        "offset_ms": 1000 * float(np.median(of_all)),
        "offset_ms_of_V": 1000 * float(np.median(of_v)),
    }


def f1(counts: dict[str, int]) -> float:
    """Return F1 of counts with ``tp``, ``fp`` and ``fn``."""
    return 2 * counts["tp"] / (2 * counts["tp"] + counts["fp"] + counts["fn"])


def long_lead(record: Record, hours: float) -> np.ndarray:
    """Return one lead at `FS_HZ`, repeated to the length asked for."""
    from scipy.signal import resample_poly

    lead = resample_poly(record.signal_mv[0], FS_HZ, round(record.fs_hz))
    return np.resize(lead, round(hours * 3600 * FS_HZ))


def measure(root: Path, names: list[str], hours: float) -> list[dict]:
    """Return one row per detector."""
    records = {
        path.name: read_record(path)
        for path in find_records(root, ["mitdb"])
        if path.name in SETS["all"]
    }
    lead, rows = long_lead(records["100"], hours), []
    for name in names:
        package, detect = DETECTORS[name]
        if find_spec(package) is None:
            print(f"{name}: {package} is not installed, left out", file=sys.stderr)
            continue
        detect(lead[: 60 * FS_HZ], float(FS_HZ))  # imports and compilation are not timed
        begin, begin_cpu = time.perf_counter(), time.process_time()
        n_found = len(detect(lead, float(FS_HZ)))
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
        results = {record: count(records[record], detect) for record in records}
        found = {which: accuracy([results[r] for r in among]) for which, among in SETS.items()}
        timed = {"hours": hours, "cpu_seconds": cpu_seconds, "seconds": seconds}
        rows.append({"detector": name, **timed, "n_found": n_found, **found})
        print(f"{name}: done", file=sys.stderr)
    return rows


def markdown(rows: list[dict]) -> str:
    """Return the rows as the table of docs/beats.md."""
    lines = [
        "| detector | on | sensitivity | PPV | sensitivity to V | worst record, F1 | offset | of V "
        "| 24 h: CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds = f"{row['cpu_seconds'] * 24 / row['hours']:.0f}"
        for which in SETS:
            found = row[which]
            lines.append(
                f"| {row['detector']} | {which} | {found['sensitivity']:.4f} | {found['ppv']:.4f} | "
                f"{found['sensitivity_of']['V']:.4f} | {found['worst_f1']:.3f} | "
                f"{found['offset_ms']:.0f} ms | {found['offset_ms_of_V']:.0f} ms | {seconds} |"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mitdb")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--hours", type=float, default=24.0, help="length of the timed recording")
    parser.add_argument("--only", help="names of detectors, with commas between")
    args = parser.parse_args(argv)
    rows = measure(args.data, args.only.split(",") if args.only else [*DETECTORS], args.hours)
    print(markdown(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
