"""What a run of `va_fewshot` leaves behind: figures, strips for the report, the MLflow record."""

import numpy as np

from metaecg.data.datasets import Dataset
from metaecg.evaluate.predictions import Prediction
from metaecg.evaluate.protocol import PROTOCOLS, Eligibility, held_out_task
from metaecg.evaluate.report import best_method
from metaecg.evaluate.results import compare_methods, method_results
from metaecg.experiments.config import VAConfig
from metaecg.experiments.provenance import versions
from metaecg.experiments.tracking import make_tracker
from metaecg.experiments.tracking_facts import datasets_of, recipe_tags
from metaecg.experiments.va_bases import base_note
from metaecg.experiments.va_methods import CURVE
from metaecg.seeding import numpy_generator

STRIP_S = 60.0
STRIP_FS_HZ = 100.0
N_STRIPS = 3


def assemble(
    config: VAConfig,
    methods: dict,
    dataset: Dataset,
    who: Eligibility,
    splits,
    predictions: list[Prediction],
    *,
    commit: str | None,
) -> dict:
    """Return the content of results.json (schema in docs/protocol.md)."""
    evaluated = sorted({p.subject_id for p in predictions if not p.is_one_class})
    table = {
        name: method_results(
            [p for p in predictions if p.method == name],
            dataset,
            description=method.description + base_note(method.base, config),
        )
        for name, method in methods.items()
        if any(p.method == name for p in predictions)  # nobody has windows enough for a curve
    }
    points = {name: table.pop(name) for name in list(table) if CURVE in name}
    reference = next((n for n in ("pretrain+full", "zero-shot") if n in table), next(iter(table)))
    return {
        "schema": 1,
        "title": "Ventricular arrhythmia (VF, VFL, VT) from "
        f"{config.n_shots} labelled windows per class",
        "data": "demo data" if "demo" in dataset.databases else "recordings",
        "protocol": config.protocol,
        "caveat": _caveat(config),
        "databases": dataset.databases,
        "n_shots": config.n_shots,
        "seeds": config.seeds,
        "n_subjects": len(evaluated),
        "config_hash": config.hash(),
        "git_commit": commit,
        "versions": versions(),
        "data_manifest_sha256": dataset.manifest_sha256,
        "splits": [split.name for split in splits],
        "methods": table,
        "difference_to": reference,
        "differences": compare_methods(table, reference=reference),
        "shots": _curve(config, points),
        "ineligible": _not_evaluated(dataset, who, splits, evaluated),
    }


def _curve(config: VAConfig, points: dict) -> dict | None:
    """Return the figures by number of shots, each with its difference to the most shots."""
    if not points:
        return None
    most = list(points)[-1]
    differences = compare_methods(points, reference=most)
    return {
        "method": config.shots.method,
        "n_subjects": len(points[most]["subjects"]),
        "after_shots": max(config.shots.n_shots),
        "points": {
            name.rpartition(CURVE)[2]: {**figures, "difference": differences[name]}
            for name, figures in points.items()
        },
    }


def first_curriculum(done) -> dict | None:
    """Return the curriculum of the first fold that had one."""
    found = [(name, result.curriculum) for name, (_, result) in done.items() if result.curriculum]
    return min(found)[1] if found else None


def strips_for_report(
    config: VAConfig, results: dict, dataset: Dataset, predictions: list[Prediction]
) -> list[dict]:
    """Return a minute of ECG around the first test episode of the worst subjects of the best row."""
    method = best_method(results["methods"])
    if method is None:
        return []
    subjects = results["methods"][method]["subjects"]
    worst = sorted(
        subjects, key=lambda s: subjects[s]["auc"] if subjects[s]["auc"] is not None else 2
    )
    chosen = {
        p.subject_id: p
        for p in predictions
        if p.method == method and p.seed == config.seeds[0] and not p.is_one_class
    }
    return [
        _strip(config, dataset, chosen[s], subjects[s]["auc"])
        for s in worst[:N_STRIPS]
        if s in chosen
    ]


def start_tracking(config: VAConfig, dataset: Dataset, *, commit: str | None):
    """Open the MLflow run and record what decides it."""
    settings = config.tracking
    tracker = make_tracker(
        enabled=settings.enabled,
        uri=settings.uri,
        experiment=settings.experiment,
        out=config.out,
        name=config.out.name,
    )
    tracker.params(config.model_dump(mode="json"))
    tracker.tags(
        {
            **recipe_tags("va_fewshot", commit=commit, seeds=config.seeds),
            "protocol": config.protocol,
            "data": "demo data" if "demo" in dataset.databases else "recordings",
            "config_hash": config.hash(),
            "data_manifest_sha256": dataset.manifest_sha256,
        }
    )
    tracker.datasets(datasets_of(dataset))
    return tracker


def record_training(tracker, name: str, history: list[dict[str, float]]) -> None:
    """Record the course of one base's training, about 200 points of it, the last one included."""
    if not history:
        return
    every = max(1, len(history) // 200)
    shown = {**dict(list(enumerate(history))[::every]), len(history) - 1: history[-1]}
    tracker.history(name, shown.items())


def flat_figures(results: dict) -> dict[str, float | None]:
    """Return the figures that MLflow gets, by name."""
    found: dict[str, float | None] = {}
    for name, figures in results["methods"].items():
        row = name.replace("+", ".")  # MLflow's names may not hold a plus sign
        for part in ("subject_auc", "subject_f1"):
            found |= {f"{row}/{part}_{k}": figures[part][k] for k in ("mean", "std", "worst")}
        found |= {f"{row}/pooled_{k}": v for k, v in figures["pooled"].items()}
        for key in ("false_alarms_per_hour", "episode_sensitivity", "adapt_seconds_p50"):
            found[f"{row}/{key}"] = figures.get(key)
    return found


def _caveat(config: VAConfig) -> str:
    words = [PROTOCOLS[config.protocol]]
    if config.include_seen:
        words.append("seen subjects included: not held out")
    return "; ".join(word for word in words if word)


def _not_evaluated(dataset: Dataset, who: Eligibility, splits, evaluated) -> dict[str, str]:
    trained = {subject for split in splits for subject in split.train}
    found = {}
    for subject_id in dataset.subject_ids:
        if subject_id in evaluated:
            continue
        if subject_id in who.reasons:
            found[subject_id] = who.reasons[subject_id]
        elif subject_id in trained:
            found[subject_id] = "on the training side of every split of this run"
        else:
            found[subject_id] = "on no side of this run's split"
    return found


def _strip(config: VAConfig, dataset: Dataset, prediction: Prediction, auc: float | None) -> dict:
    """Return a minute that holds the change from other to VA, with the detector's output."""
    windows = dataset.of_subject(prediction.subject_id)
    positive = np.flatnonzero(prediction.labels == 1)
    middle_s = float(prediction.start_s[positive[0]])
    record_id = str(prediction.record_ids[positive[0]])
    start_s = max(0.0, middle_s - STRIP_S / 2)
    inside = (windows.record_ids == record_id) & (windows.start_s >= start_s - 1e-9)
    inside &= windows.start_s < start_s + STRIP_S
    shown = windows.select(np.flatnonzero(inside))
    found = (prediction.record_ids == record_id) & np.isin(prediction.start_s, shown.start_s)
    probability = dict(
        zip(
            prediction.start_s[found].tolist(),
            prediction.probabilities[found].tolist(),
            strict=True,
        )
    )
    support = _support_starts(config, windows, record_id, prediction)
    return {
        "subject_id": prediction.subject_id,
        "record_id": record_id,
        "fs_hz": STRIP_FS_HZ,
        "start_s": start_s,
        "signal_mv": _signal(shown, start_s),
        "window_start_s": shown.start_s.tolist(),
        "window_s": shown.window_s,
        "probability": [probability.get(s) for s in shown.start_s.tolist()],
        "label": shown.labels.tolist(),
        "is_support": [s in support for s in shown.start_s.tolist()],
        "threshold": prediction.threshold,
        "method": prediction.method,
        "note": f"subject AUC {auc:.3f}" if auc is not None else "subject AUC undefined",
    }


def _support_starts(config, windows, record_id: str, prediction: Prediction) -> set[float]:
    rng = numpy_generator(prediction.seed, "support", prediction.subject_id)
    task = held_out_task(windows, protocol=config.protocol, n_shots=config.n_shots, rng=rng)
    return set(task.support.start_s[task.support.record_ids == record_id].tolist())


def _signal(shown, start_s: float) -> list[float | None]:
    """Lay the windows side by side at a lower rate; what no window covers is None (a gap)."""
    signal = np.full(round(STRIP_S * STRIP_FS_HZ), np.nan)
    own_s = np.arange(shown.windows.shape[2]) / shown.fs_hz
    shown_s = np.arange(round(shown.window_s * STRIP_FS_HZ)) / STRIP_FS_HZ
    for window, at in zip(shown.windows[:, 0], shown.start_s, strict=True):
        first = round((at - start_s) * STRIP_FS_HZ)
        n_fit = min(len(shown_s), len(signal) - first)
        signal[first : first + n_fit] = np.interp(shown_s, own_s, window)[:n_fit]
    return [None if np.isnan(v) else round(float(v), 4) for v in signal]
