"""Runs that were not judged alike are refused, with every difference; others may differ freely."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import (
    AUCS,
    N_OTHER,
    N_VA,
    SUBJECTS,
    change,
    facts_of,
    figures_of,
    make_run,
    predictions_of,
    shifted,
    write,
)

from metaecg.errors import DataError
from metaecg.evaluate.predictions import save_predictions
from metaecg.experiments import compare as command
from metaecg.experiments.compare import compare

N = N_VA + N_OTHER


@pytest.fixture
def a(tmp_path) -> Path:
    return make_run(tmp_path / "a")


def lines_of(*runs: Path) -> list[str]:
    """Return the differences with which a comparison is refused."""
    with pytest.raises(DataError) as caught:
        compare([str(run) for run in runs])
    return [line[4:] for line in str(caught.value).splitlines() if line.startswith("  - ")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": "as_published"}, "b against a: protocol is 'as_published', not 'deploy'."),
        ({"n_shots": 5}, "b against a: n_shots is 5, not 10."),
        ({"data": "demo data"}, "b against a: data is 'demo data', not 'recordings'."),
        ({"caveat": "seen subjects included: not held out"}, "b against a: caveat is 'seen"),
        ({"databases": ["vfdb", "cudb"]}, "b against a: databases are vfdb, cudb, not vfdb."),
        ({"data_manifest_sha256": "1" * 64}, "b against a: data_manifest_sha256 is 111111111111,"),
    ],
)
def test_another_protocol_or_other_data_are_refused(tmp_path, a, changes, words):
    (line,) = lines_of(a, make_run(tmp_path / "b", shifted(0.01), **changes))
    assert line.startswith(words)


def test_all_differences_are_said_at_once_and_the_exit_code_is_that_of_data(tmp_path, a, capsys):
    b = make_run(tmp_path / "b", shifted(0.01), n_shots=5, protocol="as_published")
    c = make_run(tmp_path / "c", shifted(0.02), databases=["cudb"])
    d = make_run(tmp_path / "d", shifted(0.03))
    assert [line.split(":")[0] for line in lines_of(a, b, c)] == ["b against a"] * 2 + ["c against a"]  # fmt: skip
    assert command.main([str(run) for run in (a, b, c, d)]) == 3
    text = capsys.readouterr().err
    assert "figures count against each other only under one protocol" in text
    assert text.strip().endswith(f"These can be compared: {a} {d}")
    assert not (tmp_path / "compare.html").exists()


def test_there_is_no_switch_that_lets_different_protocols_through(tmp_path, a, capsys):
    with pytest.raises(SystemExit):
        command.main([str(a), "--allow-different"])
    capsys.readouterr()


def test_files_of_other_content_are_named(tmp_path, a):
    facts = facts_of() | {"data_sha256": {"vfdb/418.dat": "aa", "vfdb/419.dat": "xx", "new": "y"}}
    b = make_run(tmp_path / "b", shifted(0.01), facts=facts, data_manifest_sha256="1" * 64)
    (line,) = lines_of(a, b)
    assert "1 files have other content (vfdb/419.dat), 1 files are in b alone (new)" in line


def test_other_held_out_subjects_are_named(tmp_path, a):
    aucs = {("cudb/cu01" if s == SUBJECTS[0] else s): value for s, value in AUCS.items()}
    (line,) = lines_of(a, make_run(tmp_path / "b", aucs))
    assert line == (
        "b against a: evaluated subjects differ: 1 in b alone (cudb/cu01), "
        f"1 in a alone ({SUBJECTS[0]})."
    )


def test_folds_that_hold_out_others_together_are_refused_whatever_they_are_called(tmp_path, a):
    """Who is held out together decides who was trained on; a name doesn't."""
    facts = facts_of()
    renamed = {"one": facts["splits"]["fold-0"], "two": facts["splits"]["fold-1"]}
    same = make_run(
        tmp_path / "b", shifted(0.01), facts={**facts, "splits": renamed}, splits=["one", "two"]
    )
    compare([str(a), str(same)])
    swapped = json.loads(json.dumps(facts))
    x, y = (swapped["splits"][name]["test"] for name in ("fold-0", "fold-1"))
    x[0], y[0] = y[0], x[0]
    (line,) = lines_of(a, make_run(tmp_path / "c", shifted(0.01), facts=swapped))
    assert line == (
        "c against a: the folds differ: 8 subjects are held out with others (vfdb/418, vfdb/419, "
        "vfdb/420 and 5 more)."
    )


def test_without_the_splits_their_names_are_compared_and_that_is_said(tmp_path, a):
    b = make_run(tmp_path / "b", shifted(0.01), facts={}, splits=["fold-0"])
    (line,) = lines_of(a, b)
    assert line == "b against a: splits are fold-0, not fold-0, fold-1."
    change(b, splits=["fold-0", "fold-1"])
    assert any("no run.json of b at hand" in note for note in compare([str(a), str(b)])["notes"])


def test_a_given_base_may_have_been_trained_on_anybody(tmp_path, a):
    facts = facts_of() | {
        "base_fingerprint": "f00d",
        "splits": {"base": {"train": ["else/1"], "test": list(SUBJECTS)}},
    }
    b = make_run(tmp_path / "b", shifted(0.01), facts=facts, splits=["base"])
    found = compare([str(a), str(b)])["parameters"]
    assert found["base_fingerprint"] == {"a": None, "b": "f00d"}
    assert found["splits.base"]["b"].startswith("1 training subjects")


def test_another_number_of_test_windows_is_named_with_both(tmp_path, a):
    table = {"pretrain+full": figures_of(shifted(0.01))}
    table["pretrain+full"]["subjects"][SUBJECTS[2]]["n_va"] = 19
    b = make_run(tmp_path / "b", methods=table)
    (b / "predictions.npz").unlink()
    (line,) = lines_of(a, b)
    assert line == (
        "b against a: test windows of 1 subjects differ in number: vfdb/420 has 19 va and 30 "
        "other, not 20 and 30."
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"start_s": 2.0 * np.arange(N) + 1.0}, "starts"),
        ({"record_ids": np.full(N, "r2")}, "recordings"),
        ({"labels": (np.arange(N) >= N - N_VA).astype(int)}, "labels"),
        ({"is_mixed": np.arange(N) == 3}, "mixed windows"),
    ],
)
def test_other_test_windows_are_found_in_the_predictions(tmp_path, a, changes, what):
    predictions = [*predictions_of(SUBJECTS[:1], **changes), *predictions_of(SUBJECTS[1:])]
    b = make_run(tmp_path / "b", shifted(0.01), predictions=predictions)
    (line,) = lines_of(a, b)
    assert line == f"b against a: test windows of 1 subjects are others: vfdb/418 ({what})."


def test_without_predictions_it_is_said_that_windows_were_only_counted(tmp_path, a):
    predictions = predictions_of(start_s=2.0 * np.arange(N) + 1.0)
    b = make_run(tmp_path / "b", shifted(0.01), predictions=predictions)
    assert lines_of(a, b)
    (b / "predictions.npz").unlink()
    notes = compare([str(a), str(b)])["notes"]
    assert any("no predictions.npz of b at hand" in note for note in notes)


def test_supports_drawn_at_random_are_compared_seed_by_seed(tmp_path):
    """As published, every seed has its own test part; under deploy all seeds have the same."""
    later = predictions_of(seed=1, start_s=2.0 * np.arange(N) + 1.0)
    parts = {"a": predictions_of() + later, "b": later, "c": later + predictions_of()}
    runs = [
        make_run(tmp_path / name, shifted(0.01 * place), protocol="as_published", predictions=part)
        for place, (name, part) in enumerate(parts.items())
    ]
    assert len(compare([str(run) for run in runs])["rows"]) == 3
    change(runs[1], seeds=[7])
    notes = compare([str(run) for run in runs[:2]])["notes"]
    assert any("the supports of b were drawn with other seeds" in note for note in notes)
    first, second = (
        make_run(tmp_path / name, shifted(by), predictions=part)
        for name, by, part in (("d", 0.0, predictions_of()), ("e", 0.01, later))
    )
    assert "test windows of 8 subjects are others" in lines_of(first, second)[0]


def test_a_curve_over_shots_has_test_windows_of_its_own_that_play_no_part(tmp_path, a):
    """Its points are tested after the largest support, the methods after theirs."""
    later = predictions_of(method="pretrain+full@20", start_s=2.0 * np.arange(N) + 100.0)
    b = make_run(tmp_path / "b", shifted(0.01), predictions=predictions_of() + later)
    assert len(compare([str(a), str(b)])["rows"]) == 2
    moved = predictions_of(start_s=2.0 * np.arange(N) + 1.0)
    c = make_run(tmp_path / "c", shifted(0.02), predictions=moved + later)
    assert "test windows of 8 subjects are others" in lines_of(b, c)[0]


def test_windows_of_subjects_without_va_play_no_part(tmp_path):
    runs = []
    for name, by in (("a", 0.0), ("b", 0.01)):
        facts = {"is_one_class": True, "start_s": 2.0 * np.arange(N) + by}
        predictions = predictions_of() + predictions_of(["vfdb/999"], **facts)
        runs.append(make_run(tmp_path / name, shifted(by), predictions=predictions))
    compare([str(run) for run in runs])


def test_seeds_commits_versions_methods_and_parameters_may_differ_and_are_shown(tmp_path, a):
    table = {"pretrain+full": figures_of(shifted(0.01)), "head": figures_of(AUCS)}
    changes = {"seeds": [0], "git_commit": "fedcba9", "versions": {"torch": "2.14.0"}}
    config = {"seeds": [0], "meta": {"inner_lr": 0.1, "inner_steps": 5}}
    b = make_run(tmp_path / "b", methods=table, config=config, **changes)
    found = compare([str(a), str(b)])
    assert found["parameters"] == {
        "meta.inner_lr": {"a": 0.05, "b": 0.1},
        "seeds": {"a": [0, 1, 2], "b": [0]},
        "git_commit": {"a": "0123abc", "b": "fedcba9"},
        "versions.torch": {"a": "2.13.0", "b": "2.14.0"},
    }
    assert any("different seeds" in note for note in found["notes"])


def test_the_same_run_twice_is_refused_under_any_name(tmp_path, a):
    copy = make_run(tmp_path / "copy")
    for other in (a, a / "results.json", copy):
        with pytest.raises(DataError, match="are the same run"):
            compare([str(a), str(other)])
    results = json.loads((copy / "results.json").read_text())
    results["methods"]["pretrain+full"]["adapt_seconds_p50"] = 0.123
    write(copy / "results.json", results)  # trained again: the times are others
    assert compare([str(a), str(copy)])["rows"][1]["difference"]["mean"] == 0.0


def test_a_folder_and_its_predictions_can_be_moved(tmp_path, a):
    b = make_run(tmp_path / "deep" / "b", shifted(0.01))
    save_predictions(b / "predictions.npz", predictions_of()[::-1])  # in another order
    assert compare([str(a), str(b)])["rows"][1]["run"] == "b"
