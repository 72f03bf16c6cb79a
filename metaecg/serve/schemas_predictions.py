"""Predictions on recordings, on windows and on live streams, as requests and answers."""

from types import NoneType
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainValidator, WithJsonSchema

from metaecg.serve.schemas import Strict, SubjectId


def as_samples(value: Any) -> np.ndarray:
    """Return a JSON list of finite numbers and nulls as float32; anything else is a ValueError.

    Examples
    --------
    >>> as_samples([1, 2.5, None]).tolist()
    [1.0, 2.5, nan]
    """
    if not isinstance(value, list) or not value:
        raise ValueError("a list of at least one sample was expected")
    if {*map(type, value)} - {float, int, NoneType}:
        raise ValueError("every sample must be a number or null")
    try:
        found = np.array(value, dtype=np.float64)  # null becomes NaN
    except OverflowError as error:
        raise ValueError("every sample must be a finite number or null") from error
    if np.isinf(found).any() or np.count_nonzero(np.isnan(found)) != value.count(None):
        raise ValueError("every sample must be a finite number or null")
    with np.errstate(over="ignore"):  # what becomes infinite is no possible voltage
        return found.astype(np.float32)


Samples = Annotated[
    Any,
    PlainValidator(as_samples),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "minItems": 1,
            "examples": [[0.01, 0.02, None, 0.05]],
        }
    ),
]
FS_HZ = Field(gt=0, le=100_000, description="Sampling rate, hertz.", examples=[250.0])
UNIT = Field(description="Unit of the signal: mV, uV or V.", examples=["mV"])
RHYTHM = Field(description="How neighbours in time counted.")
VERSION = Field(ge=0, description="The detector that judged; 0 is the base itself.")
THRESHOLD = Field(description="Probability from which the positive class is named.")


class Episode(Strict):
    """Neighbouring segments that are all named positive."""

    start_s: float = Field(description="Start of the first one, seconds.")
    stop_s: float = Field(description="End of the last one, seconds.")
    n_segments: int = Field(ge=1, description="How many they are.")
    peak_probability: float = Field(ge=0, le=1, description="The highest among them.")


class Predictions(Strict):
    """What a detector says of a recording; the lists go together."""

    version: int = VERSION
    threshold: float = THRESHOLD
    classes: list[str] = Field(description="Class names.")
    positive: str = Field(description="The class that the probabilities are of.")
    rhythm: str = RHYTHM
    index: list[int] = Field(description="Number of each segment in the recording.")
    start_s: list[float] = Field(description="Start of each, seconds.")
    stop_s: list[float] = Field(description="End of each, seconds.")
    probability: list[float] = Field(description="Probability of the positive class, 0 to 1.")
    label: list[str] = Field(description="The class that is named.")
    episodes: list[Episode] = Field(description="Runs of positive segments, in the order of time.")


class NewSignal(Strict):
    """A stretch of one lead to judge at once, without storing it."""

    fs_hz: float = FS_HZ
    unit: str = UNIT
    lead_names: list[str] = Field(
        min_length=1, max_length=1, description="Name of the lead.", examples=[["MLII"]]
    )
    signal: Samples = Field(
        description="Samples of that lead, at least one window of them; null where not measured. Windows "
        "follow each other from the first sample on."
    )


class WindowOut(Strict):
    """What is said of a window."""

    start_s: float = Field(description="Start within the signal, seconds.")
    probability: float = Field(ge=0, le=1, description="Probability of the positive class.")
    label: str = Field(description="The class that is named.")


class WindowsOut(Strict):
    """What a patient's detector says of the windows of a stretch, each by itself."""

    version: int = VERSION
    threshold: float = THRESHOLD
    windows: list[WindowOut] = Field(description="Those without unmeasured samples.")


class MixedItem(Strict):
    """One window of one patient."""

    subject_id: SubjectId
    signal: Samples = Field(description="Samples of one lead, exactly one window of them.")


class NewMixed(Strict):
    """Windows of different patients, judged in one pass."""

    fs_hz: float = FS_HZ
    unit: str = UNIT
    items: list[MixedItem] = Field(min_length=1, max_length=1024, description="One per window.")


class MixedOut(Strict):
    """What a patient's detector says of the patient's window."""

    subject_id: SubjectId
    version: int = VERSION
    probability: float = Field(ge=0, le=1, description="Probability of the positive class.")
    label: str = Field(description="The class that is named.")


class MixedWindows(Strict):
    """Answers in the order of the items."""

    windows: list[MixedOut]


class NewStream(Strict):
    """A live stream of one lead."""

    fs_hz: float = FS_HZ
    unit: str = UNIT
    lead_name: str = Field(min_length=1, max_length=64, description="Name.", examples=["MLII"])


class StreamOut(Strict):
    """A stream that waits for chunks."""

    stream_id: str = Field(description="Names the stream.")
    version: int = VERSION
    delay_s: float = Field(description="A window is judged so many seconds after its end.")
    next_sequence: int = Field(ge=0, description="Number that the next chunk must have.")


class NewChunk(Strict):
    """The next samples of a stream."""

    sequence: int = Field(ge=0, le=2**53, description="0, 1, 2 and so on.")
    signal: Samples = Field(description="The samples that follow those before; null: not measured.")


class StreamWindow(Strict):
    """What is said of a window of a stream, by itself and those before it."""

    index: int = Field(ge=0, description="Its number in the stream.")
    start_s: float = Field(description="Start, seconds from the start of the stream.")
    stop_s: float = Field(description="End, seconds.")
    probability: float = Field(ge=0, le=1, description="Probability of the positive class.")
    label: str = Field(description="The class that is named.")


class ChunkOut(Strict):
    """What became known with a chunk; the same chunk again is answered the same."""

    next_sequence: int = Field(ge=0, description="Number that the next chunk must have.")
    windows: list[StreamWindow]


class StreamEnd(Strict):
    """What became known with the end of a stream."""

    windows: list[StreamWindow]
