"""The report is one whole, safe file that names demo data and optimism wherever figures stand."""

import html
import json
import re

import numpy as np
import pytest

from metaecg.errors import DataError
from metaecg.evaluate import report
from metaecg.evaluate.figures import change_figure, curriculum_figure, strip_figure, strip_label
from metaecg.evaluate.metrics import summary
from metaecg.evaluate.report import best_method, render_report, write_report

NASTY = "<script>alert('x')</script>"


def make_method(mean: float, *, n_subjects: int = 12, **facts) -> dict:
    rng = np.random.default_rng(int(1000 * mean))
    subjects = {}
    for index in range(n_subjects):
        auc = float(np.clip(rng.normal(mean, 0.06), 0.3, 1.0))
        subjects[f"vfdb/{418 + index}"] = {
            "auc": auc,
            "f1": max(0.0, auc - 0.13),
            "sensitivity": auc - 0.1,
            "ppv": None if index == 0 else auc - 0.15,
            "false_alarms_per_hour": 100 * (1 - auc),
            "n_va": 20 + index,
            "n_other": 800 - index,
        }
    figures = {
        f"subject_{name}": summary({s: v[name] for s, v in subjects.items()}, rng=rng)
        for name in ("auc", "f1")
    }
    pooled = {"auc": mean, "f1": mean - 0.1, "sensitivity": mean - 0.05, "ppv": mean - 0.15}
    return {
        **figures,
        "pooled": pooled,
        "subjects": subjects,
        "without_mixed": {**figures, "pooled": pooled},
        "false_alarms_per_hour": 40 * (1 - mean) * 10,
        "false_alarm_episodes_per_hour": 12.5,
        "false_alarms_per_hour_one_class": 3.25,
        "episode_sensitivity": mean,
        "detection_delay_s_median": 3.5,
        "adapt_seconds_p50": 0.0,
        "trainable_parameters": 0,
        "description": "what it is",
        **facts,
    }


def make_results(**changes) -> dict:
    return {
        "schema": 1,
        "title": "Few-shot ventricular arrhythmia detection",
        "data": "recordings",
        "protocol": "deploy",
        "databases": ["mitdb", "vfdb", "cudb"],
        "n_shots": 10,
        "seeds": [0, 1, 2],
        "config_hash": "c0ffee",
        "git_commit": "0123abc",
        "data_manifest_sha256": "5ad" * 21 + "5",
        "methods": {
            "zero-shot": make_method(0.90),
            "head": make_method(0.93, adapt_seconds_p50=0.05, trainable_parameters=130),
            "maml + lora": make_method(0.96, adapt_seconds_p50=0.21, trainable_parameters=4_210),
        },
        "ineligible": {"mitdb/100": "0 windows of class 'va'", "cudb/cu12": "3 test windows"},
        **changes,
    }


def make_strip(**changes) -> dict:
    fs_hz, n_windows = 200.0, 10
    time_s = np.arange(int(n_windows * 2 * fs_hz)) / fs_hz
    is_va = time_s > 10
    signal_mv = np.where(is_va, np.sin(2 * np.pi * 4 * time_s), np.sin(np.pi * time_s) ** 64)
    return {
        "subject_id": "vfdb/418",
        "record_id": "418",
        "fs_hz": fs_hz,
        "start_s": 100.0,
        "signal_mv": signal_mv.tolist(),
        "window_start_s": [100.0 + 2 * index for index in range(n_windows)],
        "window_s": 2.0,
        "probability": [0.1, 0.2, 0.6, 0.1, 0.2, 0.4, 0.9, 0.95, 0.9, 0.97],
        "label": [0] * 5 + [1] * 5,
        "is_support": [True] + [False] * 9,
        "threshold": 0.5,
        "method": "maml + lora",
        "note": "The onset of a flutter.",
        **changes,
    }


def make_curriculum(*, n_iterations: int = 60) -> dict:
    rng = np.random.default_rng(7)
    pace = [max(3, 20 * step // n_iterations) for step in range(n_iterations)]
    return {
        "subjects": [f"mitdb/{100 + index}" for index in range(20)],
        "difficulty": np.linspace(0, 1, 20)[::-1].tolist(),
        "draws": [(19 - rng.integers(0, admitted, size=4)).tolist() for admitted in pace],
        "title": "easy first",
    }


def whole_page(**changes) -> str:
    return render_report(
        make_results(**changes), strips=[make_strip()], curriculum=make_curriculum()
    )


def sections(page: str) -> list[str]:
    """The sections of the page's own markup, without the scripts."""
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    return re.findall(r"<section>.*?</section>", markup, flags=re.DOTALL)


def pictures(page: str) -> list[dict]:
    found = re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.DOTALL
    )
    return [json.loads(text) for text in found]


def table_row(page: str, name: str) -> list[str]:
    row = re.search(rf'<th scope="row">{re.escape(html.escape(name))}</th>(.*?)</tr>', page)
    return re.findall(r"<td[^>]*>([^<]*)</td>", row.group(1))


def test_the_page_is_one_file_that_fetches_nothing():
    page = whole_page()
    assert page.count("<!DOCTYPE html>") == 1
    assert not re.search(r"<(script|img|iframe|link)\b[^>]*\b(src|href)=", page)
    assert "default-src 'none'" in page
    assert "<title>Few-shot ventricular arrhythmia detection</title>" in page


def test_no_button_of_a_plot_sends_its_data_away():
    assert 'modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]' in whole_page()


def test_plotly_is_in_the_page_once():
    from plotly.offline import get_plotlyjs

    assert whole_page().count(get_plotlyjs()[:200]) == 1


def test_demo_data_is_named_in_the_title_in_every_section_and_in_every_picture():
    page = whole_page(data="demo data")
    assert "(demo data)</title>" in page
    assert "<strong>DEMO DATA</strong>" in page
    assert len(sections(page)) == 6
    assert all("demo data" in section for section in sections(page) if "<td" in section)
    assert all("demo data" in picture["layout"]["title"]["text"] for picture in pictures(page))


def test_recordings_are_not_called_demo_data():
    assert "demo data" not in whole_page().lower()


def test_the_published_protocol_is_called_optimistic_beside_every_table_and_picture():
    words = "optimistic, not a deployment figure"
    page = whole_page(protocol="as_published")
    captions = re.findall(r"<caption>.*?</caption>", page, flags=re.DOTALL)
    assert len(captions) == 4
    assert all(words in caption for caption in captions)
    assert all(words in picture["layout"]["title"]["text"] for picture in pictures(page))
    assert words not in whole_page()


def test_text_from_the_data_is_escaped_everywhere():
    results = make_results(title=NASTY, ineligible={NASTY: NASTY}, databases=[NASTY])
    results["methods"][NASTY] = make_method(0.97, description=NASTY)
    results["methods"][NASTY]["subjects"][NASTY] = {"auc": 0.1, "f1": 0.1, "n_va": 1, "n_other": 1}
    strip = make_strip(subject_id=NASTY, note=NASTY, method=NASTY)
    curriculum = make_curriculum() | {"title": NASTY, "subjects": [NASTY, *range(19)]}
    page = render_report(results, strips=[strip], curriculum=curriculum)
    assert NASTY not in page
    assert "alert('x')" not in page.replace("&lt;script&gt;", "")
    assert all("<script" not in json.dumps(picture) for picture in pictures(page))


def test_every_fact_of_the_run_is_on_the_page():
    page = whole_page()
    for fact in ("deploy", "mitdb, vfdb, cudb", "0, 1, 2", "0123abc", "c0ffee", "5ad" * 21):
        assert fact in page
    assert "<dt>Eligible subjects</dt><dd>12</dd>" in page
    assert "<dt>Subjects left out</dt><dd>2</dd>" in page


def test_the_table_prints_each_figure_in_its_column():
    row = table_row(whole_page(), "maml + lora")
    auc = make_method(0.96)["subject_auc"]
    assert row[:3] == [f"{auc[name]:.3f}" for name in ("mean", "std", "worst")]
    assert row[3] == f"{auc['ci95'][0]:.3f}–{auc['ci95'][1]:.3f}"
    assert row[8:12] == ["0.960", "0.860", "0.910", "0.810"]
    assert row[12:] == ["16.0", "12.5", "3.2", "0.960", "3.5", "0.21", "4\u202f210"]


def best_of(page: str, name: str) -> list[str]:
    row = re.search(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', page).group(1)
    return re.findall(r'<td class="best[^>]*>([^<]*)</td>', row)


def test_the_best_of_a_column_is_marked_and_what_prints_the_same_shares_the_mark():
    results = make_results()
    results["methods"]["head"]["episode_sensitivity"] = 0.9599
    page = render_report(results)
    assert best_of(page, "maml + lora").count("0.960") == 2  # pooled AUC, episodes
    assert best_of(page, "head") == ["0.960", "0.05", "130"]


def test_a_column_in_which_all_are_alike_has_no_best():
    page = whole_page()
    assert "12.5" in table_row(page, "head") and "12.5" not in best_of(page, "head")


def test_doing_nothing_is_not_the_best_cost():
    page = whole_page()
    assert "130" in best_of(page, "head")
    assert "0" not in best_of(page, "zero-shot")


def test_undefined_figures_print_as_a_dash_with_a_footnote():
    footnote = "means undefined or not measured"
    results = make_results(methods={"only": make_method(0.9, episode_sensitivity=None)})
    assert table_row(render_report(results), "only")[15] == "–"
    assert footnote in render_report(results)
    results["methods"] = {"only": {**make_method(0.9, n_subjects=0), "episode_sensitivity": np.nan}}
    row = table_row(render_report(results), "only")
    assert row[:4] == ["–"] * 4 and row[15] == "–"


def test_a_run_without_any_auc_says_so_instead_of_naming_a_best_method():
    page = render_report(make_results(methods={"only": make_method(0.9, n_subjects=0)}))
    assert "No method has an AUC" in page
    assert "Worst subjects first" not in page


def test_the_subjects_of_the_best_method_stand_worst_first_and_undefined_last():
    results = make_results()
    best = results["methods"]["maml + lora"]["subjects"]
    best["vfdb/undefined"] = {"auc": None, "f1": 0.0, "n_va": 0, "n_other": 9}
    section = next(part for part in sections(render_report(results)) if "Worst subjects" in part)
    shown = re.findall(r'<th scope="row">([^<]*)</th>', section)
    assert shown[0] == min(best, key=lambda name: best[name]["auc"] or 9)
    assert shown[-1] == "vfdb/undefined"
    assert len(shown) == len(best)


def test_the_best_method_has_the_highest_mean_and_undefined_means_never_win():
    methods = make_results()["methods"] | {"nan": {"subject_auc": {"mean": float("nan")}}}
    assert best_method(methods) == "maml + lora"
    assert best_method({"none": {"subject_auc": {"mean": None}}}) is None


def test_each_adapted_method_has_its_picture_the_best_first():
    options = re.findall(r"<option[^>]*>([^<]*)</option>", whole_page())
    assert options == ["maml + lora", "head"]


def test_ineligible_subjects_stand_with_their_reason():
    page = whole_page()
    assert table_row(page, "mitdb/100") == ["0 windows of class &#39;va&#39;"]
    assert "every subject of the databases was judged" in whole_page(ineligible={})


def test_a_report_without_strips_and_curriculum_leaves_those_sections_out():
    page = render_report(make_results())
    assert "Curriculum" not in page and "ECG strips" not in page


def test_a_subject_that_got_worse_has_a_line_of_the_other_colour():
    before = {"a": {"auc": 0.9, "f1": 0.9}, "b": {"auc": 0.5, "f1": 0.5}}
    after = {"a": {"auc": 0.8, "f1": 0.9}, "b": {"auc": 0.7, "f1": None}}
    figure = change_figure(before, after, before_name="zero-shot", after_name="head")
    lines = {(t.name, t.xaxis): (t.x, t.y) for t in figure.data if t.mode == "lines"}
    assert lines["worse", "x"] == ((0.9, 0.8, None), ("a", "a", "a"))
    assert lines["better", "x"] == ((0.5, 0.7, None), ("b", "b", "b"))
    assert lines["better", "x2"] == ((0.9, 0.9, None), ("a", "a", "a"))
    assert figure.layout.yaxis.categoryarray == ("a", "b")  # from the bottom: the worst is on top


def test_a_subject_that_was_judged_on_other_beats_before_has_a_dot_alone():
    one = {"auc": 0.9, "f1": 0.9, "n_va": 10, "n_other": 90}
    before = {"a": one, "b": {**one, "n_other": 80}}
    figure = change_figure(before, {"a": one, "b": one}, before_name="zero-shot", after_name="head")
    rings = {place for t in figure.data if t.name == "before" for place in t.y}
    assert rings == {"a"}
    assert {place for t in figure.data if t.name == "after" for place in t.y} == {"a", "b"}


def test_the_curriculum_is_drawn_from_easy_to_hard():
    curriculum = {"subjects": ["hard", "easy"], "difficulty": [0.9, 0.1], "draws": [[1, 1], [0, 1]]}
    heatmap = curriculum_figure(curriculum).data[0]
    assert list(heatmap.y) == ["easy", "hard"]
    assert np.nan_to_num(heatmap.z).tolist() == [[2, 1], [0, 1]]


def test_a_long_curriculum_is_summed_in_columns_that_can_be_seen():
    heatmap = curriculum_figure(make_curriculum(n_iterations=1000)).data[0]
    assert heatmap.z.shape == (20, 250)
    assert np.nansum(heatmap.z) == 4000
    assert list(heatmap.x[:2]) == [0, 4]


def test_a_curriculum_that_does_not_fit_its_subjects_is_refused():
    with pytest.raises(DataError, match="draws subject 20 at iteration 0.*20 subjects"):
        curriculum_figure(make_curriculum() | {"draws": [[20]]})
    with pytest.raises(DataError, match="20 subjects and 1 difficulties"):
        curriculum_figure(make_curriculum() | {"difficulty": [1.0]})


def test_a_strip_shades_annotated_windows_and_breaks_the_output_between_windows():
    figure = strip_figure(make_strip())
    detector = next(trace for trace in figure.data if trace.name == "detector")
    assert np.isnan(detector.y[2::3]).all()
    assert detector.x[:2].tolist() == [100.0, 102.0]
    shaded = [shape.x0 for shape in figure.layout.shapes if shape.y0 == 0.0]
    assert shaded == [110.0, 112.0, 114.0, 116.0, 118.0]


def test_a_strip_is_told_in_words_for_who_cannot_see_it():
    assert strip_label(make_strip()) == (
        "ECG of subject vfdb/418, recording 418, 20 s from 100 s: 10 windows, 5 annotated va, of "
        "which 4 flagged; 1 of the others flagged falsely."
    )


def test_results_of_another_schema_are_refused(tmp_path):
    with pytest.raises(DataError, match="schema 2; this version reads schema 1"):
        write_report(tmp_path / "report.html", make_results(schema=2))
    with pytest.raises(DataError, match="results has no methods"):
        write_report(tmp_path / "report.html", make_results(methods={}))


def test_the_report_is_written_whole_and_leaves_nothing_beside(tmp_path):
    path = write_report(tmp_path / "new" / "report.html", make_results())
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_write_that_fails_leaves_the_old_report_untouched(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, make_results())
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_paired_differences_stand_in_a_table_of_their_own_without_the_reference():
    row = {"mean": -0.0123, "ci95": [-0.03, 0.004], "n": 12}
    differences = {name: {"auc": row, "f1": row} for name in ("zero-shot", "head")}
    page = render_report(make_results(differences=differences, difference_to="head"))
    table = page[page.index("Difference to head, paired over subjects") :]
    table = table[: table.index("</table>")]
    assert "zero-shot" in table
    assert ">head<" not in table
    assert "-0.012" in table
    assert "-0.030 to +0.004" in table


def test_differences_to_several_references_stand_in_a_table_each():
    """The rows of a run on beats are compared with the base on the beats that they are judged on."""
    row = {"mean": -0.0123, "ci95": [-0.03, 0.004], "n": 12}
    references = {"head": "zero-shot", "maml + lora": "active+zero-shot"}
    differences = {name: {"to": to, "auc": row, "f1": row} for name, to in references.items()}
    page = render_report(make_results(differences=differences))
    for name, reference in references.items():
        table = page[page.index(f"Difference to {reference}, paired over subjects") :]
        table = table[: table.index("</table>")]
        assert [other for other in references if f">{other}<" in table] == [name]
