"""Use a metaecg server from Python: `Client(url, token)`.

Nothing of it needs torch; a machine that only asks a server loads numpy, requests and pydantic.
"""

from metaecg.client.api import Client
from metaecg.client.errors import (
    ClientError,
    ConflictError,
    InvalidRequestError,
    JobCancelledError,
    JobTimeoutError,
    NotFoundError,
    ServerError,
    UnauthorizedError,
    UnavailableError,
)
from metaecg.client.results import (
    Counts,
    Detectors,
    DetectorVersion,
    Episode,
    Job,
    Judged,
    ModelInfo,
    Patient,
    Personalization,
    Predictions,
    Proposal,
    Recording,
    Segments,
    StreamWindows,
    Support,
    Windows,
)
from metaecg.client.streams import Stream

__all__ = [
    "Client",
    "ClientError",
    "ConflictError",
    "Counts",
    "DetectorVersion",
    "Detectors",
    "Episode",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobTimeoutError",
    "Judged",
    "ModelInfo",
    "NotFoundError",
    "Patient",
    "Personalization",
    "Predictions",
    "Proposal",
    "Recording",
    "Segments",
    "ServerError",
    "Stream",
    "StreamWindows",
    "Support",
    "UnauthorizedError",
    "UnavailableError",
    "Windows",
]
