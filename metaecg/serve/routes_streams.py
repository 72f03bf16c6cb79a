"""Live streams: chunks in, what became known out. The state is in the store after every chunk."""

import hashlib
import uuid

import numpy as np
from fastapi import APIRouter

from metaecg.data.preprocessing import MARGIN_S
from metaecg.errors import DataError
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
MAX_CHUNK_S = 60.0
"""A longer chunk would hold up others, and its windows are no longer live."""


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
    """Send the next chunk, up to a minute. The last one may be sent again and is answered the same."""
    digest = hashlib.sha256(body.signal.tobytes()).hexdigest()
    stream = services.store.get_stream(org_id, stream_id)
    told = _told_of_chunk(stream, body.sequence, digest)
    if told is not None:
        return told
    live, adapter = _opened(services, org_id, stream)
    _refuse_long(body.signal, live.fs_hz)
    found = live.push(in_millivolts(body.signal, stream.answers["unit"])[None])
    windows = _shown(services, live, adapter, found)
    try:
        _keep(services, org_id, stream, live.to_bytes(), windows, digest=digest)
    except (
        ConflictError
    ):  # the same chunk, sent again while this one was at work, may have been first
        told = _told_of_chunk(services.store.get_stream(org_id, stream_id), body.sequence, digest)
        if told is None:
            raise
        return told
    return ChunkOut(next_sequence=stream.next_sequence + 1, windows=windows)


@router.post("/streams/{stream_id}/close", responses=problems(*GUARDED, 409))
def close_stream(stream_id: StreamId, org_id: OrgId, services: Parts) -> StreamEnd:
    """End a stream: the windows that waited for what comes after them are judged without it."""
    stream = services.store.get_stream(org_id, stream_id)
    if stream.answers["is_closed"]:
        return StreamEnd(windows=stream.answers["windows"])
    live, adapter = _opened(services, org_id, stream)
    windows = _shown(services, live, adapter, live.close())
    try:
        _keep(services, org_id, stream, b"", windows, is_closed=True)
    except ConflictError:  # another request may have closed it meanwhile
        stream = services.store.get_stream(org_id, stream_id)
        if not stream.answers["is_closed"]:
            raise
        return StreamEnd(windows=stream.answers["windows"])
    return StreamEnd(windows=windows)


def _told_of_chunk(stream: Stream, sequence: int, digest: str) -> ChunkOut | None:
    """Return the answer if it is the last chunk again, ``None`` for the next one; others are refused."""
    kept = stream.answers
    if kept["is_closed"]:
        raise ConflictError(f"stream {stream.stream_id!r} is closed. Open another one.")
    if sequence == stream.next_sequence:
        return None
    if sequence != stream.next_sequence - 1:
        raise ApiError(
            "conflict",
            f"chunk {sequence} was sent; chunk {stream.next_sequence} comes next. Send the chunks "
            "in their order, none twice but the last.",
            {"next_sequence": stream.next_sequence},
        )
    if digest != kept["digest"]:
        raise ConflictError(
            f"chunk {sequence} was sent before with other samples: two senders share the "
            "stream, or one has lost its place. Open another stream."
        )
    return ChunkOut(next_sequence=stream.next_sequence, windows=kept["windows"])


def _refuse_long(signal: np.ndarray, fs_hz: float) -> None:
    if len(signal) > MAX_CHUNK_S * fs_hz:
        raise DataError(
            f"the chunk lasts {len(signal) / fs_hz:g} s; at most {MAX_CHUNK_S:g} s are taken at "
            "once. Send it in parts, each with the next number."
        )


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
    services.metrics.windows.inc(len(windows))
