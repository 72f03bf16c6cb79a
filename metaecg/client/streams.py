"""A live stream: chunks go to the server in order, each counted once."""

from collections.abc import Sequence

import numpy as np

from metaecg.client.http import Http, json_of, stream_path
from metaecg.client.results import StreamWindows, read_rows
from metaecg.client.signals import numbers
from metaecg.errors import DataError

CHUNK_S = 60.0
"""The server takes chunks up to this length; longer ones are cut."""


class Stream:
    """Chunks of one lead in, judged windows out; made by `Client.stream`.

    Every chunk has a number, so one that is sent again because an answer was lost is counted once.
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

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()

    def push(self, chunk: np.ndarray | Sequence[float]) -> StreamWindows:
        """Send the next samples and return the windows that they complete.

        Parameters
        ----------
        chunk
            Shape ``(n_samples,)``, in the stream's unit; NaN where nothing was measured. It goes on
            where the one before ended.

        Raises
        ------
        DataError
            The chunk has no sample, another shape or an infinite sample.
        ConflictError
            The server is at another place of the stream: somebody else sends to it.
        """
        values = np.asarray(chunk, dtype=np.float32)
        if values.ndim != 1 or not len(values) or np.isinf(values).any():
            raise DataError(
                f"a chunk of shape {values.shape} can't be sent; expected (n_samples,), at least one "
                "sample, and no infinite one."
            )
        n_most = max(1, int(CHUNK_S * self.fs_hz))
        pieces = (values[i : i + n_most] for i in range(0, len(values), n_most))
        return _joined([self._send(piece) for piece in pieces])

    def close(self) -> StreamWindows:
        """End the stream and return its last windows; a second call returns the same ones."""
        if self._end is None:
            answer = self._http.ask("POST", f"{stream_path(self.stream_id)}/close", repeat=True)
            self._end = read_rows(StreamWindows, json_of(answer).get("windows", ()))
        return self._end

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
