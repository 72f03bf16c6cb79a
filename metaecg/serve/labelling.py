"""What to label next in a recording, by what the active detector says of it."""

import numpy as np

from metaecg.serve.predicting import judged_by, labels_of
from metaecg.serve.proposals import propose
from metaecg.serve.recordings import Judged, inputs_of, open_recording, positive_column
from metaecg.serve.segment_probabilities import default_rhythm_of
from metaecg.serve.state import Services

MAX_CANDIDATES = 900
"""Segments of a long recording that are looked at closely; a third of them for each reason."""


def proposals_for(
    services: Services, org_id: int, subject_id: str, recording_id: str, n: int
) -> list[dict]:
    """Return up to `n` segments that are worth a label, the most useful first.

    Returns
    -------
    list of dict
        The fields of `metaecg.serve.schemas_recordings.Proposal`.
    """
    base, where = services.base, (org_id, subject_id, recording_id)
    opened = open_recording(services.store, services.segmentation, *where)
    adapter = services.detectors.get(org_id, subject_id)
    judged = judged_by(services, where, opened, adapter, default_rhythm_of(base))
    labels = labels_of(services, where)
    rows = candidates(judged, positive_column(base), labels)
    segments, inputs = inputs_of(services.segmentation, opened, judged.index[rows].tolist())
    rows = np.searchsorted(judged.index, segments.index)
    chosen = propose(inputs, segments, labels, judged.probability[rows], n, classes=base.classes)
    return [_described(base, judged, index, reason) for index, reason in chosen]


def candidates(judged: Judged, column: int, labels: dict[int, str]) -> np.ndarray:
    """Return the rows that are looked at closely, in the order of time: all of a short recording.

    Of a long one the least certain, the most probably positive and some spread evenly, and those
    that have a label already, which the others are compared with.
    """
    if len(judged.index) <= MAX_CANDIDATES:
        return np.arange(len(judged.index))
    share = MAX_CANDIDATES // 3
    positive = judged.probability[:, column]
    best = np.sort(judged.probability, axis=1)
    parts = [
        np.argsort(best[:, -1] - best[:, -2], kind="stable")[:share],
        np.argsort(-positive, kind="stable")[:share],
        np.linspace(0, len(positive) - 1, share).astype(np.int64),
        np.flatnonzero(np.isin(judged.index, list(labels))),
    ]
    return np.unique(np.concatenate(parts))


def _described(base, judged: Judged, index: int, reason: str) -> dict:
    row = int(np.searchsorted(judged.index, index))
    probability = judged.probability[row].tolist()
    return {
        "index": int(index),
        "start_s": float(judged.start_s[row]),
        "stop_s": float(judged.stop_s[row]),
        "reason": reason,
        "probability": dict(zip(base.classes, probability, strict=True)),
    }
