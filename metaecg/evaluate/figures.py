"""The report's Plotly figures: subjects before and after, the curriculum, ECG strips.

Colours are mid tones that read on light and on dark paper; what must follow the page (ink, grid)
is left to the page. Text that came from data is escaped, since Plotly reads a little HTML.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metaecg.errors import DataError

if TYPE_CHECKING:
    import plotly.graph_objects as go

BETTER, WORSE, BEFORE = "#2f7fc1", "#d9722b", "#8a9099"
VA, SUPPORT, DETECTOR = "#d1495b", "#2a9d8f", "#7b5fc7"
INK = "ink"
"""The `meta` of a trace that the page draws in its text colour."""

MAX_COLUMNS = 300
"""Iterations drawn one by one; more are summed in groups, or a column is thinner than a pixel."""


def change_figure(
    before: Mapping[str, Mapping[str, Any]] | None,
    after: Mapping[str, Mapping[str, Any]],
    *,
    before_name: str,
    after_name: str,
    note: str = "",
) -> "go.Figure":
    """Draw AUC and F1 of every subject before and after adaptation, the worst at the top.

    Subjects whose figure is undefined (None) after adaptation have no row in that panel.

    Parameters
    ----------
    before, after
        subject_id -> ``{"auc": float | None, "f1": float | None}``; `before` None: dots alone, as for
        subjects whose ``n_va`` or ``n_other`` differ, who were judged on other windows or beats.
    before_name, after_name
        Names of the two methods.
    note
        Words that must travel with the picture, such as "demo data".
    """
    before = {s: row for s, row in (before or {}).items() if _is_same_test(row, after.get(s, {}))}
    figure = _figure(_title(f"{before_name} → {after_name}" if before else after_name, note))
    subjects = sorted(after, key=lambda key: _worst_first(after[key].get("auc")), reverse=True)
    for panel, name in enumerate(("auc", "f1"), start=1):
        _add_change_panel(figure, panel, name, subjects, before, after)
    names = [html.escape(subject) for subject in subjects]
    axis = {"categoryorder": "array", "categoryarray": names, "automargin": True}
    figure.update_layout(
        height=185 + 22 * max(len(subjects), 3),
        xaxis={"domain": [0.0, 0.48], "title": {"text": "AUC"}, "anchor": "y"},
        xaxis2={"domain": [0.52, 1.0], "title": {"text": "F1"}, "anchor": "y"},
        yaxis=axis,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )
    return figure


def curriculum_figure(curriculum: Mapping[str, Any], *, note: str = "") -> "go.Figure":
    """Draw which subject was drawn at which iteration, the easiest subject at the bottom.

    Parameters
    ----------
    curriculum
        ``subjects`` (names), ``difficulty`` (one number per subject, higher is harder),
        ``draws`` (per iteration the indices into ``subjects``) and, optionally, ``title``.
    note
        Words that must travel with the picture.

    Raises
    ------
    DataError
        If the subjects and their difficulties differ in number, or a draw names no subject.
    """
    subjects, difficulty = list(curriculum["subjects"]), np.array(curriculum["difficulty"], float)
    if len(difficulty) != len(subjects):
        raise DataError(
            f"curriculum has {len(subjects)} subjects and {len(difficulty)} difficulties; expected "
            "one difficulty per subject."
        )
    counts = _draw_counts(curriculum["draws"], len(subjects))
    counts, per_column = _grouped(counts)
    order = np.argsort(difficulty, kind="stable")
    names = [html.escape(str(subjects[index])) for index in order]
    figure = _figure(_title(str(curriculum.get("title", "curriculum")), note))
    figure.add_heatmap(
        z=np.where(counts[order] > 0, counts[order], np.nan),
        x=np.arange(counts.shape[1]) * per_column,
        y=names,
        customdata=np.repeat(difficulty[order, None], counts.shape[1], axis=1).round(4),
        colorscale=[[0, "#7fb4dc"], [1, "#1b4f7d"]],
        colorbar={
            "title": {"text": "times<br>drawn"},
            "thickness": 12,
            "tickformat": "d",
            "nticks": 5,
        },
        hoverongaps=False,
        hovertemplate="%{y}, iteration %{x}: drawn %{z} times, difficulty %{customdata}"
        "<extra></extra>",
    )
    unit = "iteration" if per_column == 1 else f"iteration (columns of {per_column})"
    figure.update_layout(
        height=185 + 14 * max(len(subjects), 8),
        xaxis={"title": {"text": unit}},
        yaxis={
            "title": {"text": "easy → hard", "standoff": 12},
            "automargin": True,
            "type": "category",
            "dtick": 1 if len(subjects) <= 60 else math.ceil(len(subjects) / 60),
            "tickfont": {"size": 10},
        },
    )
    return figure


def strip_figure(strip: Mapping[str, Any], *, note: str = "") -> "go.Figure":
    """Draw an ECG strip over the detector's probability for each of its windows.

    Parameters
    ----------
    strip
        ``signal_mv`` (n_samples,) from ``start_s`` at ``fs_hz``; per window ``window_start_s``
        (seconds within the recording, as ``start_s``), ``probability``, ``label`` (1 for va) and
        ``is_support``; ``window_s``, ``threshold``, ``subject_id``, ``record_id``, ``method``.
    note
        Words that must travel with the picture.
    """
    signal_mv = np.asarray(strip["signal_mv"], dtype=np.float32)
    time_s = strip["start_s"] + np.arange(len(signal_mv)) / strip["fs_hz"]
    title = f"{strip['subject_id']} · {strip['record_id']} · {strip['method']}"
    figure = _figure(_title(title, note))
    figure.add_scatter(
        x=time_s.round(4), y=signal_mv, name="ECG", meta=INK, line={"width": 1}, hoverinfo="skip"
    )
    _add_probabilities(figure, strip)
    _add_bands(figure, strip, "label", "annotated va", VA, [0.0, 1.0], 0.18)
    _add_bands(figure, strip, "is_support", "support (labelled by hand)", SUPPORT, [0.97, 1.0], 0.9)
    figure.update_layout(
        height=470,
        xaxis={
            "title": {"text": "seconds in the recording", "standoff": 6},
            "anchor": "y2",
            "range": [float(strip["start_s"]), float(time_s[-1]) if len(time_s) else 1.0],
        },
        yaxis={"domain": [0.42, 1.0], "title": {"text": "mV"}},
        yaxis2={"domain": [0.0, 0.32], "title": {"text": "P(va)"}, "range": [-0.04, 1.04]},
        margin={"t": 70, "b": 140},
        legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0},
    )
    return figure


def strip_label(strip: Mapping[str, Any]) -> str:
    """Say in words what `strip_figure` shows, for who can't see it."""
    labels = np.asarray(strip["label"], dtype=bool)
    flagged = np.asarray(strip["probability"], dtype=float) >= strip["threshold"]
    duration_s = len(strip["signal_mv"]) / strip["fs_hz"]
    return (
        f"ECG of subject {strip['subject_id']}, recording {strip['record_id']}, {duration_s:.0f} s "
        f"from {strip['start_s']:.0f} s: {len(labels)} windows, {labels.sum()} annotated va, of "
        f"which {(labels & flagged).sum()} flagged; {(~labels & flagged).sum()} of the others "
        "flagged falsely."
    )


def _figure(title: str) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xref": "container", "pad": {"l": 8}, "font": {"size": 15}},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 95, "b": 60},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": BEFORE, "activecolor": BETTER},
    )
    return figure


def _title(text: str, note: str) -> str:
    return html.escape(text) + (f"<br><b>{html.escape(note)}</b>" if note else "")


def _worst_first(value: float | None) -> float:
    return math.inf if value is None else value


def _is_same_test(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return all(before.get(name) == after.get(name) for name in ("n_va", "n_other"))


def _add_change_panel(
    figure: "go.Figure",
    panel: int,
    name: str,
    subjects: Sequence[str],
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> None:
    axis = {"xaxis": f"x{panel}", "showlegend": panel == 1}
    drawn = [key for key in subjects if after[key].get(name) is not None]
    pairs = {key: before[key][name] for key in drawn if before.get(key, {}).get(name) is not None}
    for label, colour, rising in (("better", BETTER, True), ("worse", WORSE, False)):
        moved = [key for key in pairs if (after[key][name] >= pairs[key]) is rising]
        figure.add_scatter(
            x=[x for key in moved for x in (pairs[key], after[key][name], None)],
            y=[html.escape(key) for key in moved for _ in range(3)],
            mode="lines",
            line={"color": colour, "width": 3},
            name=label,
            hoverinfo="skip",
            **axis,
        )
    if pairs:
        _add_dots(figure, list(pairs), list(pairs.values()), "before", axis)
    _add_dots(figure, drawn, [after[key][name] for key in drawn], "after", axis)


def _add_dots(
    figure: "go.Figure", keys: Sequence[str], values: Sequence[float], name: str, axis: dict
) -> None:
    marker: dict[str, Any] = {"size": 9}
    if name == "before":
        marker |= {"symbol": "circle-open", "color": BEFORE, "line": {"width": 2}}
    figure.add_scatter(
        x=list(values),
        y=[html.escape(key) for key in keys],
        mode="markers",
        marker=marker,
        meta=INK if name == "after" else None,
        name=name,
        hovertemplate="%{y}: %{x:.3f}<extra>" + name + "</extra>",
        **axis,
    )


def _draw_counts(draws: Sequence[Sequence[int]], n_subjects: int) -> np.ndarray:
    """Return how often each subject was drawn, shape (n_subjects, n_iterations)."""
    counts = np.zeros((n_subjects, len(draws)))
    for iteration, indices in enumerate(draws):
        for index in indices:
            if not 0 <= index < n_subjects:
                raise DataError(
                    f"curriculum draws subject {index} at iteration {iteration}, but there are "
                    f"{n_subjects} subjects; expected an index into curriculum['subjects']."
                )
            counts[index, iteration] += 1
    return counts


def _grouped(counts: np.ndarray) -> tuple[np.ndarray, int]:
    per_column = max(1, math.ceil(counts.shape[1] / MAX_COLUMNS))
    starts = np.arange(0, counts.shape[1], per_column)
    return (np.add.reduceat(counts, starts, axis=1) if len(starts) else counts), per_column


def _add_probabilities(figure: "go.Figure", strip: Mapping[str, Any]) -> None:
    start_s, window_s = np.asarray(strip["window_start_s"], dtype=float), strip["window_s"]
    probability = np.asarray(strip["probability"], dtype=float)
    # One flat piece per window, broken between windows: nothing is said about a gap.
    nothing = np.full(len(start_s), np.nan)
    figure.add_scatter(
        x=np.stack([start_s, start_s + window_s, nothing], axis=1).ravel(),
        y=np.stack([probability, probability, nothing], axis=1).ravel(),
        name="detector",
        yaxis="y2",
        line={"color": DETECTOR, "width": 3},
        hovertemplate="%{x:.1f} s: %{y:.3f}<extra>P(va)</extra>",
    )
    stop_s = strip["start_s"] + len(strip["signal_mv"]) / strip["fs_hz"]
    figure.add_scatter(
        x=[strip["start_s"], stop_s],
        y=[strip["threshold"]] * 2,
        name=f"threshold {strip['threshold']:.2f}",
        yaxis="y2",
        mode="lines",
        line={"color": BEFORE, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )


def _add_bands(
    figure: "go.Figure",
    strip: Mapping[str, Any],
    column: str,
    name: str,
    colour: str,
    height: Sequence[float],
    opacity: float,
) -> None:
    """Shade the windows whose `column` is true, and name the shade in the legend."""
    starts_s = [s for s, true in zip(strip["window_start_s"], strip[column], strict=True) if true]
    for start_s in starts_s:
        figure.add_shape(
            type="rect",
            x0=float(start_s),
            x1=float(start_s + strip["window_s"]),
            y0=height[0],
            y1=height[1],
            yref="paper",
            fillcolor=colour,
            opacity=opacity,
            line={"width": 0},
            layer="below",
        )
    if starts_s:
        marker = {"symbol": "square", "color": colour, "opacity": max(opacity, 0.4), "size": 12}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name)
