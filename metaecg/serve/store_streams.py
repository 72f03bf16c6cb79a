"""Live streams between two chunks: a restart of the server doesn't end them."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import check_json, check_made_id, check_range
from metaecg.serve.store_errors import ConflictError, NotFoundError
from metaecg.serve.store_rows import Stream

HIGHEST = 2**62


class StreamStore(StoreBase):
    """Part of the store: streams."""

    def put_stream(
        self,
        org_id: int,
        subject_id: str,
        stream_id: str,
        *,
        state: bytes,
        next_sequence: int,
        answers: Any,
        after: int | None = None,
    ) -> None:
        """Keep how a stream stands after a chunk, with the answer to it.

        Parameters
        ----------
        stream_id
            32 hex digits (`uuid.uuid4().hex`), chosen by the caller.
        state
            Bytes of the caller's.
        next_sequence
            Number of the chunk that is expected next.
        answers
            What JSON can hold: the answer to give again if the last chunk is sent again.
        after
            None for a new stream; else the `next_sequence` that the caller has read, so that of
            two who handle the same chunk one is refused.

        Raises
        ------
        ConflictError
            The stream is there already, or stands at another chunk than `after`.
        NotFoundError
            The patient or the stream isn't there.
        """
        check_made_id("stream", stream_id)
        check_range("next_sequence", next_sequence, lowest=0, highest=HIGHEST)
        row = {"state": bytes(state), "next_sequence": next_sequence}
        row["answers"] = check_json("answers", answers)
        row["updated_at"] = self._clock()
        with self._write() as connection:
            key = self._patient_key(connection, org_id, subject_id, lock=True)
            if after is None:
                _insert(connection, {**row, "stream_id": stream_id, "patient_key": key})
            else:
                _update(connection, key, stream_id, row, after=after)

    def get_stream(self, org_id: int, stream_id: str) -> Stream:
        """Return a stream of one of the organisation's patients."""
        check_made_id("stream", stream_id)
        streams, patients = tables.streams, tables.patients
        columns = [column for column in streams.c if column.name != "patient_key"]
        query = sa.select(*columns, patients.c.subject_id).join_from(streams, patients)
        query = query.where(streams.c.stream_id == stream_id, patients.c.org_id == org_id)
        with self._read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFoundError("stream", stream_id)
        return Stream(**row)

    def delete_stream(self, org_id: int, stream_id: str) -> None:
        """Forget a stream, as when it is closed."""
        check_made_id("stream", stream_id)
        streams, patients = tables.streams, tables.patients
        of_org = sa.select(patients.c.patient_key).where(patients.c.org_id == org_id)
        with self._write() as connection:
            done = connection.execute(
                streams.delete().where(
                    streams.c.stream_id == stream_id, streams.c.patient_key.in_(of_org)
                )
            )
            if not done.rowcount:
                raise NotFoundError("stream", stream_id)

    def delete_old_streams(self, older_than_s: float) -> int:
        """Forget streams that got no chunk for `older_than_s` seconds; return how many."""
        streams = tables.streams
        oldest = self._clock() - timedelta(seconds=older_than_s)
        with self._write() as connection:
            return connection.execute(
                streams.delete().where(streams.c.updated_at < oldest)
            ).rowcount


def _insert(connection: sa.Connection, row: dict[str, Any]) -> None:
    try:
        connection.execute(tables.streams.insert().values(created_at=row["updated_at"], **row))
    except sa.exc.IntegrityError as error:
        raise ConflictError(f"there is a stream {row['stream_id']!r} already.") from error


def _update(
    connection: sa.Connection, patient_key: int, stream_id: str, row: dict[str, Any], *, after: int
) -> None:
    streams = tables.streams
    of_this = (streams.c.stream_id == stream_id) & (streams.c.patient_key == patient_key)
    now_at = connection.scalar(sa.select(streams.c.next_sequence).where(of_this))
    if now_at is None:
        raise NotFoundError("stream", stream_id)
    if now_at != after:
        raise ConflictError(
            f"stream {stream_id!r} expects chunk {now_at}, not {after}: another request was first. "
            "Read it again."
        )
    connection.execute(streams.update().where(of_this).values(row))
