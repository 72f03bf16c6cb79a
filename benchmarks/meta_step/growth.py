"""What is varied to see the cost grow, and how that is drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .cases import Case

VARIED = {
    "n_tasks": (4, 8, 16, 32),
    "inner_steps": (1, 3, 5, 10),
    "parameters": (16, 32, 64),
    "task_chunk": (1, 2, 4, 8, 16),
}
"""Field to its values, the others as in the comparison of engines; parameters by the width."""
LABELS = {
    "n_tasks": "tasks in the meta-batch",
    "inner_steps": "inner steps",
    "parameters": "parameters",
    "task_chunk": "task_chunk (of 16 tasks)",
}
COLOURS = {"learn2learn": "#d07a1f", "func": "#3f86cf"}
GREY = "#808080"  # as far from white as from a dark page


def growth_cases(base: Case, engines: Sequence[str]) -> Iterator[tuple[str, Case]]:
    """Yield (field that varies, case): every value of `VARIED` for every engine."""
    for field, values in VARIED.items():
        name = "width" if field == "parameters" else field
        for value in values:
            for engine in engines:
                yield field, replace(base, engine=engine, **{name: value})


def draw(rows: Sequence[dict], file: Path) -> None:
    """Draw time and memory against everything that was varied, as an SVG without background."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    grey = {f"{part}.color": GREY for part in ("text", "xtick", "ytick", "grid")}
    grey |= {"axes.edgecolor": GREY, "axes.labelcolor": GREY, "font.size": 9}
    with rc_context({**grey, "svg.fonttype": "none", "svg.hashsalt": "metaecg"}):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        axes = figure.subplots(2, len(VARIED), sharey="row", sharex="col")
        for column, field in enumerate(VARIED):
            _panel(axes[0][column], rows, field, "seconds", 1)
            _panel(axes[1][column], rows, field, "peak_bytes", 2**20)
            axes[1][column].set_xlabel(LABELS[field])
        axes[0][0].set_ylabel("seconds a meta-step")
        axes[1][0].set_ylabel("MiB at the peak")
        axes[0][0].legend(frameon=False)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})


def _panel(axes, rows: Sequence[dict], field: str, what: str, unit: float) -> None:
    from matplotlib.ticker import LogLocator

    values = sorted({row["value"] for row in rows if row.get("varied") == field})
    for engine, colour in COLOURS.items():
        line = [r for r in rows if r.get("varied") == field and r["engine"] == engine]
        heights = [row[what] / unit for row in line]
        axes.plot([r["value"] for r in line], heights, "o-", color=colour, label=engine, ms=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, [f"{v / 1000:.0f} k" if v >= 1000 else str(v) for v in values])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda height, _: f"{height:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
