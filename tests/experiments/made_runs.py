"""Output folders of runs with figures that a test chooses, for the tests of the comparison."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from metaecg.evaluate.ec57 import BeatPrediction
from metaecg.evaluate.predictions import Prediction, save_predictions

SUBJECTS = tuple(f"vfdb/{number}" for number in range(418, 426))
AUCS = dict(zip(SUBJECTS, (0.91, 0.95, 0.88, 0.99, 0.93, 0.97, 0.90, 0.96), strict=True))
N_VA, N_OTHER = 20, 30
CONFIG = {
    "data": "/somewhere",
    "out": "runs/a",
    "seeds": [0, 1, 2],
    "meta": {"inner_lr": 0.05, "inner_steps": 5},
    "network": {"name": "compact-cnn", "arguments": {}},
    "tracking": {"enabled": False},
}


def shifted(by: float | Sequence[float], aucs: Mapping[str, float] = AUCS) -> dict[str, float]:
    """Return the figures moved by one number or by one for each subject."""
    moves = np.broadcast_to(by, len(aucs))
    return {s: value + float(move) for (s, value), move in zip(aucs.items(), moves, strict=True)}


def figures_of(aucs: Mapping[str, float | None], **others: float | None) -> dict:
    """Return what results.json holds of a method, as far as a comparison reads it."""
    values = {"f1": 0.8, "sensitivity": 0.9, "ppv": 0.7, "specificity": 0.9}
    values |= {"false_alarms_per_hour": 30.0} | others
    subjects = {
        subject: {"auc": auc, **values, "n_va": N_VA, "n_other": N_OTHER}
        for subject, auc in aucs.items()
    }
    return {"description": "what it is", "subjects": subjects}


def results_of(methods: Mapping[str, dict], **changes) -> dict:
    return {
        "schema": 1,
        "data": "recordings",
        "protocol": "deploy",
        "caveat": "",
        "databases": ["vfdb"],
        "n_shots": 10,
        "seeds": [0, 1, 2],
        "config_hash": "c0ffee",
        "git_commit": "0123abc",
        "versions": {"torch": "2.13.0"},
        "data_manifest_sha256": "5ad" * 21 + "5",
        "splits": ["fold-0", "fold-1"],
        "methods": dict(methods),
        "ineligible": {},
        **changes,
    }


def facts_of(subjects: Sequence[str] = SUBJECTS) -> dict:
    """Return run.json: two folds, each trained on the other."""
    first, second = list(subjects[::2]), list(subjects[1::2])
    return {
        "base_fingerprint": None,
        "data_sha256": {"vfdb/418.dat": "aa", "vfdb/419.dat": "bb"},
        "splits": {
            "fold-0": {"train": second, "test": first},
            "fold-1": {"train": first, "test": second},
        },
    }


def predictions_of(subjects: Sequence[str] = SUBJECTS, **changes) -> list[Prediction]:
    """Return a prediction per subject: VA in the first windows, one every two seconds."""
    n = N_VA + N_OTHER
    columns = {
        "record_ids": np.full(n, "r1"),
        "start_s": 2.0 * np.arange(n),
        "labels": (np.arange(n) < N_VA).astype(int),
        "is_mixed": np.zeros(n, bool),
        "probabilities": np.full(n, 0.5),
    }
    return [
        Prediction(subject_id=subject, **{"method": "any", "seed": 0, **columns, **changes})
        for subject in subjects
    ]


def beat_figures_of(f1s: Mapping[str, float | None], *, n_other: int = N_OTHER) -> dict:
    """Return the same of a method of veb_fewshot: beats have no specificity."""
    found = figures_of(dict.fromkeys(f1s, 0.99), veb={})
    for subject, values in found["subjects"].items():
        del values["specificity"]
        values |= {"f1": f1s[subject], "n_other": n_other}
    return found


def beat_predictions_of(method: str, start_s: float = 0.0, seed: int = 0) -> list[BeatPrediction]:
    """Return a prediction per subject: a beat every two seconds from `start_s` on."""
    return [
        BeatPrediction(
            **{**p.__dict__, "method": method, "seed": seed, "start_s": p.start_s + start_s},
            letters=np.where(p.labels == 1, "V", "N"),
            called=np.where(p.labels == 1, "V", "N"),
            n_missed={},
        )
        for p in predictions_of()
    ]


def make_beat_run(
    folder: Path,
    methods: Mapping[str, dict],
    predictions: Sequence[BeatPrediction] | None = None,
    **changes,
) -> Path:
    """Write the folder of a finished run of veb_fewshot and return it."""
    if predictions is None:
        predictions = [p for method in methods for p in beat_predictions_of(method)]
    subjects = sorted({s for figures in methods.values() for s in figures["subjects"]})
    settings = {"protocol": "aami", "r_peaks": "annotated", "facts": facts_of(subjects), **changes}
    return make_run(folder, methods=methods, predictions=predictions, **settings)


def make_run(
    folder: Path,
    aucs: Mapping[str, float | None] = AUCS,
    *,
    method: str = "pretrain+full",
    methods: Mapping[str, dict] | None = None,
    config: Mapping | None = None,
    facts: Mapping | None = None,
    predictions: Sequence[Prediction] | None = None,
    **changes,
) -> Path:
    """Write the folder of a finished run and return it."""
    folder.mkdir(parents=True)
    table = methods or {method: figures_of(aucs)}
    write(folder / "results.json", results_of(table, **changes))
    write(folder / "run.json", facts_of() if facts is None else facts)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(config or {})}))
    save_predictions(folder / "predictions.npz", predictions or predictions_of())
    return folder


def write(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content))


def change(folder: Path, **changes) -> None:
    """Change fields of a run's results.json."""
    path = folder / "results.json"
    write(path, {**json.loads(path.read_text()), **changes})
