"""Who is personalized for depends on the first beats in time alone; what a search missed stays visible."""

import json

import numpy as np
import pytest

from metaecg import load_base
from metaecg.data.beats import prepare_beats
from metaecg.data.demo import write_demo_database
from metaecg.data.splits import Split
from metaecg.evaluate.ec57 import method_figures
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_data import BeatSplit
from metaecg.experiments.veb_fewshot import main, refusals
from metaecg.experiments.veb_jobs import Job, predict_subject
from metaecg.experiments.veb_methods import METHODS
from metaecg.models.beat_detector import BeatDetector
from metaecg.tasks import beat_support

NAMES = "global labels active+zero-shot active+labels active+head active+head@later".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two patients with V enough, and one with two of them."""
    return write_demo_database(tmp_path_factory.mktemp("who"), n_subjects=3).parent


@pytest.fixture(scope="module")
def missed(data):
    """Return the answers on a patient whose V nobody finds: the search ends after four questions."""
    base = load_base("veb-base")
    cutting = BeatDetector(base).cutting
    test = prepare_beats(data, ["demo"], n_leads=2, only=["demo/demo01"], **cutting)
    split = BeatSplit(split=Split(name="one", train=(), test=("demo/demo01",)))
    job = Job(seed=0, split=split, methods={name: METHODS[name] for name in NAMES})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beat_support, "MAX_TOLD", 0.2)
        found = predict_subject(job, base, "demo/demo01", VebConfig(), test)
    return {p.method: p for p in found}


def test_a_subject_whose_v_the_search_does_not_find_stays_in_every_row(missed):
    assert list(missed) == NAMES
    assert missed["labels"].no_support == ""


def test_a_search_that_fails_has_the_bases_answer_and_its_questions_as_labels_spent(missed):
    base = missed["active+zero-shot"]
    for name in ("active+labels", "active+head"):
        answer = missed[name]
        assert np.array_equal(answer.probabilities, base.probabilities), name
        assert np.array_equal(answer.called, base.called), name
        assert answer.n_labels == len(missed["global"].labels) - len(answer.labels) > 0
        assert "V and" in answer.no_support and "among the 4 beats asked for" in answer.no_support
        assert not answer.is_refused
    assert base.no_support == ""


def test_a_search_that_fails_is_counted_and_said(missed):
    table = {name: method_figures([p], description="") for name, p in missed.items()}
    counts = {name: figures["n_no_support"] for name, figures in table.items()}
    assert [name for name, n in counts.items() if n] == [
        "active+labels",
        "active+head",
        "active+head@later",
    ]
    figures = table["active+head"]
    reason = figures["subjects"]["demo/demo01"]["no_support"]
    assert reason == missed["active+head"].no_support
    (line,) = refusals({"methods": {"active+head": figures}})
    assert line.startswith("no support: active+head for demo/demo01") and reason in line


def test_a_subject_that_can_not_be_personalized_for_has_its_own_reason(data, tmp_path):
    where = ("--data", str(data), "--databases", "demo", "--cache", str(tmp_path / "cache"))
    base = ("--base", "veb-base", "--methods", "labels", "tracking.enabled=false", "workers=1")
    assert main([*where, *base, "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["eligible"] == ["demo/demo01", "demo/demo02"]
    assert results["ineligible"] == {
        "demo/demo03": "subject 'demo/demo03' has 2 windows of class 'V'; the task needs 10. Label more "
        "windows or lower n_shots."
    }
