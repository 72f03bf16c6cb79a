"""Malformed uploads: some hundreds in the suite, and that the fuzzer would notice what it looks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import upload_fuzz
from upload_files import FORMATS
from upload_fuzz_cases import MAY_PASS, MUST_BE_REFUSED

from metaecg.errors import DataError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "upload_fuzz.py"
A_SENTENCE = "the file is empty; expected a row per sample."


def test_hundreds_of_malformed_uploads_end_in_a_sentence_or_a_recording(tmp_path):
    target = tmp_path / "fuzz.json"
    command = [sys.executable, str(SCRIPT), "--n", "600", "--seed", "1", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    *rows, last = json.loads(target.read_text())
    assert last["wrong"] == 0, done.stdout
    assert done.returncode == 0
    assert last["refused"] + last["accepted"] == 600
    assert min(row["refused"] for row in rows) > 50
    assert min(row["accepted"] for row in rows) > 0


def test_a_case_is_the_same_every_time(tmp_path):
    found = [
        upload_fuzz.malformed(upload_fuzz.np.random.default_rng([0, 7]), tmp_path / "decoy.dat")
        for _ in range(2)
    ]
    assert found[0] == found[1]


def test_every_format_has_cases_of_both_kinds():
    for name in FORMATS:
        assert len(MUST_BE_REFUSED[name]) > 5
        assert MAY_PASS[name]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("x"), ("wrong", "KeyError: 'x'")),
        (RecursionError("deep"), ("wrong", "RecursionError: deep")),
        (DataError("bad"), ("wrong", "no sentence: 'bad'")),
        (DataError(A_SENTENCE), ("refused", A_SENTENCE)),
    ],
)
def test_anything_but_a_sentence_is_noticed(monkeypatch, raised, said):
    def parse(*arguments):
        raise raised

    monkeypatch.setattr(upload_fuzz, "parse_upload", parse)
    assert upload_fuzz.outcome(upload_fuzz.good_upload(rng()), True) == said


def test_a_recording_that_can_t_be_one_is_noticed(monkeypatch):
    upload = upload_fuzz.good_upload(rng())
    assert upload_fuzz.outcome(upload, False) == ("accepted", "")
    assert upload_fuzz.outcome(upload, True) == ("wrong", "accepted: can't be a recording")
    found = upload_fuzz.parse_upload(
        upload.format, upload.files, upload_fuzz.UploadFacts(**upload.facts)
    )
    found.signal_mv[:] = upload_fuzz.np.inf
    monkeypatch.setattr(upload_fuzz, "parse_upload", lambda *arguments: found)
    assert upload_fuzz.outcome(upload, False) == ("wrong", "accepted: values")


def rng():
    return upload_fuzz.np.random.default_rng(1)


def test_a_file_outside_the_private_folder_is_noticed(tmp_path):
    watch = upload_fuzz.Watch(tmp_path)
    inside = tmp_path / f"{upload_fuzz.PREFIX}x"
    inside.mkdir()
    with watch.watching():
        (inside / "rec.hea").write_text("")
    assert watch.seen == []
    with watch.watching():
        SCRIPT.read_text()
        (tmp_path / "else").mkdir()
    assert [event.split()[0] for event in watch.seen] == ["open", "os.mkdir"]
