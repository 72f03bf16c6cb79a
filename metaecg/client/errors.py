"""What the client raises beside the library's own exceptions.

    MetaECGError
        ClientError                             fields: code, status, detail
            UnauthorizedError (PermissionError)     no token, or one that is revoked or expired
            NotFoundError (LookupError)             no such patient, recording, version or job
            ConflictError (RuntimeError)            it is there already, or isn't what it was
            InvalidRequestError (ValueError)        the server refuses the request, its size or its kind
            UnavailableError (ConnectionError)      no answer, or not now; a later try may succeed
            JobCancelledError (RuntimeError)        somebody cancelled the job; field: job_id
            JobTimeoutError (TimeoutError)          the job goes on, the waiting ended; field: job_id
            ServerError (RuntimeError)              a bug of the server, or no metaecg server at all

What the library itself would raise comes as the same class: `DataError`, `NotEnoughWindowsError`,
`AdaptationError`, `CheckpointError`.
"""

from collections.abc import Mapping

from metaecg.errors import (
    AdaptationError,
    CheckpointError,
    DataError,
    MetaECGError,
    NotEnoughWindowsError,
)


class ClientError(MetaECGError):
    """What the server answered, or that it didn't."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        status: int | None = None,
        detail: Mapping | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.detail = dict(detail or {})


class UnauthorizedError(ClientError, PermissionError):
    """The token is missing, unknown, revoked or expired."""


class NotFoundError(ClientError, LookupError):
    """What was asked for doesn't exist, or belongs to another organisation."""


class ConflictError(ClientError, RuntimeError):
    """What was to be made is there already, or isn't in the state that was expected."""


class InvalidRequestError(ClientError, ValueError):
    """The server refuses the request as it stands."""


class UnavailableError(ClientError, ConnectionError):
    """The server or its store can't be reached, or has too much to do."""


class JobCancelledError(ClientError, RuntimeError):
    """The job was cancelled before its end."""

    @property
    def job_id(self) -> str:
        """Which job."""
        return self.detail["job_id"]


class JobTimeoutError(ClientError, TimeoutError):
    """The job wasn't at its end in time; it goes on."""

    @property
    def job_id(self) -> str:
        """Which job."""
        return self.detail["job_id"]


class ServerError(ClientError, RuntimeError):
    """The server has a bug, or something else than metaecg answers at this address."""


OF_LIBRARY = {
    "data_error": DataError,
    "adaptation_error": AdaptationError,
    "checkpoint_error": CheckpointError,
}
"""Code of an answer -> the exception that the library itself raises for it."""

OF_STATUS = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    409: ConflictError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
"""HTTP status -> exception; any other from 400 to 499 is an `InvalidRequestError`."""


def exception_of(body: object, status: int | None = None) -> MetaECGError:
    """Return the exception for an answer that is an error, or for the error of a job.

    Parameters
    ----------
    body
        ``{"code", "message", "detail"}`` as the API answers. Anything else (a proxy's page, say)
        is allowed.
    status
        The HTTP status; a job's error has none.
    """
    fields = body if isinstance(body, Mapping) else {}
    code = str(fields.get("code") or "")
    message = str(fields.get("message") or "") or _nothing_said(status)
    detail = fields.get("detail")
    detail = dict(detail) if isinstance(detail, Mapping) else {}
    if code == "not_enough_windows":
        return _not_enough(message, detail)
    if code in OF_LIBRARY:
        return OF_LIBRARY[code](message)
    return _class_of(status)(message, code=code, status=status, detail=detail)


def _class_of(status: int | None) -> type[ClientError]:
    if status in OF_STATUS:
        return OF_STATUS[status]
    is_ours = status is not None and 400 <= status < 500
    return InvalidRequestError if is_ours else ServerError


def _not_enough(message: str, detail: dict) -> DataError:
    """Return the library's exception with its fields, where the server sent them."""
    names = ("subject_id", "label", "n_found", "n_needed")
    if not all(name in detail for name in names):
        return DataError(message)
    return NotEnoughWindowsError(
        **{name: detail[name] for name in names}, where=str(detail.get("where") or "")
    )


def _nothing_said(status: int | None) -> str:
    return (
        f"the server answered with status {status} and without words; an answer of the metaecg API "
        "was expected. Look at the address, and at what stands between here and the server."
    )
