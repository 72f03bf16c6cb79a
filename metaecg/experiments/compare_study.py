"""What an Optuna study found, beside the runs that came out of it: its course and what mattered.

A study's values are those of meta-validation subjects, never of the test: they stand beside a
comparison to say where a configuration came from, and decide nothing in it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metaecg.errors import ConfigError, DataError, MetaECGError
from metaecg.experiments.compare_runs import Run, reason_of
from metaecg.models.registry_uri import without_password

FILE = "study.json"


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
    names = [str(_file(name)) if _file(name).is_file() else name for name in named]
    names += [str(path) for run in runs for path in _study_files(run)]
    return [_facts(name) for name in dict.fromkeys(names)]


def _study_files(run: Run) -> list[Path]:
    folders = [run.folder, run.folder.parent] if run.folder else []
    split = (run.parameters or {}).get("split")
    if split and split != "None":  # as MLflow's parameters write it
        folders.append(Path(split).parent)
    found = [folder / FILE for folder in folders if (folder / FILE).is_file()]
    return found[:1]


def _file(name: str) -> Path:
    return Path(name) / FILE if Path(name).is_dir() else Path(name)


def _facts(name: str) -> dict[str, Any]:
    path = _file(name)
    found = _from_file(path) if path.is_file() else _from_storage(name)
    is_higher_better = found["directions"][0] == "maximize"
    return {**found, "course": _course(found["course"], is_higher_better)}


def _course(complete: Sequence[tuple[int, float]], is_higher_better: bool) -> list[dict]:
    """Return the complete trials in their order, each with the best value until then."""
    better, found = (max if is_higher_better else min), []
    for number, value in sorted(complete):
        best = better(found[-1]["best"], value) if found else value
        found.append({"number": number, "value": value, "best": best})
    return found


def _from_file(path: Path) -> dict[str, Any]:
    """Read what `tune` left in its folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        trials = content["trials"]
        return {
            "study": str(content["study"]),
            "source": str(path.parent),
            "objective": list(content["objective"]),
            "directions": list(content["directions"]),
            "n_trials": len(trials),
            "states": {state: n for state, n in content["states"].items() if n},
            "course": [
                (t["number"], float(t["values"][0])) for t in trials if t["state"] == "complete"
            ],
            "importance": content["importance"],
            "importance_note": content["importance_note"],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}); expected what tune writes. "
            "Give the same tune command again: it writes the file anew."
        ) from error


def _from_storage(name: str) -> dict[str, Any]:
    """Read ``URL:NAME``."""
    url, sign, study_name = name.rpartition(":")
    if not sign or "/" in study_name or not ("://" in url or url.startswith("journal:")):
        raise ConfigError(
            f"--study is {name!r}; expected URL:NAME such as sqlite:///runs/tune/study.db:va, or "
            f"the output folder of tune (with its {FILE})."
        )
    shown = without_password(url)
    places = [url.removeprefix(p) for p in ("journal:", "sqlite:///") if url.startswith(p)]
    if places and not Path(places[0]).is_file():  # opening it would make an empty one
        raise DataError(f"--study names {shown}, which doesn't exist.")
    try:
        with _opened(url) as storage:
            return {**_described(_load(storage, study_name, shown)), "source": shown}
    except MetaECGError:
        raise
    except Exception as error:  # whatever a database or its driver raises
        raise DataError(
            f"the study {study_name!r} of {shown} can't be read ({reason_of(error)}). Name another "
            f"storage, or the folder of tune with its {FILE}."
        ) from error


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """Open a storage to read it: no table is made and no heartbeat sent, unlike for tuning."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url.startswith("journal:"):
        yield JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
        return
    scheme, rest = url.split("://", 1)
    scheme = "postgresql+psycopg" if scheme == "postgresql" else scheme  # the driver of the extra
    storage = RDBStorage(f"{scheme}://{rest}", skip_table_creation=True)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _load(storage, study_name: str, shown: str):
    import optuna

    names = optuna.get_all_study_names(storage)
    if study_name not in names:
        raise DataError(
            f"{shown} has no study {study_name!r}; it has {', '.join(names) or 'none'}."
        )
    return optuna.load_study(study_name=study_name, storage=storage)


def _objective(decides: Mapping[str, Any]) -> list[str]:
    return [name for name in decides.get("objective", "").split(",") if name]


def _state(trial, *, is_ours: bool) -> str:
    """Return what became of a trial, as study.json has it."""
    from metaecg.experiments.tune_study import is_lost

    if trial.state.name != "FAIL":
        return trial.state.name.lower()
    return "lost" if is_ours and is_lost(trial) else "failed"


def _described(study) -> dict[str, Any]:
    from metaecg.experiments.tune_outputs import importances
    from metaecg.experiments.tune_study import DECIDES

    importance, note = importances(study)
    ours = study.user_attrs.get(DECIDES) or {}  # what tune says of it; nothing of another's study
    return {
        "study": study.study_name,
        "objective": _objective(ours) or list(study.metric_names or []),
        "directions": [direction.name.lower() for direction in study.directions],
        "n_trials": len(study.trials),
        "states": dict(Counter(_state(trial, is_ours=bool(ours)) for trial in study.trials)),
        "course": [
            (trial.number, trial.values[0])
            for trial in study.trials
            if trial.state.name == "COMPLETE"
        ],
        "importance": importance,
        "importance_note": note,
    }
