"""What the routes share: how errors are described, names in addresses, pages of lists."""

from typing import Annotated, Any

from fastapi import Path, Query

from metaecg.serve.schemas import ID_PATTERN, SUBJECT_PATTERN, ErrorBody

MEANING = {
    401: "No valid token.",
    404: "It isn't there, or belongs to another organisation; both look the same.",
    409: "It is there already, or has changed meanwhile.",
    413: "The body is larger than is allowed here.",
    415: "The body is of another media type than is expected here.",
    422: "The request, or the patient's data, can't be used; the code says which.",
    429: "Too much is waiting; try again after the time that Retry-After names.",
    500: "A bug of the server.",
    503: "The server can't do its work for now; try again after the time that Retry-After names.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of the answers that aren't a success, for a route."""
    return {status: _described(status) for status in (*statuses, 500, 503)}


def _described(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {"model": ErrorBody, "description": MEANING[status]}
    if status in (429, 503):
        schema = {"type": "integer"}
        found["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": schema}}
    return found


GUARDED = (401, 404, 413, 415, 422)
"""What every route below a patient may answer."""

Subject = Annotated[
    str,
    Path(
        alias="subject_id",
        description="The patient.",
        pattern=SUBJECT_PATTERN,
        examples=["s-014"],
    ),
]
Recording = Annotated[
    str,
    Path(
        alias="recording_id",
        description="The recording.",
        pattern=ID_PATTERN,
        examples=["0f8fad5bd9cb469fa16570867728950e"],
    ),
]
JobId = Annotated[str, Path(alias="job_id", description="The job.", pattern=ID_PATTERN)]
StreamId = Annotated[str, Path(alias="stream_id", description="The stream.", pattern=ID_PATTERN)]
Version = Annotated[
    int, Path(alias="version", ge=0, le=2**31 - 1, description="The version; 0 is the base itself.")
]
StartS = Annotated[
    float | None,
    Query(alias="start_s", ge=0, allow_inf_nan=False, description="From here on, seconds."),
]
StopS = Annotated[
    float | None,
    Query(
        alias="stop_s", ge=0, allow_inf_nan=False, description="To here, seconds; default: the end."
    ),
]
