"""Write a comparison as one HTML file that opens anywhere, without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaecg.evaluate.report import picture
from metaecg.experiments.compare_plots import (
    course_figure,
    forest_figure,
    importance_figure,
    scatter_figure,
)
from metaecg.experiments.compare_result import WORDS
from metaecg.experiments.compare_tables import (
    MISSING,
    columns_of,
    difference_text,
    digits_of,
    explanations,
    figure_text,
    headline,
)
from metaecg.experiments.provenance import write_text


def write_page(path: str | Path, comparison: Mapping[str, Any]) -> Path:
    """Write the page of a comparison; a reader never sees half a file.

    Demo data and the protocol's caveat are named at every table and inside every picture, so that
    neither can be cut out without the words. Text from the runs is escaped.

    Parameters
    ----------
    path
        The HTML file; replaced when it exists, its folder is made when missing.
    comparison
        From `compare.compare`.

    Returns
    -------
    Path
        `path`.
    """
    path = Path(path)
    write_text(path, render_page(comparison))
    return path


def render_page(comparison: Mapping[str, Any]) -> str:
    """Return the page of `write_page` as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tags = _tags(comparison)
    others = [row for row in comparison["rows"] if row["difference"]]
    shown = [row for row in others if row["difference"]["n"]]
    note = ", ".join(tags)
    judged, answer = headline(comparison).split("\n", 1)
    return pages.get_template("compare.html").render(
        title=f"{comparison['reference']} and {_what(others)}",
        tags=tags,
        is_demo=comparison["data"] == "demo data",
        caveat=comparison["caveat"],
        judged=judged,
        answer=answer,
        explanations=explanations(comparison),
        metric=WORDS[comparison["metric"]],
        table=_table(comparison),
        forest=picture(forest_figure(comparison, note=note)),
        scatters=[
            {"name": row["label"], **picture(scatter_figure(comparison, row, note=note))}
            for row in shown
        ],
        subjects=_subjects(comparison),
        labels=[row["label"] for row in comparison["rows"]],
        parameters=_parameters(comparison["parameters"]),
        runs=list(next(iter(comparison["parameters"].values()), {})),
        descriptions=_descriptions(comparison),
        studies=[_study(study) for study in comparison["studies"]],
        plotly_js=Markup(get_plotlyjs()),
    )


def _what(others: list) -> str:
    return others[0]["label"] if len(others) == 1 else f"{len(others)} others"


def _tags(comparison: Mapping[str, Any]) -> list[str]:
    demo = ["demo data"] if comparison["data"] == "demo data" else []
    return demo + ([comparison["caveat"]] if comparison["caveat"] else [])


def _table(comparison: Mapping[str, Any]) -> dict[str, Any]:
    metric = comparison["metric"]
    columns = columns_of(comparison)
    rows = []
    for row in comparison["rows"]:
        found = row["difference"]
        width = found["half_width"] if found else None
        rows.append(
            {
                "label": row["label"],
                "facts": [row["run"], row["method"]],
                "cells": [
                    str(row["n_subjects"]),
                    ", ".join(map(str, row["seeds"])),
                    *(figure_text(row["figures"][name], name) for name in columns),
                    difference_text(found, comparison) if found else MISSING,
                    MISSING if width is None else f"±{width:.{digits_of(metric)}f}",
                ],
                "verdict": found["verdict"] if found else "reference",
                "words": found["words"] if found else "the reference",
            }
        )
    titles = ["subjects", "seeds", *(f"{WORDS[name]}, mean [95 %]" for name in columns)]
    return {"titles": [*titles, "difference [95 %]", "could show"], "rows": rows}


def _subjects(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line per subject, the greatest loss of the first row against the reference first."""
    digits, rows = digits_of(comparison["metric"]), comparison["rows"]
    sign = 1 if comparison["higher_is_better"] else -1

    def change(subject: str) -> float:
        a, b = (row["subjects"].get(subject) for row in (rows[0], rows[1]))
        return 0.0 if None in (a, b) else sign * (b - a)

    lines = []
    for subject in sorted(rows[0]["subjects"], key=lambda subject: (change(subject), subject)):
        values = [row["subjects"].get(subject) for row in rows]
        cells = [MISSING if value is None else f"{value:.{digits}f}" for value in values]
        lines.append({"subject": subject, "cells": cells})
    return lines


def _parameters(parameters: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "cells": [_whole(value) for value in values.values()]}
        for name, values in parameters.items()
    ]


def _whole(value: Any) -> str:
    if value is None:
        return MISSING
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _descriptions(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (row["label"], f"{row['description'] or row['method']} (from {row['source']})")
        for row in comparison["rows"]
    ]


def _study(study: Mapping[str, Any]) -> dict[str, Any]:
    states = ", ".join(f"{n} {state}" for state, n in sorted(study["states"].items()))
    return {
        "name": study["study"],
        "source": study["source"],
        "states": states or "none",
        "course": picture(course_figure(study)) if study["course"] else None,
        "importance": picture(importance_figure(study)) if study["importance"] else None,
        "importance_note": study["importance_note"],
        "is_multi_objective": len(study["directions"]) > 1,
    }
