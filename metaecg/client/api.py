"""`Client`: patients, recordings, labels, personalization and predictions of a metaecg server."""

import json
from collections.abc import Callable, Sequence

import numpy as np

from metaecg.checks import check_positive
from metaecg.client.http import (
    Http,
    address_and_token,
    job_path,
    json_of,
    patient_path,
    recording_path,
)
from metaecg.client.jobs import outcome, wait_for
from metaecg.client.patients import AbstractPatients
from metaecg.client.results import (
    Detectors,
    DetectorVersion,
    Job,
    Judged,
    ModelInfo,
    Personalization,
    Predictions,
    StreamStart,
    Windows,
    read,
    read_rows,
)
from metaecg.client.signals import AnyRecord, numbers, signal_of
from metaecg.client.streams import Stream
from metaecg.errors import DataError

JSON = {"Content-Type": "application/json"}


class Client(AbstractPatients):
    """A metaecg server, as one organisation sees it.

    Methods raise what the library itself raises for the same reason (`DataError`,
    `NotEnoughWindowsError`, `AdaptationError`, `CheckpointError`), and otherwise an exception of
    `metaecg.client.errors`. What may be sent twice without harm is tried again when there is no
    answer or the server says "not now" (429, 503); the rest is sent once. It may be used by several
    threads.

    Parameters
    ----------
    url
        The server's address, or the whole line that it prints at its first start, with the token.
    token
        The organisation's token; ``None``: `url` has it.
    timeout_s
        Longest wait for a connection and for the next byte of an answer.
    n_retries
        How often a request is tried again.

    Examples
    --------
    >>> with Client("http://127.0.0.1:8000", token) as client:  # doctest: +SKIP
    ...     client.create_patient("s-014")
    ...     recording = client.add_recording("s-014", record)
    ...     client.mark("s-014", recording.recording_id, [(100.0, 120.0, "other"), (900.0, 920.0, "va")])
    ...     client.personalize("s-014", method="lora")
    ...     client.predictions("s-014", recording.recording_id).episodes
    """

    def __init__(
        self, url: str, token: str | None = None, *, timeout_s: float = 60.0, n_retries: int = 4
    ) -> None:
        check_positive("timeout_s", timeout_s)
        url, token = address_and_token(url, token)
        self._http = Http(url, token, timeout_s=timeout_s, n_retries=n_retries)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._http.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def model(self) -> ModelInfo:
        """Return the facts of the base in the server's memory."""
        return read(ModelInfo, self._http.get("/v1/model"))

    # Personalization

    def personalize(
        self,
        subject_id: str,
        method: str | None = None,
        *,
        rhythm: str | None = None,
        n_shots: int | None = None,
        activate: bool = True,
        progress: Callable[[float], None] | None = None,
        timeout_s: float | None = None,
    ) -> Personalization:
        """Fit the patient's own detector to the labels and wait until it is there.

        Parameters
        ----------
        subject_id
            Who.
        method, rhythm
            As for `Personalizer`; ``None``: the server's default.
        n_shots
            The earliest so many labels per class; ``None``: all.
        activate
            Whether the new version comes into use.
        progress
            Called with 0 to 1 as the work goes on.
        timeout_s
            Longest wait; then `JobTimeoutError`, and the job goes on. ``None``: until it is over.

        Warns
        -----
        PersonalizationRefusedWarning
            The labels speak against the new detector; the one before stays in use.
        """
        job = self.start_personalization(
            subject_id, method, rhythm=rhythm, n_shots=n_shots, activate=activate
        )
        return outcome(wait_for(self._http, job, progress=progress, timeout_s=timeout_s))

    def start_personalization(
        self,
        subject_id: str,
        method: str | None = None,
        *,
        rhythm: str | None = None,
        n_shots: int | None = None,
        activate: bool = True,
    ) -> Job:
        """Ask for a personalization and don't wait; arguments as for `personalize`."""
        body = {"method": method, "rhythm": rhythm, "n_shots": n_shots, "activate": activate}
        path = f"{patient_path(subject_id)}/personalizations"
        return read(Job, json_of(self._http.ask("POST", path, repeat=False, json=body)))

    def job(self, job_id: str) -> Job:
        """Return a job as it stands now."""
        return read(Job, self._http.get(job_path(job_id)))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to end; one that is over stays as it is."""
        path = job_path(job_id)
        return read(Job, json_of(self._http.ask("DELETE", path, repeat=True)))

    def detectors(self, subject_id: str) -> Detectors:
        """Return all versions of a patient's detector, the oldest first."""
        return read(Detectors, self._http.get(f"{patient_path(subject_id)}/detectors"))

    def activate(self, subject_id: str, version: int) -> Detectors:
        """Bring a version into use; 0 is the base."""
        path = f"{patient_path(subject_id)}/detectors/{int(version)}/activate"
        return read(Detectors, json_of(self._http.ask("POST", path, repeat=True)))

    def export_adapter(self, subject_id: str, version: int) -> bytes:
        """Return what was fitted, without the base: the bytes of one safetensors file."""
        path = f"{patient_path(subject_id)}/detectors/{int(version)}/adapter"
        return self._http.ask("GET", path, repeat=True).content

    def import_adapter(
        self, subject_id: str, adapter: bytes, *, activate: bool = True
    ) -> DetectorVersion:
        """Store what `export_adapter` gave as a new version; another base's is a CheckpointError."""
        answer = self._http.ask(
            "POST",
            f"{patient_path(subject_id)}/detectors",
            repeat=False,
            params={"activate": str(activate).lower()},
            data=adapter,
            headers={"Content-Type": "application/octet-stream"},
        )
        return read(DetectorVersion, json_of(answer))

    # Predictions

    def predictions(
        self,
        subject_id: str,
        recording_id: str,
        *,
        version: int | None = None,
        rhythm: str | None = None,
        start_s: float | None = None,
        stop_s: float | None = None,
    ) -> Predictions:
        """Judge a stored recording; `version` ``None``: the one in use, 0: the base."""
        return read(
            Predictions,
            self._http.get(
                f"{recording_path(subject_id, recording_id)}/predictions",
                version="active" if version is None else int(version),
                rhythm=rhythm,
                start_s=start_s,
                stop_s=stop_s,
            ),
        )

    def predict(
        self,
        subject_id: str,
        signal: AnyRecord | np.ndarray | Sequence[float],
        *,
        fs_hz: float | None = None,
        unit: str | None = None,
        lead_names: Sequence[str] | str | None = None,
    ) -> Windows:
        """Judge a stretch of one lead without storing it, each window by itself.

        `signal`, `fs_hz`, `unit` and `lead_names` as for `add_recording`, one lead of at least one
        window.
        """
        checked = signal_of(signal, fs_hz=fs_hz, unit=unit, lead_names=lead_names)
        if len(checked.lead_names) != 1:
            raise DataError(
                f"the signal has the leads {', '.join(checked.lead_names)}; one lead was expected. Give "
                "the one to judge."
            )
        body = f'{json.dumps(checked.facts())[:-1]}, "signal": [{numbers(checked.values[0], gap="null")}]}}'
        found = json_of(self._post_signal(f"{patient_path(subject_id)}/predict", body))
        facts = {name: found.get(name) for name in ("version", "threshold")}
        return read_rows(Windows, found.get("windows", ()), **facts)

    def predict_many(
        self, windows: Sequence[tuple[str, np.ndarray]], *, fs_hz: float, unit: str
    ) -> tuple[Judged, ...]:
        """Judge one window of each of many patients in one pass.

        `windows` holds at most 1,024 pairs of subject_id and exactly one window of one lead, shape
        ``(n_samples,)``. The answers are in its order.
        """
        items = []
        for subject_id, window in windows:
            signal = signal_of(window, fs_hz=fs_hz, unit=unit, lead_names="window")
            samples = numbers(signal.values[0], gap="null")
            items.append(f'{{"subject_id": {json.dumps(subject_id)}, "signal": [{samples}]}}')
        facts = json.dumps({"fs_hz": fs_hz, "unit": unit})
        body = f'{facts[:-1]}, "items": [{",".join(items)}]}}'
        found = json_of(self._post_signal("/v1/predict", body))
        return tuple(read(Judged, window) for window in found.get("windows", ()))

    def stream(self, subject_id: str, *, fs_hz: float, unit: str, lead_name: str) -> Stream:
        """Open a live stream of one lead, judged by the version in use now."""
        body = {"fs_hz": fs_hz, "unit": unit, "lead_name": lead_name}
        path = f"{patient_path(subject_id)}/streams"
        found = json_of(self._http.ask("POST", path, repeat=False, json=body))
        start = read(StreamStart, found)
        return Stream(
            self._http,
            stream_id=start.stream_id,
            fs_hz=fs_hz,
            next_sequence=start.next_sequence,
            version=start.version,
            delay_s=start.delay_s,
        )

    def resume_stream(self, stream_id: str, *, fs_hz: float, next_sequence: int) -> Stream:
        """Go on with a stream that is open on the server, at the chunk that it expects next."""
        return Stream(self._http, stream_id=stream_id, fs_hz=fs_hz, next_sequence=next_sequence)

    def _post_signal(self, path: str, body: str):
        # Judging stores nothing, so it may be asked twice.
        return self._http.ask("POST", path, repeat=True, data=body.encode(), headers=JSON)
