"""The page is one whole, safe file that holds what the table holds."""

import html
import json
import re

import pytest
from made_runs import AUCS, SUBJECTS, figures_of, make_run, shifted

from metaecg.experiments.compare import compare
from metaecg.experiments.compare_page import render_page, write_page
from metaecg.experiments.compare_plots import forest_figure, importance_figure, scatter_figure

NASTY = "<script>alert('x')</script>"
GAINS = (0.02, 0.01, 0.03, 0.005, 0.02, 0.01, 0.025, 0.0)


@pytest.fixture
def comparison(tmp_path) -> dict:
    """Three methods of one run, the second better for seven of eight subjects, one unknown."""
    gains = shifted(GAINS)
    table = {
        "head": figures_of({**AUCS}),
        "maml+full": figures_of(gains),
        "scratch": figures_of({**shifted(-0.1), SUBJECTS[3]: None}),
    }
    run = make_run(tmp_path / "a", methods=table)
    return compare([str(run)], methods=["head", "maml+full", "scratch"])


def without_plotly(page: str) -> str:
    """Return the page but for Plotly's own script, which is megabytes of somebody else's text."""
    scripts = re.findall(r"<script>.*?</script>", page, flags=re.S)
    return page.replace(max(scripts, key=len), "")


def test_the_page_holds_the_table_the_verdicts_and_every_subject(comparison):
    text = html.unescape(without_plotly(render_page(comparison)))
    for row in comparison["rows"][1:]:
        low, high = row["difference"]["ci95"]
        assert f"[{low:+.3f}, {high:+.3f}]" in text
        assert f">{row['difference']['words']}</td>" in text
    for subject in SUBJECTS:
        assert f'<th scope="row">{subject}</th>' in text
    assert "1 subjects left out of the difference" in text


def test_nothing_is_fetched_and_the_page_forbids_it(comparison):
    page = render_page(comparison)
    assert "default-src 'none'" in page
    rest = without_plotly(page)
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?://""", rest)


def test_text_from_runs_cannot_become_markup(comparison):
    rows = [{**row, "label": f"{row['label']}{NASTY}"} for row in comparison["rows"]]
    nasty = {
        **comparison,
        "rows": rows,
        "reference": NASTY,
        "notes": [NASTY],
        "parameters": {NASTY: {NASTY: NASTY, "b": 1}},
        "studies": [study(study=NASTY, source=NASTY, objective=[NASTY])],
    }
    page = without_plotly(render_page(nasty))
    assert "<script>alert" not in page and "alert(&#39;x&#39;)" in page


def study(**changes) -> dict:
    course = [{"number": i, "value": v, "best": b} for i, (v, b) in enumerate([(1, 1), (0, 1)])]
    facts = {"study": "va", "source": "tune", "objective": ["auc"], "directions": ["maximize"]}
    facts |= {"n_trials": 3, "states": {"complete": 2, "failed": 1}, "course": course}
    return {**facts, "importance": {"rate": 1.0}, "importance_note": None, **changes}


def test_a_study_is_shown_with_its_course_and_what_mattered(comparison):
    page = without_plotly(render_page({**comparison, "studies": [study()]}))
    assert "Study va" in page and "2 complete, 1 failed" in page
    assert 'id="course-0"' in page and 'id="importance-0"' in page
    few = study(importance=None, importance_note="2 complete trials", course=[])
    page = without_plotly(render_page({**comparison, "studies": [few]}))
    assert "No trial is complete." in page
    assert "No importance of the parameters: 2 complete trials." in page


def test_a_dot_names_its_subject_and_its_colour_says_who_gained(comparison):
    figure = scatter_figure(comparison, comparison["rows"][1])
    dots = {name.split(" ")[0]: trace for trace in figure.data if (name := trace.name)}
    assert sorted(dots) == ["better", "equal"]
    assert list(dots["better"].text) == list(SUBJECTS[:7])
    assert list(dots["better"].x) == [AUCS[s] for s in SUBJECTS[:7]]
    assert list(dots["equal"].text) == [SUBJECTS[7]]
    diagonal = figure.data[0]
    assert list(diagonal.x) == list(diagonal.y) == list(figure.layout.xaxis.range)


def test_a_subject_with_an_undefined_figure_has_no_dot(comparison):
    figure = scatter_figure(comparison, comparison["rows"][2])
    shown = [text for trace in figure.data for text in trace.text or ()]
    assert sorted(shown) == sorted(set(SUBJECTS) - {SUBJECTS[3]})


def test_fewer_false_alarms_are_drawn_as_better(comparison):
    rows = [{**row, "subjects": {"s1": value}} for row, value in zip(comparison["rows"], (9.0, 2.0, 9.0), strict=True)]  # fmt: skip
    changed = {**comparison, "rows": rows, "metric": "false_alarms_per_hour"}
    figure = scatter_figure({**changed, "higher_is_better": False}, rows[1])
    assert [trace.name for trace in figure.data if trace.name] == ["better (1)"]


def test_the_forest_has_an_interval_per_row_and_two_long_names_stay_two_rows(comparison):
    """Both are shortened alike; their places are not their names."""
    long = "a run with a very long name that is shortened"
    rows = [{**row, "label": f"{long}{i}{long}"} for i, row in enumerate(comparison["rows"])]
    figure = forest_figure({**comparison, "rows": rows}, note="demo data")
    assert len(set(figure.layout.yaxis.ticktext)) == 1
    assert sorted(y for trace in figure.data for y in trace.y) == [0, 1]
    ends = {
        (trace.x[0] - trace.error_x.arrayminus[0], trace.x[0] + trace.error_x.array[0])
        for trace in figure.data
    }
    expected = {tuple(row["difference"]["ci95"]) for row in rows[1:]}
    assert {tuple(round(v, 9) for v in end) for end in ends} == {
        tuple(round(v, 9) for v in end) for end in expected
    }
    assert "demo data" in figure.layout.title.text


def test_the_most_important_parameters_stand_on_top_and_the_rest_is_left_out():
    shares = {f"p{i:02d}": i / 300 for i in range(25)}
    (bar,) = importance_figure(study(importance=shares)).data
    assert list(bar.y)[-1] == "p24" and len(bar.y) == 15


def test_demo_data_and_a_caveat_stand_at_every_table_and_in_every_picture(comparison):
    demo = {**comparison, "data": "demo data", "caveat": "optimistic"}
    page = without_plotly(render_page(demo))
    assert "DEMO DATA" in page
    for caption in re.findall(r"<caption>.*?</caption>", page, flags=re.S)[:2]:
        assert "demo data" in caption and "optimistic" in caption
    pictures = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    titles = [json.loads(each)["layout"]["title"]["text"] for each in pictures]
    assert len(titles) == 3
    assert all("demo data, optimistic" in title for title in titles)


def test_the_page_appears_whole_in_a_folder_that_is_made(comparison, tmp_path):
    path = write_page(tmp_path / "new" / "x.html", comparison)
    assert path.read_text().rstrip().endswith("</html>")
    assert [each.name for each in path.parent.iterdir()] == ["x.html"]
