"""What the server answers, as frozen dataclasses; arrays are numpy's."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from metaecg.client.errors import ServerError

# A newer server may say more than this client knows; what it doesn't know is left out.
_CONFIG = ConfigDict(arbitrary_types_allowed=True, extra="ignore")


def _array_of(dtype: type):
    def make(value: Any) -> np.ndarray:
        try:
            array = np.array(value, dtype=dtype)  # null becomes NaN
        except (TypeError, ValueError):
            raise ValueError("a list of numbers was expected") from None
        array.flags.writeable = False
        return array

    return make


Floats = Annotated[np.ndarray, BeforeValidator(_array_of(np.float64))]
Indices = Annotated[np.ndarray, BeforeValidator(_array_of(np.int64))]
Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class ModelInfo:
    """The base that the server has in memory."""

    name: str
    kind: str
    """``"windows"`` or ``"beats"``: what is judged and labelled."""
    classes: Names
    positive: str
    """The class whose probability is given."""
    fs_hz: float
    window_s: float | None = None
    n_shots: int
    """Labels per class that a personalization is meant for."""
    methods: Names
    default_method: str
    rhythms: Names
    default_rhythm: str
    thresholds: dict[str, float]
    """Rhythm -> the probability from which the positive class is named."""
    segmentation: str
    fingerprint: str
    metaecg_version: str
    limits: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Patient:
    """One person, as the server knows them."""

    subject_id: str
    created_at: datetime
    active_version: int
    """Version of the detector in use; 0 is the base."""
    n_recordings: int
    n_labels: int
    note: str = ""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Recording:
    """Facts of a recording that was uploaded."""

    recording_id: str
    name: str
    fs_hz: float
    lead_names: Names
    lead: int
    """Index of the lead that is judged."""
    n_samples: int
    duration_s: float
    source_format: str
    created_at: datetime
    n_segments: int


@dataclass(frozen=True, kw_only=True, eq=False, config=_CONFIG)
class Segments:
    """What can be labelled in a recording: windows or beats, in the order of time."""

    index: Indices
    """What labels are put on, shape ``(n,)``."""
    start_s: Floats
    stop_s: Floats
    label: tuple[str | None, ...]
    signal_mv: tuple[Floats, ...] | None = None
    """The judged lead of each one, if it was asked for."""

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Counts:
    """How many labels there are of each class."""

    n_shots: int
    counts: dict[str, int]

    @property
    def missing(self) -> dict[str, int]:
        """Class -> labels that are missing to `n_shots`."""
        return {name: max(0, self.n_shots - n) for name, n in self.counts.items()}


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Proposal:
    """A segment that a person should look at."""

    index: int
    start_s: float
    stop_s: float
    reason: str
    probability: dict[str, float]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Support:
    """How many of its own labels the base and the new detector get wrong."""

    errors_base: int
    errors_personal: int
    n: int


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Personalization:
    """A detector that was fitted to a patient."""

    version: int | None = None
    """Its version; None if nothing was kept."""
    n_support: dict[str, int]
    fit_seconds: float
    loss_first: float | None = None
    loss_last: float | None = None
    n_bytes: int | None = None
    support: Support | None = None
    refused: bool = False
    """Whether its own support speaks against it; the base stays in use then."""
    reasons: Names = ()
    """Why it was refused, one sentence each."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Job:
    """A personalization under way or at its end."""

    job_id: str
    subject_id: str
    state: str
    """``queued``, ``running``, ``done``, ``failed`` or ``cancelled``."""
    progress: float
    """0 to 1."""
    request: dict
    result: Personalization | None = None
    error: dict | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class DetectorVersion:
    """One version of a patient's detector."""

    version: int
    created_at: datetime
    is_active: bool
    method: str | None = None
    rhythm: str | None = None
    n_support: dict[str, int]
    n_bytes: int
    facts: dict = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Detectors:
    """All versions of a patient's detector."""

    active_version: int
    """0: the base."""
    detectors: tuple[DetectorVersion, ...]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Episode:
    """Neighbouring segments of the positive class."""

    start_s: float
    stop_s: float
    n_segments: int
    peak_probability: float


@dataclass(frozen=True, kw_only=True, eq=False, config=_CONFIG)
class Predictions:
    """A recording judged, segment by segment."""

    version: int
    threshold: float
    classes: Names
    positive: str
    """The class whose probability is given."""
    rhythm: str
    index: Indices
    start_s: Floats
    stop_s: Floats
    probability: Floats
    """Of the positive class, shape ``(n,)``, 0 to 1."""
    label: Names
    episodes: tuple[Episode, ...]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, kw_only=True, eq=False, config=_CONFIG)
class Windows:
    """Windows of a signal, judged by themselves."""

    version: int
    threshold: float
    start_s: Floats
    """From the first sample of the signal that was sent."""
    probability: Floats
    label: Names

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class StreamStart:
    """A stream that was opened."""

    stream_id: str
    version: int
    delay_s: float
    next_sequence: int


@dataclass(frozen=True, kw_only=True, eq=False, config=_CONFIG)
class StreamWindows:
    """The windows that a chunk of a stream completed; often none."""

    index: Indices
    start_s: Floats
    """From the first sample of the stream."""
    stop_s: Floats
    probability: Floats
    label: Names

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Judged:
    """One window of one of many patients."""

    subject_id: str
    version: int
    probability: float
    label: str


Result = TypeVar("Result")


def read(kind: type[Result], body: Mapping) -> Result:
    """Return `body`, a part of the server's answer, as a `kind`.

    Raises
    ------
    ServerError
        Something is missing or of another type.
    """
    try:
        return TypeAdapter(kind).validate_python(body)
    except (ValidationError, ValueError, TypeError) as error:
        raise ServerError(
            f"the server's answer is no {getattr(kind, '__name__', kind)}: {_first(error)}. Client and "
            "server may be of different versions; compare metaecg_version of model()."
        ) from None  # pydantic's own error shows what was sent


def read_rows(kind: type[Result], rows: Sequence[Mapping], **others) -> Result:
    """Return `rows`, a list of objects in the server's answer, as a `kind` that has an array for each.

    `others` are the fields that don't come from the rows; for errors see `read`.
    """
    names = [field.name for field in fields(kind) if field.name not in others]
    try:
        columns = {name: [row[name] for row in rows] for name in names}
    except (KeyError, TypeError) as error:
        raise ServerError(
            f"the server's answer is no {kind.__name__}: {error} is missing. Client and server may be of "
            "different versions; compare metaecg_version of model()."
        ) from error
    return read(kind, {**columns, **others})


def _first(error: Exception) -> str:
    """Say what is wrong first, without the value (it may be a signal)."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
