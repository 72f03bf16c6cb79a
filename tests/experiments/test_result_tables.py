"""The readings' other tables are those of the committed figures, row by row; each is found by its header."""

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


def committed(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(page: str, header: str) -> list[list[str]]:
    """Return the cells of the one table of a page below `header`, without bold print."""
    text = (ROOT / "docs" / "results" / f"{page}.md").read_text()
    before, *found = text.split(f"{header}\n")
    assert len(found) == 1, f"{page}.md has {len(found)} tables with the header {header}"
    lines = found[0].split("\n\n")[0].splitlines()
    assert re.fullmatch(r"[| -]+", lines[0]) and len(lines) > 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return [[cell.replace("**", "") for cell in row] for row in rows]


def with_interval(figure: dict, *, sign: str = "") -> str:
    """Return mean and interval as the readings write them."""
    low, high = figure["ci95"]
    return f"{figure['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def test_paired_differences_of_the_first_run():
    script = runpy.run_path(str(ROOT / "experiments" / "scripts" / "results_table.py"))
    expected = script["differences_table"](committed("va_fewshot"))
    assert expected in (ROOT / "docs" / "results" / "va_fewshot.md").read_text()


def test_the_curve_over_shots():
    points = committed("va_deploy")["shots"]["points"]
    rows = table("va", "| windows per class | AUC [95 %] | F1 [95 %] |")
    assert rows == [
        [n, with_interval(p["subject_auc"]), with_interval(p["subject_f1"])]
        for n, p in points.items()
    ]


def test_false_alarms_by_the_length_of_the_episodes():
    rows = table(
        "va", "| episodes of at least | number | `ensemble-zero-shot` | `+causal` | `+offline` |"
    )
    alarms, expected = committed("va_alarms"), []
    for at, row in enumerate(rows):
        found = [
            [alarms[f"ensemble-zero-shot{context}"][seed]["without_va"][at] for seed in "012"]
            for context in ("", "+causal", "+offline")
        ]
        rates = [", ".join(f"{each['per_hour']:.1f}" for each in seeds) for seeds in found]
        expected.append([row[0], str(found[0][0]["n"]), *rates])
    assert rows == expected and len(rows) == 4


def test_false_alarms_by_seed():
    alarms = committed("va_alarms")
    for name, *cells in table("va", "| | seed 0 | seed 1 | seed 2 |"):
        method = f"ensemble-zero-shot{name.strip('`').removeprefix('ensemble-zero-shot')}"
        found = [alarms[method][seed]["without_va"][0]["per_hour"] for seed in "012"]
        assert cells == [f"{rate:.1f}" for rate in found], name


def test_h_tuning_on_twelve_leads():
    tasks = committed("h_tuning")["tasks"]
    splits = [tasks["ptbxl_subset--patients"], tasks["ptbxl_subset--strat_fold"]]
    rows = table(
        "h_tuning",
        "| method | patients 8/2/90: AUC | minus full [95 %] | folds: AUC | minus full [95 %] "
        "| MiB of a step (both splits) |",
    )
    assert {row[0].strip("`") for row in rows} == set(splits[0]["methods"])
    for name, *cells in rows:
        each = [split["methods"][name.strip("`")] for split in splits]
        expected = []
        for figures in each:
            expected.append(f"{figures['macro_auc']['mean']:.3f}")
            expected.append(with_interval(figures["difference"]["macro_auc"], sign="+"))
        memory = ", ".join(f"{figures['peak_bytes'] / 2**20:.1f}" for figures in each)
        assert cells == [*expected, memory], name


def test_h_tuning_on_windows():
    results = committed("h_tuning_va")
    rows = table(
        "h_tuning",
        "| method | AUC, mean [95 %] | std | worst | F1 | minus full [95 %] | trained | seconds |",
    )
    assert [row[0].strip("`") for row in rows] == list(results["methods"])
    for name, *cells in rows:
        figures = results["methods"][name.strip("`")]
        auc = figures["subject_auc"]
        assert cells == [
            with_interval(auc),
            f"{auc['std']:.3f}",
            f"{auc['worst']:.3f}",
            f"{figures['subject_f1']['mean']:.3f}",
            with_interval(results["differences"][name.strip("`")]["auc"], sign="+"),
            f"{figures['trainable_parameters']:,}",
            f"{figures['adapt_seconds_p50']:.2f}",
        ], name


def test_a_study_on_subjects_that_it_never_opened():
    rows = table("va_tuning", "| | AUC | worst | F1 |")
    for name, *cells in rows:
        which, method = re.fullmatch(r"(tuned|untuned), `(.+)`", name).groups()
        figures = committed(f"va_{which}_held_out")["methods"][method]
        auc, f1 = figures["subject_auc"], figures["subject_f1"]
        assert cells == [with_interval(auc), f"{auc['worst']:.3f}", f"{f1['mean']:.3f}"], name


def test_one_change_at_a_time():
    differences = committed("va_deploy")["differences"]
    for _, change, *cells, _ in table("va", "| question | change | AUC | F1 | verdict |"):
        found = differences[change.strip("`")]
        assert cells == [with_interval(found[key], sign="+") for key in ("auc", "f1")], change


def test_students_of_a_twelve_lead_network():
    (task,) = committed("h_tuning_distill")["tasks"].values()
    rows = table(
        "h_tuning",
        "| network | AUC | minus teacher [95 %] | minus labels alone [95 %] | MiB to answer | ms to answer |",
    )
    for name, *cells in rows:
        figures = task["distillation"]["networks"][re.match("`(.+)`", name)[1]]
        differences = ["-", "-"]
        if "teacher" not in name:
            kinds = ("difference", "difference_to_labels_only")
            differences = [with_interval(figures[k]["macro_auc"], sign="+") for k in kinds]
        assert cells == [
            f"{figures['macro_auc']['mean']:.3f}",
            *differences,
            f"{figures['answer_bytes'] / 2**20:.2f}",
            f"{1000 * figures['answer_seconds']:.2f}",
        ], name
