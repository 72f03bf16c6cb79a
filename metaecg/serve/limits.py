"""Refuse a body that is too large or of the wrong kind before anything of it is parsed."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaecg.serve.api_errors import ApiError, error_response

FILES, ADAPTER, JSON = "multipart/form-data", "application/octet-stream", "application/json"
SMALL_BYTES = 1024 * 1024
"""For bodies that hold no signal: names, settings."""
LABELS_BYTES = 8 * 1024 * 1024
"""For as many labels as `NewLabels` takes, with the longest numbers and class names."""
ADAPTER_BYTES = 64 * 1024 * 1024
"""A detector that changes every weight of a large base."""
WITH_SIGNAL = ("/recordings", "/predict", "/streams", "/chunks")


class BodyTooLargeError(HTTPException):
    """More bytes came than the body may have; an `HTTPException` so that no parser hides it."""

    def __init__(self, limit: int) -> None:
        super().__init__(status_code=413)
        self.limit = limit


def too_large(limit: int) -> ApiError:
    """Return what a client is told whose body is too large."""
    return ApiError(
        "too_large",
        f"the body is larger than the {limit} bytes that are allowed here. Send less at once: a part of "
        "the recording, or fewer windows.",
        {"limit_bytes": limit},
    )


class BodyDoor:
    """Looks at method, path and headers, and counts the bytes while they come.

    Bodies with signal are as large as the settings allow, others small. What is announced to be
    larger is refused at once; what turns out larger is refused when it does.
    """

    def __init__(self, app: ASGIApp, *, upload_bytes: int, json_bytes: int) -> None:
        self.app, self.upload_bytes, self.json_bytes = app, upload_bytes, json_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        kind, limit = self.expected(scope["method"], scope["path"])
        headers = Headers(scope=scope)
        problem = _problem(headers, kind, limit)
        if problem is not None:
            await error_response(problem)(scope, receive, send)
            return
        await self.app(scope, _counted(receive, limit), send)

    def expected(self, method: str, path: str) -> tuple[str, int]:
        """Return the media type of a request's body and the most bytes that it may have."""
        if method == "POST" and path.endswith("/recordings/files"):
            return FILES, self.upload_bytes
        if method == "POST" and path.endswith("/detectors"):
            return ADAPTER, ADAPTER_BYTES
        if method == "POST" and path.endswith(WITH_SIGNAL):
            return JSON, self.json_bytes
        if method == "PUT" and path.endswith("/labels"):
            return JSON, LABELS_BYTES
        return JSON, SMALL_BYTES


def _problem(headers: Headers, kind: str, limit: int) -> ApiError | None:
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        return too_large(limit)
    has_body = (length.isdecimal() and int(length) > 0) or "transfer-encoding" in headers
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not has_body or given == kind:
        return None
    return ApiError(
        "unsupported_media",
        f"the body is of type {given[:100] or 'unknown'!r}; {kind} was expected here. Set the header "
        "Content-Type.",
        {"expected": kind},
    )


def _counted(receive: Receive, limit: int) -> Receive:
    n_bytes = 0

    async def counted() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > limit:
            raise BodyTooLargeError(limit)
        return message

    return counted
