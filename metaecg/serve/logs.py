"""What goes into the log: routes, statuses, durations. Never a signal, a token, a name or a note."""

import logging
import sys
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metaecg.serve.metrics import route_of

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TALKATIVE = (
    "sqlalchemy", "alembic", "multipart", "python_multipart", "asyncio", "psycopg", "uvicorn.access",
    "urllib3", "numba", "matplotlib", "httpx2", "httpcore2",
)  # fmt: skip
"""Other packages' loggers that write parameters, addresses or bodies where they say much: they stay at
WARNING, whatever level is asked for."""


def set_up_logs(level: str) -> None:
    """Send the log to standard error from `level` on; called by the command line alone."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(FORMAT, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


class AccessLog:
    """A line per request: method, route as a pattern, status, milliseconds."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._log = logging.getLogger("metaecg.serve.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            milliseconds = 1000 * (time.perf_counter() - begin)
            said = (scope["method"], route_of(scope), status, milliseconds)
            self._log.info("%s %s %d %.1f ms", *said)
