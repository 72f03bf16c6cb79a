"""What an Optuna study found, beside the runs that came out of it: its course and what mattered.

A study's values are those of meta-validation subjects, never of the test: they stand beside a
comparison to say where a configuration came from, and decide nothing in it.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaecg.errors import ConfigError, DataError
from metaecg.experiments.compare_runs import Run, reason_of, without_password

FILE = "study.json"
MIN_COMPLETE = 10
"""Complete trials below which no importance is given: the evaluator sets the best tenth against the
rest, and takes two trials at least."""


def describe_studies(named: Sequence[str], runs: Sequence[Run]) -> list[dict]:
    """Return the facts of the named studies, and of those that the runs belong to.

    A run belongs to a study if its folder, the one above it, or the one of the split that it was
    given holds ``study.json``.

    Raises
    ------
    ConfigError
        A name is neither URL:NAME nor a folder with a study.
    DataError
        A study can't be read.
    """
    own = [str(path) for run in runs for path in _study_files(run)]
    return [_facts(name) for name in dict.fromkeys([*named, *own])]


def _study_files(run: Run) -> list[Path]:
    folders = [run.folder, run.folder.resolve().parent] if run.folder else []
    split = (run.parameters or {}).get("split")
    if split and split != "None":  # as MLflow's parameters write it
        folders.append(Path(split).parent)
    found = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    return found[:1]


def _facts(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.is_dir():
        path = path / FILE
    source, study = _from_file(path) if path.is_file() else _from_storage(name)
    values = [_value(trial) for trial in study.trials]
    is_higher_better = [each.name == "MAXIMIZE" for each in study.directions]
    importance, why_not = _importance(study, [v for v in values if v is not None])
    return {
        "study": study.study_name,
        "source": source,
        "directions": ["maximize" if up else "minimize" for up in is_higher_better],
        "metric_names": list(study.metric_names or []),
        "n_trials": len(values),
        "states": dict(Counter(trial.state.name.lower() for trial in study.trials)),
        "course": _course(study.trials, values, is_higher_better[0]),
        "importance": importance,
        "why_no_importance": why_not,
    }


def _course(trials, values: Sequence[float | None], is_higher_better: bool) -> list[dict]:
    """Return the complete trials in their order, each with the best value until then."""
    better, found = (max if is_higher_better else min), []
    for trial, value in zip(trials, values, strict=True):
        if value is not None:
            best = better(found[-1]["best"], value) if found else value
            found.append({"number": trial.number, "value": value, "best": best})
    return found


def _value(trial) -> float | None:
    """Return the (first) value of a complete trial; None of a pruned, failed or running one."""
    return trial.values[0] if trial.state.name == "COMPLETE" else None


def _importance(study, values: Sequence[float]) -> tuple[dict[str, float] | None, str | None]:
    from optuna.importance import get_param_importances

    if len(values) < MIN_COMPLETE:
        return None, f"{len(values)} complete trials; {MIN_COMPLETE} are needed."
    if len(set(values)) == 1:
        return None, "all complete trials have the same value."
    found = get_param_importances(study)
    return {name: float(share) for name, share in found.items()}, None


def _from_storage(name: str):
    """Open ``URL:NAME`` and return where it is, without a password, and the study."""
    import optuna

    url, sign, study_name = name.rpartition(":")
    if not sign or "/" in study_name or not ("://" in url or url.startswith("journal:")):
        raise ConfigError(
            f"--study is {name!r}; expected URL:NAME such as sqlite:///runs/tune/study.db:va, or "
            f"the output folder of tune (with its {FILE})."
        )
    shown = without_password(url)
    try:
        storage = _storage(url)
        names = optuna.get_all_study_names(storage)
        if study_name not in names:
            raise DataError(
                f"{shown} has no study {study_name!r}; it has {', '.join(names) or 'none'}."
            )
        return shown, optuna.load_study(study_name=study_name, storage=storage)
    except DataError:
        raise
    except Exception as error:  # whatever a database or its driver raises
        raise DataError(
            f"the study {study_name!r} of {shown} can't be read ({reason_of(error)}). Name "
            f"another storage, or the folder of tune with its {FILE}."
        ) from error


def _storage(url: str):
    from optuna.storages import RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    prefixes = ("journal:", "sqlite:///")
    place = next((url.removeprefix(p) for p in prefixes if url.startswith(p)), None)
    if place is not None and not Path(place).is_file():  # opening it would make an empty one
        raise FileNotFoundError(f"{place} doesn't exist")
    if url.startswith("journal:"):
        return JournalStorage(JournalFileBackend(place))
    return RDBStorage(url, skip_table_creation=True)


def _from_file(path: Path):
    """Build the study again from what `tune` left in its folder."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce a new study
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        study = optuna.create_study(
            study_name=str(content["study"]),
            directions=list(content.get("directions") or ["maximize"]),
        )
        distributions = _distributions([each["params"] for each in content["trials"]])
        study.add_trials([_trial(each, distributions) for each in content["trials"]])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}); expected what tune writes. "
            "Run the same tune command again: it writes the file anew."
        ) from error
    finally:
        optuna.logging.set_verbosity(before)
    return str(path.parent), study


def _trial(values: Mapping[str, Any], distributions: Mapping[str, Any]):
    import optuna

    state = optuna.trial.TrialState[str(values["state"]).upper()]
    is_complete = state is optuna.trial.TrialState.COMPLETE
    found = values["values"] if "values" in values else [values["value"]]
    return optuna.trial.create_trial(
        state=state,
        values=found if is_complete else None,
        params=values["params"],
        distributions={name: distributions[name] for name in values["params"]},
    )


def _distributions(params: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the range or the choices of each parameter, as far as the trials reached."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    seen: dict[str, list] = {}
    for each in params:
        for name, value in each.items():
            seen.setdefault(name, []).append(value)
    found = {}
    for name, values in seen.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values):
            found[name] = FloatDistribution(min(values), max(values))
        else:
            found[name] = CategoricalDistribution(list(dict.fromkeys(values)))
    return found
