"""Who asks: a bearer token, and the organisation that it belongs to."""

import threading
import time
from collections.abc import Callable
from typing import Annotated

from cachetools import TTLCache
from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from metaecg.serve.api_errors import ApiError, error_response

MAX_REMEMBERED = 10_000
MAX_SECRET = 200
"""Longer ones are no tokens; they aren't even hashed."""
PROTECTED = "/v1"

bearer = HTTPBearer(
    scheme_name="token",
    description="A token of `python -m metaecg.serve tokens create`; it belongs to one organisation.",
    auto_error=False,
)


class Remembered:
    """What was looked up a moment ago, bounded in number and age; safe between threads.

    Parameters
    ----------
    seconds
        How long an answer counts; 0 remembers nothing.
    n_most
        Answers at most; the one not used for longest goes first.
    clock
        Gives seconds that never go back.
    """

    def __init__(
        self,
        seconds: float,
        *,
        n_most: int = MAX_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = TTLCache(n_most, seconds, timer=clock)
        self._lock = threading.Lock()
        self._generation = 0

    @property
    def generation(self) -> int:
        """Grows with every `forget`; to be read before something is looked up that is then `put`."""
        return self._generation

    def get(self, key):
        """Return what was put under `key`, ``None`` if nothing was or it is too old."""
        with self._lock:
            return self._known.get(key)

    def put(self, key, value, *, generation: int) -> None:
        """Remember `value`, unless something was forgotten since `generation` was read."""
        with self._lock:
            if generation == self._generation:  # else it may be of before the change
                self._known[key] = value

    def forget(self, key) -> None:
        """Forget what is under `key`."""
        with self._lock:
            self._generation += 1
            self._known.pop(key, None)


class TokenDoor:
    """Lets requests below ``/v1`` in with a valid token alone, before anything of them is read.

    The number of the organisation goes into the request's state as ``org_id``. That a token is
    valid is remembered for some seconds (`metaecg.serve.settings`): one that is revoked by another
    process may work so much longer. That one isn't valid is never remembered.
    """

    def __init__(self, app: ASGIApp, services) -> None:
        self.app, self.services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_protected(scope["path"]):
            await self.app(scope, receive, send)
            return
        try:
            org_id = await self._org_id(scope)
        except Exception as error:  # the store may be away
            await self.services.answer_error(error)(scope, receive, send)
            return
        if org_id is None:
            await error_response(_unauthorized())(scope, receive, send)
            return
        scope.setdefault("state", {})["org_id"] = org_id
        await self.app(scope, receive, send)

    async def _org_id(self, scope: Scope) -> int | None:
        secret = _secret(scope)
        if secret is None:
            return None
        known = self.services.tokens.get(secret)
        return known if known is not None else await run_in_threadpool(self._looked_up, secret)

    def _looked_up(self, secret: str) -> int | None:
        generation = self.services.tokens.generation
        org = self.services.store.org_of_token(secret)
        if org is None:
            return None
        self.services.tokens.put(secret, org.org_id, generation=generation)
        return org.org_id


def _is_protected(path: str) -> bool:
    return path == PROTECTED or path.startswith(f"{PROTECTED}/")


def _secret(scope: Scope) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, secret = found[0].decode("latin-1").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret or len(secret) > MAX_SECRET or not secret.isascii():
        return None
    return secret


def _unauthorized() -> ApiError:
    return ApiError(
        "unauthorized",
        "a valid token was expected in the header 'Authorization: Bearer TOKEN'. Make one with "
        "`python -m metaecg.serve tokens create --org NAME`.",
    )


async def org_of(request: Request, _: Annotated[object, Depends(bearer)]) -> int:
    """Return the organisation that the token belongs to, as `TokenDoor` found it."""
    return request.state.org_id


OrgId = Annotated[int, Depends(org_of)]
