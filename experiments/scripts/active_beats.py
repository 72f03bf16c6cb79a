"""How many beats a person has to label until ten ventricular ones are among them; DS1 only.

    python experiments/scripts/active_beats.py --data DIR [--json FILE] [--cache DIR]

For every record of DS1 with at least ten V beats: in the order of time; at random (the exact mean
over all orders); as `metaecg.tasks.active.ActiveLabeller` asks, one beat at a time, told the
annotated class. Every label counts. The pool is the whole record. `n_clusters` other than the
default shows how much hangs on it. The labeller's settings were chosen on these records. Of DS2
only 202 is prepared (one person with 201), and not looked at.
"""

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path

import numpy as np

from metaecg.data.beats import BeatSet, prepare_beats
from metaecg.data.labels import DS1
from metaecg.tasks.active import N_CLUSTERS, ActiveLabeller, beat_features

N_WANTED = 10
OTHER_N_CLUSTERS = (4, 10)


def in_time(letters: np.ndarray) -> int:
    """Return how many beats come until ten V have come."""
    return int(np.flatnonzero(letters == "V")[N_WANTED - 1]) + 1


def at_random(letters: np.ndarray) -> float:
    """Return the mean over all orders: that of the negative hypergeometric distribution."""
    return N_WANTED * (len(letters) + 1) / ((letters == "V").sum() + 1)


def actively(features: np.ndarray, letters: np.ndarray, n_clusters: int) -> Counter:
    """Return the classes of the beats that were asked for until ten V were among them."""
    labeller = ActiveLabeller(features, n_per_class=N_WANTED, n_clusters=n_clusters)
    while Counter(labeller.labels.values())["V"] < N_WANTED:
        asked = labeller.next()
        labeller.tell(asked, letters[asked].tolist())
    return Counter(labeller.labels.values())


def measure_record(beats: BeatSet) -> dict:
    """Return one row."""
    letters, features = beats.letters, beat_features(beats)
    found = actively(features, letters, N_CLUSTERS)
    return {
        "n_beats": len(beats),
        "n_V": int((letters == "V").sum()),
        "in_time": in_time(letters),
        "at_random": round(float(at_random(letters)), 1),
        "actively": found.total(),
        "asked": dict(sorted(found.items())),
        "other_n_clusters": {
            str(n): actively(features, letters, n).total() for n in OTHER_N_CLUSTERS
        },
    }


def measure(root: Path, cache_root: Path | None) -> dict[str, dict]:
    """Return one row per record of DS1 with at least ten V beats."""
    # 201 of DS1 brings 202 of DS2, the same person, which is not looked at below.
    data = prepare_beats(
        root, ["mitdb"], only=[f"mitdb/{name}" for name in DS1], cache_root=cache_root
    )
    rows = {}
    for name in DS1:
        beats = data.windows.select(np.flatnonzero(data.windows.record_ids == f"mitdb/{name}"))
        if beats.count("V") >= N_WANTED:
            rows[name] = measure_record(beats)
    return rows


def markdown(rows: dict[str, dict]) -> str:
    """Return the rows and their medians as the table of docs/beats.md."""
    lines = [
        "| record | beats | V | in time | at random | actively | asked for |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ways = ("in_time", "at_random", "actively")
    for name, row in rows.items():
        asked = " ".join(f"{n} {kind}" for kind, n in row["asked"].items())
        labels = " | ".join(f"{row[way]:.0f}" for way in ways)
        lines.append(f"| {name} | {row['n_beats']} | {row['n_V']} | {labels} | {asked} |")
    medians = (statistics.median(row[way] for row in rows.values()) for way in ways)
    middle = " | ".join(f"{median:.0f}" for median in medians)
    return "\n".join([*lines, f"| median | | | {middle} | |"])


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mitdb")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--cache", type=Path, help="where prepared beats are kept")
    args = parser.parse_args(argv)
    rows = measure(args.data, args.cache)
    print(markdown(rows))
    for n in OTHER_N_CLUSTERS:
        found = [row["other_n_clusters"][str(n)] for row in rows.values()]
        print(f"{n} clusters: median {statistics.median(found):.0f}, most {max(found)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
