"""The MLflow record: what is written, and that a store that fails never stops a run."""

import pytest

from metaecg.experiments.tracking import MLflowTracker, NoTracker, default_uri, make_tracker

SETTINGS = {"enabled": True, "experiment": "test", "name": "run"}


def test_a_switched_off_tracker_records_nothing(tmp_path):
    settings = {**SETTINGS, "enabled": False}
    tracker = make_tracker(**settings, uri=None, out=tmp_path / "out")
    assert isinstance(tracker, NoTracker)
    tracker.params({"a": 1})
    tracker.end()
    assert not list(tmp_path.iterdir())


def test_the_default_store_lies_beside_the_output_folder(tmp_path):
    assert default_uri(tmp_path / "runs" / "va") == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"


def test_the_environment_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    tracker = make_tracker(**SETTINGS, uri=None, out=tmp_path / "out")
    tracker.end()
    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_cannot_be_used_warns_once_and_the_run_goes_on(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    tracker = make_tracker(**SETTINGS, uri=f"sqlite:///{blocked}/mlflow.db", out=tmp_path / "out")
    tracker.params({"a": 1})
    tracker.metrics({"b": 1.0})
    tracker.end()
    text = capsys.readouterr().err
    assert text.count("warning:") == 1
    assert "the run goes on" in text


def test_a_store_that_stops_answering_is_reported_once(tmp_path, capsys):
    tracker = MLflowTracker(
        f"sqlite:///{tmp_path / 'a.db'}", experiment="t", out=tmp_path, name="n"
    )

    class Gone:
        def __getattr__(self, name):
            def fail(*arguments, **keywords):
                raise ConnectionError("connection refused")

            return fail

    tracker._client = Gone()
    tracker.params({"a": {"b": 1}})
    tracker.metrics({"c": 1.0, "d": None})
    tracker.end()
    text = capsys.readouterr().err
    assert text.count("connection refused") == 2  # the first failure, and the try to close the run


def test_nested_parameters_undefined_metrics_and_courses_are_recorded(tmp_path):
    tracker = make_tracker(**SETTINGS, uri=None, out=tmp_path / "out")
    tracker.params({"meta": {"inner_lr": 0.05, "nothing": {}}, "seeds": [0, 1]})
    tracker.metrics({"auc": 0.5, "undefined": None})
    tracker.history("training", [(0, {"loss": 2.0}), (20, {"loss": 1.0})])
    tracker.end()
    recorded = tracker._client.get_run(tracker.run_id)
    assert recorded.data.params == {
        "meta.inner_lr": "0.05",
        "meta.nothing": "{}",
        "seeds": "[0, 1]",
    }
    assert recorded.data.metrics["auc"] == 0.5
    assert "undefined" not in recorded.data.metrics
    course = tracker._client.get_metric_history(tracker.run_id, "training/loss")
    assert [(m.step, m.value) for m in course] == [(0, 2.0), (20, 1.0)]
    assert recorded.info.status == "FINISHED"


@pytest.mark.parametrize("name", ["params", "tags", "history", "metrics", "artifacts", "end"])
def test_the_tracker_that_records_nothing_has_every_method_of_the_other(name):
    assert callable(getattr(NoTracker, name))
    assert callable(getattr(MLflowTracker, name))
