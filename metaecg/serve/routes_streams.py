"""Live streams: chunks in, what became known out. The state is in the store after every chunk."""

import hashlib
import uuid

import numpy as np
from fastapi import APIRouter

from metaecg.data.preprocessing import MARGIN_S
from metaecg.serve.api_errors import ApiError
from metaecg.serve.auth import OrgId
from metaecg.serve.predicting import names_of, own_threshold
from metaecg.serve.recordings import positive_column
from metaecg.serve.routes_common import GUARDED, StreamId, Subject, problems
from metaecg.serve.schemas_predictions import (
    ChunkOut,
    NewChunk,
    NewStream,
    StreamEnd,
    StreamOut,
    StreamWindow,
)
from metaecg.serve.state import Parts, Services
from metaecg.serve.store_errors import ConflictError
from metaecg.serve.store_rows import Stream
from metaecg.serve.streams import LiveStream
from metaecg.serve.units import in_millivolts

router = APIRouter(prefix="/v1", tags=["streams"])


@router.post("/patients/{subject_id}/streams", status_code=201, responses=problems(*GUARDED))
def open_stream(subject_id: Subject, body: NewStream, org_id: OrgId, services: Parts) -> StreamOut:
    """Open a stream; it is judged by the version that is active now, also after another one is."""
    if services.segmentation.kind != "windows":
        raise ApiError(
            "streams_need_windows", "this server's base judges beats; streams need one for windows."
        )
    in_millivolts(np.empty(0, dtype=np.float32), body.unit)
    services.segmentation.check_rate(body.fs_hz)
    adapter = services.detectors.get(org_id, subject_id)
    model = services.detectors.mixed.model_of(adapter)
    version = 0 if adapter is None else adapter.version
    stream_id = uuid.uuid4().hex
    services.store.put_stream(
        org_id,
        subject_id,
        stream_id,
        state=LiveStream(services.base, model, fs_hz=body.fs_hz).to_bytes(),
        next_sequence=0,
        answers={
            "unit": body.unit,
            "version": version,
            "windows": [],
            "is_closed": False,
            "digest": "",  # of the samples of the last chunk
        },
    )
    return StreamOut(stream_id=stream_id, version=version, delay_s=MARGIN_S, next_sequence=0)


@router.post("/streams/{stream_id}/chunks", responses=problems(*GUARDED, 409))
def push_chunk(stream_id: StreamId, body: NewChunk, org_id: OrgId, services: Parts) -> ChunkOut:
    """Send the next chunk. The last one may be sent again and is answered the same."""
    stream = services.store.get_stream(org_id, stream_id)
    kept = stream.answers
    if kept["is_closed"]:
        raise ConflictError(f"stream {stream_id!r} is closed. Open another one.")
    digest = hashlib.sha256(body.signal.tobytes()).hexdigest()
    if body.sequence == stream.next_sequence - 1:
        if digest != kept["digest"]:
            raise ConflictError(
                f"chunk {body.sequence} was sent before with other samples: two senders share the "
                "stream, or one has lost its place. Open another stream."
            )
        return ChunkOut(next_sequence=stream.next_sequence, windows=kept["windows"])
    if body.sequence != stream.next_sequence:
        raise ApiError(
            "conflict",
            f"chunk {body.sequence} was sent; chunk {stream.next_sequence} comes next. Send the chunks "
            "in their order, none twice but the last.",
            {"next_sequence": stream.next_sequence},
        )
    live, adapter = _opened(services, org_id, stream)
    found = live.push(in_millivolts(body.signal, kept["unit"])[None])
    windows = _shown(services, live, adapter, found)
    _keep(services, org_id, stream, live.to_bytes(), windows, digest=digest)
    return ChunkOut(next_sequence=stream.next_sequence + 1, windows=windows)


@router.post("/streams/{stream_id}/close", responses=problems(*GUARDED, 409))
def close_stream(stream_id: StreamId, org_id: OrgId, services: Parts) -> StreamEnd:
    """End a stream: the windows that waited for what comes after them are judged without it."""
    stream = services.store.get_stream(org_id, stream_id)
    if stream.answers["is_closed"]:
        return StreamEnd(windows=stream.answers["windows"])
    live, adapter = _opened(services, org_id, stream)
    windows = _shown(services, live, adapter, live.close())
    _keep(services, org_id, stream, b"", windows, is_closed=True)
    return StreamEnd(windows=windows)


def _opened(services: Services, org_id: int, stream: Stream):
    version = stream.answers["version"]
    adapter = services.detectors.get(org_id, stream.subject_id, version)
    model = services.detectors.mixed.model_of(adapter)
    return LiveStream.from_bytes(stream.state, services.base, model), adapter


def _shown(services: Services, live: LiveStream, adapter, found) -> list[dict]:
    if not found:
        return []
    probability = np.array([window.probability for window in found])
    threshold = own_threshold(services, adapter, live.rhythm)
    names = names_of(services.base, probability, threshold)
    column = positive_column(services.base)
    shown = [
        StreamWindow(
            index=window.index,
            start_s=window.start_s,
            stop_s=window.stop_s,
            probability=float(window.probability[column]),
            label=name,
        )
        for window, name in zip(found, names, strict=True)
    ]
    services.metrics.windows.inc(len(shown))
    return [window.model_dump() for window in shown]


def _keep(
    services: Services, org_id: int, stream: Stream, state: bytes, windows, **changed
) -> None:
    services.store.put_stream(
        org_id,
        stream.subject_id,
        stream.stream_id,
        state=state,
        next_sequence=stream.next_sequence + 1,
        answers={**stream.answers, "windows": windows, **changed},
        after=stream.next_sequence,
    )
