"""From what the library raises to what the API answers: one table, one form of body.

Every answer that isn't a success, also that of a job which failed, has the body
``{"code": ..., "message": ..., "detail": {...}}``. Codes are for programs, messages for people; no
message holds a sample of a signal.
"""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from metaecg import errors
from metaecg.serve import store_errors

ERRORS: dict[type[Exception], tuple[str, int]] = {
    errors.NotEnoughWindowsError: ("not_enough_windows", 422),
    errors.CacheError: ("unavailable", 503),
    errors.DataError: ("data_error", 422),
    errors.ConfigError: ("invalid", 422),
    errors.LeakageError: ("data_error", 422),
    errors.AdaptationError: ("adaptation_error", 422),
    errors.CheckpointError: ("checkpoint_error", 422),
    errors.MissingDependencyError: ("internal", 500),
    store_errors.NotFoundError: ("not_found", 404),
    store_errors.ConflictError: ("conflict", 409),
    store_errors.TooManyError: ("too_many", 429),
    store_errors.StoreUnavailableError: ("unavailable", 503),
    store_errors.StoreError: ("internal", 500),
    errors.MetaECGError: ("internal", 500),
}
"""Class of exception to its code and status; a class that isn't here is answered as its nearest
ancestor, and what is no `MetaECGError` is a bug: 500."""

STATUS_OF = {
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media": 415,
    "invalid": 422,
    "data_error": 422,
    "not_enough_windows": 422,
    "checkpoint_error": 422,
    "adaptation_error": 422,
    "streams_need_windows": 422,
    "too_many": 429,
    "internal": 500,
    "unavailable": 503,
}
"""Every code that the API knows, with its status."""

RETRY_AFTER_S = 2
"""What a client is told to wait where the server can't do its work for now."""

BUG = "the server has met a bug. It was logged; tell the people who run the server the time of it."


class ApiError(Exception):
    """An answer of the API that nothing of the library raised.

    Parameters
    ----------
    code
        Key of `STATUS_OF`.
    message
        For people.
    detail
        JSON values.
    """

    def __init__(self, code: str, message: str, detail: Mapping | None = None) -> None:
        self.code, self.message, self.detail = code, message, dict(detail or {})
        self.status = STATUS_OF[code]
        super().__init__(message)


def not_found(kind: str, name: str) -> ApiError:
    """Return the error for something that isn't there, or isn't this organisation's."""
    return ApiError("not_found", f"there is no {kind} {name!r}.", {"kind": kind})


def code_and_status(error: BaseException) -> tuple[str, int]:
    """Return the code and the status of an exception, by the nearest class in `ERRORS`.

    Examples
    --------
    >>> code_and_status(errors.DataError("...")), code_and_status(ZeroDivisionError())
    (('data_error', 422), ('internal', 500))
    """
    if isinstance(error, ApiError):
        return error.code, error.status
    for kind in type(error).__mro__:
        if kind in ERRORS:
            return ERRORS[kind]
    return "internal", 500


def error_body(error: BaseException) -> dict:
    """Return the body for an exception; the words of a bug or of a driver stay in the log."""
    code, status = code_and_status(error)
    if isinstance(error, ApiError):
        return {"code": code, "message": error.message, "detail": error.detail}
    if status == 500:
        return {"code": code, "message": BUG, "detail": {}}
    message = str(error)
    if isinstance(error, store_errors.StoreUnavailableError):
        message = error.answer
    return {"code": code, "message": message, "detail": _detail(error)}


def error_response(error: BaseException) -> JSONResponse:
    """Return the whole answer for an exception."""
    _, status = code_and_status(error)
    return JSONResponse(error_body(error), status_code=status, headers=_headers(status))


def _headers(status: int) -> dict[str, str]:
    if status in (429, 503):
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {"WWW-Authenticate": "Bearer"} if status == 401 else {}


def _detail(error: BaseException) -> dict:
    if isinstance(error, errors.NotEnoughWindowsError):
        names = ("subject_id", "label", "n_found", "n_needed")
        return {name: getattr(error, name) for name in names}
    if isinstance(error, errors.ConfigError):
        return {"problems": error.problems}
    if isinstance(error, store_errors.NotFoundError):
        return {"kind": error.kind}
    return {}
