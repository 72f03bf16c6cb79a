"""Refuse a body that is too large or of the wrong kind before anything of it is parsed."""

from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaecg.serve.api_errors import ApiError, error_response

FILES, ADAPTER, JSON = "multipart/form-data", "application/octet-stream", "application/json"
SMALL_BYTES = 1024 * 1024
"""For names, settings and all else that is no signal."""
LABELS_BYTES = 8 * 1024 * 1024
"""For as many labels as `NewLabels` takes, with the longest numbers and class names."""
ADAPTER_BYTES = 64 * 1024 * 1024
"""A detector that changes every weight of a large base."""
SAMPLE_BYTES = 16
"""Of a sample's text with its comma, as long as a sender may write it."""
CHUNK_SAMPLES = 60 * 5000
"""Of a chunk of a stream: a minute at 5,000 Hz."""
PREDICT_SAMPLES = 1024 * 2 * 500
"""Of what is judged at once: 1,024 windows of two seconds at 500 Hz."""
OTHER_VALUES = 4096
"""What a body may hold beside its samples."""


class Expected(NamedTuple):
    """What the body of a request may be."""

    kind: str
    """Media type."""
    n_bytes: int
    n_values: int | None = None
    """Commas, for JSON is parsed in one go while all others wait, and short numbers are many."""


class BodyTooLargeError(HTTPException):
    """More came than the body may have; an `HTTPException` so that no parser hides it."""

    def __init__(self, problem: ApiError) -> None:
        super().__init__(status_code=413)
        self.problem = problem


def too_large(limit: int, what: str = "bytes") -> ApiError:
    """Return what a client is told whose body has more bytes, or values, than it may."""
    return ApiError(
        "too_large",
        f"the body is larger than the {limit} {what} that are allowed here. Send less at once: a part of "
        "the recording, or fewer windows.",
        {f"limit_{what}": limit},
    )


class BodyDoor:
    """Looks at method, path and headers, and counts the bytes while they come.

    A recording is as large as the settings allow, what is judged at once as large as its longest
    signal, others small. What is announced to be larger is refused at once; what turns out larger is
    refused when it does.
    """

    def __init__(self, app: ASGIApp, *, upload_bytes: int, json_bytes: int) -> None:
        self.app, self.upload_bytes, self.json_bytes = app, upload_bytes, json_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        expected = self.expected(scope["method"], scope["path"])
        problem = _problem(Headers(scope=scope), expected)
        if problem is not None:
            await error_response(problem)(scope, receive, send)
            return
        await self.app(scope, _counted(receive, expected), send)

    def expected(self, method: str, path: str) -> Expected:
        """Return what a request's body may be."""
        if method == "POST" and path.endswith("/recordings/files"):
            return Expected(FILES, self.upload_bytes)
        if method == "POST" and path.endswith("/detectors"):
            return Expected(ADAPTER, ADAPTER_BYTES)
        if method == "POST" and path.endswith("/recordings"):
            return Expected(JSON, self.json_bytes)
        if method == "POST" and path.endswith("/predict"):
            return self._samples(PREDICT_SAMPLES)
        if method == "POST" and path.endswith("/chunks"):
            return self._samples(CHUNK_SAMPLES)
        if method == "PUT" and path.endswith("/labels"):
            return Expected(JSON, LABELS_BYTES)
        return Expected(JSON, SMALL_BYTES)

    def _samples(self, n_samples: int) -> Expected:
        n_bytes = min(SMALL_BYTES + n_samples * SAMPLE_BYTES, self.json_bytes)
        return Expected(JSON, n_bytes, n_samples + OTHER_VALUES)


def _problem(headers: Headers, expected: Expected) -> ApiError | None:
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > expected.n_bytes:
        return too_large(expected.n_bytes)
    has_body = (length.isdecimal() and int(length) > 0) or "transfer-encoding" in headers
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not has_body or given == expected.kind:
        return None
    return ApiError(
        "unsupported_media",
        f"the body is of type {given[:100] or 'unknown'!r}; {expected.kind} was expected here. Set the "
        "header Content-Type.",
        {"expected": expected.kind},
    )


def _counted(receive: Receive, expected: Expected) -> Receive:
    n_bytes = n_values = 0

    async def counted() -> Message:
        nonlocal n_bytes, n_values
        message = await receive()
        body = message.get("body", b"")
        n_bytes += len(body)
        if n_bytes > expected.n_bytes:
            raise BodyTooLargeError(too_large(expected.n_bytes))
        if expected.n_values is not None:
            n_values += body.count(b",")
            if n_values > expected.n_values:
                raise BodyTooLargeError(too_large(expected.n_values, "values"))
        return message

    return counted
