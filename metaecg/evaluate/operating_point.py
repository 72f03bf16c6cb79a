"""False alarms where nothing is wrong, at the threshold that finds a given share of the episodes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metaecg.data.datasets import Dataset
from metaecg.evaluate import metrics
from metaecg.evaluate.predictions import Prediction

SENSITIVITY = 0.95


def operating_point(
    held_out: Sequence[Prediction],
    one_class: Sequence[Prediction],
    dataset: Dataset,
    *,
    sensitivity: float = SENSITIVITY,
) -> dict | None:
    """Return the false alarms on subjects without VA at an episode sensitivity.

    The threshold is one for all subjects: the highest at which at least `sensitivity` of the
    episodes of `held_out` have a flagged window. It is read off the test part, as a point of a
    curve is: it describes the detector, and no other figure uses it.

    Parameters
    ----------
    held_out
        Of one method and seed: subjects with VA.
    one_class
        Of the same method and seed: subjects without VA.
    dataset
        Knows the annotated episodes.
    sensitivity
        Share of the episodes, above 0 and up to 1.

    Returns
    -------
    dict or None
        ``episode_sensitivity`` (reached), ``threshold``, ``n_episodes``, and by database of the
        subjects without VA ``hours``, ``n_subjects``, ``alarms_per_hour`` (adjacent flagged windows
        count once) and ``windows_per_hour``. None without an episode or without such a subject.
    """
    highest = np.array([episode.highest for episode in tested_episodes(held_out, dataset)])
    if not len(highest) or not one_class:
        return None
    threshold = threshold_that_finds(highest, sensitivity)
    databases = sorted({p.subject_id.split("/")[0] for p in one_class})
    return {
        "episode_sensitivity": float((highest >= threshold).mean()),
        "threshold": threshold,
        "n_episodes": len(highest),
        "without_va": {
            name: alarms_without_va(
                [p for p in one_class if p.subject_id.split("/")[0] == name],
                threshold,
                dataset.windows.window_s,
            )
            for name in databases
        },
    }


class TestedEpisode(NamedTuple):
    """An annotated episode that a test window labelled VA overlaps."""

    length_s: float
    highest: float
    """Highest probability of those windows."""
    is_found: bool
    """Whether one of them is flagged, at the threshold of its prediction."""


def tested_episodes(predictions: Sequence[Prediction], dataset: Dataset) -> list[TestedEpisode]:
    """Return the episodes of one method and seed that a test window labelled VA overlaps."""
    window_s, found = dataset.windows.window_s, []
    for p in predictions:
        for record_id, onset_s, stop_s in dataset.episodes(p.subject_id):
            inside = (p.record_ids == record_id) & (p.labels == 1)
            inside &= (p.start_s < stop_s) & (p.start_s + window_s > onset_s)
            if inside.any():
                highest = float(p.probabilities[inside].max())
                is_found = bool(p.flagged[inside].any())
                found.append(TestedEpisode(stop_s - onset_s, highest, is_found))
    return found


def threshold_that_finds(highest: np.ndarray, sensitivity: float = SENSITIVITY) -> float:
    """Return the highest threshold that at least this share of episodes reaches.

    Examples
    --------
    >>> threshold_that_finds(np.array([0.2, 0.9, 0.5, 0.7]), 0.75)
    0.5
    """
    return float(np.sort(highest)[::-1][math.ceil(sensitivity * len(highest)) - 1])


def alarms_without_va(predictions: Sequence[Prediction], threshold: float, window_s: float) -> dict:
    """Return ``n_subjects, hours, alarms_per_hour, windows_per_hour`` of subjects without VA."""
    hours = sum(len(p.labels) for p in predictions) * window_s / 3600
    flagged = [p.probabilities >= threshold for p in predictions]
    alarms = [
        metrics.false_alarm_episodes(p.start_s, p.record_ids, p.labels, found, window_s)
        for p, found in zip(predictions, flagged, strict=True)
    ]
    return {
        "n_subjects": len(predictions),
        "hours": hours,
        "alarms_per_hour": sum(map(len, alarms)) / hours if hours else None,
        "windows_per_hour": sum(int(f.sum()) for f in flagged) / hours if hours else None,
    }
