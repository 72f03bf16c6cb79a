"""Predictions: of a stored recording, of a stretch at hand, of many patients' windows at once."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from metaecg.models.inference import softmax
from metaecg.serve.auth import OrgId
from metaecg.serve.predicting import (
    MAX_WINDOWS,
    active_adapters,
    logits_of,
    names_of,
    own_threshold,
    predictions_for,
    single_windows,
    windows_of,
)
from metaecg.serve.recordings import positive_column
from metaecg.serve.routes_common import GUARDED, Recording, StartS, StopS, Subject, problems
from metaecg.serve.schemas_detectors import Rhythm
from metaecg.serve.schemas_predictions import (
    MixedOut,
    MixedWindows,
    NewMixed,
    NewSignal,
    Predictions,
    WindowOut,
    WindowsOut,
)
from metaecg.serve.state import Parts

router = APIRouter(prefix="/v1", tags=["predictions"])
SHORT_SAMPLES = 10_000
"""So many are filtered in less time than it takes to hand them to a thread and back."""


@router.get(
    "/patients/{subject_id}/recordings/{recording_id}/predictions", responses=problems(*GUARDED)
)
async def predict_recording(
    subject_id: Subject,
    recording_id: Recording,
    org_id: OrgId,
    services: Parts,
    version: Annotated[
        str,
        Query(pattern=r"^(active|[0-9]{1,9})$", description="active, or a number; 0 is the base."),
    ] = "active",
    rhythm: Annotated[
        Rhythm | None,
        Query(description="How neighbours count; default: as the version was fitted."),
    ] = None,
    start_s: StartS = None,
    stop_s: StopS = None,
) -> Predictions:
    """Judge a stored recording. A part of it is given as a part of the whole answer."""
    number = None if version == "active" else int(version)
    where = (org_id, subject_id, recording_id)
    work = (services, *where, number, rhythm, (start_s, stop_s))
    return Predictions(**await services.heavily(predictions_for, *work))


@router.post("/patients/{subject_id}/predict", responses=problems(*GUARDED, 429))
async def predict_windows(
    subject_id: Subject, body: NewSignal, org_id: OrgId, services: Parts
) -> WindowsOut:
    """Judge the windows of a stretch of one lead, each by itself; nothing is stored."""
    (adapter,) = await active_adapters(services, org_id, [subject_id])
    cut = partial(
        windows_of, services, body.signal, fs_hz=body.fs_hz, unit=body.unit, n_most=MAX_WINDOWS
    )
    is_short = len(body.signal) <= SHORT_SAMPLES
    segments, inputs = cut() if is_short else await services.briefly(cut)
    found = softmax(await logits_of(services, inputs, [adapter] * len(inputs)))
    threshold = own_threshold(services, adapter)
    positive = found[:, positive_column(services.base)].tolist()
    names = names_of(services.base, found, threshold)
    return WindowsOut(
        version=0 if adapter is None else adapter.version,
        threshold=threshold,
        windows=[
            WindowOut(start_s=start_s, probability=p, label=label)
            for start_s, p, label in zip(segments.start_s.tolist(), positive, names, strict=True)
        ],
    )


@router.post("/predict", responses=problems(*GUARDED, 429))
async def predict_many(body: NewMixed, org_id: OrgId, services: Parts) -> MixedWindows:
    """Judge a window each of many patients, in one pass with every patient's own detector."""
    names = [item.subject_id for item in body.items]
    adapters = await active_adapters(services, org_id, names)
    signals = [item.signal for item in body.items]
    cut = partial(single_windows, services, signals, fs_hz=body.fs_hz, unit=body.unit)
    inputs = await services.briefly(cut)
    found = softmax(await logits_of(services, inputs, adapters))
    column = positive_column(services.base)
    return MixedWindows(
        windows=[
            MixedOut(
                subject_id=name,
                version=0 if adapter is None else adapter.version,
                probability=float(row[column]),
                label=names_of(services.base, row[None], own_threshold(services, adapter))[0],
            )
            for name, adapter, row in zip(names, adapters, found, strict=True)
        ]
    )
