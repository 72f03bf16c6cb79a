"""Cut windows out of a live stream: the same windows as from a file, `MARGIN_S` later."""

import numpy as np

from metaecg.checks import check_positive
from metaecg.data.filtering import filter_segment
from metaecg.data.preprocessing import MARGIN_S, Preprocessing, measured_segments
from metaecg.errors import DataError


class WindowStream:
    """Collect chunks of signal and hand out each window as soon as it can be known.

    A window is known `MARGIN_S` seconds after its end (the zero-phase filter looks that far ahead),
    or at once when the stream ends. It equals the window that `cut_windows` takes from the file.
    Windows holding NaN are left out, as there.

    Parameters
    ----------
    fs_hz
        Sampling rate of the stream, hertz.
    n_leads
        Number of leads in each chunk.
    preprocessing
        Rate, length and band of the windows.

    Examples
    --------
    >>> import numpy as np
    >>> stream = WindowStream(fs_hz=250.0, n_leads=1, preprocessing=Preprocessing())
    >>> [start_s for start_s, window in stream.push(np.zeros((1, 2000)))]
    [0.0, 2.0, 4.0]
    """

    def __init__(self, *, fs_hz: float, n_leads: int, preprocessing: Preprocessing) -> None:
        self.fs_hz = check_positive("fs_hz", fs_hz)
        self.preprocessing = preprocessing
        self._buffer = np.empty((n_leads, 0), dtype=np.float32)
        self._buffer_start = 0  # index of the buffer's first sample in the stream
        self._next = 0  # number of the next window

    def push(self, chunk_mv: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Take samples of shape ``(n_leads, n)`` in millivolts; return ``(start_s, window)`` pairs."""
        chunk = np.asarray(chunk_mv, dtype=np.float32)
        if chunk.ndim != 2 or chunk.shape[0] != self._buffer.shape[0]:
            raise DataError(
                f"the chunk has shape {chunk.shape}; expected ({self._buffer.shape[0]}, n_samples)."
            )
        self._buffer = np.concatenate([self._buffer, chunk], axis=1)
        return self._take(lookahead_s=MARGIN_S)

    def close(self) -> list[tuple[float, np.ndarray]]:
        """End the stream: return the windows that waited for samples after them."""
        return self._take(lookahead_s=0.0)

    def to_dict(self) -> dict:
        """Return where the stream stands: JSON values, and the samples still needed as an array.

        ``"buffer_mv"`` is float32, shape ``(n_leads, n)``; a few seconds at most.
        """
        return {
            "fs_hz": self.fs_hz,
            "preprocessing": self.preprocessing.to_dict(),
            "buffer_mv": self._buffer.copy(),
            "buffer_start": self._buffer_start,
            "next": self._next,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "WindowStream":
        """Rebuild from `to_dict`'s values: it goes on where that one stood.

        Raises
        ------
        DataError
            If keys are missing or unknown, or a value can't be.
        """
        keys = {"fs_hz", "preprocessing", "buffer_mv", "buffer_start", "next"}
        if not isinstance(values, dict) or set(values) != keys:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise DataError(f"the state of the stream has {found}; expected {sorted(keys)}.")
        buffer = np.asarray(values["buffer_mv"])
        if buffer.ndim != 2 or not len(buffer) or buffer.dtype != np.float32:
            raise DataError(
                f"buffer_mv is {buffer.dtype} of shape {buffer.shape}; expected float32 of shape "
                "(n_leads, n_samples)."
            )
        counts = (values["buffer_start"], values["next"])
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts):
            raise DataError(
                f"buffer_start and next are {counts}; expected whole numbers from 0 on."
            )
        preprocessing = Preprocessing.from_dict(values["preprocessing"])
        found = cls(fs_hz=values["fs_hz"], n_leads=len(buffer), preprocessing=preprocessing)
        found._buffer, (found._buffer_start, found._next) = buffer.copy(), counts
        return found

    def _take(self, *, lookahead_s: float) -> list[tuple[float, np.ndarray]]:
        window_s, found = self.preprocessing.window_s, []
        end = self._buffer_start + self._buffer.shape[1]
        while ((self._next + 1) * window_s + lookahead_s) * self.fs_hz <= end + 1e-6:
            window = self._window(self._next * window_s)
            if window is not None:
                found.append((self._next * window_s, window))
            self._next += 1
        self._forget()
        return found

    def _window(self, start_s: float) -> np.ndarray | None:
        """Filter only the window and its margins, the way a file's segment would be."""
        n_samples = self.preprocessing.n_samples
        first = round(start_s * self.preprocessing.fs_hz)
        low = int(np.floor((start_s - MARGIN_S) * self.fs_hz)) - self._buffer_start
        high = int(np.ceil((start_s + self.preprocessing.window_s + MARGIN_S) * self.fs_hz))
        low, high = max(low, 0), high - self._buffer_start + 1
        piece = self._buffer[:, low:high]
        for start, stop in measured_segments(piece):
            if (stop - start) / self.fs_hz < self.preprocessing.window_s:  # as `cut_at`
                continue
            filtered, grid = filter_segment(
                piece[:, start:stop],
                start=self._buffer_start + low + start,
                fs_hz=self.fs_hz,
                preprocessing=self.preprocessing,
            )
            if grid <= first and first + n_samples <= grid + filtered.shape[1]:
                return filtered[:, first - grid : first - grid + n_samples]
        return None

    def _forget(self) -> None:
        """Drop what no later window can need."""
        keep_s = self._next * self.preprocessing.window_s - MARGIN_S
        n_old = int(np.floor(keep_s * self.fs_hz)) - 1 - self._buffer_start
        if n_old > 0:
            self._buffer = self._buffer[:, n_old:]
            self._buffer_start += n_old
