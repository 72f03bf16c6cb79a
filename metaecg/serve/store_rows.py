"""What the store hands out: plain frozen values, no connection behind them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Org:
    """An organisation; `org_id` is internal and never leaves the server."""

    org_id: int
    name: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class TokenInfo:
    """What is known of a token, its secret left out; times are UTC."""

    token_id: int
    org_id: int
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Written once an hour at most."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A person of one organisation, with counts."""

    subject_id: str
    created_at: datetime
    active_version: int
    """Version of the detector in use; 0 is the base itself."""
    n_recordings: int
    n_labels: int
    note: str


@dataclass(frozen=True, kw_only=True)
class RecordingInfo:
    """A recording without its signal."""

    recording_id: str
    name: str
    fs_hz: float
    lead_names: tuple[str, ...]
    lead: int
    """Index of the lead that is judged."""
    n_samples: int
    source_format: str
    digest: str
    created_at: datetime

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.fs_hz


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a person said of one segment."""

    recording_id: str
    index: int
    label: str
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class ActiveDetector:
    """Which detector a patient uses now."""

    version: int
    digest: str
    """SHA-256 of the adapter, empty for the base: a patient who was deleted and made anew has the
    same names and versions, but not the same digests."""


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """A version of a patient's detector without its adapter."""

    version: int
    created_at: datetime
    base_fingerprint: str
    n_bytes: int
    digest: str
    """SHA-256 of the adapter, in hex."""
    facts: dict[str, Any]
    is_active: bool


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work that is queued, runs or has ended."""

    job_id: str
    subject_id: str
    kind: str
    state: str
    """One of `store_jobs.STATES`."""
    progress: float
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    is_cancel_requested: bool
    attempts: int
    """How often a worker has begun it."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A live stream as it stood after its last chunk."""

    stream_id: str
    subject_id: str
    state: bytes
    next_sequence: int
    answers: Any
    created_at: datetime
    updated_at: datetime
