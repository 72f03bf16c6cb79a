"""The half of `Client` that is about patients, their recordings and their labels."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from metaecg.client.http import Http, json_of, patient_path, recording_path
from metaecg.client.marks import joined, labels_of_mark
from metaecg.client.results import (
    Counts,
    Patient,
    Proposal,
    Recording,
    Segments,
    read,
    read_rows,
)
from metaecg.client.signals import AnyRecord, csv_row, signal_of
from metaecg.client.uploads import send_files, send_signal

PAGE = 100
"""Patients in one answer."""
MAX_LABELS = 10_000
"""Labels in one request; more go in several. A day of beats is more than the server takes at once."""


class AbstractPatients:
    """Patients, recordings and labels; `Client` is the class to use."""

    _http: Http

    # Patients

    def create_patient(self, subject_id: str, *, note: str = "") -> Patient:
        """Create a patient; `ConflictError` if there is one of that name."""
        body = {"subject_id": subject_id, "note": note}
        answer = self._http.ask("POST", "/v1/patients", repeat=False, json=body)
        return read(Patient, json_of(answer))

    def patients(self) -> Iterator[Patient]:
        """Give all patients by name, asking for the next page when it is needed."""
        after = None
        while True:
            page = self._http.get("/v1/patients", after=after, limit=PAGE)
            yield from (read(Patient, patient) for patient in page.get("patients", ()))
            after = page.get("next")
            if after is None:
                return

    def patient(self, subject_id: str) -> Patient:
        """Return what is known of a patient."""
        return read(Patient, self._http.get(patient_path(subject_id)))

    def delete_patient(self, subject_id: str) -> None:
        """Delete a patient with all recordings, labels, detectors and jobs, for good."""
        self._http.delete(patient_path(subject_id))

    # Recordings and labels

    def add_recording(
        self,
        subject_id: str,
        signal: AnyRecord | np.ndarray | Sequence,
        *,
        fs_hz: float | None = None,
        unit: str | None = None,
        lead_names: Sequence[str] | str | None = None,
        lead: int | None = None,
        name: str | None = None,
    ) -> Recording:
        """Upload a recording that is in memory.

        Parameters
        ----------
        subject_id
            Whose it is.
        signal
            A `metaecg.Record`, or an array of shape ``(n_samples,)`` or ``(n_leads, n_samples)``;
            NaN where nothing was measured.
        fs_hz, unit, lead_names
            Needed with an array, refused with a record. `unit` is ``"mV"``, ``"uV"`` or ``"V"``.
        lead
            Index of the lead to judge; ``None``: the server's rule (the usual one by name, else the
            first).
        name
            For people; ``None``: the record's own.
        """
        checked = signal_of(signal, fs_hz=fs_hz, unit=unit, lead_names=lead_names)
        return send_signal(self._http, subject_id, checked, lead=lead, name=name)

    def add_files(
        self,
        subject_id: str,
        *paths: str | Path,
        file_format: str | None = None,
        fs_hz: float | None = None,
        unit: str | None = None,
        lead_names: Sequence[str] | None = None,
        lead: int | None = None,
        name: str | None = None,
    ) -> Recording:
        """Upload the files of one recording.

        Parameters
        ----------
        subject_id
            Whose it is.
        *paths
            One file; for WFDB the ``.hea`` file and all signal files that it names.
        file_format
            ``"wfdb"``, ``"edf"``, ``"csv"`` or ``"json"``; ``None``: by the suffix.
        fs_hz, unit, lead_names
            For CSV, which doesn't say them. Where a file says them itself they must agree.
        lead, name
            As for `add_recording`.
        """
        facts = {
            "fs_hz": fs_hz,
            "unit": unit,
            "lead_names": None if lead_names is None else csv_row(lead_names),
        }
        return send_files(
            self._http,
            subject_id,
            paths,
            file_format=file_format,
            facts=facts,
            lead=lead,
            name=name,
        )

    def recordings(self, subject_id: str) -> tuple[Recording, ...]:
        """Return a patient's recordings in the order of their upload."""
        found = self._http.get(f"{patient_path(subject_id)}/recordings")
        return tuple(read(Recording, recording) for recording in found.get("recordings", ()))

    def delete_recording(self, subject_id: str, recording_id: str) -> None:
        """Delete a recording with its labels; detectors that were fitted stay."""
        self._http.delete(recording_path(subject_id, recording_id))

    def segments(
        self,
        subject_id: str,
        recording_id: str,
        *,
        start_s: float | None = None,
        stop_s: float | None = None,
        signal: bool = False,
    ) -> Segments:
        """Return what can be labelled between two times, with its labels; `signal`: with samples."""
        path, rows, after = f"{recording_path(subject_id, recording_id)}/segments", [], None
        while True:
            page = self._http.get(
                path, start_s=start_s, stop_s=stop_s, after=after, signal=str(signal).lower()
            )
            rows += page.get("segments", ())
            after = page.get("next")
            if after is None:
                return read_rows(Segments, rows, **({} if signal else {"signal_mv": None}))

    def put_labels(
        self, subject_id: str, recording_id: str, labels: Mapping[int, str | None]
    ) -> Counts:
        """Put labels on segments by index; ``None`` removes one. Returns the patient's counts.

        Many go in several requests: after an error those of the first requests are there, and all can
        be put again.
        """
        path = f"{recording_path(subject_id, recording_id)}/labels"
        rows = [(str(int(index)), label) for index, label in labels.items()]
        for start in range(0, max(1, len(rows)), MAX_LABELS):
            body = {"labels": dict(rows[start : start + MAX_LABELS])}
            answer = self._http.ask("PUT", path, repeat=True, json=body)
        return read(Counts, json_of(answer))

    def mark(
        self,
        subject_id: str,
        recording_id: str,
        marks: Sequence[tuple[float, float, str]],
    ) -> Counts:
        """Label all segments that lie wholly inside marked stretches.

        Parameters
        ----------
        subject_id, recording_id
            Which recording.
        marks
            ``(start_s, stop_s, class name)``, as `Personalizer.fit_record` takes them. Segments lie
            on the server's grid: a mark that doesn't start on it gives those after its start.

        Raises
        ------
        DataError
            No segment lies in a mark, or two marks give one segment two classes.
        """
        labels = {}
        for start_s, stop_s, label in marks:
            found = self.segments(subject_id, recording_id, start_s=start_s, stop_s=stop_s)
            labels = joined(labels, labels_of_mark(found, (start_s, stop_s, label)))
        return self.put_labels(subject_id, recording_id, labels)

    def labels(self, subject_id: str, recording_id: str) -> dict[int, str]:
        """Return the labels of a recording by index."""
        found = self._http.get(f"{recording_path(subject_id, recording_id)}/labels")
        return {int(index): label for index, label in found.get("labels", {}).items()}

    def counts(self, subject_id: str) -> Counts:
        """Return how many labels of each class a patient has."""
        return read(Counts, self._http.get(f"{patient_path(subject_id)}/labels/counts"))

    def proposals(self, subject_id: str, recording_id: str, *, n: int = 10) -> tuple[Proposal, ...]:
        """Return what a person should look at next, at most `n`."""
        found = self._http.get(f"{recording_path(subject_id, recording_id)}/proposals", n=n)
        return tuple(read(Proposal, proposal) for proposal in found.get("proposals", ()))
