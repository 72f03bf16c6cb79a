"""Print the table of methods of a results.json as Markdown, as README and docs show it.

python experiments/scripts/results_table.py experiments/results/va_fewshot.json [--differences]
"""

import argparse
import json
from pathlib import Path


def methods_table(results: dict) -> str:
    """Return a row per method: AUC and F1 over subjects, pooled, episodes found, false windows per hour."""
    lines = [
        "| method | AUC, mean [95 %] | std | worst | F1 | pooled AUC | pooled F1 | episodes found | false/h |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, figures in results["methods"].items():
        auc, f1, pooled = figures["subject_auc"], figures["subject_f1"], figures["pooled"]
        low, high = auc["ci95"]
        lines.append(
            f"| `{name}` | {auc['mean']:.3f} [{low:.3f}, {high:.3f}] | {auc['std']:.3f} | "
            f"{auc['worst']:.3f} | {f1['mean']:.3f} | {pooled['auc']:.3f} | {pooled['f1']:.3f} | "
            f"{figures['episode_sensitivity']:.2f} | {figures['false_alarms_per_hour']:.0f} |"
        )
    return "\n".join(lines)


def differences_table(results: dict) -> str:
    """Return a row per method: its paired difference to the reference, with interval."""
    lines = [
        f"| method | AUC against `{results['difference_to']}` | F1 |",
        "| --- | --- | --- |",
    ]
    for name, row in results["differences"].items():
        if name != results["difference_to"]:
            cells = [
                f"{row[key]['mean']:+.3f} [{row[key]['ci95'][0]:+.3f}, {row[key]['ci95'][1]:+.3f}]"
                for key in ("auc", "f1")
            ]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--differences", action="store_true")
    arguments = parser.parse_args()
    results = json.loads(arguments.file.read_text())
    print(differences_table(results) if arguments.differences else methods_table(results))


if __name__ == "__main__":
    main()
