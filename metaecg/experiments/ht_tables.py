"""The results of `h_tuning` in words and tables, for people."""

from metaecg.experiments.ht_distill import DISTILLATION

YARDSTICK = "h-tuning"
"""The method whose memory and time the others are held against."""

SHOWN = {"macro_auc": "AUC", "mean_ap": "mAP", "macro_f2": "F2", "macro_g2": "G2"}


def summary_table(results: dict) -> str:
    """Return the tables as Markdown, one per task, with what has to be known to read them."""
    blocks = [results["pretraining"]["statement"]]
    for name, task in results["tasks"].items():
        blocks.append(f"## {name}\n\n{_about(task)}")
        blocks += [f"Note: {note}" for note in task["notes"]]
        blocks.append(_table(task))
        blocks += task["verdicts"]
        if DISTILLATION in task:
            blocks.append(_distillation_table(task[DISTILLATION]))
    return "\n\n".join(blocks) + "\n"


def verdicts(methods: dict) -> list[str]:
    """Say which method is best within the memory, and within the time, of H-Tuning.

    By mean macro AUC on the test: it describes, nothing is chosen by it.
    """
    if YARDSTICK not in methods:
        return []
    limits = {
        "peak_bytes": ("memory of a step", lambda v: f"{v / 2**20:.1f} MiB"),
        "step_seconds": ("time of a step", lambda v: f"{1000 * v:.1f} ms"),
        "train_seconds": ("time of the training", lambda v: f"{v:.1f} s"),
    }
    found = []
    for key, (what, shown) in limits.items():
        limit = methods[YARDSTICK][key]
        within = {
            name: figures["macro_auc"]["mean"]
            for name, figures in methods.items()
            if figures[key] <= limit and figures["macro_auc"]["mean"] is not None
        }
        if within:
            best = max(within, key=within.get)
            found.append(
                f"Best within the {what} of {YARDSTICK} ({shown(limit)}): {best}, macro AUC "
                f"{within[best]:.3f}, out of {', '.join(within)}."
            )
    return found


def _about(task: dict) -> str:
    sides = list(task["sides"].values())
    shown = "/".join(str(sides[0][side]) for side in ("train", "validation", "test"))
    return (
        f"{task['n_records']} records of {task['n_patients']} patients, {len(task['classes'])} "
        f"classes; {shown} records train, validate and test; {len(sides)} seed(s)."
    )


def _table(task: dict) -> str:
    names = [*SHOWN.values(), "AUC - full [95 %]", "MiB", "ms/step", "parameters"]
    rows = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, figures in task["methods"].items():
        cells = [_shown(figures[key]["mean"]) for key in SHOWN]
        cells.append(_shown_difference(figures.get("difference", {}).get("macro_auc")))
        cells += [f"{figures['peak_bytes'] / 2**20:.1f}", f"{1000 * figures['step_seconds']:.1f}"]
        cells.append(f"{figures['trainable_parameters']:,}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _distillation_table(found: dict) -> str:
    """Return teacher and students beside each other; time and memory are of one recording."""
    shown = ["macro_auc", "mean_ap", "macro_f2"]
    names = [*(SHOWN[key] for key in shown), "AUC - teacher [95 %]", "AUC - labels only [95 %]"]
    names += ["parameters", "MiB", "ms"]
    rows = [f"| network | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, figures in found["networks"].items():
        cells = [_shown(figures[key]["mean"]) for key in shown]
        for key in ("difference", "difference_to_labels_only"):
            cells.append(_shown_difference(figures.get(key, {}).get("macro_auc")))
        cells += [f"{figures['parameters']:,}", f"{figures['answer_bytes'] / 2**20:.2f}"]
        cells.append(f"{1000 * figures['answer_seconds']:.2f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    described = (f"{name}: {figures['description']}" for name, figures in found["networks"].items())
    return "\n".join(rows) + "\n\n" + "\n".join(f"- {text}" for text in described)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _shown_difference(difference: dict | None) -> str:
    if difference is None or difference["mean"] is None or difference["ci95"] is None:
        return "-"
    low, high = difference["ci95"]
    return f"{difference['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
