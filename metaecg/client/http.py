"""Requests to the server: the token, time limits, tries, and errors as exceptions."""

import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry

from metaecg import __version__
from metaecg.client.errors import NotFoundError, ServerError, UnavailableError, exception_of

LATER = (429, 503)
"""Statuses that say "not now": the same request may succeed a little later."""
LONGEST_PAUSE_S = 10.0
SUBJECT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MADE_BY_SERVER = re.compile(r"[0-9A-Za-z_-]{1,128}")


def patient_path(subject_id: str) -> str:
    """Return a patient's path; a name that the server wouldn't take is a ValueError."""
    return f"/v1/patients/{_checked('subject_id', subject_id, SUBJECT_ID)}"


def recording_path(subject_id: str, recording_id: str) -> str:
    """Return the path of a patient's recording."""
    part = _checked("recording_id", recording_id, MADE_BY_SERVER)
    return f"{patient_path(subject_id)}/recordings/{part}"


def job_path(job_id: str) -> str:
    """Return the path of a job."""
    return f"/v1/jobs/{_checked('job_id', job_id, MADE_BY_SERVER)}"


def stream_path(stream_id: str) -> str:
    """Return the path of a stream."""
    return f"/v1/streams/{_checked('stream_id', stream_id, MADE_BY_SERVER)}"


class Token(AuthBase):
    """Put the token on every request; a .netrc file is not asked then."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._secret}"
        return request

    def __repr__(self) -> str:
        return "Token(...)"


def address_and_token(url: str, token: str | None) -> tuple[str, str]:
    """Return the server's address without a slash at its end, and the token.

    `url` may be what the server prints at its first start, ``http://host:port/#token=...``; a
    `token` that is given goes first.

    Raises
    ------
    ValueError
        `url` is no http address, or there is no token.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(
            f"url is {url.split('#')[0]!r}; the server's address was expected, such as "
            "'http://127.0.0.1:8000'."
        )
    token = token or parse_qs(parts.fragment).get("token", [""])[0]
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            "the token is empty or isn't one; expected what 'python -m metaecg.serve tokens create' "
            "printed. It is shown once; create another if it is lost."
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", token


class Http:
    """A connection pool to one server; `ask` sends a request and returns what was answered.

    Parameters
    ----------
    url
        The server's address.
    token
        The organisation's token.
    timeout_s
        How long to wait for a connection, and for the next byte of an answer.
    n_retries
        How often a request that may be repeated is tried again.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float, n_retries: int) -> None:
        self.url = url
        self._timeout_s = timeout_s
        # A request may be repeated if a second one changes nothing. That is known per call, not by
        # the verb (the next chunk of a stream is a POST), so there is a session for either kind.
        self._sessions = {
            True: _session(token, _tries(n_retries)),
            False: _session(token, Retry(0, read=False)),
        }

    def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            session.close()

    def ask(
        self, method: str, path: str, *, repeat: bool, params: Mapping | None = None, **content
    ) -> requests.Response:
        """Send a request and return the answer if it is a good one.

        Parameters
        ----------
        method, path
            ``"GET"`` and so on; below the server's address.
        repeat
            Whether it may be sent again if there is no answer, or a 429 or 503.
        params
            The query; what is None is left out.
        **content
            What requests takes: ``json``, ``data``, ``files``, ``headers``.

        Raises
        ------
        MetaECGError
            What `metaecg.client.errors.exception_of` makes of the answer; `UnavailableError` where
            there is none.
        """
        query = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            answer = self._sessions[repeat].request(
                method,
                f"{self.url}{path}",
                params=query,
                timeout=self._timeout_s,
                allow_redirects=False,  # the token is for this server alone
                **content,
            )
        except requests.RequestException as error:
            raise _no_answer(self.url, error, self._timeout_s) from error
        if answer.status_code < 300:
            return answer
        if answer.status_code < 400:
            raise ServerError(
                f"{self.url} sends requests elsewhere (status {answer.status_code}); a metaecg "
                "server doesn't. Give the address that answers itself.",
                status=answer.status_code,
            )
        raise exception_of(_json_or_none(answer), answer.status_code)

    def get(self, path: str, **params) -> dict:
        """Return the JSON of a GET request."""
        return json_of(self.ask("GET", path, repeat=True, params=params))

    def delete(self, path: str) -> None:
        """Delete; that it is gone already is a failure only at the first try."""
        begun = []
        try:
            self.ask("DELETE", path, repeat=True, hooks={"response": _noting_tries(begun)})
        except NotFoundError:
            if not any(begun):
                raise


def json_of(answer: requests.Response) -> dict:
    """Return the JSON object of a good answer."""
    body = _json_or_none(answer)
    if not isinstance(body, dict):
        raise ServerError(
            f"{answer.url.split('?')[0]} answered without a JSON object; an answer of the metaecg API "
            "was expected. Look at the address.",
            status=answer.status_code,
        )
    return body


def _checked(name: str, value: str, pattern: re.Pattern) -> str:
    # A name goes into the address as it is, so nothing in it may mean something there.
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(
            f"{name} is {value!r}; expected 1 to 64 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit, or what the server gave."
        )
    return value


def _json_or_none(answer: requests.Response) -> object:
    try:
        return answer.json()
    except ValueError:
        return None


def _session(token: str, retry: Retry) -> requests.Session:
    session = requests.Session()
    session.auth = Token(token)
    session.headers["User-Agent"] = f"metaecg/{__version__}"
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _tries(n_retries: int) -> Retry:
    return Retry(
        n_retries,
        allowed_methods=None,
        status_forcelist=LATER,
        backoff_factor=0.2,
        backoff_jitter=0.1,  # so that many clients don't come back at the same instant
        backoff_max=LONGEST_PAUSE_S,
        retry_after_max=int(LONGEST_PAUSE_S),
        raise_on_status=False,
    )


def _noting_tries(begun: list[bool]):
    """Return a hook that notes whether the answer came at a later try."""

    def note(answer: requests.Response, **_) -> None:
        tries = getattr(answer.raw, "retries", None)
        begun.append(bool(tries is not None and tries.history))

    return note


def _no_answer(url: str, error: Exception, timeout_s: float) -> UnavailableError:
    if isinstance(error, requests.Timeout):
        what = f"{url} did not answer within {timeout_s:g} s"
    else:
        what = f"{url} can't be reached"
    return UnavailableError(
        f"{what} ({type(error).__name__}); a running metaecg server was expected. Look whether it "
        "runs ('python -m metaecg.serve') and whether the address is right.",
        code="no_answer",
    )
