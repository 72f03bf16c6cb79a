"""Segments for display, labels of a person, proposals of what to label next."""

from collections import Counter
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query

from metaecg.checks import did_you_mean
from metaecg.errors import DataError
from metaecg.serve.auth import OrgId
from metaecg.serve.labelling import proposals_for
from metaecg.serve.predicting import labels_of
from metaecg.serve.proposals import N_SHOTS
from metaecg.serve.recordings import Opened, open_recording, signals_of
from metaecg.serve.routes_common import GUARDED, Recording, StartS, StopS, Subject, problems
from metaecg.serve.schemas_recordings import (
    LabelCounts,
    LabelsOut,
    NewLabels,
    Proposals,
    SegmentOut,
    SegmentPage,
)
from metaecg.serve.segments import Segments
from metaecg.serve.signals import DIGITS
from metaecg.serve.state import Parts, Services

router = APIRouter(prefix="/v1/patients/{subject_id}", tags=["labels"])
MAX_INDEX = 2**31 - 1
MAX_WITH_SIGNAL = 100


@router.get("/recordings/{recording_id}/segments", responses=problems(*GUARDED))
def list_segments(
    subject_id: Subject,
    recording_id: Recording,
    org_id: OrgId,
    services: Parts,
    start_s: StartS = None,
    stop_s: StopS = None,
    limit: Annotated[int, Query(ge=1, le=2000, description="Segments on a page.")] = 500,
    after: Annotated[
        int | None, Query(ge=0, le=MAX_INDEX, description="`next` of the page before.")
    ] = None,
    signal: Annotated[
        bool, Query(description="Whether to give the judged lead with each; a page has 100 then.")
    ] = False,
) -> SegmentPage:
    """List the windows or beats that start within a stretch; what wasn't measured has none."""
    opened = _open(services, org_id, subject_id, recording_id)
    found = services.gaps.measured_segments_of(services.segmentation, opened)
    rows = _rows(found, start_s, stop_s, after)
    limit = min(limit, MAX_WITH_SIGNAL) if signal else limit
    labels = labels_of(services, (org_id, subject_id, recording_id))
    shown = _shown(opened, found.select(rows[:limit]), labels, with_signal=signal)
    return SegmentPage(segments=shown, next=shown[-1].index if len(rows) > limit else None)


@router.put("/recordings/{recording_id}/labels", responses=problems(*GUARDED))
def put_labels(
    subject_id: Subject, recording_id: Recording, body: NewLabels, org_id: OrgId, services: Parts
) -> LabelCounts:
    """Label segments, or remove labels: all of the request or nothing. The last one wins."""
    opened = _open(services, org_id, subject_id, recording_id)
    labels = {_index(key): label for key, label in body.labels.items()}
    _check_labels(services, opened, labels)
    name = services.segmentation.name
    services.store.put_labels(org_id, subject_id, recording_id, labels, segmentation=name)
    return _counts(services, org_id, subject_id)


@router.get("/recordings/{recording_id}/labels", responses=problems(*GUARDED))
def get_labels(
    subject_id: Subject, recording_id: Recording, org_id: OrgId, services: Parts
) -> LabelsOut:
    """Get the labels of a recording."""
    found = labels_of(services, (org_id, subject_id, recording_id))
    return LabelsOut(labels={str(index): label for index, label in found.items()})


@router.get("/labels/counts", responses=problems(*GUARDED))
def count_labels(subject_id: Subject, org_id: OrgId, services: Parts) -> LabelCounts:
    """Count a patient's labels by class, over all recordings."""
    return _counts(services, org_id, subject_id)


@router.get("/recordings/{recording_id}/proposals", responses=problems(*GUARDED))
async def propose(
    subject_id: Subject,
    recording_id: Recording,
    org_id: OrgId,
    services: Parts,
    n: Annotated[int, Query(ge=1, le=100, description="How many.")] = 10,
) -> Proposals:
    """Propose unlabelled segments that are worth a label, the most useful first."""
    work = (services, org_id, subject_id, recording_id, n)
    return Proposals(proposals=await services.heavily(proposals_for, *work))


def _open(services: Services, org_id: int, subject_id: str, recording_id: str) -> Opened:
    where = (org_id, subject_id, recording_id)
    return open_recording(services.store, services.segmentation, *where)


def _rows(
    found: Segments, start_s: float | None, stop_s: float | None, after: int | None
) -> np.ndarray:
    keep = np.ones(len(found), dtype=bool)
    if start_s is not None:
        keep &= found.start_s >= start_s - 1e-9
    if stop_s is not None:
        keep &= found.start_s < stop_s - 1e-9
    if after is not None:
        keep &= found.index > after
    return np.flatnonzero(keep)


def _shown(
    opened: Opened, found: Segments, labels: dict[int, str], *, with_signal: bool
) -> list[SegmentOut]:
    signals = [None] * len(found)
    if with_signal:
        pieces = signals_of(opened, found.start_s, found.stop_s)
        signals = [np.round(piece.astype(np.float64), DIGITS).tolist() for piece in pieces]
    columns = (found.index.tolist(), found.start_s.tolist(), found.stop_s.tolist(), signals)
    return [
        SegmentOut(
            index=index, start_s=start_s, stop_s=stop_s, label=labels.get(index), signal_mv=signal
        )
        for index, start_s, stop_s, signal in zip(*columns, strict=True)
    ]


def _index(key: str) -> int:
    """Return the number that a key of JSON stands for."""
    if not (key.isascii() and key.isdecimal() and str(int(key[:12])) == key):
        raise DataError(
            f"labels has the key {key[:40]!r}; the number of a segment was expected, such as '12'."
        )
    return int(key)


def _check_labels(services: Services, opened: Opened, labels: dict[int, str | None]) -> None:
    classes = services.base.classes
    for label in labels.values():
        if label is not None and label not in classes:
            raise DataError(f"{label[:64]!r} is no class; expected {did_you_mean(label, classes)}")
    there = set(services.gaps.measured_segments_of(services.segmentation, opened).index.tolist())
    missing = sorted(index for index in labels if index not in there)
    if missing:
        raise DataError(
            f"the recording has no segment {missing[0]}: its numbers end before it, or it holds samples "
            "that were not measured. List the segments."
        )


def _counts(services: Services, org_id: int, subject_id: str) -> LabelCounts:
    name = services.segmentation.name
    found = Counter(
        label.label for label in services.store.labels_of(org_id, subject_id, segmentation=name)
    )
    return LabelCounts(n_shots=N_SHOTS, counts={c: found[c] for c in services.base.classes})
