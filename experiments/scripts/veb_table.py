"""Print the tables of docs/results/veb.md.

python experiments/scripts/veb_table.py [experiments/results/veb_aami.json]
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "veb_aami.json"
SHOWN = ("global", "zero-shot", "labels", "head", "full", "lora")


def fixed(value: float | None) -> str:
    """Return three digits, a dash where there is no figure."""
    return "–" if value is None else f"{value:.3f}"


def methods_table(results: dict) -> str:
    """Return a row per method."""
    lines = [
        "| method | sensitivity | PPV | F1 [95 %] | false V per hour | labels | refused | largest loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, figures in results["methods"].items():
        veb, harm = figures["veb"], results["harm"].get(name)
        low, high = veb["ci95"]["f1"]
        loss = f"{harm['largest_loss_of_f1']:.3f} ({harm['subject_id']})" if harm else "–"
        lines.append(
            f"| `{name}` | {fixed(veb['sensitivity'])} | {fixed(veb['ppv'])} | "
            f"{fixed(veb['f1'])} [{low:.3f}, {high:.3f}] | {figures['false_alarms_per_hour']:.1f} | "
            f"{figures['labels_p50']:g} | {figures['n_refused']} | {loss} |"
        )
    return "\n".join(lines)


def subjects_table(results: dict) -> str:
    """Return F1 by eligible subject and method; `global` is judged on the whole recording."""
    methods = [name for name in results["methods"] if name in SHOWN or name.startswith("active")]
    methods = [name for name in methods if not name.endswith("@later")]
    lines = [
        "| recording | V | " + " | ".join(f"`{name}`" for name in methods) + " |",
        "| --- | --- |" + " --- |" * len(methods),
    ]
    for subject_id in results["eligible"]:
        rows = [results["methods"][name]["subjects"][subject_id] for name in methods]
        records = ", ".join(rows[0]["records"])
        cells = " | ".join(fixed(row["f1"]) for row in rows)
        lines.append(f"| {records} | {rows[0]['n_va']} | {cells} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    arguments = sys.argv[1:] if argv is None else argv
    results = json.loads(Path(arguments[0] if arguments else RESULTS).read_text())
    print(methods_table(results), end="\n\n")
    print(subjects_table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
