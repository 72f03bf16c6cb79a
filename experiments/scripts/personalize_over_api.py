"""Personalize a new patient over the API: upload, label ten of each class, fit, judge, stream, delete.

    python -m metaecg.serve                                  # prints the address and a token
    python experiments/scripts/personalize_over_api.py 'http://127.0.0.1:8000/#token=...'

The patient is a generated one, so that what is right is known: the script can play the person who
labels, and count how often the base and the patient's own detector are wrong on everything later.
"""

import argparse
import sys

import numpy as np

from metaecg import Record
from metaecg.client import Client, ClientError, Predictions
from metaecg.data.demo_patients import FS_HZ, LEAD, GeneratedPatient, generate_patient
from metaecg.errors import MetaECGError

ARRHYTHMIA = ("VT", "VF", "VFL")


def record_of(patient: GeneratedPatient, subject_id: str) -> Record:
    """Return what a recorder would have given."""
    return Record(
        record_id=f"{subject_id}/1",
        subject_id=subject_id,
        signal_mv=patient.signal_mv[None].astype(np.float32),
        fs_hz=FS_HZ,
        lead_names=(LEAD,),
    )


def named_by_a_person(patient: GeneratedPatient, start_s: float, stop_s: float) -> str | None:
    """Return the class of a stretch, None where a person would rather not say."""
    touched = {
        segment.rhythm
        for segment in patient.segments
        if segment.start_s < stop_s and segment.stop_s > start_s
    }
    if "NOISE" in touched or (len(touched) > 1 and touched & set(ARRHYTHMIA)):
        return None
    return "va" if touched & set(ARRHYTHMIA) else "other"


def first_of_each(names: list[str | None], n_shots: int) -> list[int]:
    """Return where the first `n_shots` of either class stand."""
    places = {
        label: [i for i, name in enumerate(names) if name == label] for label in ("other", "va")
    }
    return sorted(place for found in places.values() for place in found[:n_shots])


def errors_after(found: Predictions, names: list[str | None], first: int) -> str:
    """Return how many of the windows from `first` on have another name than the person's."""
    judged = [
        (said, name) for said, name in zip(found.label[first:], names[first:], strict=True) if name
    ]
    return f"{sum(said != name for said, name in judged)} of {len(judged)} windows wrong"


def run(client: Client, patient: GeneratedPatient, subject_id: str) -> None:
    """Take a patient the whole way and say what happens."""
    model = client.model()
    record = record_of(patient, subject_id)
    client.create_patient(subject_id, note="generated, no person")
    recording = client.add_recording(subject_id, record)
    print(f"{recording.duration_s:g} s uploaded, {recording.n_segments} {model.kind}")

    segments = client.segments(subject_id, recording.recording_id)
    times = zip(segments.start_s, segments.stop_s, strict=True)
    names = [named_by_a_person(patient, start_s, stop_s) for start_s, stop_s in times]
    support = first_of_each(names, model.n_shots)
    labels = {int(segments.index[i]): names[i] for i in support}
    counts = client.put_labels(subject_id, recording.recording_id, labels)
    print(", ".join(f"{n} of {counts.n_shots} {name}" for name, n in counts.counts.items()))

    result = client.personalize(
        subject_id,
        method="lora",
        rhythm="none",
        progress=lambda part: print(f"{part:.0%}", end=" "),
    )
    print(
        f"\nversion {result.version}: {result.n_bytes} bytes, fitted in {result.fit_seconds:.2f} s"
    )

    later = max(support) + 1
    for version in (0, result.version):
        found = client.predictions(
            subject_id, recording.recording_id, version=version, rhythm="none"
        )
        print(
            f"version {version}: {errors_after(found, names, later)}, {len(found.episodes)} episodes"
        )

    with client.stream(subject_id, fs_hz=FS_HZ, unit="mV", lead_name=LEAD) as stream:
        judged = [stream.push(second) for second in np.split(record.signal_mv[0, :5000], 20)]
    n_windows = sum(len(windows) for windows in [*judged, stream.close()])
    print(f"20 s of it as a live stream: {n_windows} windows judged")


def main(argv: list[str] | None = None) -> int:
    """Parse, run, delete the patient again unless asked to keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="what the server prints at its first start, with the token")
    parser.add_argument("--token", help="if the address is without it")
    parser.add_argument("--subject", default="example-1")
    parser.add_argument("--patient", type=int, default=0, help="which generated patient")
    parser.add_argument("--keep", action="store_true", help="leave the patient on the server")
    options = parser.parse_args(argv)
    patient = generate_patient(options.patient, duration_s=300.0, seed=0)
    try:
        with Client(options.url, options.token) as client:
            run(client, patient, options.subject)
            if not options.keep:
                client.delete_patient(options.subject)
                print("deleted with everything that belongs to them")
    except (ClientError, MetaECGError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
