"""Preparing databases: the key is the content, the second opening reads no signal."""

import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from metaecg.data import cache, datasets
from metaecg.data.datasets import find_records, prepare
from metaecg.data.preprocessing import Preprocessing
from metaecg.errors import CacheError, DataError

MARKS = ((0, "+", "(N"), (2500, "+", "(VT"), (4000, "+", "(N"))


@pytest.fixture
def root(write_record):
    """Three recordings of 20 s in ``own`` and one in ``mine``."""
    rng = np.random.default_rng(0)
    for folder, name in (("own", "a"), ("own", "b"), ("own", "c"), ("mine", "a")):
        digital = rng.integers(-400, 400, 5000)
        path = write_record(digital, name=name, folder=folder, marks=MARKS)
    return path.parent.parent


@pytest.fixture
def no_reading(monkeypatch):
    """Let any reading of a signal fail the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a signal was read")

    return lambda: monkeypatch.setattr(datasets, "read_record", refuse)


def entries(cache_root):
    return sorted(p.name for p in (cache_root / "windows").iterdir())


def same(a, b):
    columns = ("windows", "labels", "is_mixed", "subject_ids", "record_ids", "start_s", "time_s")
    for name in columns:
        x, y = getattr(a.windows, name), getattr(b.windows, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, name)
    assert a.records == b.records
    assert a.manifest_sha256 == b.manifest_sha256
    return True


def test_every_window_of_every_record_is_there_in_order(root):
    data = prepare(root, ["own", "mine"])
    assert data.subject_ids == ["own/a", "own/b", "own/c", "mine/a"]
    assert data.databases == ["own", "mine"]
    assert data.windows.windows.shape == (40, 1, 400)
    assert data.of_subject("own/b").start_s.tolist() == list(range(0, 20, 2))
    assert data.of_subject("own/b").labels.tolist() == [0] * 5 + [1] * 3 + [0] * 2
    assert data.episodes("own/b") == [("own/b", 10.0, 16.0)]


def test_from_the_cache_comes_the_same_as_without_one(root, tmp_path):
    plain = prepare(root, ["own"])
    first = prepare(root, ["own"], cache_root=tmp_path / "cache")
    again = prepare(root, ["own"], cache_root=tmp_path / "cache")
    assert same(plain, first) and same(plain, again)
    assert isinstance(again.windows.windows, np.memmap)


def test_without_a_cache_nothing_is_written(root, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    prepare(root, ["own"], cache_root=None)
    assert sorted(tmp_path.rglob("*")) == before


def test_opening_from_the_cache_reads_no_signal(root, tmp_path, no_reading, monkeypatch):
    prepare(root, ["own"], cache_root=tmp_path / "cache")
    no_reading()
    monkeypatch.setattr(cache, "file_sha256", lambda file: pytest.fail(f"{file} was read"))
    assert len(prepare(root, ["own"], cache_root=tmp_path / "cache").windows) == 30


def test_a_copy_elsewhere_has_the_same_key(root, tmp_path, no_reading):
    first = prepare(root, ["own"], cache_root=tmp_path / "cache")
    shutil.copytree(root / "own", tmp_path / "elsewhere" / "own")
    no_reading()
    copied = prepare(tmp_path / "elsewhere", ["own"], cache_root=tmp_path / "cache")
    assert same(first, copied)
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("suffix", [".hea", ".atr"])
def test_a_changed_byte_changes_the_key(root, tmp_path, suffix):
    first = prepare(root, ["own"], cache_root=tmp_path / "cache")
    file = root / "own" / f"b{suffix}"
    status = file.stat()
    content = file.read_bytes()
    changed = content + b"# x\n" if suffix == ".hea" else content.replace(b"(VT", b"(VF")
    assert changed != content
    file.write_bytes(changed)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # even with its old date
    second = prepare(root, ["own"], cache_root=tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2
    assert first.manifest_sha256 != second.manifest_sha256


def test_a_changed_signal_is_read_again(root, tmp_path, write_record):
    first = prepare(root, ["own"], cache_root=tmp_path / "cache")
    write_record(np.arange(5000) % 300, name="b", folder="own", marks=MARKS)
    second = prepare(root, ["own"], cache_root=tmp_path / "cache")
    changed = np.abs(first.windows.windows - second.windows.windows).max(axis=(1, 2)) > 0.01
    assert set(first.windows.record_ids[changed]) == {"own/b"}


@pytest.mark.parametrize(
    "settings",
    [{"fs_hz": 100.0}, {"window_s": 1.0}, {"lowcut_hz": 1.0}, {"highcut_hz": 35.0}],
)
def test_other_preprocessing_has_another_key(root, tmp_path, settings):
    prepare(root, ["own"], cache_root=tmp_path / "cache")
    prepare(root, ["own"], Preprocessing(**settings), cache_root=tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2


def test_normalisation_is_applied_later_and_shares_the_key(root, tmp_path):
    prepare(root, ["own"], cache_root=tmp_path / "cache")
    prepare(root, ["own"], Preprocessing(normalize="none"), cache_root=tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 1


def test_dense_cutting_has_another_key(root, tmp_path):
    plain = prepare(root, ["own"], cache_root=tmp_path / "cache")
    dense = prepare(root, ["own"], cache_root=tmp_path / "cache", dense_va=True)
    assert len(dense.windows) > len(plain.windows)


def test_another_version_of_the_code_has_another_key(root, tmp_path, monkeypatch):
    prepare(root, ["own"], cache_root=tmp_path / "cache")
    monkeypatch.setattr(datasets, "PREPARATION_VERSION", datasets.PREPARATION_VERSION + 1)
    prepare(root, ["own"], cache_root=tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2


def damage_nothing_left(folder):
    for file in folder.iterdir():
        file.unlink()


def damage_cut(name, n_bytes):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: max(0, len(content) + n_bytes)])

    return damage


def damage_write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


DAMAGES = {
    "empty folder": damage_nothing_left,
    "no table": lambda folder: (folder / "table.npz").unlink(),
    "windows cut": damage_cut("windows.f32", -5000),
    "windows empty": damage_cut("windows.f32", -(10**9)),
    "table cut": damage_cut("table.npz", -300),
    "table empty": damage_write("table.npz", b""),
    "table garbage": damage_write("table.npz", b"PK\x03\x04" + bytes(300)),
    "facts cut": damage_cut("dataset.json", -30),
    "facts of another shape": damage_write("dataset.json", b"[]"),
    "facts without records": damage_write(
        "dataset.json", b'{"records": [], "classes": ["other", "va"], "fs_hz": 200, "window_s": 2}'
    ),
    "windows of another number": damage_write("windows.f32", bytes(4 * 29 * 400)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_built_anew(root, tmp_path, damage):
    first = prepare(root, ["own"])
    prepare(root, ["own"], cache_root=tmp_path / "cache")
    (key,) = entries(tmp_path / "cache")
    damage(tmp_path / "cache" / "windows" / key)
    assert same(first, prepare(root, ["own"], cache_root=tmp_path / "cache"))
    again = prepare(root, ["own"], cache_root=tmp_path / "cache")
    assert same(first, again) and isinstance(again.windows.windows, np.memmap)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 3}', b"\xff\xfe"])
def test_a_damaged_index_of_checksums_is_built_anew(root, tmp_path, content):
    first = prepare(root, ["own"], cache_root=tmp_path / "cache")
    (tmp_path / "cache" / "checksums.json").write_bytes(content)
    assert same(first, prepare(root, ["own"], cache_root=tmp_path / "cache"))


def test_progress_is_told_in_order_and_not_when_the_cache_answers(root, tmp_path):
    told = []
    options = {"cache_root": tmp_path / "cache", "on_record": lambda *n: told.append(n)}
    prepare(root, ["own"], **options)
    assert told == [(1, 3), (2, 3), (3, 3)]
    prepare(root, ["own"], **options)
    assert len(told) == 3


def test_the_number_of_threads_changes_nothing(root):
    assert same(prepare(root, ["own"], n_workers=1), prepare(root, ["own"], n_workers=4))


def test_an_unusable_recording_stops_the_rest_and_leaves_no_entry(root, tmp_path, monkeypatch):
    (root / "own" / "a.dat").write_bytes(b"")
    read, true_read = [], datasets.read_record

    def slow_read(path, **_):
        read.append(path.name)
        if path.name != "a":
            time.sleep(0.1)
        return true_read(path)

    monkeypatch.setattr(datasets, "read_record", slow_read)
    with pytest.raises(DataError, match="a.dat has 0 bytes"):
        prepare(root, ["own", "mine"], cache_root=tmp_path / "cache", n_workers=1)
    assert len(read) < 4
    assert not list((tmp_path / "cache" / "windows").iterdir())


def test_an_interruption_stops_the_rest(root, monkeypatch):
    read, true_read = [], datasets.read_record

    def slow_read(path, **_):
        read.append(path.name)
        if path.name != "a":
            time.sleep(0.1)
        return true_read(path)

    def interrupt(n_done, n_total):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "read_record", slow_read)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, ["own", "mine"], n_workers=1, on_record=interrupt)
    assert len(read) < 4


def test_a_cache_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(CacheError, match=f"{tmp_path}/cache can't be written: .*--cache DIR"):
        prepare(root, ["own"], cache_root=tmp_path / "cache")


def test_a_database_named_twice_counts_once(root):
    assert len(prepare(root, ["own", "own"]).windows) == 30


def test_only_the_named_subjects_are_prepared_and_the_others_stay_closed(root, tmp_path):
    whole = prepare(root, ["own", "mine"])
    for suffix in (".dat", ".atr"):
        (root / "own" / f"b{suffix}").unlink()
    (root / "own" / "b.hea").write_text("no header")
    some = prepare(root, ["own", "mine"], only=["own/a", "mine/a"], cache_root=tmp_path / "cache")
    assert some.subject_ids == ["own/a", "mine/a"]
    for subject in some.subject_ids:
        mine, theirs = some.of_subject(subject), whole.of_subject(subject)
        np.testing.assert_array_equal(mine.windows, theirs.windows)
    assert len(some.windows) == 20


def test_both_recordings_of_one_person_are_left_out_together(real_data):
    some = prepare(real_data, ["mitdb"], only=["mitdb/100", "mitdb/201"])
    assert [r.record_id for r in some.records] == ["mitdb/100", "mitdb/201", "mitdb/202"]


@pytest.mark.parametrize(("only", "named"), [(["own/a", "own/x"], "'own/x'"), ([], "nobody")])
def test_naming_somebody_without_a_recording_is_refused(root, only, named):
    with pytest.raises(DataError, match=f"only names {named}, who has no recording"):
        prepare(root, ["own"], only=only)


def test_a_misspelt_database_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match="'mitdbb'.*Did you mean 'mitdb'"):
        find_records(tmp_path, ["mitdbb"])


def test_a_database_that_is_not_there_is_named_with_the_way_to_fetch_it(tmp_path):
    with pytest.raises(DataError, match="mitdb does not exist.*download mitdb.*--data"):
        find_records(tmp_path, ["mitdb"])


def test_a_folder_without_headers_is_refused(tmp_path):
    (tmp_path / "own").mkdir()
    with pytest.raises(DataError, match="own holds no WFDB header"):
        find_records(tmp_path, ["own"])


def test_two_recordings_of_one_person_lie_end_to_end(root, monkeypatch):
    true_read = datasets.read_record
    monkeypatch.setattr(
        datasets, "read_record", lambda path, **_: replace(true_read(path), subject_id="own/a")
    )
    data = prepare(root, ["own"])
    windows, one = data.of_subject("own/a"), data.records[0]
    n_first = int((windows.record_ids == one.record_id).sum())
    assert windows.start_s[n_first] == 0.0
    assert windows.time_s[n_first] == one.duration_s
    assert (np.diff(windows.time_s) >= 2.0 - 1e-9).all()


@pytest.mark.real
def test_201_is_followed_by_202_in_the_time_of_one_person(real_data, tmp_path):
    (tmp_path / "mitdb").mkdir()
    for name in ("201", "202"):
        for suffix in (".hea", ".dat", ".atr"):
            os.symlink(
                real_data / "mitdb" / f"{name}{suffix}", tmp_path / "mitdb" / f"{name}{suffix}"
            )
    data = prepare(tmp_path, ["mitdb"])
    assert data.subject_ids == ["mitdb/201"]
    windows = data.of_subject("mitdb/201")
    assert np.diff(windows.time_s).min() > 2 - 1e-9
    offset = (windows.time_s - windows.start_s)[windows.record_ids == "mitdb/202"]
    np.testing.assert_allclose(offset, 650_000 / 360)
