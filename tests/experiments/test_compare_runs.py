"""Reading runs: what is unfinished, damaged or no run is said in one message each."""

import json
from pathlib import Path

import pytest
from made_runs import change, make_run, shifted, write

from metaecg.errors import DataError
from metaecg.experiments import compare as command
from metaecg.experiments.compare import compare
from metaecg.experiments.compare_runs import read_path

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run")


def test_a_run_is_read_with_all_that_lies_in_its_folder(run):
    found = read_path(run)
    assert (found.name, found.folder, found.is_demo) == ("run", run, False)
    assert found.parameters["meta.inner_lr"] == 0.05
    assert list(found.facts["splits"]) == ["fold-0", "fold-1"]
    assert len(found.predictions) == 8
    assert read_path(run / "results.json").results == found.results


def test_a_results_file_alone_is_a_run_without_the_rest():
    found = read_path(ROOT / "experiments" / "results" / "va_fewshot.json")
    assert (found.name, found.parameters, found.predictions) == ("va_fewshot", None, None)
    assert found.facts == {} and len(found.results["methods"]) == 14


def test_a_run_of_h_tuning_is_refused_in_words():
    with pytest.raises(DataError, match="is a run of h_tuning.*results.md"):
        read_path(ROOT / "experiments" / "results" / "h_tuning.json")


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_path(path)
    return str(caught.value)


def test_a_run_that_is_not_finished_is_told_from_a_folder_that_is_no_run(run, tmp_path):
    (run / "results.json").unlink()
    assert "isn't finished" in refusal(run)
    (tmp_path / "empty").mkdir()
    assert "is no run" in refusal(tmp_path / "empty")
    write(tmp_path / "empty" / "study.json", {})
    assert "is a study of tune, no run" in refusal(tmp_path / "empty")


def cut(run: Path) -> None:
    path = run / "results.json"
    path.write_text(path.read_text()[:500])


def first_subject(run: Path, **changes) -> None:
    content = json.loads((run / "results.json").read_text())
    subjects = content["methods"]["pretrain+full"]["subjects"]
    subject = next(iter(subjects))
    subjects[subject] = {**subjects[subject], **changes}
    if None in changes:
        del subjects[subject]["auc"]
    write(run / "results.json", content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "can't be read"),
        (lambda run: (run / "results.json").write_bytes(b"\xff\xfe\x00"), "can't be read"),
        (lambda run: (run / "results.json").write_text("[1]"), "holds a list"),
        (lambda run: change(run, schema=2), "schema 2; this version reads schema 1"),
        (lambda run: change(run, methods={}), "damaged: it has no methods"),
        (lambda run: change(run, methods=[1]), "its methods are no object"),
        (lambda run: change(run, methods={"head": {}}), "method 'head' has no subjects"),
        (lambda run: change(run, n_shots=None, seeds=[]), "it has no n_shots and no seeds"),
        (lambda run: first_subject(run, auc="high"), "auc is 'high', a finite number"),
        (lambda run: first_subject(run, f1=float("nan")), "f1 is nan"),
        (lambda run: first_subject(run, n_va=None), "n_va is None"),
        (lambda run: first_subject(run, **{"auc": True}), "auc is True"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml .* is damaged"),
        (lambda run: (run / "run.json").write_text("{"), "the run.json of .* can't be read"),
        (lambda run: (run / "predictions.npz").write_bytes(b"PK"), "predictions.npz .* can't be"),
        (lambda run: (run / "predictions.npz").write_bytes(b""), "predictions.npz .* can't be"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(run, damage, words):
    damage(run)
    with pytest.raises(DataError, match=words):
        read_path(run)


def test_methods_that_were_judged_on_other_subjects_are_a_damage(run):
    content = json.loads((run / "results.json").read_text())
    other = json.loads(json.dumps(content["methods"]["pretrain+full"]))
    other["subjects"].popitem()
    change(run, methods={**content["methods"], "head": other})
    assert "were judged on other subjects or test windows" in refusal(run)


def test_everything_that_keeps_runs_from_being_read_is_said_at_once(run, tmp_path, capsys):
    unfinished = make_run(tmp_path / "unfinished", shifted(0.01))
    (unfinished / "results.json").unlink()
    damaged = make_run(tmp_path / "damaged", shifted(0.02))
    cut(damaged)
    names = [str(path) for path in (run, unfinished, damaged, tmp_path / "nowhere")]
    assert command.main(names) == 3
    text = capsys.readouterr().err
    assert "3 things keep these runs from being read" in text
    for words in ("isn't finished", "can't be read", "doesn't exist. Expected an output folder"):
        assert words in text
    assert "Traceback" not in text


def test_nothing_is_written_into_a_run(run, tmp_path):
    other = make_run(tmp_path / "other", shifted(0.01))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    compare([str(run), str(other)])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
