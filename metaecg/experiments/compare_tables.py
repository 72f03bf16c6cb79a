"""The comparison in the terminal: a table, what it means, and the parameters that differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from metaecg.experiments.compare_result import WORDS

MISSING = "–"
MAX_PARAMETERS = 12
"""Rows of parameters that the terminal shows; the page and --json have all."""
MAX_VALUE = 40
WIDTH, NARROW = 120, 112
"""Columns where the output is no terminal, and below which the verdicts stand under the table."""


def print_comparison(comparison: Mapping[str, Any], *, width: int | None = None) -> None:
    """Print a comparison to standard output.

    Parameters
    ----------
    comparison
        From `compare_result.compare_rows`.
    width
        Columns; None: those of the terminal, else `WIDTH`.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if width or not console.is_terminal:
        console = Console(highlight=False, width=width or WIDTH)
    console.print(headline(comparison), markup=False)
    console.print()
    is_narrow = console.width < NARROW
    console.print(_table(comparison, is_narrow=is_narrow))
    for line in _verdicts(comparison) if is_narrow else ():
        console.print(line, markup=False)
    for line in explanations(comparison):
        console.print(line, markup=False)
    if comparison["parameters"]:
        console.print()
        console.print(_parameters(comparison["parameters"]))


def headline(comparison: Mapping[str, Any]) -> str:
    """Return the answer in a sentence or two."""
    metric = WORDS[comparison["metric"]]
    others = [row for row in comparison["rows"] if row["difference"]]
    if len(others) == 1:
        (row,) = others
        found = row["difference"]
        text = f"{row['label']} against {comparison['reference']}: {found['words']}."
        if found["ci95"]:
            text += f" {metric} {difference_text(found, comparison)}."
    else:
        counts = {
            verdict: sum(row["difference"]["verdict"] == verdict for row in others)
            for verdict in ("better", "worse", "no difference", "too few subjects")
        }
        words = {"no difference": "without a difference that can be shown"}
        parts = [f"{n} {words.get(verdict, verdict)}" for verdict, n in counts.items() if n]
        text = (
            f"{len(others)} rows against {comparison['reference']}, by {metric}: "
            f"{', '.join(parts)}."
        )
    return f"{judged_as(comparison)}\n{text}"


def judged_as(comparison: Mapping[str, Any]) -> str:
    """Return protocol, shots and databases, with the words that must travel with the figures."""
    words = [
        comparison["protocol"],
        f"{comparison['n_shots']} shots per class",
        ", ".join(comparison["databases"]),
    ]
    travelling = [comparison["data"] if comparison["data"] == "demo data" else None]
    travelling.append(comparison["caveat"])
    return ", ".join(words) + "".join(f" - {text}" for text in travelling if text)


def explanations(comparison: Mapping[str, Any]) -> list[str]:
    """Return what the figures are, and what must be known before they are believed."""
    metric = WORDS[comparison["metric"]]
    lower = "" if comparison["higher_is_better"] else " Lower is better."
    lines = [
        f"Difference: {metric} minus that of {comparison['reference']}, subject by subject; 95 % "
        f"interval of its mean, bootstrap over subjects ({comparison['n_resamples']} resamples), "
        "widened for few subjects. Verdict: sign-flip test of the differences, p below 0.05. Could "
        "show: half the interval's width, about the smallest difference that these subjects could "
        f"have shown.{lower}"
    ]
    lost = {row["label"]: row["difference"]["n_left_out"] for row in comparison["rows"][1:]}
    lines += [
        f"{label}: {n} subjects left out of the difference, their {metric} is undefined on one "
        "side."
        for label, n in lost.items()
        if n
    ]
    return lines + [f"Note: {note}" for note in comparison["notes"]]


def difference_text(difference: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """Return ``+0.002 [-0.010, +0.014]``."""
    digits = digits_of(comparison["metric"])
    if difference["mean"] is None:
        return MISSING
    mean = _signed(difference["mean"], digits)
    if not difference["ci95"]:
        return mean
    low, high = difference["ci95"]
    return f"{mean} [{_signed(low, digits)}, {_signed(high, digits)}]"


def figure_text(figure: Mapping[str, Any], metric: str) -> str:
    """Return ``0.965 [0.944, 0.982]``."""
    digits = digits_of(metric)
    if figure["mean"] is None:
        return MISSING
    text = f"{figure['mean']:.{digits}f}"
    if figure["ci95"]:
        text += f" [{figure['ci95'][0]:.{digits}f}, {figure['ci95'][1]:.{digits}f}]"
    return text


def digits_of(metric: str) -> int:
    """Return how many decimals a figure is given with."""
    return 1 if metric == "false_alarms_per_hour" else 3


def value_text(value: Any) -> str:
    """Return a parameter's value, shortened in its middle where it is long."""
    if value is None:
        return MISSING
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    keep = MAX_VALUE // 2
    return text if len(text) <= MAX_VALUE else f"{text[: keep - 1]}…{text[-keep:]}"


def columns_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return the figures that have a column, the compared one among them."""
    return list(dict.fromkeys(("auc", "f1", comparison["metric"])))


def _signed(value: float, digits: int) -> str:
    return f"{value + 0.0:+.{digits}f}".replace("-0." + "0" * digits, "+0." + "0" * digits)


def _verdicts(comparison: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in comparison["rows"][1:]:
        _, could_show, words = _difference_cells(row, comparison)
        lines.append(f"{row['label']}: {words} (could show {could_show})")
    return lines


def _table(comparison: Mapping[str, Any], *, is_narrow: bool):
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rows = comparison["rows"]
    several = len({row["run"] for row in rows}) > 1
    names = ["run"] * several + ["method"]
    with_interval = () if is_narrow else ("auc", comparison["metric"])
    for name in names:
        table.add_column(name, overflow="fold")
    table.add_column("n", justify="right")
    if not is_narrow:
        table.add_column("seeds", justify="right")
    for name in columns_of(comparison):
        suffix = ", mean [95 %]" if name in with_interval else ""
        table.add_column(WORDS[name] + suffix, no_wrap=True)
    table.add_column("difference [95 %]", no_wrap=True)
    if not is_narrow:
        table.add_column("could show", justify="right", no_wrap=True)
        table.add_column("verdict")
    for row in rows:
        cells = [row[name] for name in names] + [str(row["n_subjects"])]
        cells += [] if is_narrow else [str(len(row["seeds"]))]
        cells += [_cell(row, name, name in with_interval) for name in columns_of(comparison)]
        difference = _difference_cells(row, comparison)
        table.add_row(*map(Text, cells + (difference[:1] if is_narrow else difference)))
    return table


def _cell(row: Mapping[str, Any], name: str, with_interval: bool) -> str:
    figure = row["figures"][name]
    return figure_text(figure if with_interval else {**figure, "ci95": None}, name)


def _difference_cells(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[str]:
    found = row["difference"]
    if found is None:
        return [MISSING, MISSING, "the reference"]
    width = found["half_width"]
    shown = MISSING if width is None else f"±{width:.{digits_of(comparison['metric'])}f}"
    return [difference_text(found, comparison), shown, found["words"]]


def _parameters(parameters: Mapping[str, Mapping[str, Any]]):
    from rich.table import Table
    from rich.text import Text

    runs: Sequence[str] = list(next(iter(parameters.values())))
    more = len(parameters) - MAX_PARAMETERS
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("what differs", overflow="fold")
    for run in runs:
        table.add_column(Text(run), overflow="fold")
    for name, values in list(parameters.items())[:MAX_PARAMETERS]:
        table.add_row(*map(Text, [name, *(value_text(values[run]) for run in runs)]))
    if more > 0:
        table.add_row(f"… and {more} more", *[""] * len(runs))
    return table
