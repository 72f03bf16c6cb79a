"""No organisation sees another's; a deleted patient leaves nothing. Over every method and table."""

import inspect
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from store_cases import BEATS, GRID, NOTE, dump, fill

from metaecg.serve import tables
from metaecg.serve.store import Store
from metaecg.serve.store_errors import NotFoundError

MINE, OTHER = 1, 2
METHODS = {
    name: method
    for name, method in inspect.getmembers(Store, inspect.isfunction)
    if not name.startswith("_") and "org_id" in inspect.signature(method).parameters
}
OWN = {"create_patient", "create_token", "list_patients", "list_tokens"}
"""The methods that name nothing of another's: they answer, but with the own organisation's only."""
ASKED = {
    "after": 0,
    "labels": {3: "other", 5: None},
    "segmentation": GRID,
    "peaks": np.array([1]),
    "adapter": b"third adapter",
    "facts": {},
    "base_fingerprint": "base",
    "kind": "personalize",
    "request": {},
    "state": b"other",
    "next_sequence": 1,
    "answers": [],
    "signal_mv": np.zeros((1, 10)),
    "fs_hz": 250.0,
    "lead_names": ["II"],
    "lead": 0,
    "name": "other",
    "source_format": "json",
    "digest": "",
}
"""A value for each argument that a method may need; a new argument has to be added here."""
OPTIONAL = {"put_stream": {"after"}, "labels_of": {"recording_id"}}


def arguments_of(name: str, ids: dict) -> dict:
    """Return arguments that reach for what `ids` names, `org_id` left out."""
    known = {**ASKED, **ids, "subject_ids": [ids["subject_id"]]}
    found = {}
    for parameter in list(inspect.signature(METHODS[name]).parameters.values())[2:]:
        is_needed = parameter.default is inspect.Parameter.empty
        if is_needed or parameter.name in OPTIONAL.get(name, ()):
            found[parameter.name] = known[parameter.name]
    return found


def test_the_organisation_is_the_first_argument_of_what_touches_patients():
    for name, method in METHODS.items():
        assert list(inspect.signature(method).parameters)[:2] == ["self", "org_id"], name
    assert {"get_patient", "read_signal", "read_adapter", "get_job", "get_stream"} <= set(METHODS)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A store with two organisations and nothing else."""
    with opened(f"sqlite:///{tmp_path_factory.mktemp('bare')}/metaecg.db") as store:
        yield store


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request, tmp_path_factory):
    """A store with two organisations for this module: once in SQLite, once in PostgreSQL."""
    url = f"sqlite:///{tmp_path_factory.mktemp('shared')}/metaecg.db"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql_server")
        server.psql("CREATE DATABASE test_isolation;")
        url = server.get_uri("test_isolation")
    with opened(url) as store:
        yield store


@contextmanager
def opened(url: str):
    store = Store(url)
    store.migrate()
    assert [store.create_org(name).org_id for name in ("mine", "other")] == [MINE, OTHER]
    yield store
    store.close()


@pytest.mark.parametrize("name", sorted(set(METHODS) - OWN))
def test_what_another_organisation_has_looks_like_what_nobody_has(shared, bare, name):
    ids = fill(shared, MINE, f"s-{name}")
    if name == "revoke_token":
        ids["token_id"] = shared.create_token(MINE, "token")[0].token_id
    before, found = dump(shared), []
    for store in (shared, bare):
        with pytest.raises(NotFoundError) as error:
            METHODS[name](store, OTHER, **arguments_of(name, ids))
        found.append((str(error.value), error.value.kind, error.value.name))
    assert found[0] == found[1]
    assert dump(shared) == before
    # The call itself is one that its owner may make: the answer was about who asked.
    METHODS[name](shared, MINE, **arguments_of(name, ids))


def test_an_own_patient_does_not_open_another_ones_recordings_jobs_or_detectors(store):
    org_id = store.create_org("mine").org_id
    ids = fill(store, org_id, "s-1")
    store.create_patient(org_id, "s-2")
    for name in METHODS:
        arguments = arguments_of(name, {**ids, "token_id": 1})
        wants = {"recording_id", "stream_id", "version"} & set(arguments)
        if "subject_id" not in arguments or not wants:
            continue
        with pytest.raises(NotFoundError):
            METHODS[name](store, org_id, **{**arguments, "subject_id": "s-2"})


def test_two_organisations_may_use_the_same_name_for_their_patients(store):
    mine, other = store.create_org("mine").org_id, store.create_org("other").org_id
    fill(store, mine, "s-1")
    before = dump(store)
    assert store.list_patients(other) == []
    assert store.list_tokens(other) == []
    assert store.create_patient(other, "s-1", "another").note == "another"
    assert store.get_patient(mine, "s-1").note == NOTE
    assert store.list_recordings(other, "s-1") == []
    store.delete_patient(other, "s-1")
    assert dump(store) == before


def test_a_deleted_patient_leaves_no_row_in_any_table(store):
    mine, other = store.create_org("mine").org_id, store.create_org("other").org_id
    fill(store, mine, "s-1"), fill(store, other, "s-2")
    store.create_token(mine, "token")
    before = dump(store)
    fill(store, mine, "s-2")
    with_it = dump(store)
    not_of_patients = {"organisations", "tokens"}
    for name in set(tables.metadata.tables) - not_of_patients:
        assert len(with_it[name]) > len(before[name]), name
    store.delete_patient(mine, "s-2")
    assert dump(store) == before


def test_a_deleted_recording_takes_signal_beats_and_labels_along_but_no_detector(store):
    org_id = store.create_org("mine").org_id
    ids = fill(store, org_id, "s-1")
    store.delete_recording(org_id, "s-1", ids["recording_id"])
    left = {name for name, rows in dump(store).items() if rows}
    assert left == {"organisations", "patients", "detectors", "jobs", "streams"}


def test_nothing_of_a_deleted_patient_can_be_read_from_the_sqlite_file(sqlite_url):
    store = Store(sqlite_url)
    store.migrate()
    org_id = store.create_org("mine").org_id
    fill(store, org_id, "s-secret-name")
    path = Path(store.engine.url.database)
    assert b"s-secret-name" in path.read_bytes() + Path(f"{path}-wal").read_bytes()
    store.delete_patient(org_id, "s-secret-name")
    store.create_patient(org_id, "s-1")
    kept = path.read_bytes() + Path(f"{path}-wal").read_bytes()
    store.close()
    assert b"s-1" in kept
    for trace in ("s-secret-name", NOTE, "second adapter", BEATS):
        assert trace.encode() not in kept, trace
