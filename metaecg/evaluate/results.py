"""From predictions to the figures of results.json (schema in docs/protocol.md)."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from metaecg.data.datasets import Dataset
from metaecg.data.preprocessing import MARGIN_S
from metaecg.errors import DataError
from metaecg.evaluate import metrics
from metaecg.evaluate.operating_point import operating_point
from metaecg.evaluate.paired import paired_difference
from metaecg.evaluate.predictions import Prediction
from metaecg.seeding import numpy_generator

_SUBJECT_FIGURES = ("auc", "f1", "sensitivity", "ppv", "specificity", "false_alarms_per_hour")


def method_results(
    predictions: Sequence[Prediction], dataset: Dataset, *, description: str
) -> dict:
    """Return every figure of one method.

    A subject's figure is its mean over the seeds; means, spread, worst and intervals are over
    subjects. Pooled figures and rates are computed per seed over all test windows and averaged.

    Parameters
    ----------
    predictions
        Of one method: all seeds, all subjects.
    dataset
        Knows the annotated episodes.
    description
        What the method is, in a sentence.

    Raises
    ------
    DataError
        There is no prediction for a held-out subject with a support.
    """
    held_out = [p for p in predictions if not p.is_one_class]
    one_class = [p for p in predictions if p.is_one_class]
    if not held_out:
        raise DataError(
            f"the method {description!r} has no prediction for a held-out subject; there is nothing "
            "to report."
        )
    window_s = dataset.windows.window_s
    figures = _headline(held_out, window_s)
    figures["without_mixed"] = _headline([p.without_mixed() for p in held_out], window_s)
    del figures["without_mixed"]["subjects"]
    alarms = [_alarms(ps, dataset) for ps in _by_seed(held_out).values()]
    figures |= {name: _mean([a[name] for a in alarms]) for name in alarms[0]}
    figures |= {
        "false_alarms_per_hour_one_class": _one_class_alarms(one_class, window_s),
        "adapt_seconds_p50": float(np.median([p.adapt_seconds for p in held_out])),
        "trainable_parameters": int(np.median([p.n_trainable for p in held_out])),
        "look_ahead_s": held_out[0].look_ahead_s,
        "operating_point": _operating_points(held_out, one_class, dataset),
        "description": description,
    }
    return figures


def compare_methods(results: dict, *, reference: str) -> dict[str, dict]:
    """Return each method's paired difference in subject AUC and F1 to `reference`, with interval."""
    if reference not in results:
        return {}
    found = {}
    for name, figures in results.items():
        found[name] = {}
        for figure in ("auc", "f1"):
            mine = {s: v[figure] for s, v in figures["subjects"].items()}
            other = {s: v[figure] for s, v in results[reference]["subjects"].items()}
            rng = numpy_generator(0, "paired", figure)
            found[name][figure] = paired_difference(mine, other, rng=rng)
    return found


def _headline(predictions: Sequence[Prediction], window_s: float) -> dict:
    per_subject: dict[str, dict[str, dict]] = defaultdict(dict)
    for p in predictions:
        per_subject[p.subject_id][str(p.seed)] = metrics.subject_metrics(
            p.labels, p.probabilities, threshold=p.threshold, window_s=window_s
        )
    subjects = {subject_id: _over_seeds(seeds) for subject_id, seeds in per_subject.items()}
    summaries = {
        f"subject_{name}": metrics.summary(
            {s: values[name] for s, values in subjects.items()},
            rng=numpy_generator(0, "bootstrap", name),  # the same resamples for every method
        )
        for name in ("auc", "f1")
    }
    pooled = [_pooled(ps) for ps in _by_seed(predictions).values()]
    return {
        **summaries,
        "pooled": {name: _mean([p[name] for p in pooled]) for name in pooled[0]},
        "subjects": subjects,
    }


def _over_seeds(seeds: dict[str, dict]) -> dict:
    first = next(iter(seeds.values()))
    mean = {name: _mean([values[name] for values in seeds.values()]) for name in _SUBJECT_FIGURES}
    return {**mean, "n_va": first["n_va"], "n_other": first["n_other"], "seeds": seeds}


def _pooled(predictions: Sequence[Prediction]) -> dict:
    labels = np.concatenate([p.labels for p in predictions])
    flagged = np.concatenate([p.flagged for p in predictions]).astype(float)
    probabilities = np.concatenate([p.probabilities for p in predictions])
    return {
        "auc": metrics.roc_auc(labels, probabilities),
        "f1": metrics.f1(labels, flagged, threshold=0.5),
        "sensitivity": metrics.sensitivity(labels, flagged, threshold=0.5),
        "ppv": metrics.ppv(labels, flagged, threshold=0.5),
    }


def _alarms(predictions: Sequence[Prediction], dataset: Dataset) -> dict:
    window_s = dataset.windows.window_s
    n_false = n_alarms = n_episodes = n_found = 0
    hours, delays = 0.0, []
    for p in predictions:
        is_other = p.labels == 0
        hours += is_other.sum() * window_s / 3600
        n_false += int((p.flagged & is_other).sum())
        n_alarms += len(
            metrics.false_alarm_episodes(p.start_s, p.record_ids, p.labels, p.flagged, window_s)
        )
        found = metrics.episode_metrics(
            dataset.episodes(p.subject_id),
            p.start_s,
            p.record_ids,
            p.labels,
            p.flagged,
            window_s=window_s,
            lookahead_s=MARGIN_S + (p.look_ahead_s or 0.0),
        )
        n_episodes += found["n_episodes"]
        n_found += found["n_found"]
        delays += [] if p.look_ahead_s is None else list(found["delays_s"])
    return {
        "false_alarms_per_hour": n_false / hours if hours else None,
        "false_alarm_episodes_per_hour": n_alarms / hours if hours else None,
        "episode_sensitivity": n_found / n_episodes if n_episodes else None,
        "detection_delay_s_median": float(np.median(delays)) if delays else None,
    }


def _operating_points(
    held_out: Sequence[Prediction], one_class: Sequence[Prediction], dataset: Dataset
) -> dict[str, dict | None] | None:
    """Return seed to operating point; None for a method that nobody without VA was shown to."""
    alone = _by_seed(one_class)
    found = {
        str(seed): operating_point(ps, alone[seed], dataset)
        for seed, ps in _by_seed(held_out).items()
    }
    return found if one_class else None


def _one_class_alarms(predictions: Sequence[Prediction], window_s: float) -> float | None:
    hours = sum(len(p.labels) for p in predictions) * window_s / 3600
    return sum(int(p.flagged.sum()) for p in predictions) / hours if hours else None


def _by_seed(predictions: Sequence[Prediction]) -> dict[int, list[Prediction]]:
    found: dict[int, list[Prediction]] = defaultdict(list)
    for p in predictions:
        found[p.seed].append(p)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
