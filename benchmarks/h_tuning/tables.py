"""The rows as two tables: for the terminal (rich) and for the pages (Markdown)."""

from collections.abc import Sequence

TRAINING = ("method", "at once", "trained", "peak GiB", "published", "s")
INFERENCE = ("network", "size", "leads", "at once", "parameters", "peak MiB", "ms")
NAMES = ("method", "network", "size")
"""Columns of words; the others hold numbers."""


def tables(rows: Sequence[dict]) -> list[list[tuple[str, ...]]]:
    """Return the cells of each table, its head first; a table without lines is left out."""
    training = [_training(row) for row in rows if row.get("part") == "training"]
    inference = [_inference(row) for row in rows if row.get("part") == "inference"]
    both = ([TRAINING, *training], [INFERENCE, *inference])
    return [table for table in both if len(table) > 1]


def markdown(rows: Sequence[dict]) -> str:
    """Return the tables for a page; names to the left, numbers to the right."""
    texts = []
    for head, *lines in tables(rows):
        rule = ["---" if name in NAMES else "---:" for name in head]
        texts.append("\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines]))
    return "\n\n".join(texts)


def show(rows: Sequence[dict]) -> None:
    """Print the tables and the ratios on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for head, *lines in tables(rows):
        table = Table(box=None)
        for name in head:
            table.add_column(name, justify="left" if name in NAMES else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table, "")
    for name, value in rows[-1].items():
        if "ratio" in name:
            console.print(f"{name}: {_or_dash(value, '.2f')}")


def _training(row: dict) -> tuple[str, ...]:
    return (
        row["method"],
        str(row["at_once"] or row["batch"]),
        f"{row['trained']:,}",
        f"{row['peak_bytes'] / 2**30:.3f}",
        _or_dash(row["published_gib"], ".2f"),
        _or_dash(row["seconds"], ".1f"),
    )


def _inference(row: dict) -> tuple[str, ...]:
    ms = None if row["seconds"] is None else 1e3 * row["seconds"]
    return (
        row["network"],
        row["size"],
        str(row["leads"]),
        str(row["batch"]),
        f"{row['parameters']:,}",
        f"{row['peak_bytes'] / 2**20:.2f}",
        _or_dash(ms, ".2f"),
    )


def _or_dash(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)
