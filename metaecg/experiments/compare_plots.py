"""The page's pictures: differences with intervals, subject against subject, a study's course.

Colours are mid tones that read on light and on dark paper; what must follow the page (ink, grid)
is left to the page. Text that came from data is escaped, since Plotly reads a little HTML.
"""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaecg.evaluate.figures import BEFORE, BETTER, INK, WORSE
from metaecg.experiments.compare_result import WORDS
from metaecg.experiments.compare_tables import difference_text, digits_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_LABEL = 34
MAX_BARS = 15
"""Parameters whose importance is drawn."""
_LEGEND = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0}
"""Under the picture: on a narrow page it takes two lines and would cover the title."""
_MARGIN = {"l": 60, "r": 20, "t": 80, "b": 105}
_COLOURS = {"better": BETTER, "worse": WORSE}


def forest_figure(comparison: Mapping[str, Any], *, note: str = "") -> "go.Figure":
    """Draw each row's difference to the reference with its interval, the first at the top.

    Parameters
    ----------
    comparison
        From `compare_result.compare_rows`.
    note
        Words that must travel with the picture, such as "demo data".
    """
    rows = [row for row in comparison["rows"] if row["difference"] and row["difference"]["ci95"]]
    metric, reference = WORDS[comparison["metric"]], comparison["reference"]
    figure = _figure(f"{metric}: difference to {reference}", note)
    for verdict in ("better", "worse", "no difference", "too few subjects"):
        mine = [place for place, row in enumerate(rows) if row["difference"]["verdict"] == verdict]
        if mine:
            _add_intervals(figure, rows, mine, verdict, comparison)
    figure.add_vline(x=0, line={"color": BEFORE, "width": 1.5, "dash": "dot"})
    figure.update_layout(
        height=220 + 34 * max(len(rows), 2),
        xaxis={"title": {"text": f"{metric} minus that of the reference"}, "zeroline": False},
        yaxis={
            "tickvals": list(range(len(rows))),  # places, not names: two may be shortened alike
            "ticktext": [_short(row["label"]) for row in rows],
            "automargin": True,
            "range": [len(rows) - 0.3, -0.7],
            "zeroline": False,
        },
        showlegend=True,
        legend=_LEGEND,
        margin=_MARGIN,
    )
    return figure


def scatter_figure(
    comparison: Mapping[str, Any], row: Mapping[str, Any], *, note: str = ""
) -> "go.Figure":
    """Draw every subject's figure, the reference's across and the row's up, with the diagonal.

    Subjects whose figure is undefined on either side are left out.
    """
    metric, reference = WORDS[comparison["metric"]], comparison["rows"][0]
    pairs = {
        subject: (reference["subjects"][subject], value)
        for subject, value in row["subjects"].items()
        if value is not None and reference["subjects"][subject] is not None
    }
    figure = _figure(f"{metric} of each subject: {row['label']}", note)
    low, high = _limits([value for pair in pairs.values() for value in pair], comparison["metric"])
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        mode="lines",
        line={"color": BEFORE, "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    up_is_better = comparison["higher_is_better"]
    for name, sign in (("better", 1), ("worse", -1), ("equal", 0)):
        towards = sign if up_is_better else -sign
        mine = [s for s, (x, y) in pairs.items() if (y > x) - (y < x) == towards]
        _add_subjects(figure, pairs, mine, name, digits_of(comparison["metric"]))
    figure.update_layout(
        height=660,
        xaxis={"title": {"text": _short(reference["label"])}, "range": [low, high], "zeroline": False},
        yaxis={"title": {"text": _short(row["label"]), "standoff": 8}, "automargin": True,
               "range": [low, high], "zeroline": False},
        legend=_LEGEND,
        margin=_MARGIN,
    )  # fmt: skip
    return figure


def course_figure(study: Mapping[str, Any]) -> "go.Figure":
    """Draw the value of each complete trial and the best until then."""
    course = study["course"]
    name = study["objective"][0] if study["objective"] else "value"
    figure = _figure(f"{study['study']}: {name} on meta-validation subjects")
    numbers = [each["number"] for each in course]
    figure.add_scatter(
        x=numbers,
        y=[each["value"] for each in course],
        mode="markers",
        marker={"color": BEFORE, "size": 7},
        name="a trial",
        hovertemplate="trial %{x}: %{y:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=numbers,
        y=[each["best"] for each in course],
        mode="lines",
        line={"color": BETTER, "width": 3, "shape": "hv"},
        name="best so far",
        hovertemplate="best after trial %{x}: %{y:.4f}<extra></extra>",
    )
    figure.update_layout(
        height=440,
        xaxis={"title": {"text": "trial"}, "zeroline": False, "tickformat": "d"},
        yaxis={
            "title": {"text": html.escape(name), "standoff": 8},
            "automargin": True,
            "zeroline": False,
        },
        legend=_LEGEND,
        margin=_MARGIN,
    )
    return figure


def importance_figure(study: Mapping[str, Any]) -> "go.Figure":
    """Draw how much each parameter mattered, the most important at the top."""
    found = sorted(study["importance"].items(), key=lambda item: item[1])[-MAX_BARS:]
    figure = _figure(f"{study['study']}: importance of the parameters")
    figure.add_bar(
        x=[share for _, share in found],
        y=[_short(name) for name, _ in found],
        orientation="h",
        marker={"color": BETTER},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_layout(
        height=160 + 26 * max(len(found), 3),
        xaxis={"title": {"text": "share"}, "tickformat": ".0%"},
        yaxis={"automargin": True},
        showlegend=False,
    )
    return figure


def _figure(title: str, note: str = "") -> "go.Figure":
    import plotly.graph_objects as go

    words = html.escape(title) + (f"<br><b>{html.escape(note)}</b>" if note else "")
    figure = go.Figure()
    figure.update_layout(
        template="none",
        title={"text": words, "x": 0, "xref": "container", "pad": {"l": 8}, "font": {"size": 15}},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 95, "b": 60},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": BEFORE, "activecolor": BETTER},
    )
    return figure


def _add_intervals(
    figure: "go.Figure",
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[int],
    verdict: str,
    comparison: Mapping[str, Any],
) -> None:
    found = [rows[place]["difference"] for place in places]
    colour = _COLOURS.get(verdict)
    figure.add_scatter(
        x=[each["mean"] for each in found],
        y=list(places),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [each["ci95"][1] - each["mean"] for each in found],
            "arrayminus": [each["mean"] - each["ci95"][0] for each in found],
            "thickness": 2.5,
            "width": 6,
        }
        | ({"color": colour} if colour else {}),
        mode="markers",
        marker={"size": 11} | ({"color": colour} if colour else {}),
        meta=None if colour else INK,
        name=verdict,
        customdata=[
            [
                html.escape(rows[place]["label"]),
                difference_text(each, comparison),
                html.escape(each["words"]),
            ]
            for place, each in zip(places, found, strict=True)
        ],
        hovertemplate="%{customdata[0]}: %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
    )


def _add_subjects(
    figure: "go.Figure",
    pairs: Mapping[str, tuple[float, float]],
    subjects: Sequence[str],
    name: str,
    digits: int,
) -> None:
    if not subjects:
        return
    marker: dict[str, Any] = {"size": 10, "opacity": 0.85}
    marker |= {"color": _COLOURS[name]} if name in _COLOURS else {"color": BEFORE}
    figure.add_scatter(
        x=[pairs[subject][0] for subject in subjects],
        y=[pairs[subject][1] for subject in subjects],
        mode="markers",
        marker=marker,
        name=f"{name} ({len(subjects)})",
        text=[html.escape(subject) for subject in subjects],
        hovertemplate=f"%{{text}}: %{{x:.{digits}f}} → %{{y:.{digits}f}}<extra></extra>",
    )


def _limits(values: Sequence[float], metric: str) -> tuple[float, float]:
    """Return the ends of both axes: the values and a little air, the same for x and y."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = max((high - low) * 0.06, 1.0 if metric == "false_alarms_per_hour" else 0.01)
    return low - air, high + air


def _short(text: str) -> str:
    keep = MAX_LABEL // 2
    text = text if len(text) <= MAX_LABEL else f"{text[: keep - 1]}…{text[-keep:]}"
    return html.escape(text)
