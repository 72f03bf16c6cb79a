"""The folder that an upload is unpacked in goes with the server, also when the server is killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from app_cases import running_server

from metaecg.serve.upload_folder import private_folder, remove_abandoned

UPLOADS = """
import sys
import numpy as np
from metaecg.serve import upload_wfdb
from metaecg.serve.uploads import parse_upload
sys.path.insert(0, sys.argv[1])
from upload_files import as_wfdb, made_recording

def stopped_here(path, *_):
    print(path.parent, flush=True)
    sys.stdin.read()

upload_wfdb.read_signal = stopped_here
parse_upload("wfdb", as_wfdb(made_recording(np.random.default_rng(0), has_gaps=False)).files)
"""
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, here and in processes that are started."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def other(temporary):
    """Another process in the middle of an upload, and the samples that it has unpacked."""
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADS, str(BENCHMARKS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, Path(process.stdout.readline().strip()) / "rec0.dat"
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not(other):
    process, samples = other
    with private_folder() as ours:
        remove_abandoned()
        assert samples.exists()
        process.kill()
        process.wait()
        assert samples.exists()
        remove_abandoned()
        assert not samples.parent.exists()
        assert ours.exists()
    assert not ours.exists()


def test_a_server_removes_at_its_start_what_one_before_it_left(other, tmp_path):
    process, samples = other
    process.kill()
    process.wait()
    with running_server(tmp_path):
        assert not samples.parent.exists()


def test_folders_that_are_no_upload_s_stay(temporary):
    (temporary / "metaecg-upload-without-a-lock").mkdir()
    (temporary / "metaecg-upload-a-file").write_text("")
    (temporary / "another").mkdir()
    (temporary / "another" / "lock").write_text("")
    before = sorted(temporary.rglob("*"))
    remove_abandoned()
    assert sorted(temporary.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX ones")
def test_the_folder_is_for_its_owner_alone(temporary):
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        assert folder.parent == temporary
