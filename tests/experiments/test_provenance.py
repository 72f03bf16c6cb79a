"""What a run was made of is written whole and can be read back."""

import json

import pytest

from metaecg.experiments import provenance
from metaecg.experiments.provenance import git_commit, versions, write_json


def test_a_json_file_is_written_whole_and_leaves_nothing_beside(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"n": 1})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"n": 1}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {"n": 1})

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(provenance.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "x.json", {"n": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_the_versions_of_what_decides_figures_are_known():
    found = versions()
    assert set(provenance.PACKAGES) < set(found)
    assert "not installed" not in found.values()


def test_the_commit_is_a_checksum_marked_when_files_are_changed():
    commit = git_commit()
    if commit is None:
        pytest.skip("this copy is not a git checkout")
    assert len(commit.partition("+changes")[0]) == 40
