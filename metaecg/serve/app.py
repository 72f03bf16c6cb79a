"""The application: routes, doors before them, errors after them.

A request goes through, in this order:

    Timed         counts and times it
    AccessLog     if the settings ask for it
    Secured       headers that keep a browser from doing what the page doesn't
    TokenDoor     who asks (`metaecg.serve.auth`)
    BodyDoor      how large, of which kind (`metaecg.serve.limits`)
    Caught        a bug becomes an answer
    routes_*      what is done
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaecg import __version__
from metaecg.checks import did_you_mean
from metaecg.errors import MetaECGError
from metaecg.serve import (
    routes_detectors,
    routes_labels,
    routes_patients,
    routes_predictions,
    routes_recordings,
    routes_server,
    routes_streams,
)
from metaecg.serve.api_errors import ApiError, error_response
from metaecg.serve.auth import TokenDoor
from metaecg.serve.jobs import JobWorkers
from metaecg.serve.limits import BodyDoor, BodyTooLargeError
from metaecg.serve.logs import AccessLog
from metaecg.serve.metrics import Timed
from metaecg.serve.settings import Settings
from metaecg.serve.state import Services, open_services
from metaecg.serve.store_errors import StoreUnavailableError

ROUTERS = (
    routes_server.router,
    routes_patients.router,
    routes_recordings.router,
    routes_labels.router,
    routes_detectors.router,
    routes_predictions.router,
    routes_streams.router,
)
TAGS = [
    {"name": "server", "description": "The server and its model."},
    {"name": "patients", "description": "Patients of the token's organisation."},
    {"name": "recordings", "description": "Recordings of a patient."},
    {"name": "labels", "description": "Windows or beats, and what a person calls them."},
    {"name": "detectors", "description": "Personalizations and their versions."},
    {"name": "predictions", "description": "What a patient's detector says."},
    {"name": "streams", "description": "Live streams."},
]
DESCRIPTION = (
    "Ten labelled windows or beats per class from a new patient in, that patient's own detector out. "
    "Research use only; this is no medical device."
)
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]
NO_TELEMETRY = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own telemetry can record bodies and the texts of errors; ours is in `metrics`."""
VALIDATION_SHOWN = 5
CLIENT_LEFT = 499
"""What the figures and the log call a request whose client left before it was whole, as nginx does;
nobody gets this answer."""


def create_app(settings: Settings | None = None, *, services: Services | None = None) -> FastAPI:
    """Return the application; the store is opened and the base loaded at once.

    Parameters
    ----------
    settings
        How the server runs; ``None``: the defaults. Ignored where `services` are given.
    services
        Parts that are open already.

    Raises
    ------
    CheckpointError, ConfigError, StoreUnavailableError
        As `open_services`.
    """
    services = services or open_services(settings or Settings())
    services.worker = JobWorkers(services)
    app = FastAPI(
        title="metaecg",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,  # both pages would fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        middleware=_doors(services),
        telemetry=NO_TELEMETRY,
        form_limits={
            "max_files": routes_recordings.MAX_FILES,
            "max_fields": 20,
            "max_part_size": 65536,
        },
        generate_unique_id_function=_operation_id,
        dependencies=[Depends(refuse_unknown_query)],
    )
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router)
    _handle_errors(app, services)
    return app


async def refuse_unknown_query(request: Request) -> None:
    """Refuse a parameter that an endpoint doesn't know: a misspelt one would change nothing, unseen."""
    if not request.url.query or not request.url.path.startswith("/v1/"):
        return
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise ApiError(
            "invalid",
            f"the address has the parameter {unknown[0][:40]!r}, which isn't known here; expected "
            f"{did_you_mean(unknown[0], known) if known else 'none.'}",
        )


class Secured:
    """Adds headers to every answer: no frame, no foreign script, no guessing of types, no cache."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *HEADERS]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, secured)


class Caught:
    """Answers a bug with 500 and logs its place without its words, which may hold a client's data."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self.app, self.services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            answer = self.services.answer_error(error)
            if not has_begun:  # else the connection ends in the middle of the answer
                await answer(scope, receive, send)


def _doors(services: Services) -> list[Middleware]:
    settings = services.settings
    limits = {"upload_bytes": settings.upload_bytes, "json_bytes": settings.json_bytes}
    return [
        Middleware(Timed, metrics=services.metrics),
        *([Middleware(AccessLog)] if settings.access_log else []),
        Middleware(Secured),
        Middleware(TokenDoor, services=services),
        Middleware(BodyDoor, **limits),
        Middleware(Caught, services=services),
    ]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    services.worker.start()
    try:
        yield
    finally:
        await services.shut_down()


def _operation_id(route: APIRoute) -> str:
    return route.name


def _handle_errors(app: FastAPI, services: Services) -> None:
    async def known(request: Request, error: Exception) -> Response:
        return services.answer_error(error)

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(invalid_request(error))

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    async def of_http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ClientDisconnect):
            return await left(request, error)
        answer = services.answer_error(http_error(error, request))
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(methods_at(app, request.url.path))
        return answer

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(MetaECGError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(ClientDisconnect, left)


def methods_at(app: FastAPI, path: str) -> list[str]:
    """Return the methods that an address of the API takes, by the description of all addresses."""
    found = set()
    for pattern, operations in app.openapi()["paths"].items():
        parts = re.split(r"\{\w+\}", pattern)
        if re.fullmatch("[^/]+".join(map(re.escape, parts)), path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def invalid_request(error: RequestValidationError) -> ApiError:
    """Return what a client is told whose request doesn't fit the description; no values are echoed."""
    found = [
        {"where": [str(part)[:80] for part in problem["loc"]], "what": problem["msg"][:200]}
        for problem in error.errors()[:VALIDATION_SHOWN]
    ]
    first = found[0] if found else {"where": ["body"], "what": "it can't be read"}
    message = (
        f"the request doesn't fit its description in /openapi.json: {'.'.join(first['where'])}: "
        f"{first['what']}."
    )
    return ApiError("invalid", message, {"problems": found})


def http_error(error: HTTPException, request: Request) -> ApiError | StoreUnavailableError:
    """Return our form of an error that the web framework raised."""
    if isinstance(error.__cause__, OSError):  # while a form's files were put aside
        return StoreUnavailableError(
            f"the server has no room to keep the body while it comes ({error.__cause__.strerror}). "
            "Nothing was stored; try again later."
        )
    if isinstance(error, BodyTooLargeError):
        return error.problem
    if error.status_code == 404:
        return ApiError("not_found", "there is no such address; /openapi.json lists them.")
    if error.status_code == 405:
        return ApiError(
            "method_not_allowed", f"{request.method[:20]} isn't allowed at this address."
        )
    return ApiError("invalid", "the body can't be read as what its Content-Type says.")
