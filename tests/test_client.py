"""The client against a real server process: the same numbers as the library in this process."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metaecg import Personalizer, Record, WindowStream, load_base
from metaecg.client import (
    Client,
    ConflictError,
    JobCancelledError,
    NotFoundError,
    UnauthorizedError,
)
from metaecg.client import patients as patients_module
from metaecg.client import uploads as uploads_module
from metaecg.client.jobs import outcome, wait_for
from metaecg.data.demo import write_demo_database
from metaecg.data.demo_patients import FS_HZ, LEAD, generate_patient
from metaecg.data.windows import cut_at
from metaecg.errors import CheckpointError, DataError, NotEnoughWindowsError
from metaecg.serve.adapter_file import load_adapter

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "serve"))
from app_cases import running_server  # noqa: E402

SUBJECT = "s-1"
MARKS = [(0.0, 20.0, "other"), (36.0, 52.0, "va"), (58.0, 62.0, "va")]
"""Ten windows of each class of the generated patient 0, as its annotations have them."""


@pytest.fixture(scope="module")
def base():
    return load_base("va-base")


@pytest.fixture(scope="module")
def record() -> Record:
    patient = generate_patient(0, duration_s=180.0, seed=8)
    return Record(
        record_id="demo/1",
        subject_id=SUBJECT,
        signal_mv=patient.signal_mv[None].astype(np.float32),
        fs_hz=FS_HZ,
        lead_names=(LEAD,),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with Client(server.url, server.token) as client:
        yield client


@pytest.fixture(scope="module")
def personal(base, record) -> Personalizer:
    """What the library fits in this process."""
    return Personalizer(base).fit_record(record, MARKS)


@pytest.fixture(scope="module")
def recording(client, record):
    """A patient with a recording and a detector."""
    client.create_patient(SUBJECT, note="first")
    recording = client.add_recording(SUBJECT, record)
    client.mark(SUBJECT, recording.recording_id, MARKS)
    client.personalize(SUBJECT, method="lora", rhythm="none")
    return recording


def all_windows(record: Record, base) -> np.ndarray:
    window_s = base.preprocessing.window_s
    return cut_at(
        record, window_s * np.arange(int(record.duration_s / window_s)), base.preprocessing
    )[0]


def test_the_whole_way_gives_the_numbers_of_the_library(client, recording, record, base, personal):
    found = client.predictions(SUBJECT, recording.recording_id)
    expected = personal.predict_proba(all_windows(record, base))[:, 1]
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    assert (found.version, found.rhythm, found.positive) == (1, "none", "va")
    assert found.start_s.tolist() == np.arange(0.0, 180.0, 2.0).tolist()
    before = client.predictions(SUBJECT, recording.recording_id, version=0, rhythm="none")
    expected = base.predict_proba(all_windows(record, base))[:, 1]
    np.testing.assert_allclose(before.probability, expected, atol=1e-5)


def test_the_server_says_what_it_has(client, recording):
    model, patient = client.model(), client.patient(SUBJECT)
    assert (model.kind, model.positive, model.n_shots, model.window_s) == ("windows", "va", 10, 2.0)
    assert (patient.note, patient.n_recordings, patient.n_labels) == ("first", 1, 20)
    assert patient.active_version == 1
    assert (recording.name, recording.lead_names, recording.n_segments) == ("demo/1", (LEAD,), 90)
    assert client.recordings(SUBJECT) == (recording,)
    assert client.counts(SUBJECT).counts == {"other": 10, "va": 10}
    assert set(client.counts(SUBJECT).missing.values()) == {0}


def test_the_signal_arrives_as_it_was(client, recording, record):
    found = client.segments(SUBJECT, recording.recording_id, start_s=10.0, stop_s=20.0, signal=True)
    assert found.index.tolist() == [5, 6, 7, 8, 9]
    assert found.label == ("other",) * 5
    shown = np.concatenate(found.signal_mv)
    np.testing.assert_allclose(shown, record.signal_mv[0, 2500:5000], atol=1e-4)


def test_labels_are_put_removed_and_read(client, record):
    client.create_patient("labels")
    recording = client.add_recording("labels", record)
    counts = client.put_labels("labels", recording.recording_id, {0: "va", 1: "va", 7: "other"})
    assert (counts.counts, counts.missing) == ({"va": 2, "other": 1}, {"va": 8, "other": 9})
    client.put_labels("labels", recording.recording_id, {0: None, 1: "other"})
    assert client.labels("labels", recording.recording_id) == {1: "other", 7: "other"}
    proposals = client.proposals("labels", recording.recording_id, n=5)
    assert len(proposals) == 5
    assert not {p.index for p in proposals} & {1, 7}
    with pytest.raises(DataError, match="vf"):
        client.put_labels("labels", recording.recording_id, {0: "vf"})


def test_too_few_labels_raise_what_the_library_raises(client, record):
    client.create_patient("few")
    recording = client.add_recording("few", record)
    client.mark("few", recording.recording_id, [(0.0, 20.0, "other")])
    with pytest.raises(NotEnoughWindowsError) as caught:
        client.personalize("few")
    assert (caught.value.subject_id, caught.value.label, caught.value.n_found) == ("few", "va", 0)


def test_progress_goes_up_to_one_and_a_version_can_be_taken_back(client, recording):
    told = []
    found = client.personalize(
        SUBJECT, method="head", rhythm="none", activate=False, progress=told.append
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    versions = client.detectors(SUBJECT)
    assert versions.active_version == 1
    assert [(v.version, v.method) for v in versions.detectors][-1] == (found.version, "head")
    assert client.activate(SUBJECT, found.version).active_version == found.version
    assert client.activate(SUBJECT, 0).active_version == 0
    assert client.activate(SUBJECT, 1).detectors[0].is_active
    with pytest.raises(NotFoundError):
        client.activate(SUBJECT, 99)


def test_a_cancelled_job_says_so(client, recording):
    job = client.start_personalization(SUBJECT, method="h-tuning", rhythm="none", activate=False)
    client.cancel(job.job_id)
    with pytest.raises(JobCancelledError):
        outcome(wait_for(client._http, job, progress=None, timeout_s=60))
    assert client.job(job.job_id).state == "cancelled"


def test_an_adapter_goes_to_another_patient_and_back(client, recording, record):
    adapter = client.export_adapter(SUBJECT, 1)
    client.create_patient("twin")
    assert client.import_adapter("twin", adapter).version == 1
    window = record.signal_mv[0, :500]
    pair = client.predict_many([(SUBJECT, window), ("twin", window)], fs_hz=FS_HZ, unit="mV")
    assert pair[0].probability == pair[1].probability
    with pytest.raises(CheckpointError, match="adapter"):
        client.import_adapter("twin", adapter[:-1] + bytes([adapter[-1] ^ 1]))


def test_a_window_judged_alone_or_among_others_is_the_librarys(client, recording, record, base):
    stretch = record.signal_mv[0, :1500]
    found = client.predict(SUBJECT, stretch, fs_hz=FS_HZ, unit="mV", lead_names=LEAD)
    assert found.start_s.tolist() == [0.0, 2.0, 4.0]
    short = Record(
        record_id="s", subject_id="s", signal_mv=stretch[None], fs_hz=FS_HZ, lead_names=(LEAD,)
    )
    windows = cut_at(short, np.array([0.0, 2.0, 4.0]), base.preprocessing)[0]
    theirs = load_adapter(client.export_adapter(SUBJECT, 1), base)
    np.testing.assert_allclose(found.probability, theirs.predict_proba(windows)[:, 1], atol=1e-5)
    one = client.predict(SUBJECT, stretch[:500] * 1000, fs_hz=FS_HZ, unit="uV", lead_names=LEAD)
    many = client.predict_many([(SUBJECT, stretch[:500])] * 3, fs_hz=FS_HZ, unit="mV")
    np.testing.assert_allclose(
        [judged.probability for judged in many], one.probability[0], atol=1e-5
    )
    with pytest.raises(DataError, match="one lead was expected"):
        client.predict(SUBJECT, np.zeros((2, 500)), fs_hz=FS_HZ, unit="mV", lead_names=["a", "b"])


def streamed(client: Client, values: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Send `values` in pieces of these sizes, the rest at last; return start and probability."""
    with client.stream(SUBJECT, fs_hz=FS_HZ, unit="mV", lead_name=LEAD) as stream:
        parts = [stream.push(piece) for piece in np.split(values, np.cumsum(sizes))]
    parts.append(stream.close())
    columns = [(part.start_s, part.probability) for part in parts]
    return np.concatenate([np.stack(pair, axis=1) for pair in columns])


def test_a_stream_gives_the_same_whatever_its_chunks_are(client, recording, record, base):
    values = record.signal_mv[0, :18000]  # 72 s: one chunk of it is longer than the server takes
    whole, pieces = streamed(client, values, []), streamed(client, values, [100, 3333, 7])
    np.testing.assert_allclose(whole, pieces, atol=1e-6)
    assert whole[:, 0].tolist() == np.arange(0.0, 72.0, 2.0).tolist()
    offline = WindowStream(fs_hz=FS_HZ, n_leads=1, preprocessing=base.preprocessing)
    assert len(offline.push(values[None]) + offline.close()) == len(whole)


def test_a_stream_is_taken_up_again_where_it_was_left(client, recording, record):
    values = record.signal_mv[0, :6000]
    with client.stream(SUBJECT, fs_hz=FS_HZ, unit="mV", lead_name=LEAD) as whole:
        expected = whole.push(values)
    first = client.stream(SUBJECT, fs_hz=FS_HZ, unit="mV", lead_name=LEAD)
    before = first.push(values[:3000])
    again = client.resume_stream(first.stream_id, fs_hz=FS_HZ, next_sequence=first.next_sequence)
    after = again.push(values[3000:])
    assert [*before.index, *after.index] == expected.index.tolist()
    probability = [*before.probability, *after.probability]
    np.testing.assert_allclose(probability, expected.probability, atol=1e-6)
    again.push(values[:10])
    with pytest.raises(ConflictError) as caught:
        first.push(values[:10])  # it doesn't know that another one has gone on
    assert caught.value.detail["next_sequence"] == 3


def test_files_of_each_kind_arrive(client, tmp_path):
    folder = write_demo_database(tmp_path, n_subjects=1, duration_s=180.0)
    client.create_patient("files")
    found = client.add_files("files", folder / "demo01.hea", folder / "demo01.dat", name="night")
    assert (found.source_format, found.name, found.duration_s) == ("wfdb", "night", 180.0)
    table = tmp_path / "ecg.csv"
    table.write_text("II,V5\n" + "0.5,-0.25\n" * 1000)
    found = client.add_files("files", table, fs_hz=250.0, unit="mV", lead=1)
    assert (found.source_format, found.lead_names, found.lead) == ("csv", ("II", "V5"), 1)
    with pytest.raises(DataError, match="unit"):
        client.add_files("files", table, fs_hz=250.0)


def test_a_long_signal_goes_as_csv_and_arrives_as_the_short_one(client, monkeypatch):
    values = np.random.default_rng(4).normal(size=(2, 5000)).astype(np.float32)
    values[1, 100:600] = np.nan
    facts = {"fs_hz": 250.0, "unit": "mV", "lead_names": ["II", "V5"], "lead": 1}
    client.create_patient("long")
    ways = []
    for most in (10**9, 10):
        monkeypatch.setattr(uploads_module, "MAX_JSON_SAMPLES", most)
        recording = client.add_recording("long", values, **facts)
        segments = client.segments("long", recording.recording_id, signal=True)
        ways.append((recording.source_format, np.concatenate(segments.signal_mv)))
    assert [way[0] for way in ways] == ["json", "csv"]
    np.testing.assert_array_equal(ways[0][1], ways[1][1])


@pytest.mark.parametrize(
    "names", [["0"], ["0", "1"], ["s", "index"], ["V5, new", 'the "old" one'], ["I;II"], ["nan"]]
)
def test_whatever_the_leads_are_called_csv_arrives_as_json_does(client, monkeypatch, names):
    values = np.zeros((len(names), 1000), dtype=np.float32)
    values[:, 1:] = np.random.default_rng(4).normal(size=(len(names), 999))
    if (subject_id := "names") not in [patient.subject_id for patient in client.patients()]:
        client.create_patient(subject_id)
    ways = []
    for most in (10**9, 10):
        monkeypatch.setattr(uploads_module, "MAX_JSON_SAMPLES", most)
        recording = client.add_recording(
            subject_id, values, fs_hz=250.0, unit="mV", lead_names=names
        )
        found = client.segments(subject_id, recording.recording_id, signal=True)
        ways.append((recording.lead_names, recording.n_samples, *np.concatenate(found.signal_mv)))
    assert ways[0] == ways[1]
    assert ways[0][:2] == (tuple(names), 1000)


def test_patients_are_listed_page_by_page_and_deleted(client, monkeypatch):
    names = [f"page-{i}" for i in range(5)]
    for name in names:
        client.create_patient(name)
    monkeypatch.setattr(patients_module, "PAGE", 2)
    listed = [p.subject_id for p in client.patients() if p.subject_id.startswith("page-")]
    assert listed == names
    for name in names:
        client.delete_patient(name)
    with pytest.raises(NotFoundError):
        client.patient(names[0])
    assert not [p for p in client.patients() if p.subject_id.startswith("page-")]


def test_what_is_there_already_and_what_is_not_are_told_apart(client, recording):
    with pytest.raises(ConflictError, match=SUBJECT):
        client.create_patient(SUBJECT)
    with pytest.raises(NotFoundError):
        client.recordings("nobody")
    with pytest.raises(NotFoundError):
        client.job("0" * 32)


def test_another_token_is_refused(server):
    with Client(server.url, "metaecg_" + "x" * 43) as stranger:
        with pytest.raises(UnauthorizedError):
            stranger.model()


def test_the_example_runs_from_upload_to_deletion(server, client):
    script = ROOT / "experiments" / "scripts" / "personalize_over_api.py"
    command = [sys.executable, str(script), f"{server.url}/#token={server.token}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 other, 10 of 10 va" in done.stdout
    assert "version 1: 0 of 78 windows wrong" in done.stdout
    assert "deleted" in done.stdout
    assert "example-1" not in [patient.subject_id for patient in client.patients()]


def test_the_commands_of_the_page_work_as_they_stand(server, tmp_path):
    missing = [name for name in ("bash", "curl", "jq") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    page = (ROOT / "docs" / "serve.md").read_text()
    (commands,) = re.findall(r"```sh\n(.*?)\n```", page, flags=re.S)
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = {"URL": server.url, "TOKEN": server.token, "PATH": places}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"version": 1' in done.stdout
    assert '"peak_probability"' in done.stdout
