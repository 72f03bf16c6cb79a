"""A run has its output folder to itself, and replaces nothing that no run has left."""

import json
import subprocess
import sys

import pytest

from metaecg.errors import ConfigError
from metaecg.experiments import h_tuning, va_fewshot, veb_fewshot
from metaecg.experiments.out_folder import run_folder

RECIPES = [(va_fewshot, "model"), (veb_fewshot, "model"), (h_tuning, "base")]
IDS = [recipe.__name__.rpartition(".")[2] for recipe, _ in RECIPES]

HOLD = """
import sys
from pathlib import Path
from metaecg.experiments.out_folder import run_folder
with run_folder(Path(sys.argv[1]), base="model"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def another_run(tmp_path):
    """Another process that writes to ``tmp_path / "out"``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def attempt(recipe, tmp_path, *arguments) -> int:
    """Run a recipe on a folder without recordings: what is refused before it opens them shows."""
    slug = "ptbxl_subset" if recipe is h_tuning else "mitdb"
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        write(tmp_path / "data" / slug / name, "")
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    return recipe.main([*places, f"databases={slug}", "tracking.enabled=false", *arguments])


@pytest.mark.parametrize(("recipe", "base"), RECIPES, ids=IDS)
def test_two_runs_do_not_write_to_one_folder(tmp_path, another_run, capsys, recipe, base):
    assert attempt(recipe, tmp_path) == 2
    text = capsys.readouterr().err
    assert "another run writes to it" in text and str(tmp_path / "out") in text


def test_a_run_that_was_killed_keeps_nobody_out(tmp_path, another_run):
    another_run.kill()
    another_run.wait()
    with run_folder(tmp_path / "out", base="model"):
        pass


def test_a_folder_is_free_again_and_holds_what_was_written_alone(tmp_path):
    for n in range(2):
        with run_folder(tmp_path / "out", base="model"):
            (tmp_path / "out" / f"{n}.json").write_text("{}")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.json", "1.json"]


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no"), run_folder(tmp_path / "out", base="model"):
        raise ValueError("no")
    assert not (tmp_path / "out").exists()


def write(path, text: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "years of work"},
        {"base.json": '{"format": "another program\'s"}', "weights.safetensors": ""},
        {"base.json": '{"format": "metaecg-base"}', "weights.safetensors": "", "notes.txt": ""},
        {"weights.safetensors": ""},
    ],
    ids=["other-files", "other-format", "a-base-and-notes", "no-description"],
)
@pytest.mark.parametrize(("recipe", "base"), RECIPES, ids=IDS)
def test_a_folder_where_the_base_belongs_is_not_removed(tmp_path, capsys, recipe, base, files):
    for name, text in files.items():
        write(tmp_path / "out" / base / name, text)
    assert attempt(recipe, tmp_path) == 2
    text = capsys.readouterr().err
    assert str(tmp_path / "out" / base) in text and "another folder with --out" in text
    assert {p.name: p.read_text() for p in (tmp_path / "out" / base).iterdir()} == files


@pytest.mark.parametrize("name", ["slurm.log", ".git/config", "fold-1--seed-0--random/notes.txt"])
@pytest.mark.parametrize(("recipe", "base"), RECIPES, ids=IDS)
def test_jobs_of_another_program_are_not_removed(tmp_path, capsys, recipe, base, name):
    write(tmp_path / "out" / "jobs" / name)
    assert attempt(recipe, tmp_path) == 2
    assert str(tmp_path / "out" / "jobs") in capsys.readouterr().err
    assert (tmp_path / "out" / "jobs" / name).read_text() == "mine"


def test_what_runs_leave_is_taken_up_also_where_it_is_damaged(tmp_path):
    base, jobs = tmp_path / "model", tmp_path / "jobs"
    write(base / "base.json", json.dumps({"format": "metaecg-base"}))
    write(base / "weights.safetensors", "damaged")
    write(jobs / "fold-1--seed-0--random" / "job.json", "damaged")
    write(jobs / ".fold-1--seed-0--maml-x1y2" / "predictions.npz")
    write(jobs / "fold-1--seed-0--maml.safetensors")
    (jobs / ".fold-2--seed-0--maml.12ab.new").mkdir()
    with run_folder(tmp_path, base="model"):
        pass


def test_both_folders_are_named_at_once(tmp_path):
    write(tmp_path / "model" / "thesis.txt")
    write(tmp_path / "jobs" / "slurm.log")
    with pytest.raises(ConfigError) as refused, run_folder(tmp_path, base="model"):
        pass
    assert len(refused.value.problems) == 2
