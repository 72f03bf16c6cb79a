"""Adapters come out of the store once, stay within a bound, and never outlive what they belong to."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serve_cases import make_base, personal_of, windows_like

from metaecg.errors import CheckpointError
from metaecg.serve.adapter_file import adapter_bytes
from metaecg.serve.detectors import DetectorCache
from metaecg.serve.store import Store
from metaecg.serve.store_errors import NotFoundError


@pytest.fixture(scope="module")
def base():
    return make_base(width=8)


@pytest.fixture(scope="module")
def files(base):
    return [adapter_bytes(personal_of(base, seed=seed)) for seed in range(4)]


class CountingStore(Store):
    """A store that counts what is read from it, and can be held up while it reads."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.n_reads, self.n_versions = 0, 0
        self.may_read = threading.Event()
        self.may_read.set()
        self.while_reading = lambda: None

    def read_adapter(self, *arguments):
        self.n_reads += 1
        data = super().read_adapter(*arguments)
        self.while_reading()
        assert self.may_read.wait(30)
        return data

    def active_detectors(self, *arguments):
        self.n_versions += 1
        return super().active_detectors(*arguments)


@pytest.fixture
def store(tmp_path):
    opened = CountingStore(f"sqlite:///{tmp_path}/metaecg.db")
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def org_id(store):
    return store.create_org("clinic").org_id


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def put(store, org_id, subject_id, *files, activate=True):
    try:
        store.get_patient(org_id, subject_id)
    except NotFoundError:
        store.create_patient(org_id, subject_id)
    for data in files:
        store.add_detector(
            org_id, subject_id, adapter=data, facts={}, base_fingerprint="x", activate=activate
        )


def cache_of(base, store, clock, max_bytes=10**7):
    return DetectorCache(base, store, max_bytes=max_bytes, clock=clock)


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


def test_the_active_version_is_loaded_once(base, store, org_id, files, clock):
    put(store, org_id, "anna", *files[:2])
    cache = cache_of(base, store, clock)
    first = cache.get(org_id, "anna")
    assert (first.version, first.digest) == (2, digest_of(files[1]))
    assert cache.get(org_id, "anna") is first
    assert (store.n_reads, store.n_versions) == (1, 1)
    assert (cache.n_adapters, cache.n_hits, cache.n_misses) == (1, 1, 1)
    assert cache.n_bytes == first.n_bytes >= len(files[1])


def test_a_version_can_be_asked_for_by_its_number(base, store, org_id, files, clock):
    put(store, org_id, "anna", *files[:2])
    cache = cache_of(base, store, clock)
    assert cache.get(org_id, "anna", 1).digest == digest_of(files[0])
    assert cache.get(org_id, "anna", 0) is None
    with pytest.raises(NotFoundError, match="detector version 3"):
        cache.get(org_id, "anna", 3)


def test_a_patient_without_a_detector_has_the_base(base, store, org_id, clock):
    put(store, org_id, "anna")
    assert cache_of(base, store, clock).get(org_id, "anna") is None


def test_another_organisation_finds_nobody(base, store, org_id, files, clock):
    put(store, org_id, "anna", files[0])
    other, cache = store.create_org("other").org_id, cache_of(base, store, clock)
    cache.get(org_id, "anna")
    for version in (None, 0, 1):
        with pytest.raises(NotFoundError, match="patient 'anna'"):
            cache.get(other, "anna", version)


def test_a_change_of_another_process_is_seen_within_half_a_second(
    base, store, org_id, files, clock
):
    put(store, org_id, "anna", *files[:2])
    cache = cache_of(base, store, clock)
    assert cache.get(org_id, "anna").version == 2
    store.activate(org_id, "anna", 1)
    clock.now_s += 0.51
    assert cache.get(org_id, "anna").version == 1


def test_a_change_of_this_process_is_seen_at_once_if_it_is_told(base, store, org_id, files, clock):
    put(store, org_id, "anna", *files[:2])
    cache = cache_of(base, store, clock)
    cache.get(org_id, "anna")
    store.activate(org_id, "anna", 0)
    cache.forget(org_id, "anna")
    assert cache.get(org_id, "anna") is None
    assert cache.n_adapters == 0


def test_a_patient_made_anew_never_gets_the_old_adapter(base, store, org_id, files, clock):
    put(store, org_id, "anna", files[0])
    cache = cache_of(base, store, clock)
    cache.get(org_id, "anna")
    store.delete_patient(org_id, "anna")  # by another process: nobody tells the cache
    put(store, org_id, "anna", files[1])
    clock.now_s += 0.51
    assert cache.get(org_id, "anna").digest == digest_of(files[1])


def test_what_was_read_before_a_change_is_not_kept_after_it(base, store, org_id, files, clock):
    put(store, org_id, "anna", files[0])
    cache = cache_of(base, store, clock)

    def replace():
        store.while_reading = lambda: None
        store.delete_patient(org_id, "anna")
        cache.forget(org_id, "anna")

    store.while_reading = replace
    cache.get(org_id, "anna")
    assert cache.n_adapters == 0


def test_the_last_used_stay_within_the_bound(base, store, org_id, files, clock):
    for name, data in zip("abcd", files, strict=True):
        put(store, org_id, name, data)
    cache = cache_of(base, store, clock)
    size = cache.get(org_id, "a").n_bytes
    cache = cache_of(base, store, clock, max_bytes=2 * size + size // 2)
    for name in "abacd":
        cache.get(org_id, name)
        assert cache.n_bytes <= 2 * size + size // 2
    assert cache.n_adapters == 2
    store.n_reads = 0
    cache.get(org_id, "c")
    cache.get(org_id, "d")
    assert store.n_reads == 0


def test_an_adapter_larger_than_the_bound_is_given_and_not_kept(base, store, org_id, files, clock):
    put(store, org_id, "anna", files[0])
    cache = cache_of(base, store, clock, max_bytes=100)
    assert cache.get(org_id, "anna").version == 1
    assert (cache.n_adapters, cache.n_bytes) == (0, 0)


def test_many_threads_at_once_read_it_once(base, store, org_id, files, clock):
    put(store, org_id, "anna", files[0])
    cache = cache_of(base, store, clock)
    store.may_read.clear()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(cache.get, org_id, "anna") for _ in range(8)]
        store.may_read.set()
        found = {id(future.result(30)) for future in waiting}
    assert len(found) == 1 and store.n_reads == 1


def test_an_error_reaches_all_who_wait_and_the_next_one_tries_again(
    base, store, org_id, files, clock
):
    other = make_base(width=8, seed=1)
    put(store, org_id, "anna", adapter_bytes(personal_of(other)))
    cache = cache_of(base, store, clock)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=other.fingerprint):
            cache.get(org_id, "anna")
    assert store.n_reads == 2


def test_what_is_in_memory_is_found_without_the_store(base, store, org_id, files, clock):
    put(store, org_id, "anna", files[0])
    cache = cache_of(base, store, clock)
    assert cache.peek(org_id, "anna", 1, digest_of(files[0])) is None
    loaded = cache.load(org_id, "anna", 1, digest_of(files[0]))
    store.close()
    assert cache.peek(org_id, "anna", 1, digest_of(files[0])) is loaded
    assert cache.load(org_id, "anna", 1, digest_of(files[0])) is loaded
    assert cache.load(org_id, "anna", 0, "") is None


def test_the_adapter_judges_as_the_detector_that_was_stored(base, store, org_id, clock):
    personal = personal_of(base, seed=5)
    put(store, org_id, "anna", adapter_bytes(personal))
    cache, windows = cache_of(base, store, clock), windows_like(base, 6)
    model = cache.mixed.model_of(cache.get(org_id, "anna"))
    np.testing.assert_allclose(model.logits(windows), personal.logits(windows), atol=1e-5)
