"""Read finished runs for a comparison: their figures, settings, splits and test windows."""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metaecg.errors import ConfigError, DataError
from metaecg.evaluate.ec57 import BeatPrediction
from metaecg.evaluate.predictions import Prediction, load_predictions
from metaecg.models.registry_uri import without_password

SCHEMA = 1
FIGURES = ("auc", "f1", "sensitivity", "ppv", "specificity", "false_alarms_per_hour")
"""The figures of a subject; all but the last are better when higher. The first decides if none is
named."""
BEAT_FIGURES = ("f1", "auc", "sensitivity", "ppv", "false_alarms_per_hour")
"""The same of `veb_fewshot`, of V as EC57 counts it, which has no specificity."""
BEATS = "aami"
"""The protocol of `veb_fewshot`."""
_NEEDED = ("protocol", "databases", "n_shots", "seeds", "data_manifest_sha256", "methods")
_COUNTS = ("n_va", "n_other")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run of `va_fewshot` or `veb_fewshot`."""

    name: str
    source: str
    """Where it was read from: a path, or a run id and its store."""
    results: dict = field(repr=False)
    """``results.json``."""
    parameters: dict[str, Any] | None = field(default=None, repr=False)
    """The configuration, flattened with dots; None: not at hand."""
    facts: dict = field(default_factory=dict, repr=False)
    """``run.json`` (splits, versions, checksums); empty: not at hand."""
    predictions: Sequence[Prediction] | None = field(default=None, repr=False)
    folder: Path | None = None
    """The output folder; None for a results file alone and for what came from MLflow."""
    run_id: str | None = None
    """The id in the MLflow store; None for what came from a path."""

    @property
    def argument(self) -> str:
        """What names the run on the command line."""
        return self.run_id or self.source

    @property
    def is_of_beats(self) -> bool:
        """Whether it is a run of `veb_fewshot`, whose methods have test beats of their own."""
        return self.results["protocol"] == BEATS

    @property
    def metrics(self) -> tuple[str, ...]:
        """The figures that its subjects have."""
        return _figures(self.results)

    @property
    def is_demo(self) -> bool:
        """Whether the patients were generated."""
        return self.results.get("data") == "demo data"


def read_path(path: Path) -> Run:
    """Read an output folder, or a results file alone.

    Raises
    ------
    DataError
        There is no run, it isn't finished, or a file of it is damaged.
    """
    if path.is_dir():
        return read_folder(path, name=path.resolve().name, source=str(path), folder=path)
    if path.name == "results.json":
        folder = path.parent
        return read_folder(folder, name=folder.resolve().name, source=str(folder), folder=folder)
    return Run(name=path.stem, source=str(path), results=read_results(path, source=str(path)))


def read_folder(
    files: Path,
    *,
    name: str,
    source: str,
    folder: Path | None = None,
    parameters: dict[str, Any] | None = None,
    run_id: str | None = None,
) -> Run:
    """Read the files of a run that lie in `files`.

    Parameters
    ----------
    files
        Holds ``results.json`` and, where at hand, ``config.yaml``, ``run.json`` and
        ``predictions.npz``.
    name, source
        What the run is called, and where it came from.
    folder
        The run's own folder.
    parameters
        Taken where there is no ``config.yaml``.
    run_id
        The id of an MLflow run.

    Raises
    ------
    DataError
        As `read_path`.
    """
    if not (files / "results.json").is_file():
        raise DataError(f"{source} {_why_no_run(files)}")
    results = read_results(files / "results.json", source=source)
    kind = BeatPrediction if results["protocol"] == BEATS else Prediction
    return Run(
        name=name,
        source=source,
        results=results,
        parameters=_parameters(files / "config.yaml", source) or parameters,
        facts=_json(files / "run.json", source) if (files / "run.json").is_file() else {},
        predictions=_predictions(files / "predictions.npz", source, kind),
        folder=folder,
        run_id=run_id,
    )


def read_results(path: Path, *, source: str) -> dict:
    """Read and check ``results.json``.

    Raises
    ------
    DataError
        It is damaged, or of another recipe or schema.
    """
    results = _json(path, source)
    if results.get("experiment") == "h_tuning":
        raise DataError(
            f"{source} is a run of h_tuning, which has figures of records and classes in place of "
            "those of subjects: runs of va_fewshot and veb_fewshot are compared here. The methods "
            "of one h_tuning run stand with paired intervals in its results.md."
        )
    if results.get("schema") != SCHEMA:
        raise DataError(
            f"{source} has results of schema {results.get('schema')!r}; this version reads schema "
            f"{SCHEMA}. Run the recipe again, or use the version that wrote them."
        )
    problem = _problem(results)
    if problem:
        raise DataError(
            f"the results.json of {source} is damaged: {problem}. Run the recipe again, or restore "
            "the file."
        )
    return results


def reason_of(error: BaseException) -> str:
    """Return the first line of what lies at the root of an error, without passwords."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return without_password(first)[:200]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names.

    Examples
    --------
    >>> flatten({"meta": {"inner_lr": 0.05}, "seeds": [0, 1]})
    {'meta.inner_lr': 0.05, 'seeds': [0, 1]}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _why_no_run(files: Path) -> str:
    if (files / "study.json").is_file():
        return (
            "is a study of tune, no run: it never saw test subjects. Score its best.yaml with "
            "va_fewshot --config and --split, and compare that run."
        )
    if any((files / name).exists() for name in ("run.json", "config.yaml", "jobs")):
        return (
            "is a run that isn't finished: it has no results.json. Start the same command again; "
            "it goes on from the parts that are done."
        )
    return (
        "is no run: it has no results.json. Expected the output folder of va_fewshot or "
        "veb_fewshot (their --out)."
    )


def _json(path: Path, source: str) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise DataError(
            f"the {path.name} of {source} can't be read ({error}). Run the recipe again, or "
            "restore the file."
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"the {path.name} of {source} holds a {type(content).__name__}; expected what "
            "the recipe writes, an object."
        )
    return content


def _problem(results: dict) -> str | None:
    """Return the first thing that is wrong with the results, if anything."""
    missing = [name for name in _NEEDED if results.get(name) in (None, [], {})]
    if missing:
        return f"it has no {' and no '.join(missing)}"
    if not isinstance(results["methods"], dict):
        return "its methods are no object"
    windows = {}
    for name, figures in results["methods"].items():
        subjects = figures.get("subjects") if isinstance(figures, dict) else None
        if not isinstance(subjects, dict) or not subjects:
            return f"method {name!r} has no subjects"
        for subject_id, values in subjects.items():
            wrong = _wrong_value(values, _figures(results))
            if wrong:
                return f"method {name!r}, subject {subject_id!r}: {wrong}"
        windows[name] = {s: tuple(v[key] for key in _COUNTS) for s, v in subjects.items()}
    if results["protocol"] == BEATS:
        return None  # each way to choose the labelled beats leaves others to test
    first = next(iter(windows))
    other = [name for name in windows if windows[name] != windows[first]]
    if other:
        return f"methods {first!r} and {other[0]!r} were judged on other subjects or test windows"
    return None


def _figures(results: Mapping[str, Any]) -> tuple[str, ...]:
    return BEAT_FIGURES if results["protocol"] == BEATS else FIGURES


def _wrong_value(values: Any, figures: Sequence[str]) -> str | None:
    if not isinstance(values, dict):
        return "its figures are no object"
    for key in (*figures, *_COUNTS):
        if key not in values:
            return f"{key} is missing"
        value = values[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None and key not in _COUNTS:
            continue  # undefined for this subject
        if not (is_number and math.isfinite(value)):
            return f"{key} is {value!r}, a finite number was expected"
    return None


def _parameters(path: Path, source: str) -> dict[str, Any] | None:
    from metaecg.experiments.config import load_yaml

    if not path.is_file():
        return None
    try:
        return flatten(load_yaml(path))
    except ConfigError as error:
        raise DataError(f"the config.yaml of {source} is damaged: {error}") from error


def _predictions(path: Path, source: str, kind: type[Prediction]) -> list[Prediction] | None:
    if not path.is_file():
        return None
    try:
        return load_predictions(path, kind)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"the predictions.npz of {source} can't be read ({error}), so its test windows can't "
            "be compared. Restore the file, or run the recipe again."
        ) from error
