"""What the tests of the store share: a patient with something in every table, and a look at all."""

import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store import Store

GRID = "windows:2.0@250"
BEATS = "beats:test"
NOTE = "a note that nobody else should read"


class Clock:
    """A clock that a test moves on by hand."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def ramp(n_samples: int, *, n_leads: int = 1) -> np.ndarray:
    """Return a signal whose value is the sample's number, plus a million per lead."""
    return (np.arange(n_samples) + 1e6 * np.arange(n_leads)[:, None]).astype(np.float32)


def add_recording(store: Store, org_id: int, subject_id: str, **changes):
    """Keep a short recording with beats; what a test cares about is in `changes`."""
    facts = {"signal_mv": ramp(40_000), "fs_hz": 250.0, "lead_names": ["II"], "lead": 0}
    facts |= {"name": "holter", "source_format": "json", "digest": "d" * 64}
    facts |= {"segmentation": BEATS, **changes}
    peaks = np.array([10, 200, 390])
    facts.setdefault("peaks", peaks[peaks < np.shape(facts["signal_mv"])[-1]])
    facts["lead_names"] = changes.get("lead_names", ["II", "V1", "V5"][: len(facts["signal_mv"])])
    return store.add_recording(org_id, subject_id, **facts)


def fill(store: Store, org_id: int, subject_id: str) -> dict:
    """Make a patient with a row in every table; return the names of what was made."""
    store.create_patient(org_id, subject_id, NOTE)
    recording = add_recording(store, org_id, subject_id)
    at = (org_id, subject_id)
    store.put_labels(*at, recording.recording_id, {3: "va", 5: "other"}, segmentation=GRID)
    for adapter in (b"first adapter", b"second adapter"):
        store.add_detector(*at, adapter=adapter, facts={"n": 1}, base_fingerprint="base")
    job = store.create_job(*at, "personalize", {"method": "lora"})
    stream_id = uuid.uuid4().hex
    store.put_stream(*at, stream_id, state=b"state", next_sequence=0, answers=None)
    return {
        "subject_id": subject_id,
        "recording_id": recording.recording_id,
        "job_id": job.job_id,
        "stream_id": stream_id,
        "version": 1,
    }


def dump(store: Store) -> dict[str, list[dict]]:
    """Return every row of every table, all as they stood at one moment."""
    with store._read() as connection:
        return {
            name: sorted(map(dict, connection.execute(sa.select(table)).mappings()), key=repr)
            for name, table in tables.metadata.tables.items()
        }
