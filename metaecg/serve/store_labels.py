"""Labels that a person gave to segments."""

from collections.abc import Mapping

import sqlalchemy as sa

from metaecg.serve import tables
from metaecg.serve.store_base import StoreBase
from metaecg.serve.store_checks import check_range, check_text
from metaecg.serve.store_rows import Label


class LabelStore(StoreBase):
    """Part of the store: labels."""

    def put_labels(
        self,
        org_id: int,
        subject_id: str,
        recording_id: str,
        labels: Mapping[int, str | None],
        *,
        segmentation: str,
    ) -> None:
        """Set the labels of segments, all or none; None takes a label away; the last one wins.

        Parameters
        ----------
        labels
            Number of the segment to its class.
        segmentation
            Name of the grid that the numbers stand on; another grid's labels aren't touched.
        """
        check_text("segmentation", segmentation, longest=tables.NAME_CHARACTERS)
        now, rows = self._clock(), []
        for index, label in labels.items():
            index = check_range("the number of a segment", index, lowest=0)
            if label is not None:
                check_text("label", label, longest=tables.NAME_CHARACTERS)
            rows.append({"segment_index": index, "label": label, "updated_at": now})
        with self._write() as connection:
            # The lock on the patient makes taking away and setting one step for other writers.
            row = self._recording(connection, org_id, subject_id, recording_id, lock=True)
            _replace(connection, row.recording_key, segmentation, rows)

    def labels_of(
        self, org_id: int, subject_id: str, *, segmentation: str, recording_id: str | None = None
    ) -> list[Label]:
        """Return a patient's labels on one grid, by age of the recording, then by segment.

        Parameters
        ----------
        recording_id
            Only this recording's, or None for all.
        """
        recordings, labels = tables.recordings, tables.labels
        check_text("segmentation", segmentation, longest=tables.NAME_CHARACTERS)
        query = (
            sa.select(
                recordings.c.recording_id,
                labels.c.segment_index.label("index"),
                labels.c.label,
                labels.c.updated_at,
            )
            .join_from(recordings, labels)
            .where(labels.c.segmentation == segmentation)
            .order_by(recordings.c.created_at, recordings.c.recording_key, labels.c.segment_index)
        )
        with self._read() as connection:
            if recording_id is None:
                key = self._patient_key(connection, org_id, subject_id)
                query = query.where(recordings.c.patient_key == key)
            else:
                row = self._recording(connection, org_id, subject_id, recording_id)
                query = query.where(recordings.c.recording_key == row.recording_key)
            return [Label(**row) for row in connection.execute(query).mappings()]


def _replace(
    connection: sa.Connection, recording_key: int, segmentation: str, rows: list[dict]
) -> None:
    if not rows:
        return
    table = tables.labels
    this_one = (
        (table.c.recording_key == recording_key)
        & (table.c.segmentation == segmentation)
        & (table.c.segment_index == sa.bindparam("at"))
    )
    connection.execute(table.delete().where(this_one), [{"at": r["segment_index"]} for r in rows])
    of_this = {"recording_key": recording_key, "segmentation": segmentation}
    kept = [{**row, **of_this} for row in rows if row["label"] is not None]
    if kept:
        connection.execute(table.insert(), kept)
