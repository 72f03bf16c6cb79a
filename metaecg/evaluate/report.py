"""Write one run as one HTML file that opens anywhere, without a network."""

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaecg.errors import DataError
from metaecg.evaluate.figures import change_figure, curriculum_figure, strip_figure, strip_label
from metaecg.evaluate.protocol import PROTOCOLS

SCHEMA = 1
DEMO = "demo data"
BASELINE = "zero-shot"
MISSING = "–"


def write_report(
    path: str | Path,
    results: Mapping[str, Any],
    *,
    strips: Sequence[Mapping[str, Any]] = (),
    curriculum: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a run; a reader never sees half a file.

    Demo data and the optimistic protocol are named at every table and inside every picture, so
    that neither can be cut out without the words. Text from the data is escaped.

    Parameters
    ----------
    path
        The HTML file; replaced when it exists, its folder is made when missing.
    results
        What ``results.json`` holds (schema 1).
    strips
        ECG strips, each as `metaecg.evaluate.figures.strip_figure` takes it, plus ``note``.
    curriculum
        As `metaecg.evaluate.figures.curriculum_figure` takes it.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    DataError
        If `results` has another schema, or no protocol or methods.
    """
    _check_results(results)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(path, render_report(results, strips=strips, curriculum=curriculum))
    return path


def render_report(
    results: Mapping[str, Any],
    *,
    strips: Sequence[Mapping[str, Any]] = (),
    curriculum: Mapping[str, Any] | None = None,
) -> str:
    """Return the page of `write_report` as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    methods, note = results["methods"], ", ".join(_notes(results))
    best, baseline = best_method(methods), _baseline(methods)
    return pages.get_template("report.html").render(
        title=results.get("title") or f"metaecg: {results['protocol']}",
        is_demo=results.get("data") == DEMO,
        optimistic=_caveat(results),
        protocol=results["protocol"],
        facts=_facts(results),
        headline=_headline(methods, best),
        tables=_method_tables(methods) + _difference_tables(results),
        descriptions={name: each["description"] for name, each in methods.items() if each.get("description")},
        changes=_changes(methods, baseline, best, note),
        has_baseline=baseline is not None,
        best=best,
        subject_table=_subject_table(methods[best]) if best else None,
        curriculum=picture(curriculum_figure(curriculum, note=note)) if curriculum else None,
        strips=[_strip(strip, note) for strip in strips],
        ineligible=sorted(results.get("ineligible", {}).items()),
        plotly_js=Markup(get_plotlyjs()),
    )  # fmt: skip


def best_method(methods: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the method with the highest mean subject AUC; None when no method has one."""
    means = {name: _number(_at(each, "subject_auc", "mean")) for name, each in methods.items()}
    means = {name: mean for name, mean in means.items() if mean is not None}
    return max(means, key=means.__getitem__) if means else None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table: where its number is, how it prints, which end is better."""

    title: str
    path: tuple[str, ...]
    text: Callable[[Any], str]
    better: Callable | None = None
    """`max` or `min`; None: no best is marked."""
    is_cost: bool = False
    """Zero means that nothing was done, so it is never the best."""


def _fixed(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:.{digits}f}"


def _interval(value: Sequence[float]) -> str:
    return f"{value[0]:.3f}–{value[1]:.3f}"


def _signed_interval(value: Sequence[float]) -> str:
    return f"{value[0]:+.3f} to {value[1]:+.3f}"


def _count(value: float) -> str:
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _over_subjects(name: str) -> list[Column]:
    return [
        Column(title="mean", path=(name, "mean"), text=_fixed(3), better=max),
        Column(title="std", path=(name, "std"), text=_fixed(3), better=min),
        Column(title="worst", path=(name, "worst"), text=_fixed(3), better=max),
        Column(title="95 % interval", path=(name, "ci95"), text=_interval),
    ]


def _pooled() -> list[Column]:
    titles = {"auc": "AUC", "f1": "F1", "sensitivity": "sens.", "ppv": "PPV"}
    return [
        Column(title=title, path=("pooled", key), text=_fixed(3), better=max)
        for key, title in titles.items()
    ]


def _lower(title: str, key: str, text: Callable, *, is_cost: bool = False) -> Column:
    return Column(title=title, path=(key,), text=text, better=min, is_cost=is_cost)


WINDOW_GROUPS = {
    "AUC over subjects": _over_subjects("subject_auc"),
    "F1 over subjects": _over_subjects("subject_f1"),
    "All windows pooled": _pooled(),
}

METHOD_GROUPS = WINDOW_GROUPS | {
    "False alarms per hour": [
        _lower("windows", "false_alarms_per_hour", _fixed(1)),
        _lower("episodes", "false_alarm_episodes_per_hour", _fixed(1)),
        _lower("subjects without VA", "false_alarms_per_hour_one_class", _fixed(1)),
    ],
    "Episodes": [
        Column(title="sens.", path=("episode_sensitivity",), text=_fixed(3), better=max),
        _lower("median delay, s", "detection_delay_s_median", _fixed(1)),
    ],
    "Cost": [
        _lower("adapt, s (p50)", "adapt_seconds_p50", _short, is_cost=True),
        _lower("trainable", "trainable_parameters", _count, is_cost=True),
    ],
}

DIFFERENCE_GROUPS = {
    f"{title} over subjects": [
        Column(title="mean difference", path=(key, "mean"), text=lambda value: f"{value:+.3f}"),
        Column(title="95 % interval", path=(key, "ci95"), text=_signed_interval),
        Column(title="subjects", path=(key, "n"), text=_count),
    ]
    for key, title in (("auc", "AUC"), ("f1", "F1"))
}

SUBJECT_GROUPS = {
    "": [
        Column(title=title, path=(key,), text=_fixed(3))
        for key, title in {"auc": "AUC", "f1": "F1", "sensitivity": "sens.", "ppv": "PPV"}.items()
    ]
    + [Column(title="false alarms per hour", path=("false_alarms_per_hour",), text=_fixed(1))],
    "Test windows": [
        Column(title="va", path=("n_va",), text=_count),
        Column(title="other", path=("n_other",), text=_count),
    ],
}


def _table(
    caption: str, head: str, rows: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list]
) -> dict[str, Any]:
    """Return a table for the page: printed cells, the best of each column marked."""
    columns = [column for group in groups.values() for column in group]
    printed = [[_cell(column, row) for row in rows.values()] for column in columns]
    best = [_best_texts(column, rows) for column in columns]
    lines = [
        [{"text": text, "best": text in top} for text, top in zip(line, best, strict=True)]
        for line in zip(*printed, strict=True)
    ]
    return {
        "caption": caption,
        "head": head,
        "groups": [(name, len(group)) for name, group in groups.items()],
        "edges": _edges(groups),
        "titles": [column.title for column in columns],
        "rows": list(zip(rows, lines, strict=True)),
        "has_missing": any(text == MISSING for line in printed for text in line),
        "has_best": any(best),
    }


def _edges(groups: Mapping[str, list]) -> set[int]:
    """Return the columns that open a group."""
    sizes = [len(group) for group in groups.values()]
    return {sum(sizes[:place]) for place in range(len(sizes))}


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    value = _at(row, *column.path)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return column.text(value) if all(_number(x) is not None for x in value) else MISSING
    return MISSING if _number(value) is None else column.text(value)


def _best_texts(column: Column, rows: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the printed best of a column, empty when all are alike.

    Two values that print the same are equally good: the page claims no finer difference.
    """
    values = [_number(_at(row, *column.path)) for row in rows.values()] if column.better else []
    values = [x for x in values if x is not None and not (column.is_cost and x == 0)]
    if len({column.text(x) for x in values}) < 2:
        return set()
    return {column.text(column.better(values))}


def _method_tables(methods: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    tables = [_table("Methods, mixed windows by majority", "method", methods, METHOD_GROUPS)]
    rows = {name: each["without_mixed"] for name, each in methods.items() if each.get("without_mixed")}  # fmt: skip
    if rows:
        caption = "The same without the windows that hold both rhythms"
        tables.append(_table(caption, "method", rows, WINDOW_GROUPS))
    return tables


def _difference_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a table of paired differences per reference: the run's, or a row's own (``to``)."""
    tables: dict[str, dict] = {}
    for name, row in results.get("differences", {}).items():
        reference = row.get("to") or results.get("difference_to")
        if name != reference:
            tables.setdefault(reference, {})[name] = row
    return [
        _table(f"Difference to {to}, paired over subjects", "method", rows, DIFFERENCE_GROUPS)
        for to, rows in tables.items()
    ]


def _subject_table(method: Mapping[str, Any]) -> dict[str, Any]:
    subjects = method.get("subjects", {})

    def badness(name: str) -> tuple[float, float]:
        aucs = [_number(subjects[name].get(key)) for key in ("auc", "f1")]
        return tuple(math.inf if value is None else value for value in aucs)

    rows = {name: subjects[name] for name in sorted(subjects, key=badness)}
    return _table("Subjects, the lowest AUC first", "subject", rows, SUBJECT_GROUPS)


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    subjects = {name for each in results["methods"].values() for name in each.get("subjects", {})}
    excluded = results.get("ineligible", {})
    values = {
        "Protocol": results["protocol"],
        "Data": results.get("data"),
        "Databases": ", ".join(map(str, results.get("databases", []))),
        "Labelled windows per class (n_shots)": results.get("n_shots"),
        "Seeds": ", ".join(map(str, results.get("seeds", []))),
        "Eligible subjects": len(subjects - excluded.keys()),
        "Subjects left out": len(excluded),
        "Configuration": results.get("config_hash"),
        "Commit": results.get("git_commit"),
        "Checksum of the data": results.get("data_manifest_sha256"),
    }
    return [
        (name, MISSING if value in (None, "") else str(value)) for name, value in values.items()
    ]


def _headline(methods: Mapping[str, Mapping[str, Any]], best: str | None) -> str:
    if best is None:
        return "No method has an AUC: no subject has test windows of both classes."
    auc = methods[best]["subject_auc"]
    interval = _cell(Column(title="", path=("ci95",), text=_interval), auc)
    worst = _cell(Column(title="", path=("worst",), text=_fixed(3)), auc)
    return (
        f"Highest mean AUC over subjects: {best}, {auc['mean']:.3f} (95 % interval {interval}; "
        f"worst subject {worst})."
    )


def _changes(
    methods: Mapping[str, Mapping[str, Any]], baseline: str | None, best: str | None, note: str
) -> list[dict[str, Any]]:
    """Return one picture per adapted method, the best method first."""
    before = methods[baseline].get("subjects") if baseline is not None else None
    adapted = [name for name in methods if name != baseline and methods[name].get("subjects")]
    pictures = []
    for name in sorted(adapted, key=lambda name: name != best):
        names = {"before_name": baseline or "", "after_name": name}
        figure = change_figure(before, methods[name]["subjects"], **names, note=note)
        pictures.append({"name": name, **picture(figure)})
    return pictures


def _strip(strip: Mapping[str, Any], note: str) -> dict[str, Any]:
    figure = picture(strip_figure(strip, note=note))
    return {"label": strip_label(strip), "note": strip.get("note") or "", **figure}


def picture(figure) -> dict[str, Any]:
    """Return a figure as JSON that is safe inside a script element."""
    from markupsafe import Markup

    safe = figure.to_json().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return {"json": Markup(safe), "height": int(figure.layout.height)}


def _notes(results: Mapping[str, Any]) -> list[str]:
    demo = [DEMO] if results.get("data") == DEMO else []
    caveat = _caveat(results)
    return demo + ([caveat] if caveat else [])


def _caveat(results: Mapping[str, Any]) -> str:
    """Return the words that travel with the figures: the protocol's own and the run's."""
    protocol = PROTOCOLS.get(results["protocol"], "")
    more = results.get("caveat") or ""
    return more if protocol in more else "; ".join(word for word in (protocol, more) if word)


def _baseline(methods: Mapping[str, Any]) -> str | None:
    plain = {name: name.lower().replace("_", "-").replace(" ", "-") for name in methods}
    found = [name for name in methods if plain[name].startswith(BASELINE)]
    return min(found, key=len) if found else None


def _at(row: Mapping[str, Any] | None, *path: str) -> Any:
    for key in path:
        row = (row or {}).get(key)
    return row


def _number(value: Any) -> float | None:
    """Return `value` if it is a finite number, else None."""
    usable = isinstance(value, numbers.Real) and math.isfinite(value)
    return value if usable else None


def _check_results(results: Mapping[str, Any]) -> None:
    if results.get("schema") != SCHEMA:
        raise DataError(
            f"results has schema {results.get('schema')!r}; this version reads schema {SCHEMA}. "
            "Run the recipe again, or use the version that wrote it."
        )
    missing = [name for name in ("protocol", "methods") if not results.get(name)]
    if missing:
        raise DataError(
            f"results has no {' and no '.join(missing)}; expected what a recipe writes to "
            "results.json."
        )


def _write_whole(path: Path, text: str) -> None:
    """Write beside `path`, then rename: a crash leaves the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
