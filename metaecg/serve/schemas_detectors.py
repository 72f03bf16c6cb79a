"""Personalizations, jobs and versions of a patient's detector, as requests and answers."""

from typing import Any, Literal

from pydantic import Field

from metaecg.serve.schemas import ErrorBody, Moment, Strict, SubjectId

Method = Literal["head", "full", "bias", "lora", "h-tuning"]
Rhythm = Literal["none", "causal", "offline"]
State = Literal["queued", "running", "done", "failed", "cancelled"]


class NewPersonalization(Strict):
    """How to fit the patient's own detector to the labels."""

    method: Method | None = Field(None, description="What is trained; null: the model's default.")
    rhythm: Rhythm | None = Field(
        None, description="How neighbours in time count; null: the model's default."
    )
    n_shots: int | None = Field(
        None, ge=1, le=10_000, description="The earliest so many labels per class; null: all."
    )
    activate: bool = Field(True, description="Whether the new detector comes into use.")


class SupportErrors(Strict):
    """How base and personal detector name the labelled segments, each by itself."""

    errors_base: int = Field(ge=0, description="Segments that the base names wrongly.")
    errors_personal: int = Field(ge=0, description="Segments that the new detector names wrongly.")
    n: int = Field(ge=0, description="Labelled segments that were used.")


class PersonalizationResult(Strict):
    """What came out of a personalization."""

    version: int = Field(ge=1, description="The new detector.")
    n_support: dict[str, int] = Field(description="Class to labels that were used.")
    fit_seconds: float = Field(ge=0, description="How long the fit took, seconds.")
    loss_first: float | None = Field(description="Loss before the first step.")
    loss_last: float | None = Field(description="Loss before the last step.")
    n_bytes: int = Field(ge=0, description="Size of the detector beside the base, bytes.")
    support: SupportErrors
    refused: bool = Field(
        description="Whether the labels speak against it; the old one stays in use."
    )
    reasons: list[str] = Field(description="Why, one sentence each.")


class JobOut(Strict):
    """Work that takes a while."""

    job_id: str = Field(description="Names the job.", examples=["7c9e6679742540de944be07fc1f90ae7"])
    subject_id: SubjectId
    kind: str = Field(description="personalize.", examples=["personalize"])
    state: State = Field(description="Where it stands; the last three are final.")
    progress: float = Field(ge=0, le=1, description="0 to 1.")
    request: dict[str, Any] = Field(description="What was asked for.")
    result: PersonalizationResult | None = Field(description="Once it is done.")
    error: ErrorBody | None = Field(description="Once it has failed.")
    created_at: Moment = Field(description="When it was asked for, UTC.")
    started_at: Moment | None = Field(description="When it was last started, UTC.")
    finished_at: Moment | None = Field(description="When it ended, UTC.")


class JobList(Strict):
    """A patient's jobs, the oldest first."""

    jobs: list[JobOut]


class DetectorOut(Strict):
    """A version of a patient's detector."""

    version: int = Field(ge=1, description="1 is the first one; 0, the base itself, isn't listed.")
    created_at: Moment = Field(description="When it was stored, UTC.")
    is_active: bool = Field(description="Whether it is in use.")
    base_fingerprint: str = Field(
        description="The base that it belongs to; one of another base than /v1/model names can't be used."
    )
    method: str | None = Field(description="What was trained.")
    rhythm: str | None = Field(description="How neighbours in time count.")
    n_support: dict[str, int] = Field(description="Class to labels that it was fitted to.")
    n_bytes: int = Field(ge=0, description="Size, bytes.")
    facts: dict[str, Any] = Field(description="What else is known of it.")


class DetectorList(Strict):
    """The versions of a patient's detector, the oldest first."""

    active_version: int = Field(ge=0, description="The one in use; 0 is the base itself.")
    detectors: list[DetectorOut]
