"""What every endpoint shares: errors, names, patients, the model in use."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.json_schema import WithJsonSchema

SUBJECT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ID_PATTERN = r"^[0-9a-f]{32}$"


def iso_utc(moment: datetime) -> str:
    """Return a moment as ISO 8601 with Z; one without a zone is taken as UTC.

    Examples
    --------
    >>> iso_utc(datetime(2026, 1, 2, 3, 4, 5))
    '2026-01-02T03:04:05.000Z'
    """
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[
    datetime,
    PlainSerializer(iso_utc, return_type=str),
    WithJsonSchema(
        {"type": "string", "format": "date-time", "examples": ["2026-01-02T03:04:05.000Z"]}
    ),
]
"""A time in UTC, ISO 8601 with Z."""
SubjectId = Annotated[
    str,
    Field(
        pattern=SUBJECT_PATTERN,
        description="The patient's name, chosen by the caller; 1 to 64 of letters, digits, . _ and -, "
        "starting with a letter or a digit. Use a pseudonym: it stands in addresses.",
        examples=["s-014"],
    ),
]
RecordingId = Annotated[
    str,
    Field(
        pattern=ID_PATTERN,
        description="Made by the server when the recording was uploaded.",
        examples=["0f8fad5bd9cb469fa16570867728950e"],
    ),
]


class Strict(BaseModel):
    """Refuses fields that it doesn't know."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(Strict):
    """What every answer that isn't a success looks like."""

    code: str = Field(description="Names the kind of error for programs.", examples=["not_found"])
    message: str = Field(
        description="What is wrong, what was expected, what to do; for people.",
        examples=["there is no patient 's-014'."],
    )
    detail: dict[str, Any] = Field(
        default_factory=dict, description="Facts of the error; which ones depends on the code."
    )


class Health(Strict):
    """The process answers."""

    status: str = Field(description="Always ok.", examples=["ok"])


class Ready(Strict):
    """The server can do its work."""

    status: str = Field(
        description="Always ready; otherwise the answer is 503.", examples=["ready"]
    )


class Limits(Strict):
    """What a request may hold."""

    upload_bytes: int = Field(description="Most bytes of a request with files.", ge=1)
    json_bytes: int = Field(description="Most bytes of a request with JSON.", ge=1)
    duration_s: float = Field(description="Longest recording, seconds.", gt=0)
    n_leads: int = Field(description="Most leads of a recording.", ge=1)


class ModelFacts(Strict):
    """The base model that every patient's detector starts from."""

    name: str = Field(
        description="Name of a published base, or of its folder.", examples=["va-base"]
    )
    kind: str = Field(description="What is judged: windows or beats.", examples=["windows"])
    classes: list[str] = Field(description="Class names.", examples=[["other", "va"]])
    positive: str = Field(description="The class that probabilities are of.", examples=["va"])
    fs_hz: float = Field(description="Rate that the model works at, hertz; any rate is taken.")
    window_s: float = Field(description="Length of what the model sees at once, seconds.")
    n_shots: int = Field(description="Labels per class that are advised.", examples=[10])
    methods: list[str] = Field(description="Ways to personalize.", examples=[["lora", "full"]])
    default_method: str = Field(description="The one used where none is named.")
    rhythms: list[str] = Field(description="Ways that neighbours in time can count.")
    default_rhythm: str = Field(description="The one used where none is named.")
    thresholds: dict[str, float] = Field(
        description="Probability from which the positive class is named, by rhythm."
    )
    segmentation: str = Field(description="How recordings are cut; labels belong to one way.")
    fingerprint: str = Field(description="SHA-256 of all that decides the base's output, hex.")
    metaecg_version: str = Field(description="Version of the library.")
    limits: Limits


class NewPatient(Strict):
    """A patient to be created."""

    subject_id: SubjectId
    note: str = Field("", max_length=2000, description="Free text for people.")


class PatientOut(Strict):
    """A patient."""

    subject_id: SubjectId
    created_at: Moment = Field(description="When the patient was created, UTC.")
    active_version: int = Field(ge=0, description="The detector in use; 0 is the base itself.")
    n_recordings: int = Field(ge=0, description="Recordings.")
    n_labels: int = Field(ge=0, description="Labels, of every segmentation.")
    note: str = Field(description="Free text for people.")


class PatientPage(Strict):
    """Patients in the order of their names."""

    patients: list[PatientOut]
    next: str | None = Field(
        description="Hand it over as `after` for the next page; null: the end."
    )
