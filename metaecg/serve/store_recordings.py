"""Recordings of a patient: signal, overview and beats."""

import uuid
from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa

from metaecg.checks import check_positive
from metaecg.errors import DataError
from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import check_peaks, check_range, check_signal, check_text
from metaecg.serve.store_errors import StoreError
from metaecg.serve.store_rows import RecordingInfo
from metaecg.serve.store_signal import (
    OVERVIEW_SAMPLES,
    chunk_length,
    chunks_of,
    joined_overview,
    packed,
    unpacked,
)

BATCH = 64
"""Chunks in one insert."""
FIELDS = "recording_id name fs_hz lead_names lead n_samples source_format digest created_at".split()


class RecordingStore(StoreBase):
    """Part of the store: recordings."""

    def add_recording(
        self,
        org_id: int,
        subject_id: str,
        *,
        signal_mv: np.ndarray,
        fs_hz: float,
        lead_names: Sequence[str],
        lead: int,
        name: str,
        source_format: str,
        digest: str,
        peaks: np.ndarray | None = None,
        segmentation: str | None = None,
    ) -> RecordingInfo:
        """Keep a recording, all of it or nothing.

        Parameters
        ----------
        signal_mv
            Shape ``(n_leads, n_samples)`` in millivolts, NaN where nothing was measured; kept as
            float32, bit by bit.
        lead
            Index of the lead that is judged.
        digest
            Of the file that was uploaded.
        peaks, segmentation
            Beats that were found and the name of their segmentation, or neither.

        Raises
        ------
        DataError
            Signal, leads or names don't fit together.
        """
        signal = check_signal(signal_mv, lead_names=lead_names, lead=lead)
        if (peaks is None) != (segmentation is None):
            raise DataError("peaks and segmentation go together; give both or neither.")
        row = {
            "recording_id": uuid.uuid4().hex,
            "name": check_text("name", name, longest=tables.NAME_CHARACTERS, shortest=0),
            "fs_hz": float(check_positive("fs_hz", fs_hz)),
            "lead_names": [check_text("lead name", n, longest=255, shortest=0) for n in lead_names],
            "lead": int(lead),
            "n_samples": signal.shape[1],
            "chunk_samples": chunk_length(fs_hz),
            "source_format": check_text("source_format", source_format, longest=32),
            "digest": check_text("digest", digest, longest=128, shortest=0),
            "created_at": self._clock(),
        }
        found = None if peaks is None else check_peaks(peaks, n_samples=row["n_samples"])
        # Compressed before the transaction: meanwhile others can write.
        chunks = list(chunks_of(signal, chunk_samples=row["chunk_samples"]))
        with self._write() as connection:
            patient_key = self._patient_key(connection, org_id, subject_id, lock=True)
            done = connection.execute(
                tables.recordings.insert().values(patient_key=patient_key, **row)
            )
            recording_key = done.inserted_primary_key[0]
            for start in range(0, len(chunks), BATCH):
                part = [
                    {**c, "recording_key": recording_key} for c in chunks[start : start + BATCH]
                ]
                connection.execute(tables.signal_chunks.insert(), part)
            if peaks is not None:
                _put_peaks(connection, recording_key, segmentation, found)
        return _info(row)

    def list_recordings(self, org_id: int, subject_id: str) -> list[RecordingInfo]:
        """Return a patient's recordings, the oldest first."""
        table = tables.recordings
        with self._read() as connection:
            key = self._patient_key(connection, org_id, subject_id)
            query = sa.select(table).where(table.c.patient_key == key)
            query = query.order_by(table.c.created_at, table.c.recording_key)
            return [_info(row) for row in connection.execute(query).mappings()]

    def get_recording(self, org_id: int, subject_id: str, recording_id: str) -> RecordingInfo:
        """Return what is known of a recording, its signal left out."""
        with self._read() as connection:
            return _info(self._recording(connection, org_id, subject_id, recording_id)._mapping)

    def delete_recording(self, org_id: int, subject_id: str, recording_id: str) -> None:
        """Delete a recording with its signal, beats and labels; detectors made of it stay."""
        table = tables.recordings
        with self._write() as connection:
            row = self._recording(connection, org_id, subject_id, recording_id, lock=True)
            connection.execute(table.delete().where(table.c.recording_key == row.recording_key))
        self._empty_log()

    def read_signal(
        self,
        org_id: int,
        subject_id: str,
        recording_id: str,
        *,
        start: int = 0,
        stop: int | None = None,
        lead: int | None = None,
    ) -> np.ndarray:
        """Return samples `start` to `stop` in millivolts; only the chunks needed are read.

        Parameters
        ----------
        start, stop
            Sample positions, half open; a `stop` beyond the end is the end, as None is.
        lead
            One lead, or None for all.

        Returns
        -------
        signal_mv
            Shape ``(n_leads or 1, n)``, float32, NaN where nothing was measured.
        """
        with self._read() as connection:
            row = self._recording(connection, org_id, subject_id, recording_id)
            start, stop = _bounds(start, stop, row.n_samples)
            leads = _leads(row, lead)
            size = row.chunk_samples
            query = _chunks(row.recording_key, leads, start // size, -(-stop // size))
            signal = np.empty((len(leads), max(stop - start, 0)), dtype=np.float32)
            n_read = 0
            if stop > start:
                for one_lead, number, samples in connection.execute(query):
                    piece, place = unpacked(samples, "<f4"), number * size - start
                    first, last = max(place, 0), min(place + len(piece), stop - start)
                    signal[leads.index(one_lead), first:last] = piece[first - place : last - place]
                    n_read += last - first
        if n_read != signal.size:
            raise StoreError(
                f"recording {recording_id!r} lacks chunks of its signal: the database is damaged. "
                "Restore it from a backup."
            )
        return signal

    def read_overview(
        self,
        org_id: int,
        subject_id: str,
        recording_id: str,
        *,
        lead: int,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return minimum and maximum of each `OVERVIEW_SAMPLES` samples of a lead.

        Parameters
        ----------
        start, stop
            Positions in the overview (pairs, not samples), half open; by default all of it.

        Returns
        -------
        minimum, maximum
            Millivolts, float32, one per pair; NaN where nothing was measured.
        """
        with self._read() as connection:
            row = self._recording(connection, org_id, subject_id, recording_id)
            start, stop = _bounds(start, stop, -(-row.n_samples // OVERVIEW_SAMPLES))
            size = row.chunk_samples // OVERVIEW_SAMPLES
            first = start // size
            query = _chunks(
                row.recording_key, _leads(row, lead), first, -(-stop // size), column="overview"
            )
            parts = [part for _lead, _number, part in connection.execute(query)]
        minimum, maximum = joined_overview(parts)
        inside = slice(start - first * size, max(stop, start) - first * size)
        return minimum[inside], maximum[inside]

    def read_peaks(
        self, org_id: int, subject_id: str, recording_id: str, segmentation: str
    ) -> np.ndarray | None:
        """Return the samples of the beats, int64, or None if none were kept for `segmentation`."""
        table = tables.beat_peaks
        check_text("segmentation", segmentation, longest=tables.NAME_CHARACTERS)
        with self._read() as connection:
            row = self._recording(connection, org_id, subject_id, recording_id)
            query = sa.select(table.c.peaks).where(
                table.c.recording_key == row.recording_key, table.c.segmentation == segmentation
            )
            data = connection.scalar(query)
        return None if data is None else unpacked(data, "<i8").copy()

    def put_peaks(
        self,
        org_id: int,
        subject_id: str,
        recording_id: str,
        segmentation: str,
        peaks: np.ndarray,
    ) -> None:
        """Keep the samples of the beats of one segmentation; what was there is replaced."""
        check_text("segmentation", segmentation, longest=tables.NAME_CHARACTERS)
        with self._write() as connection:
            row = self._recording(connection, org_id, subject_id, recording_id, lock=True)
            found = check_peaks(peaks, n_samples=row.n_samples)
            _put_peaks(connection, row.recording_key, segmentation, found)


def _info(row) -> RecordingInfo:
    values = {field: row[field] for field in FIELDS}
    return RecordingInfo(**{**values, "lead_names": tuple(values["lead_names"])})


def _bounds(start: int, stop: int | None, length: int) -> tuple[int, int]:
    start = check_range("start", start, lowest=0, highest=2**62)
    stop = length if stop is None else check_range("stop", stop, lowest=start, highest=2**62)
    return start, min(stop, length)


def _leads(row: sa.Row, lead: int | None) -> list[int]:
    n_leads = len(row.lead_names)
    if lead is None:
        return list(range(n_leads))
    return [check_range("lead", lead, lowest=0, highest=n_leads - 1)]


def _chunks(
    recording_key: int, leads: list[int], first: int, last: int, *, column: str = "samples"
) -> sa.Select:
    """Select chunks number `first` to `last` (half open) of the leads, in order."""
    table = tables.signal_chunks
    # Bounded: a column of 32 bits is compared with what a caller named.
    first, last = min(first, 2**31 - 1), min(last, 2**31 - 1)
    return (
        sa.select(table.c.lead, table.c.number, table.c[column])
        .where(
            table.c.recording_key == recording_key,
            table.c.lead.in_(leads),
            table.c.number >= first,
            table.c.number < last,
        )
        .order_by(table.c.lead, table.c.number)
    )


def _put_peaks(
    connection: sa.Connection, recording_key: int, segmentation: str, peaks: np.ndarray
) -> None:
    table = tables.beat_peaks
    of_this = (table.c.recording_key == recording_key) & (table.c.segmentation == segmentation)
    connection.execute(table.delete().where(of_this))
    row = {"segmentation": segmentation, "peaks": packed(peaks, "<i8")}
    connection.execute(table.insert().values(recording_key=recording_key, **row))
