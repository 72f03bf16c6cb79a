"""The comparison's answers against numbers worked out here, and its command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_runs import AUCS, SUBJECTS, figures_of, make_run, shifted
from scipy.stats import bootstrap, norm, t

from metaecg.errors import ConfigError, DataError
from metaecg.experiments import compare as command
from metaecg.experiments.compare import compare
from metaecg.experiments.compare_tables import print_comparison
from metaecg.seeding import numpy_generator

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "experiments" / "results" / "va_fewshot.json"
GAINS = (0.02, 0.01, 0.03, 0.005, 0.02, 0.01, 0.025, 0.015)
MIXED_GAINS = (0.02, -0.01, 0.03, -0.025, 0.02, -0.02, 0.005, -0.015)


@pytest.fixture
def pair(tmp_path) -> list[str]:
    """Two runs: every subject of the second is better, by `GAINS`."""
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", shifted(GAINS), config={"meta": {"inner_lr": 0.2}, "out": "b"})
    return [str(a), str(b)]


def difference(*arguments, **options) -> dict:
    return compare(*arguments, **options)["rows"][1]["difference"]


TAIL = norm.cdf(-((8 / 7) ** 0.5) * t.ppf(0.975, 7))
"""Of the expanded percentile interval of eight subjects (Hesterberg 2015), in place of 0.025."""


def test_the_difference_and_its_interval_are_those_of_scipys_bootstrap(pair):
    found = difference(pair, seed=3, n_resamples=500)
    rng = numpy_generator(3, "paired", "auc")
    gains = np.array([shifted(GAINS)[s] - AUCS[s] for s in SUBJECTS])
    level = {"method": "percentile", "confidence_level": 1 - 2 * TAIL}
    expected = bootstrap((gains,), np.mean, n_resamples=500, rng=rng, **level)
    assert found["mean"] == pytest.approx(np.mean(GAINS))
    assert found["ci95"] == pytest.approx(list(expected.confidence_interval))
    low, high = expected.confidence_interval
    assert found["half_width"] == pytest.approx((high - low) / 2)
    assert (found["n"], found["n_left_out"]) == (8, 0)


def test_the_interval_holds_what_resampling_by_hand_gives(pair):
    found = difference(pair, n_resamples=20_000)
    rng = np.random.default_rng(0)
    means = np.array(GAINS)[rng.integers(8, size=(20_000, 8))].mean(axis=1)
    assert found["ci95"] == pytest.approx(np.quantile(means, [TAIL, 1 - TAIL]), abs=3e-4)


def test_where_all_subjects_gain_the_second_run_is_better_and_the_first_worse(pair):
    assert difference(pair)["verdict"] == "better"
    assert difference(pair[::-1])["verdict"] == "worse"


def test_gains_and_losses_are_no_difference_that_so_many_subjects_can_show(tmp_path):
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", shifted(MIXED_GAINS))
    found = difference([str(a), str(b)])
    assert found["ci95"][0] < 0 < found["ci95"][1]
    assert found["words"] == "no difference that 8 subjects can show"


def test_where_the_interval_alone_leaves_0_out_the_p_value_stands_beside_it(tmp_path):
    """One subject gains nearly all: 18 of 256 ways to choose the signs have a mean as far from 0."""
    gains = (0.2, 0.01, 0.01, 0.01, 0.01, 0.01, -0.005, -0.005)
    runs = [
        make_run(tmp_path / name, shifted(by, dict.fromkeys(SUBJECTS, 0.5)))
        for name, by in (("a", 0.0), ("b", gains))
    ]
    found = difference([str(run) for run in runs])
    assert found["ci95"][0] > 0
    assert found["words"] == "no difference that 8 subjects can show, p = 0.070"


def test_five_subjects_are_too_few_to_tell(tmp_path):
    few = SUBJECTS[:5]
    runs = [
        make_run(tmp_path / name, {s: AUCS[s] + gain for s in few}, facts={"splits": {}})
        for name, gain in (("a", 0.0), ("b", 0.01))
    ]
    found = difference([str(run) for run in runs])
    assert found["words"] == "too few subjects to tell (5, at least 6 are needed)"


def test_six_subjects_are_enough_for_one_comparison_and_too_few_for_two(tmp_path):
    """All gain: 2 of 64 ways to choose the signs, below 5 % once and above it twice."""
    six = SUBJECTS[:6]
    runs = [
        str(make_run(tmp_path / name, {s: AUCS[s] + gain for s in six}, facts={"splits": {}}))
        for name, gain in (("a", 0.0), ("b", 0.01), ("c", 0.02))
    ]
    alone = difference(runs[:2])
    assert (alone["p_value"], alone["verdict"]) == (2 / 64, "better")
    both = difference(runs)
    assert both["p_holm"] == 4 / 64
    assert both["words"] == "too few subjects to tell (6, at least 7 are needed for 2 comparisons)"


def test_an_undefined_figure_leaves_the_subject_out_of_both_sides(tmp_path, capsys):
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", {**shifted(GAINS), SUBJECTS[0]: None})
    found = difference([str(a), str(b)])
    assert found["mean"] == pytest.approx(np.mean(GAINS[1:]))
    assert (found["n"], found["n_left_out"]) == (7, 1)
    assert command.main([str(a), str(b), "--html", str(tmp_path / "x.html")]) == 0
    assert "b: 1 subjects left out of the difference, their AUC is undefined on one" in " ".join(
        capsys.readouterr().out.split()
    )


def test_three_runs_stand_against_the_first_and_the_verdicts_are_corrected(tmp_path):
    """b gains clearly. c alone is better, with 4 of 256 ways to choose the signs as far; with Holm
    over two it is not."""
    border = (0.03, 0.03, -0.005, 0.02, 0.005, 0.01, 0.02, 0.005)
    runs = [
        str(make_run(tmp_path / name, shifted(gains), config={"out": name}))
        for name, gains in (("a", 0.0), ("b", GAINS), ("c", border))
    ]
    alone = difference([runs[0], runs[2]])
    assert (alone["verdict"], alone["p_value"]) == ("better", 8 / 256)
    found = compare(runs)
    b, c = (row["difference"] for row in found["rows"][1:])
    assert found["correction"] == "holm" and found["reference"] == "a"
    assert (b["p_holm"], c["p_holm"]) == (2 * b["p_value"], c["p_value"])
    assert (b["verdict"], c["verdict"]) == ("better", "better")
    d = make_run(tmp_path / "d", shifted(MIXED_GAINS))
    c = compare([runs[0], runs[2], str(d)])["rows"][1]["difference"]
    assert c["p_holm"] == 2 * c["p_value"] > 0.05
    assert c["words"] == "no difference that 8 subjects can show once corrected for all comparisons"
    assert c["ci95"] == alone["ci95"]  # the interval stands for itself


def test_the_committed_run_gives_the_differences_that_its_results_hold_with_wider_intervals():
    """By the factor of t for 25 subjects and its root, 1.075, and the skewness of its resamples."""
    results = json.loads(COMMITTED.read_text())
    names = ["pretrain+full", "zero-shot", "scratch", "maml+lora", "shuffled-labels"]
    assert results["difference_to"] == names[0]
    for metric in ("auc", "f1"):
        compared = compare([str(COMMITTED)], methods=names, metric=metric)
        for row in compared["rows"]:
            recorded = results["methods"][row["method"]][f"subject_{metric}"]
            assert row["figures"][metric]["mean"] == recorded["mean"]
            assert row["figures"][metric]["ci95"] == recorded["ci95"]
        for row in compared["rows"][1:]:
            recorded = results["differences"][row["method"]][metric]
            found = row["difference"]
            assert (found["mean"], found["n"]) == (recorded["mean"], recorded["n"])
            low, high = recorded["ci95"]
            assert found["ci95"][0] < low < high < found["ci95"][1], (row["method"], metric)
            assert found["half_width"] == pytest.approx(1.075 * (high - low) / 2, rel=0.1)


def test_two_methods_of_one_run_are_compared(tmp_path):
    methods = {"zero-shot": figures_of(AUCS), "maml+full": figures_of(shifted(GAINS))}
    run = make_run(tmp_path / "a", methods=methods)
    found = compare([str(run)], methods=["zero-shot", "maml+full"])
    assert [row["label"] for row in found["rows"]] == ["zero-shot", "maml+full"]
    assert found["rows"][1]["difference"]["verdict"] == "better"
    assert found["parameters"] == {}


def test_the_default_method_is_the_first_of_a_fixed_order_and_not_the_best(tmp_path):
    """head is best by far; pretrain+full stands before it in the order, maml+full is in one run."""
    table = {"head": figures_of(shifted(0.01)), "pretrain+full": figures_of(AUCS)}
    a = make_run(tmp_path / "a", methods=table)
    b = make_run(tmp_path / "b", methods={**table, "maml+full": figures_of(AUCS)}, n_subjects=8)
    found = compare([str(a), str(b)])
    assert [row["method"] for row in found["rows"]] == ["pretrain+full", "pretrain+full"]


def test_fewer_false_alarms_are_better(tmp_path):
    table = {
        name: figures_of(AUCS, false_alarms_per_hour=alarms)
        for name, alarms in (("head", 30.0), ("maml+full", 12.0))
    }
    run = make_run(tmp_path / "a", methods=table)
    found = compare([str(run)], methods=["head", "maml+full"], metric="false_alarms_per_hour")
    assert not found["higher_is_better"]
    assert found["rows"][1]["difference"]["mean"] == -18.0
    assert found["rows"][1]["difference"]["verdict"] == "better"


def test_only_parameters_that_differ_and_change_a_figure_are_named(pair):
    assert compare(pair)["parameters"] == {
        "meta.inner_lr": {"a": 0.05, "b": 0.2},
        "meta.inner_steps": {"a": 5, "b": None},
    }


def test_a_run_without_its_configuration_says_so_and_makes_no_difference_of_it(tmp_path, pair):
    (Path(pair[1]) / "config.yaml").unlink()
    c = make_run(tmp_path / "c", shifted(0.001), config={"meta": {"inner_lr": 0.4}})
    found = compare([*pair, str(c)])["parameters"]["meta.inner_lr"]
    assert found == {"a": 0.05, "b": "not at hand", "c": 0.4}
    assert compare(pair)["parameters"] == {}


def test_demo_data_and_fewer_than_three_seeds_are_said(tmp_path, capsys):
    runs = [
        str(make_run(tmp_path / name, shifted(by), data="demo data", seeds=[0]))
        for name, by in (("a", 0), ("b", GAINS))
    ]
    assert command.main([*runs, "--html", str(tmp_path / "x.html")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("deploy, 10 shots per class, vfdb - demo data\nb against a: better.")
    assert "fewer than three seeds" in text


def test_the_table_holds_what_the_json_holds(pair, tmp_path, capsys):
    json_file, page = tmp_path / "x.json", tmp_path / "x.html"
    assert command.main([*pair, "--json-file", str(json_file), "--html", str(page)]) == 0
    found = json.loads(json_file.read_text())["rows"][1]["difference"]
    low, high = found["ci95"]
    text = capsys.readouterr().out
    assert f"+0.017 [{low:+.3f}, {high:+.3f}]" in text
    assert f"±{found['half_width']:.3f}" in text
    assert re.search(r"^meta.inner_lr +0.05 +0.2", text, flags=re.M)
    assert f"written: {page}, {json_file}" in text


def test_a_narrow_terminal_gets_whole_figures_and_the_verdicts_under_the_table(pair, capsys):
    found = compare(pair)
    print_comparison(found, width=80)
    text = capsys.readouterr().out
    low, high = found["rows"][1]["difference"]["ci95"]
    row = next(line for line in text.splitlines() if re.match(r"b +pretrain\+full", line))
    assert f"+0.017 [{low:+.3f}, {high:+.3f}]" in row
    assert re.search(r"^b: better \(could show ±0\.\d{3}\)$", text, flags=re.M)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_json_is_all_that_stands_on_standard_output(pair, capsys):
    assert command.main([*pair, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == compare(pair)
    assert set(found) == set(documented_keys())
    assert err == "" and not (Path(pair[0]).parent / "compare.html").exists()


def documented_keys() -> list[str]:
    """Return the fields that docs/compare.md lists of the whole."""
    page = (ROOT / "docs" / "compare.md").read_text()
    table = page.split("## The fields of `--json`")[1].split("\n\n")[1]
    return [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]  # fmt: skip


def test_the_page_lies_beside_the_first_folder_unless_it_is_named(pair, capsys):
    assert command.main(pair) == 0
    assert (Path(pair[0]).parent / "compare.html").is_file()
    assert "compare.html" in capsys.readouterr().out


def test_the_same_command_gives_the_same_answer(pair):
    assert compare(pair, seed=1) == compare(pair, seed=1)
    assert difference(pair, seed=1)["ci95"] != difference(pair, seed=2)["ci95"]


def test_runs_of_one_name_are_called_by_their_folders(tmp_path):
    runs = [
        str(make_run(tmp_path / name / "va", shifted(by))) for name, by in (("x", 0), ("y", GAINS))
    ]
    assert [row["label"] for row in compare(runs)["rows"]] == runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no RUN and no --experiment"),
        (["{a}"], "leaves nothing to compare it with. Name a second run, or two methods"),
        (["{a}", "{b}", "--metric", "acu"], "Did you mean 'auc'"),
        (["{a}", "{b}", "--n-resamples", "5"], "--n-resamples is 5"),
        (["{a}", "{b}", "--max-runs", "0"], "--max-runs is 0"),
        (["{a}", "{b}", "--methods", ","], "--methods names none"),
        (["{a}", "{b}", "--methods", "pretrain+ful"], "Did you mean 'pretrain+full'"),
        (["{a}", "--methods", "pretrain+full,pretrain+full"], "is named twice"),
    ],
)
def test_a_wrong_option_is_said_with_what_to_do(pair, capsys, arguments, words):
    filled = [each.format(a=pair[0], b=pair[1]) for each in arguments]
    assert command.main(filled) == 2
    assert words in capsys.readouterr().err


def test_a_method_that_a_run_lacks_is_named_for_every_run(pair):
    with pytest.raises(ConfigError) as caught:
        compare(pair, methods=["scratch"])
    assert len(caught.value.problems) == 2
    assert all("has no method 'scratch'" in each for each in caught.value.problems)


def test_runs_without_a_common_method_are_refused_with_what_they_have(tmp_path):
    a = make_run(tmp_path / "a", method="head")
    b = make_run(tmp_path / "b", method="scratch")
    with pytest.raises(DataError, match=r"no method in common(.|\n)*a: head\n.*b: scratch"):
        compare([str(a), str(b)])


def test_the_number_of_resamples_changes_the_intervals_and_no_p_value(pair):
    few, many = (difference(pair, n_resamples=n) for n in (100, 4000))
    assert few["ci95"] != many["ci95"]
    assert few["p_value"] == many["p_value"]


def test_the_readme_shows_what_the_command_prints(tmp_path, capsys):
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```text\n\$ python -m metaecg\.experiments\.compare (.+?)\n(.*?)```", readme, flags=re.S)  # fmt: skip
    arguments = shown[1].replace("\\\n", " ").split()
    arguments[0] = str(ROOT / arguments[0])
    assert command.main([*arguments, "--html", str(tmp_path / "x.html")]) == 0
    printed = capsys.readouterr().out.split("\n\nwritten")[0]
    lines = [line.rstrip() for line in printed.splitlines()]
    assert [line.rstrip() for line in shown[2].strip().splitlines()] == lines
