"""Fetch one file over HTTP into a part file, going on where it ends."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from threading import Event

import requests
from urllib3.exceptions import HTTPError, ProtocolError

from metaecg.errors import DataError

TIMEOUT_S = (10.0, 60.0)
"""Seconds to connect, and seconds without a byte before the connection counts as lost."""
CHUNK = 1 << 16


class Stopped(Exception):
    """The caller asked the transfer to stop; the part file keeps what has arrived."""


def discard(part: Path) -> None:
    """Remove a part file and the note beside it, if they are there."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def fetch(
    url: str,
    part: Path,
    *,
    session: requests.Session,
    tag: str = "",
    stop: Event | None = None,
    received: Callable[[int], None] | None = None,
) -> None:
    """Fetch `url` into `part`, resuming it, until the server says that it is whole.

    What `part` holds is continued only if the server confirms (HTTP ``If-Range``) that its file is
    still the one that `part` began with; else it starts over. A body that ends early is resumed as
    often as the session's retries allow without a byte of progress.

    Parameters
    ----------
    url, part
        From where, and to which file. The note ``part.json`` beside it is removed at the end.
    session
        Its adapter's retries set how often to go on.
    tag
        Names the wanted content (its checksum); a part begun for another tag is dropped.
    stop
        When set, the transfer raises `Stopped` at the next piece.
    received
        Called with the length of every piece.

    Raises
    ------
    DataError
        The server can't be reached, refuses, or keeps on ending early.
    OSError
        `part` can't be written.
    """
    retries = left = session.get_adapter(url).max_retries
    longest = 0
    while not _transfer(url, part, session, tag, stop, received):
        size = part.stat().st_size
        if size > longest:
            longest, left = size, retries
        try:
            left = left.increment("GET", url, error=ProtocolError("the body ended early"))
        except HTTPError as error:
            raise DataError(
                f"{url}: the connection was lost again and again, after {size} bytes. What has "
                "arrived is kept; run the download again to go on."
            ) from error
        left.sleep()
    _note(part).unlink(missing_ok=True)


def _transfer(url, part, session, tag, stop, received) -> bool:
    """Make one request and store its body; return whether the file is whole now."""
    with _open(url, part, session, tag) as response:
        append = response.status_code == 206
        if not append:
            part.unlink(missing_ok=True)  # the note must never describe another body
            _write_note(part, tag, response)
        return _store(response, part, append, stop, received)


def _open(url: str, part: Path, session: requests.Session, tag: str) -> requests.Response:
    """Ask for what is missing; where that can't be had, for the whole file."""
    have, validator = _resumable(part, tag)
    if have:
        conditions = {"Range": f"bytes={have}-"}
        if validator:
            conditions["If-Range"] = validator
        response = _get(url, session, conditions)
        if response.status_code == 200 or _continues_at(response) == have:
            return _accepted(url, response)
        response.close()
        if response.status_code not in (206, 416):
            return _accepted(url, response)
    return _accepted(url, _get(url, session, {}), whole=True)


def _get(url: str, session: requests.Session, conditions: dict[str, str]) -> requests.Response:
    # An encoded body has other lengths than the file, so none is asked for.
    headers = {"Accept-Encoding": "identity", **conditions}
    try:
        return session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        raise DataError(
            f"{url} can't be fetched: {error}. Check the connection and base_url, then run the "
            "download again; it goes on where it stopped."
        ) from error


def _accepted(url: str, response: requests.Response, *, whole: bool = False) -> requests.Response:
    if response.status_code in ((200,) if whole else (200, 206)):
        return response
    response.close()
    raise DataError(
        f"{url}: the server answers {response.status_code} {response.reason}; expected the file. "
        "Check base_url, or try again later."
    )


def _continues_at(response: requests.Response) -> int | None:
    """Return the position at which a 206 answer begins."""
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if response.status_code == 206 and match else None


def _store(response, part: Path, append: bool, stop, received) -> bool:
    """Write the body; return False if it ended early."""
    n_new, complete = 0, True
    # urllib3's own check would throw away the last bytes of a short body; the one below keeps them.
    response.raw.enforce_content_length = False
    with open(part, "ab" if append else "wb") as file:
        try:
            for piece in response.iter_content(CHUNK):
                if stop is not None and stop.is_set():
                    raise Stopped
                file.write(piece)
                n_new += len(piece)
                if received is not None:
                    received(len(piece))
        except requests.RequestException:
            complete = False
        file.flush()
        os.fsync(file.fileno())
    promised = response.headers.get("Content-Length", "")
    if promised.isdigit() and "Content-Encoding" not in response.headers:
        complete = complete and n_new >= int(promised)
    return complete


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_note(part: Path, tag: str, response: requests.Response) -> None:
    """Write down what a later request needs to go on with the same file."""
    etag = response.headers.get("ETag", "")
    # A weak ETag promises equal meaning, not equal bytes; If-Range doesn't take it (RFC 9110).
    strong = "" if etag.startswith("W/") else etag
    validator = strong or response.headers.get("Last-Modified", "")
    _note(part).write_text(json.dumps({"tag": tag, "validator": validator}))


def _resumable(part: Path, tag: str) -> tuple[int, str]:
    """Return how many bytes of `part` may be continued, and the validator to send along."""
    try:
        note = json.loads(_note(part).read_text())
        same = note["tag"] == tag
        return (part.stat().st_size if same else 0), str(note["validator"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
