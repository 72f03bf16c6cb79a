"""A recording in which nothing was detected counts with every beat that it has."""

from dataclasses import replace

import numpy as np
import pytest
import wfdb

from metaecg import load_base
from metaecg.data.beats import UNMATCHED, prepare_beats
from metaecg.data.demo import write_demo_database
from metaecg.data.splits import Split
from metaecg.evaluate.ec57 import method_figures
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_data import BeatSplit
from metaecg.experiments.veb_fewshot import main
from metaecg.experiments.veb_jobs import Job, predict_subject
from metaecg.experiments.veb_methods import METHODS
from metaecg.models.beat_detector import BeatDetector

SUBJECT = "demo/demo01"


@pytest.fixture(scope="module")
def base():
    return load_base("veb-base")


@pytest.fixture(scope="module")
def found(base, tmp_path_factory):
    """Two patients with V."""
    data = write_demo_database(tmp_path_factory.mktemp("missed"), n_subjects=2).parent
    return prepare_beats(data, ["demo"], n_leads=2, **BeatDetector(base).cutting)


def without_detections(dataset, record_id: str, *, subject_id: str):
    """Return `dataset` with nothing detected in a recording, which is then one of `subject_id`."""
    records = tuple(
        replace(r, subject_id=subject_id, missed=r.annotated) if r.record_id == record_id else r
        for r in dataset.records
    )
    rows = np.flatnonzero(dataset.windows.record_ids != record_id)
    return replace(dataset, windows=dataset.windows.select(rows), records=records)


def predict(base, dataset, *, methods=("global",), records=None):
    split = BeatSplit(split=Split(name="one", train=(), test=(SUBJECT,)), records=records or {})
    job = Job(seed=0, split=split, methods={name: METHODS[name] for name in methods})
    return predict_subject(job, base, SUBJECT, VebConfig(), dataset)


def test_a_subject_without_a_detected_beat_misses_all_of_its_v(base, found):
    silent = without_detections(found, SUBJECT, subject_id=SUBJECT)
    annotated = next(r.annotated for r in silent.records if r.record_id == SUBJECT)
    (answer,) = predict(base, silent, methods=("global", "labels"))
    figures = method_figures([answer], description="")
    assert (answer.method, len(answer.labels)) == ("global", 0)
    assert figures["veb"]["fn"] == annotated["V"] > 0
    assert figures["veb"]["sensitivity"] == 0.0


def test_a_silent_recording_of_a_subject_counts_beside_its_others(base, found):
    other = "demo/demo02"
    (answer,) = predict(base, without_detections(found, other, subject_id=SUBJECT))
    assert answer.n_missed[other]["V"] > 0
    assert set(method_figures([answer], description="")["ec57"]["records"]) == {SUBJECT, other}


def test_a_recording_that_the_split_leaves_out_is_not_missed(base, found):
    silent = without_detections(found, "demo/demo02", subject_id=SUBJECT)
    records = {SUBJECT: {"support": [SUBJECT], "test": [SUBJECT]}}
    (answer,) = predict(base, silent, records=records)
    assert set(answer.n_missed) == {SUBJECT}


def test_a_beat_that_no_annotated_one_stands_for_is_no_true_n(base, found):
    """Of the first ten beats nobody has said anything: they count as false detections."""
    rows = np.flatnonzero(found.windows.subject_ids == SUBJECT)[:10]
    labels = found.windows.labels.copy()
    labels[rows] = UNMATCHED
    unknown = replace(found, windows=replace(found.windows, labels=labels))
    (answer,) = predict(base, unknown)
    assert set(answer.letters[:10]) == {"O"} and "O" not in answer.letters[10:]
    assert not answer.labels[:10].any() and not answer.is_mixed[:10].any()


def test_recordings_without_any_beat_give_no_figures(tmp_path, capsys):
    """A minute of nothing, in which nobody has marked a beat either."""
    own = tmp_path / "data" / "own"
    own.mkdir(parents=True)
    facts = {"fs": 250, "units": ["mV"], "sig_name": ["MLII"], "fmt": ["16"], "write_dir": str(own)}
    wfdb.wrsamp("a", p_signal=np.zeros((15_000, 1)), adc_gain=[200.0], baseline=[0], **facts)
    wfdb.wrann("a", "atr", np.array([1]), ["+"], aux_note=["(N"], write_dir=str(own))
    places = ["--data", str(own.parent), "--databases", "own", "--out", str(tmp_path / "out")]
    places += ["--cache", str(tmp_path / "cache"), "tracking.enabled=false", "workers=1"]
    assert (
        main(["--base", "veb-base", "--r-peaks", "detected", "--methods", "global", *places]) == 3
    )
    assert "no test subject has a beat" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
