"""Recordings, their signal, their segments and labels, as requests and answers."""

from pydantic import Field

from metaecg.serve.schemas import Moment, RecordingId, Strict

MAX_LABELS = 100_000
"""Of one request; `metaecg.serve.limits` lets so many through."""


class NewRecording(Strict):
    """A recording as JSON; nothing of it is guessed.

    This describes the body; the bytes are read by `metaecg.serve.uploads`, once.
    """

    name: str = Field("", max_length=200, description="Free text for people.", examples=["night 1"])
    fs_hz: float = Field(gt=0, description="Sampling rate, hertz.", examples=[250.0])
    unit: str = Field(description="Unit of the signal: mV, uV or V.", examples=["mV"])
    lead_names: list[str] = Field(
        min_length=1, description="One name per lead.", examples=[["MLII", "V5"]]
    )
    signal: list[list[float | None]] = Field(
        description="Samples, one list per lead, all of one length; null where not measured.",
        examples=[[[0.01, 0.02, None, 0.05]]],
    )
    lead: int | None = Field(
        None, ge=0, description="Which lead is judged; by default the usual one among the names."
    )


class RecordingOut(Strict):
    """A recording without its signal."""

    recording_id: RecordingId
    name: str = Field(description="Free text for people.")
    fs_hz: float = Field(description="Sampling rate, hertz.")
    lead_names: list[str] = Field(description="One name per lead.")
    lead: int = Field(ge=0, description="Which lead is judged.")
    n_samples: int = Field(ge=0, description="Samples per lead.")
    duration_s: float = Field(ge=0, description="Length, seconds.")
    source_format: str = Field(description="wfdb, edf, csv or json.")
    created_at: Moment = Field(description="When it was uploaded, UTC.")
    n_segments: int = Field(
        ge=0,
        description="Windows or beats by length and peaks; those with unmeasured samples count too.",
    )


class RecordingList(Strict):
    """A patient's recordings in the order of their upload."""

    recordings: list[RecordingOut]


class SignalOut(Strict):
    """A stretch of the judged lead, as samples or as an envelope where it is long."""

    start_s: float = Field(description="Where the stretch starts, seconds.")
    stop_s: float = Field(description="Where it ends, seconds.")
    fs_hz: float = Field(description="Sampling rate of the recording, hertz.")
    kind: str = Field(description="samples or envelope.", examples=["samples"])
    time_s: list[float] = Field(
        description="Time of each point, seconds; of an envelope: its start."
    )
    value_mv: list[float | None] | None = Field(
        None, description="Samples in millivolts, null where not measured; for kind samples."
    )
    minimum_mv: list[float | None] | None = Field(
        None, description="Lowest value from this point to the next, mV; for kind envelope."
    )
    maximum_mv: list[float | None] | None = Field(
        None, description="Highest value from this point to the next, mV; for kind envelope."
    )


class SegmentOut(Strict):
    """A window or a beat."""

    index: int = Field(ge=0, description="Its number in the recording, in the order of time.")
    start_s: float = Field(description="Start of what is judged, seconds.")
    stop_s: float = Field(description="End of it, seconds.")
    label: str | None = Field(description="What a person called it.")
    signal_mv: list[float | None] | None = Field(
        None, description="The judged lead between start and stop, mV, if it was asked for."
    )


class SegmentPage(Strict):
    """Segments in the order of time."""

    segments: list[SegmentOut]
    next: int | None = Field(
        description="Hand it over as `after` for the next page; null: the end."
    )


class NewLabels(Strict):
    """Labels to put or to remove; those not named stay."""

    labels: dict[str, str | None] = Field(
        max_length=MAX_LABELS,
        description="Number of the segment to a class of the model, or to null to remove its label.",
        examples=[{"12": "va", "13": None}],
    )


class LabelsOut(Strict):
    """The labels of a recording."""

    labels: dict[str, str] = Field(description="Number of the segment to the class.")


class LabelCounts(Strict):
    """How many labels a patient has of each class."""

    n_shots: int = Field(description="Labels per class that are advised.", examples=[10])
    counts: dict[str, int] = Field(
        description="Class to labels, over all recordings.", examples=[{"other": 10, "va": 7}]
    )


class Proposal(Strict):
    """A segment that is worth a label."""

    index: int = Field(ge=0, description="Its number in the recording.")
    start_s: float = Field(description="Start, seconds.")
    stop_s: float = Field(description="End, seconds.")
    reason: str = Field(description="Why it is proposed.", examples=["uncertain"])
    probability: dict[str, float] = Field(description="Class to what the active detector says.")


class Proposals(Strict):
    """What to label next."""

    proposals: list[Proposal]
