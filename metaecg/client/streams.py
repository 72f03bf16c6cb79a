"""A live stream: chunks go to the server in order, each counted once."""

from collections.abc import Sequence

import numpy as np

from metaecg.client.http import Http, json_of, stream_path
from metaecg.client.results import StreamWindows, read_rows
from metaecg.client.signals import numbers
from metaecg.errors import DataError

CHUNK_S, CHUNK_SAMPLES = 60.0, 300_000
"""The server takes chunks up to this length; longer ones are cut."""


class Stream:
    """Chunks of one lead in, judged windows out; made by `Client.stream`.

    A chunk that is pushed again after an error is counted once, also one that went in several pieces.
    As a context manager it is closed at the end of the block; after an exception it is left open,
    so that `Client.resume_stream` can go on with it.

    Parameters
    ----------
    http
        The connection.
    stream_id, fs_hz, next_sequence
        As the server knows the stream.
    version
        The detector that judges, chosen at the start.
    delay_s
        A window is judged so many seconds after its end.
    """

    def __init__(
        self,
        http: Http,
        *,
        stream_id: str,
        fs_hz: float,
        next_sequence: int = 0,
        version: int | None = None,
        delay_s: float | None = None,
    ) -> None:
        self.stream_id = stream_id
        self.fs_hz = fs_hz
        self.next_sequence = next_sequence
        self.version = version
        self.delay_s = delay_s
        self._http = http
        self._end: StreamWindows | None = None
        # Of a chunk that failed after some of its pieces were taken: those samples and their windows.
        self._taken = np.empty(0, dtype=np.float32)
        self._windows: list[StreamWindows] = []

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()

    def push(self, chunk: np.ndarray | Sequence[float]) -> StreamWindows:
        """Send the next samples and return the windows that they complete.

        More than a minute, or than 300,000 samples, goes in several pieces. After an error push the same chunk again: it goes on
        where it stopped, and the windows of all its pieces come together.

        Parameters
        ----------
        chunk
            Shape ``(n_samples,)``, in the stream's unit; NaN where nothing was measured. It goes on
            where the one before ended.

        Raises
        ------
        DataError
            The chunk has no sample, another shape or an infinite sample, or doesn't begin with what
            was already taken of the chunk that failed before it.
        ConflictError
            The server is at another place of the stream: somebody else sends to it.
        """
        values = _checked(chunk)
        at = self._refuse_another(values)
        n_most = max(1, min(int(CHUNK_S * self.fs_hz), CHUNK_SAMPLES))
        try:
            while at < len(values):
                piece = values[at : at + n_most]
                self._windows.append(self._send(piece))
                at += len(piece)
        finally:
            self._taken = values[: at if at < len(values) else 0].copy()
        found, self._windows = _joined(self._windows), []
        return found

    def close(self) -> StreamWindows:
        """End the stream and return its last windows; a second call returns the same ones.

        Those of a chunk that failed and wasn't pushed again come first.
        """
        if self._end is None:
            answer = self._http.ask("POST", f"{stream_path(self.stream_id)}/close", repeat=True)
            last = read_rows(StreamWindows, json_of(answer).get("windows", ()))
            self._end = _joined([*self._windows, last])
        return self._end

    def _refuse_another(self, values: np.ndarray) -> int:
        """Return where in a chunk to begin: after what was taken of it; another chunk is a DataError."""
        n_taken = len(self._taken)
        if not np.array_equal(values[:n_taken], self._taken, equal_nan=True):
            raise DataError(
                f"the first {n_taken} samples of the chunk before were taken when it failed, and this one "
                "begins with others; the same chunk was expected. Push it again, whole."
            )
        return n_taken

    def _send(self, values: np.ndarray) -> StreamWindows:
        body = f'{{"sequence": {self.next_sequence}, "signal": [{numbers(values, gap="null")}]}}'
        answer = self._http.ask(
            "POST",
            f"{stream_path(self.stream_id)}/chunks",
            repeat=True,  # the same number again gives the same answer
            data=body.encode(),
            headers={"Content-Type": "application/json"},
        )
        found = json_of(answer)
        windows = read_rows(StreamWindows, found.get("windows", ()))
        self.next_sequence = int(found.get("next_sequence", self.next_sequence + 1))
        return windows


def _checked(chunk: np.ndarray | Sequence[float]) -> np.ndarray:
    values = np.asarray(chunk, dtype=np.float32)
    if values.ndim != 1 or not len(values) or np.isinf(values).any():
        raise DataError(
            f"a chunk of shape {values.shape} can't be sent; expected (n_samples,), at least one "
            "sample, and no infinite one."
        )
    return values


def _joined(parts: list[StreamWindows]) -> StreamWindows:
    if len(parts) == 1:
        return parts[0]
    return StreamWindows(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("index", "start_s", "stop_s", "probability")
        },
        label=tuple(label for part in parts for label in part.label),
    )
