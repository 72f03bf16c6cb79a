"""Entries appear whole or not at all: real processes, killed builders, full disks."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from metaecg.data import cache
from metaecg.data.cache import checksums, load, store
from metaecg.errors import CacheError, DataError

PREPARE = """
import sys
from metaecg.data.datasets import prepare
data = prepare(sys.argv[1], ["own"], cache_root=sys.argv[2])
print(len(data.windows), float(data.windows.windows.sum()))
"""

STALL = """
import sys, time
from pathlib import Path
from metaecg.data.cache import store
def write(folder):
    (folder / "half").write_text("half of it")
    print("writing", flush=True)
    time.sleep(60)
store(Path(sys.argv[1]), "k" * 64, write=write)
"""

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
from metaecg.data.datasets import prepare
from metaecg.errors import CacheError
try:
    prepare(sys.argv[1], ["own"], cache_root=sys.argv[2])
except CacheError as error:
    print(error)
"""


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        **options,
    )


@pytest.fixture
def root(write_record):
    for name in ("a", "b"):
        path = write_record(np.random.default_rng(0).integers(-400, 400, 20_000), name=name)
    return path.parent.parent


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def put(text):
    return lambda folder: (folder / "entry").write_text(text)


def get(folder):
    return (folder / "entry").read_text()


def test_what_is_stored_is_loaded(tmp_path):
    assert load(tmp_path, "key", read=get) is None
    store(tmp_path, "key", write=put("hello"))
    assert load(tmp_path, "key", read=get) == "hello"
    assert load(tmp_path, "other", read=get) is None
    assert names(tmp_path / "windows") == ["key"]


def test_the_first_of_two_builders_stays(tmp_path):
    store(tmp_path, "key", write=put("first"))
    store(tmp_path, "key", write=put("second"))
    assert load(tmp_path, "key", read=get) == "first"
    assert names(tmp_path / "windows") == ["key"]


def test_processes_that_build_the_same_at_once_all_succeed(root, tmp_path):
    builders = [python(PREPARE, root, tmp_path / "cache") for _ in range(3)]
    answers = [builder.communicate(timeout=60)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert len(set(answers)) == 1 and answers[0].startswith("80 ")
    assert len(names(tmp_path / "cache" / "windows")) == 1


def test_a_killed_builder_leaves_nothing_that_is_read_and_goes_in_time(tmp_path):
    builder = python(STALL, tmp_path)
    assert builder.stdout.readline() == "writing\n"
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=30)
    (leftover,) = names(tmp_path / "windows")
    assert leftover.startswith(".kkkk")
    assert load(tmp_path, "k" * 64, read=get) is None
    store(tmp_path, "k" * 64, write=put("whole"))
    assert load(tmp_path, "k" * 64, read=get) == "whole"
    assert leftover in names(tmp_path / "windows")  # it might belong to a builder at work
    old = time.time() - cache.LEFTOVER_AGE_S - 60
    os.utime(tmp_path / "windows" / leftover, (old, old))
    store(tmp_path, "another", write=put("whole"))
    assert names(tmp_path / "windows") == ["another", "k" * 64]


def test_an_old_entry_is_no_leftover(tmp_path):
    store(tmp_path, "key", write=put("old"))
    os.utime(tmp_path / "windows" / "key", (1, 1))
    store(tmp_path, "another", write=put("new"))
    assert load(tmp_path, "key", read=get) == "old"


def test_an_interrupted_builder_leaves_nothing(tmp_path):
    def interrupted(folder):
        (folder / "half").write_text("half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, "key", write=interrupted)
    assert names(tmp_path / "windows") == []


def test_a_full_disk_is_said_with_the_folder_and_what_to_do(tmp_path):
    def full(folder):
        (folder / "half").write_text("half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = f"the cache {tmp_path}/windows can't be written: .*No space left.*Free some space"
    with pytest.raises(CacheError, match=expected) as caught:
        store(tmp_path, "key", write=full)
    assert isinstance(caught.value, DataError) and isinstance(caught.value, OSError)
    assert names(tmp_path / "windows") == []


def test_a_disk_that_fills_up_while_publishing_leaves_nothing(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "_fsync", full)
    with pytest.raises(CacheError, match="No space left"):
        store(tmp_path, "key", write=put("hello"))
    assert names(tmp_path / "windows") == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a matter of POSIX")
def test_windows_that_the_system_refuses_to_write_are_said_and_not_published(root, tmp_path):
    builder = python(LIMITED, root, tmp_path / "cache")
    message, _ = builder.communicate(timeout=60)
    assert f"the cache {tmp_path}/cache/windows can't be written" in message
    assert "--cache DIR" in message
    assert names(tmp_path / "cache" / "windows") == []
    again = python(PREPARE, root, tmp_path / "cache")
    assert again.communicate(timeout=60)[0].startswith("80 ")


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "windows").write_text("a file where the folder should be")
    with pytest.raises(CacheError, match=f"{tmp_path}/windows can't be written"):
        store(tmp_path, "key", write=put("hello"))


def test_a_read_only_folder_is_said(tmp_path):
    (tmp_path / "windows").mkdir()
    os.chmod(tmp_path / "windows", 0o500)
    try:
        if os.access(tmp_path / "windows", os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(CacheError, match="Permission denied.*--cache DIR"):
            store(tmp_path, "key", write=put("hello"))
    finally:
        os.chmod(tmp_path / "windows", 0o700)


def test_a_folder_without_permission_is_said_whoever_runs_this(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    with pytest.raises(CacheError, match="Permission denied.*--cache DIR"):
        store(tmp_path, "key", write=put("hello"))


def test_an_entry_that_cannot_be_read_is_removed(tmp_path):
    store(tmp_path, "key", write=put("hello"))
    (tmp_path / "windows" / "key" / "entry").unlink()
    assert load(tmp_path, "key", read=get) is None
    assert names(tmp_path / "windows") == []


# Checksums


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_text("content")
    first = checksums([file], tmp_path / "cache")
    monkeypatch.setattr(cache, "file_sha256", lambda file: pytest.fail("read again"))
    assert checksums([file, file], tmp_path / "cache") == first


def test_a_changed_file_is_read_again_even_with_its_old_size_and_date(tmp_path):
    file = tmp_path / "x"
    file.write_text("content")
    status = file.stat()
    first = checksums([file], tmp_path / "cache")
    time.sleep(0.02)  # the clock of a file system is coarser than ours
    file.write_text("CONTENT")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checksums([file], tmp_path / "cache") != first


def test_without_a_root_nothing_is_remembered(tmp_path):
    file = tmp_path / "x"
    file.write_text("content")
    checksums([file], None)
    assert names(tmp_path) == ["x"]


def test_an_index_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "x"
    file.write_text("content")
    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(
        CacheError, match=f"the cache {tmp_path}/cache can't be written: .*No space"
    ):
        checksums([file], tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_the_default_folder_lies_in_the_users_cache():
    assert cache.default_cache_root().parts[-2:] == ("metaecg", "prepared")
