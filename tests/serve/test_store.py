"""Patients, labels, detectors and streams, in SQLite and PostgreSQL alike."""

import pickle
import threading
import time
import uuid

import numpy as np
import pytest
import sqlalchemy as sa
from store_cases import GRID, NOTE, Clock, add_recording, dump, fill, ramp

from metaecg.errors import DataError, MetaECGError
from metaecg.serve import store_errors, tables
from metaecg.serve.store import Store
from metaecg.serve.store_errors import ConflictError, NotFoundError
from metaecg.serve.store_rows import ActiveDetector


@pytest.fixture
def org_id(store):
    return store.create_org("clinic").org_id


# --- patients ------------------------------------------------------------------------------------


def test_a_patient_is_found_with_counts(store, org_id):
    assert store.create_patient(org_id, "s-1", "é ♥ \n").note == "é ♥ \n"
    first = add_recording(store, org_id, "s-1")
    add_recording(store, org_id, "s-1")
    store.put_labels(org_id, "s-1", first.recording_id, {0: "va", 9: "other"}, segmentation=GRID)
    found = store.get_patient(org_id, "s-1")
    assert (found.n_recordings, found.n_labels, found.active_version) == (2, 2, 0)
    assert store.list_patients(org_id) == [found]


@pytest.mark.parametrize(
    "subject_id", ["", "-s", ".s", "_s", "a/b", "a b", "a\n", "é", "a" * 65, "..", None, 7]
)
def test_a_name_that_could_mislead_is_no_patients(store, org_id, subject_id):
    with pytest.raises(DataError, match="subject_id is .* expected 1 to 64 letters"):
        store.create_patient(org_id, subject_id)
    with pytest.raises(NotFoundError, match="there is no patient"):
        store.get_patient(org_id, subject_id)
    assert store.list_patients(org_id) == []


def test_names_differ_by_case_and_the_longest_is_kept(store, org_id):
    for subject_id in ("abc", "ABC", "a" * 64):
        store.create_patient(org_id, subject_id)
    assert [p.subject_id for p in store.list_patients(org_id)] == ["ABC", "a" * 64, "abc"]


def test_the_same_patient_twice_is_a_conflict(store, org_id):
    store.create_patient(org_id, "s-1", "first")
    with pytest.raises(ConflictError, match="there is a patient 's-1' already"):
        store.create_patient(org_id, "s-1", "second")
    assert store.get_patient(org_id, "s-1").note == "first"


def test_a_patient_of_an_organisation_that_is_not_there_is_not_made(store, org_id):
    with pytest.raises(NotFoundError, match="no organisation"):
        store.create_patient(org_id + 1, "s-1")


def test_pages_of_patients_join_to_all_of_them_in_order(store, org_id):
    names = sorted(f"{kind}-{n}" for kind in "aBc" for n in range(9))
    for name in reversed(names):
        store.create_patient(org_id, name)
    found, after = [], None
    while page := store.list_patients(org_id, limit=4, after=after):
        found += [patient.subject_id for patient in page]
        after = found[-1]
    assert found == names
    # What is added or deleted between two pages moves nothing.
    store.delete_patient(org_id, names[3])
    store.create_patient(org_id, "A")
    page = store.list_patients(org_id, limit=2, after=names[3])
    assert [patient.subject_id for patient in page] == names[4:6]


@pytest.mark.parametrize("limit", [0, -1, 1001, 1.5, True])
def test_a_page_has_a_length(store, org_id, limit):
    with pytest.raises(DataError, match="limit is .* expected a whole number 1 to 1000"):
        store.list_patients(org_id, limit=limit)


def test_ten_thousand_patients_with_adapters_are_opened_and_listed(sqlite_url, capsys):
    store = Store(sqlite_url)
    store.migrate()
    org_id, n = store.create_org("clinic").org_id, 10_000
    now, adapter = Clock().now, bytes(4096)
    patients = [
        {"org_id": org_id, "subject_id": f"s-{i:05}", "note": "", "active_version": 1}
        for i in range(n)
    ]
    detectors = [
        {"patient_key": i + 1, "version": 1, "base_fingerprint": "base", "digest": f"{i}"}
        | {"n_bytes": 4096, "facts": {}, "created_at": now, "adapter": adapter}
        for i in range(n)
    ]
    with store._write() as connection:
        connection.execute(tables.patients.insert(), [{**p, "created_at": now} for p in patients])
        connection.execute(tables.detectors.insert(), detectors)
    store.close()

    times = [time.perf_counter()]
    store = Store(sqlite_url)
    store.migrate(), store.ping()
    times.append(time.perf_counter())
    assert len(store.list_patients(org_id, limit=100, after="s-05000")) == 100
    times.append(time.perf_counter())
    names = [f"s-{i:05}" for i in range(0, n, 7)]
    found = store.active_detectors(org_id, names)
    times.append(time.perf_counter())
    assert list(found) == names
    assert found["s-00007"] == ActiveDetector(version=1, digest="7")
    assert store.counts()["detectors"] == n
    opened, listed, asked = np.diff(times) * 1000
    with capsys.disabled():
        print(f"\n10,000 patients: opened in {opened:.0f} ms, a page in {listed:.0f} ms, "
              f"{len(names)} active versions in {asked:.0f} ms")  # fmt: skip
    store.close()


def test_a_patient_who_is_made_and_deleted_while_others_write_gives_no_other_error(store, org_id):
    calls = (
        lambda: store.create_patient(org_id, "s-1"),
        lambda: store.delete_patient(org_id, "s-1"),
        lambda: add_recording(store, org_id, "s-1", signal_mv=ramp(100)),
        lambda: store.add_detector(org_id, "s-1", adapter=b"", facts={}, base_fingerprint="f"),
        lambda: store.finish_job(
            store.create_job(org_id, "s-1", "personalize", {}).job_id and store.claim_job()[1],
            state="done",
            detector=(b"", {}, "f"),
        ),
    )
    seen, unexpected = set(), []

    def repeat(call) -> None:
        for _ in range(25):
            try:
                call()
            except (NotFoundError, ConflictError) as error:
                seen.add(type(error))
            except TypeError:  # another's job, deleted with the patient: none to claim
                continue
            except Exception as error:  # what this test looks for
                unexpected.append(error)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls * 2]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert unexpected == []
    assert NotFoundError in seen
    rows = dump(store)
    keys = {row["patient_key"] for row in rows["patients"]}
    for name in ("recordings", "detectors", "jobs"):
        assert {row["patient_key"] for row in rows[name]} <= keys


# --- labels --------------------------------------------------------------------------------------


def test_the_last_label_wins_and_none_takes_away(store, org_id):
    store.create_patient(org_id, "s-1")
    recording_id = add_recording(store, org_id, "s-1").recording_id
    at = (org_id, "s-1", recording_id)
    store.put_labels(*at, {12: "va", 3: "other", 7: "va"}, segmentation=GRID)
    store.put_labels(*at, {12: "other", 7: None, 8: None}, segmentation=GRID)
    store.put_labels(*at, {}, segmentation=GRID)
    found = store.labels_of(org_id, "s-1", segmentation=GRID)
    assert [(label.index, label.label) for label in found] == [(3, "other"), (12, "other")]
    assert found[0].updated_at < found[1].updated_at
    assert {label.recording_id for label in found} == {recording_id}


def test_labels_of_another_grid_are_others(store, org_id):
    store.create_patient(org_id, "s-1")
    at = (org_id, "s-1", add_recording(store, org_id, "s-1").recording_id)
    store.put_labels(*at, {1: "va"}, segmentation=GRID)
    store.put_labels(*at, {1: "V", 2: "N"}, segmentation="beats:x")
    store.put_labels(*at, {1: None}, segmentation="beats:x")
    assert [x.label for x in store.labels_of(org_id, "s-1", segmentation=GRID)] == ["va"]
    assert [x.index for x in store.labels_of(org_id, "s-1", segmentation="beats:x")] == [2]


def test_labels_come_by_age_of_the_recording_then_by_segment(store, org_id):
    store.create_patient(org_id, "s-1")
    ids = [add_recording(store, org_id, "s-1").recording_id for _ in range(3)]
    for recording_id in reversed(ids):
        store.put_labels(org_id, "s-1", recording_id, {10: "va", 9: "va"}, segmentation=GRID)
    found = store.labels_of(org_id, "s-1", segmentation=GRID)
    assert [(x.recording_id, x.index) for x in found] == [(r, i) for r in ids for i in (9, 10)]
    only = store.labels_of(org_id, "s-1", segmentation=GRID, recording_id=ids[1])
    assert [(x.recording_id, x.index) for x in only] == [(ids[1], 9), (ids[1], 10)]


@pytest.mark.parametrize(
    "labels", [{1: "va", -1: "va"}, {1: "va", 2**31: "va"}, {1: "va", 2: ""}, {1: "va", 2: "\x00"}]
)
def test_one_wrong_label_refuses_them_all(store, org_id, labels):
    ids = fill(store, org_id, "s-1")
    before = dump(store)
    with pytest.raises(DataError):
        store.put_labels(org_id, "s-1", ids["recording_id"], labels, segmentation=GRID)
    assert dump(store) == before


def test_labels_of_many_threads_are_all_kept(store, org_id):
    ids = fill(store, org_id, "s-1")
    failed = []

    def put(worker: int) -> None:
        try:
            for index in range(10):
                labels = {1000 + 10 * worker + index: "va", 7: f"{worker}"}
                store.put_labels(org_id, "s-1", ids["recording_id"], labels, segmentation="w")
        except MetaECGError as error:
            failed.append(error)

    threads = [threading.Thread(target=put, args=(worker,)) for worker in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failed == []
    found = [label.index for label in store.labels_of(org_id, "s-1", segmentation="w")]
    assert found == [7, *range(1000, 1060)]


# --- detectors -----------------------------------------------------------------------------------


def test_versions_count_up_and_the_newest_is_active_unless_told_otherwise(store, org_id):
    store.create_patient(org_id, "s-1")
    assert store.active_version(org_id, "s-1") == 0
    facts = {"method": "lora", "losses": [0.5, 0.25], "n": {"va": 10}}
    first = store.add_detector(org_id, "s-1", adapter=b"1", facts=facts, base_fingerprint="f")
    second = store.add_detector(
        org_id, "s-1", adapter=b"22", facts={}, base_fingerprint="f", activate=False
    )
    assert (first.version, first.is_active) == (1, True)
    assert (second.version, second.is_active, second.n_bytes) == (2, False, 2)
    assert store.list_detectors(org_id, "s-1") == [first, second]
    assert store.get_detector(org_id, "s-1", 1).facts == facts
    assert [store.read_adapter(org_id, "s-1", v) for v in (1, 2)] == [b"1", b"22"]


def test_an_older_version_and_the_base_can_be_activated(store, org_id):
    fill(store, org_id, "s-1")
    for version in (1, 0, 2):
        store.activate(org_id, "s-1", version)
        assert store.active_version(org_id, "s-1") == version
        assert store.get_patient(org_id, "s-1").active_version == version
        is_active = [detector.is_active for detector in store.list_detectors(org_id, "s-1")]
        assert is_active == [version == 1, version == 2]


@pytest.mark.parametrize("version", [3, -1, 2**31, 2**70, True, 1.0, "1", None])
def test_a_version_that_is_not_there_changes_nothing(store, org_id, version):
    fill(store, org_id, "s-1")
    for call in (store.activate, store.get_detector, store.read_adapter):
        with pytest.raises(NotFoundError, match="there is no detector version"):
            call(org_id, "s-1", version)
    assert store.active_version(org_id, "s-1") == 2


def test_many_patients_active_detectors_are_asked_for_at_once(store, org_id):
    for n in range(3):
        fill(store, org_id, f"s-{n}")
    store.activate(org_id, "s-1", 0)
    newest = store.get_detector(org_id, "s-0", 2)
    found = store.active_detectors(org_id, ["s-2", "s-1", "s-2"])
    assert found == {
        "s-2": ActiveDetector(version=2, digest=newest.digest),
        "s-1": ActiveDetector(version=0, digest=""),
    }
    with pytest.raises(NotFoundError, match="no patient 's-9'"):
        store.active_detectors(org_id, ["s-1", "s-9", "s-8"])


def test_a_patient_made_anew_has_the_same_version_but_another_digest(store, org_id):
    found = []
    for adapter in (b"before", b"after"):
        store.create_patient(org_id, "s-1")
        store.add_detector(org_id, "s-1", adapter=adapter, facts={}, base_fingerprint="f")
        found.append(store.active_detectors(org_id, ["s-1"])["s-1"])
        store.delete_patient(org_id, "s-1")
    assert found[0].version == found[1].version
    assert found[0].digest != found[1].digest


# --- streams -------------------------------------------------------------------------------------


def test_a_stream_goes_on_where_it_stood_and_one_of_two_at_the_same_chunk_is_refused(store, org_id):
    store.create_patient(org_id, "s-1")
    at = (org_id, "s-1", uuid.uuid4().hex)
    store.put_stream(*at, state=b"0", next_sequence=0, answers=None)
    store.put_stream(*at, state=b"1", next_sequence=1, answers={"windows": []}, after=0)
    with pytest.raises(ConflictError, match="expects chunk 1, not 0"):
        store.put_stream(*at, state=b"x", next_sequence=1, answers=None, after=0)
    with pytest.raises(ConflictError, match="already"):
        store.put_stream(*at, state=b"x", next_sequence=0, answers=None)
    found = store.get_stream(org_id, at[2])
    assert (found.state, found.next_sequence, found.answers) == (b"1", 1, {"windows": []})
    assert found.subject_id == "s-1"
    store.delete_stream(org_id, at[2])
    for call in (store.get_stream, store.delete_stream):
        with pytest.raises(NotFoundError, match="no stream"):
            call(org_id, at[2])


def test_streams_that_nobody_closed_are_forgotten_in_the_end(store_url):
    clock = Clock()
    store = Store(store_url, clock=clock)
    org_id = store.create_org("clinic").org_id
    store.create_patient(org_id, "s-1")
    ids = [uuid.uuid4().hex for _ in range(2)]
    for stream_id in ids:
        store.put_stream(org_id, "s-1", stream_id, state=b"", next_sequence=0, answers=None)
        clock.go_on(100)
    assert store.delete_old_streams(older_than_s=150) == 1
    assert store.get_stream(org_id, ids[1]).stream_id == ids[1]
    store.close()


# --- the whole -----------------------------------------------------------------------------------


def test_counts_are_of_every_kind(store, org_id):
    fill(store, org_id, "s-1")
    _, job = store.claim_job()
    store.finish_job(job, state="failed", error={"code": "internal"})
    assert store.counts() == {
        "organisations": 1, "patients": 1, "recordings": 1, "labels": 2, "detectors": 2,
        "streams": 1, "jobs_queued": 0, "jobs_running": 0, "jobs_done": 0, "jobs_failed": 1,
        "jobs_cancelled": 0,
    }  # fmt: skip


def test_what_was_written_is_there_when_the_store_is_opened_again(store, store_url, org_id):
    ids = fill(store, org_id, "s-1")
    before = dump(store)
    store.close()
    again = Store(store_url)
    assert dump(again) == before
    assert again.get_patient(org_id, "s-1").note == NOTE
    assert again.get_job(org_id, ids["job_id"]).state == "queued"
    again.close()


def test_each_acknowledged_write_is_on_the_disk_in_sqlite(sqlite_url):
    store = Store(sqlite_url)
    store.migrate()
    with store.engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert settings == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1
    }  # fmt: skip
    store.close()


def test_the_lead_of_a_list_is_read_with_an_index_not_by_searching_all(sqlite_url):
    store = Store(sqlite_url)
    store.migrate()
    chunks = tables.signal_chunks
    query = sa.select(chunks.c.samples).where(
        chunks.c.recording_key == 1, chunks.c.lead.in_([0]), chunks.c.number >= 3
    )
    text = str(query.compile(store.engine, compile_kwargs={"literal_binds": True}))
    with store.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
    assert all("SEARCH" in step[-1] for step in plan), plan
    store.close()


def drawn_errors() -> set[str]:
    return {word for word in store_errors.__doc__.split() if word.endswith("Error")}


def test_every_error_of_the_store_is_drawn_and_is_one_of_metaecgs():
    found = {name for name in vars(store_errors) if name.endswith("Error")}
    assert drawn_errors() - {"LookupError"} <= found
    for name in found:
        assert issubclass(getattr(store_errors, name), MetaECGError)


def test_an_error_that_names_something_long_stays_short_and_survives_another_process():
    error = NotFoundError("patient", "x" * 10_000)
    assert len(str(error)) < 200
    again = pickle.loads(pickle.dumps(error))
    assert (again.kind, again.name) == (error.kind, error.name)
