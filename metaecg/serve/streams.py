"""A patient's signal as it comes, in chunks: windows and their probabilities, each by those before it."""

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from metaecg.checks import check_option
from metaecg.data.filtering import filter_segment
from metaecg.data.stream import WindowStream
from metaecg.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from metaecg.adapt.personalize import Personalizer
    from metaecg.models.checkpoints import BaseModel
    from metaecg.serve.mixed import PatientModel

KEY = "metaecg_stream"
FORMAT_VERSION = 1
RHYTHMS = ("none", "causal")


@dataclass(frozen=True, eq=False)
class StreamedWindow:
    """A window of a stream and what the detector says of it."""

    index: int
    """Number of the window: it starts ``index * window_s`` after the stream."""
    start_s: float
    stop_s: float
    probability: np.ndarray
    """Of each class of the base, shape ``(n_classes,)``, float64."""


class LiveStream:
    """One lead of one patient as it is recorded.

    The windows and probabilities are those of the whole recording, judged with ``rhythm="causal"``
    (or ``"none"``), whatever the chunks, `metaecg.data.preprocessing.MARGIN_S` later.

    Parameters
    ----------
    base
        The base model; one for windows.
    model
        The patient's detector: a fitted `Personalizer` or a `PatientModel`; ``None``: the base.
    fs_hz
        Sampling rate of the signal, hertz.
    rhythm
        ``"causal"`` counts the windows before, ``"none"`` doesn't; ``None``: causal where the base
        has a rhythm model. A detector that was fitted without a rhythm has the base's chain.

    Raises
    ------
    DataError
        If the base judges beats, or its windows can't be cut at this rate.
    ValueError
        If `rhythm` or `fs_hz` can't be.
    """

    def __init__(
        self,
        base: "BaseModel",
        model: "Personalizer | PatientModel | None" = None,
        *,
        fs_hz: float,
        rhythm: str | None = None,
    ) -> None:
        from metaecg.models.beat_detector import CUTTING
        from metaecg.models.rhythm import RhythmFilter

        if CUTTING in base.training:
            raise DataError("the base judges beats; a stream needs one that judges windows.")
        if rhythm is None:
            rhythm = "none" if base.rhythm is None else "causal"
        check_option("rhythm", rhythm, RHYTHMS if base.rhythm is not None else RHYTHMS[:1])
        self.base, self.rhythm = base, rhythm
        # Of its own, so that fitting the detector again leaves an open stream with its patient.
        self._model = base if model is None else copy.copy(model)
        self._windows = WindowStream(
            fs_hz=fs_hz, n_leads=base.n_leads, preprocessing=base.preprocessing
        )
        # A rate that can't become the base's is refused now, not at the first window.
        nothing = np.zeros((base.n_leads, 2), np.float32)
        filter_segment(nothing, start=0, fs_hz=fs_hz, preprocessing=base.preprocessing)
        self._filter = None
        if rhythm == "causal":
            self._filter = RhythmFilter(base.rhythm, getattr(model, "chain_", None))
        self._is_closed = False

    @property
    def fs_hz(self) -> float:
        """Sampling rate of the signal, hertz."""
        return self._windows.fs_hz

    @property
    def is_closed(self) -> bool:
        """Whether the stream has ended."""
        return self._is_closed

    def push(self, chunk_mv: np.ndarray) -> list[StreamedWindow]:
        """Take samples ``(n_leads, n)`` in millivolts, NaN where nothing was measured.

        Return the windows that are known now. A closed stream, or a chunk of another shape, is a
        DataError.
        """
        self._refuse_if_closed()
        return self._judged(self._windows.push(chunk_mv))

    def close(self) -> list[StreamedWindow]:
        """End the stream: return the windows that waited for samples after them."""
        self._refuse_if_closed()
        self._is_closed = True
        return self._judged(self._windows.close())

    def to_bytes(self) -> bytes:
        """Return where the stream stands, for `from_bytes`: a safetensors file with JSON in it."""
        from safetensors.numpy import save

        state = self._windows.to_dict()
        buffer = state.pop("buffer_mv")
        content = {
            "format_version": FORMAT_VERSION,
            "belongs_to": _identity(self.base, self._model),
            "rhythm": self.rhythm,
            "windows": state,
            "filter": None if self._filter is None else self._filter.to_dict(),
            "is_closed": self._is_closed,
        }
        return save({"buffer_mv": buffer}, metadata={KEY: json.dumps(content)})

    @classmethod
    def from_bytes(
        cls, data: bytes, base: "BaseModel", model: "Personalizer | PatientModel | None" = None
    ) -> "LiveStream":
        """Return the stream that `to_bytes` was called on; it goes on with the same numbers.

        Raises
        ------
        CheckpointError
            If the bytes are damaged, or belong to another base or detector.
        """
        from metaecg.models.rhythm import RhythmFilter
        from metaecg.serve.adapter_file import table_and_metadata

        try:
            from safetensors.numpy import load

            content = json.loads(table_and_metadata(data)[1][KEY])
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format version is {content['format_version']!r}")
            if content["belongs_to"] != _identity(base, base if model is None else model):
                raise ValueError("it belongs to another base or detector")
            state = content["windows"] | {"buffer_mv": load(data)["buffer_mv"]}
            windows = WindowStream.from_dict(state)
            found = cls(base, model, fs_hz=windows.fs_hz, rhythm=content["rhythm"])
            found._windows = windows
            if found._filter is not None:
                found._filter = RhythmFilter.from_dict(content["filter"])
            found._is_closed = bool(content["is_closed"])
        except (ValueError, TypeError, KeyError, CheckpointError, _safetensor_error()) as error:
            raise CheckpointError(
                f"the state of the stream can't be used: {error}. Start a new stream."
            ) from error
        return found

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise DataError("the stream is closed. Start a new one.")

    def _judged(self, found: list[tuple[float, np.ndarray]]) -> list[StreamedWindow]:
        from metaecg.adapt.in_time import positive_index
        from metaecg.models.inference import softmax

        if not found:
            return []
        logits = self._model.logits(np.stack([window for _, window in found]))
        if self._filter is not None:
            positive = positive_index(self.base.classes)
            both = np.zeros((len(found), 2))
            for row, (start_s, _) in enumerate(found):
                difference = logits[row, positive] - logits[row, 1 - positive]
                both[row, positive] = self._filter.step(difference, start_s)
            logits = both
        window_s = self.base.preprocessing.window_s
        return [
            StreamedWindow(round(start_s / window_s), start_s, start_s + window_s, probability)
            for (start_s, _), probability in zip(found, softmax(logits), strict=True)
        ]


def _identity(base: "BaseModel", model) -> list[str]:
    """Return what tells one detector from another."""
    import hashlib

    from metaecg.adapt.personalize import Personalizer
    from metaecg.serve.adapter_file import adapter_bytes

    if isinstance(model, Personalizer):
        return [base.fingerprint, hashlib.sha256(adapter_bytes(model)).hexdigest()]
    adapter = getattr(model, "adapter", None)
    return [base.fingerprint, "" if adapter is None else adapter.digest]


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
