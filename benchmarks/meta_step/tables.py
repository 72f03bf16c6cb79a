"""The rows as tables: cells once, for the terminal (rich) and for the pages (Markdown)."""

from collections.abc import Sequence

HEAD = ("engine", "order", "parameters", "s", "times as fast", "peak MiB", "of matmul rate")
NAMES = ("engine", "order", "varied")
"""Columns of words; the others hold numbers."""


def cells(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    """Return the head and the lines, the summary left out.

    One line for every row; where the work grows, one for every value, the engines side by side.
    """
    rows = [row for row in rows if "engine" in row]
    if any("varied" in row for row in rows):
        return _side_by_side(rows)
    return [HEAD, *map(_line, rows)]


def markdown(rows: Sequence[dict]) -> str:
    """Return the table for a page; names to the left, numbers to the right."""
    head, *lines = cells(rows)
    rule = ["---" if name in NAMES else "---:" for name in head]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def show(rows: Sequence[dict]) -> None:
    """Print the table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    head, *lines = cells(rows)
    table = Table(box=None)
    for name in head:
        table.add_column(name, justify="left" if name in NAMES else "right")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def _line(row: dict) -> tuple[str, ...]:
    ratio, share = row["ratio_to_learn2learn"], row["share_of_matmul_peak"]
    return (
        row["engine"],
        row["order"],
        f"{row['parameters']:,}",
        _seconds(row),
        "-" if ratio is None else f"{ratio:.2f}",
        _mib(row),
        f"{share:.1%}",
    )


def _side_by_side(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    points: dict[tuple, list[dict]] = {}
    for row in rows:
        points.setdefault((row["varied"], f"{row['value']:,}"), []).append(row)
    columns = [f"{name} {unit}" for unit in ("s", "MiB") for name in engines]
    lines = [
        (*point, *map(_seconds, same_work), *map(_mib, same_work))
        for point, same_work in points.items()
    ]
    return [("varied", "value", *columns), *lines]


def _seconds(row: dict) -> str:
    return f"{row['seconds']:.3f}"


def _mib(row: dict) -> str:
    return f"{row['peak_bytes'] / 2**20:.0f}"
