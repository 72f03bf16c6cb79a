"""What the server can be told at its start; every field is an option of the command line."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

MIB = 1024 * 1024


class Settings(BaseModel):
    """How a server runs: its model, its store, its limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)] = Field(
        "va-base", description="name of a published base, or the folder of one"
    )
    store: Annotated[str, Field(min_length=1)] = Field(
        "sqlite:///metaecg.db",
        description="database: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME",
    )
    host: str = Field(
        "127.0.0.1", description="address to listen on; the default is reached from here alone"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    cache_mb: float = Field(64, gt=0, description="MiB for the patients' detectors in memory")
    prediction_cache_mb: float = Field(
        64, ge=0, description="MiB for the probabilities of whole recordings"
    )
    upload_mb: float = Field(512, gt=0, description="MiB that a request with files may have")
    json_mb: float = Field(64, gt=0, description="MiB that a request with JSON may have")
    duration_days: float = Field(7, gt=0, description="length that a recording may have, days")
    n_leads: int = Field(16, ge=1, description="leads that a recording may have")
    job_workers: int = Field(
        1, ge=0, description="personalizations at once; 0 leaves them to another server"
    )
    job_heartbeat_s: float = Field(
        2, gt=0, description="seconds after which a running job is said to be alive"
    )
    job_lost_s: float = Field(
        15, gt=0, description="seconds without that, after which a job is queued again"
    )
    job_poll_s: float = Field(
        1, gt=0, description="seconds between two looks for jobs of other servers"
    )
    max_jobs: int = Field(
        1000, ge=1, description="jobs that may wait in all; a further one is answered by 429"
    )
    max_jobs_per_patient: int = Field(8, ge=1, description="jobs that may wait for one patient")
    max_waiting: int = Field(
        2048, ge=1, description="windows that may wait to be judged; a further one gets 429"
    )
    max_batch: int = Field(256, ge=1, description="windows that are judged in one pass")
    max_wait_ms: float = Field(
        1, ge=0, description="milliseconds that a window may wait for others"
    )
    long_workers: int = Field(
        2, ge=1, description="uploads and predictions of whole recordings at once"
    )
    stream_hours: float = Field(
        24, gt=0, description="hours without a chunk after which a live stream is forgotten"
    )
    torch_threads: int = Field(1, ge=1, description="threads of each torch computation")
    memory_of_tokens_s: float = Field(
        5, ge=0, description="seconds that a token, and which detector is active, are remembered"
    )
    log_level: str = Field("warning", description="debug, info, warning or error")
    access_log: bool = Field(False, description="log a line per request, without names and tokens")

    @field_validator("store")
    @classmethod
    def _with_our_driver(cls, url: str) -> str:
        # SQLAlchemy's own choice for plain postgresql:// is psycopg2, which isn't installed.
        for plain in ("postgresql://", "postgres://"):
            if url.startswith(plain):
                return "postgresql+psycopg://" + url.removeprefix(plain)
        if "://" not in url:
            raise ValueError(
                f"store is {url!r}; expected sqlite:///FILE or postgresql://USER@HOST/NAME."
            )
        return url

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        if level.lower() not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level is {level!r}; expected debug, info, warning or error.")
        return level.lower()

    @property
    def upload_bytes(self) -> int:
        """Most bytes of a request with files."""
        return int(self.upload_mb * MIB)

    @property
    def json_bytes(self) -> int:
        """Most bytes of a request with JSON."""
        return int(self.json_mb * MIB)

    @property
    def duration_s(self) -> float:
        """Longest recording, seconds."""
        return self.duration_days * 86400.0
