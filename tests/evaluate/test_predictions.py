"""Predictions: thresholds, mixed windows, and the way to disk and back."""

import json
import zipfile

import numpy as np
import pytest

from metaecg.errors import DataError
from metaecg.evaluate.predictions import Prediction, load_predictions, save_predictions

COLUMNS = ("record_ids", "start_s", "labels", "is_mixed", "probabilities")


def make_prediction(n=4, *, record_id="r1", seed=7, **facts) -> Prediction:
    rng = np.random.default_rng(seed)
    values = {
        "method": "maml+full",
        "seed": 3,
        "subject_id": "s-ä",
        "record_ids": np.full(n, record_id),
        "start_s": 2.0 * np.arange(n),
        "labels": (np.arange(n) % 2).astype(np.int64),
        "is_mixed": rng.random(n) < 0.5,
        "probabilities": rng.random(n),
    }
    return Prediction(**{**values, **facts})


def assert_same(found: Prediction, expected: Prediction) -> None:
    for name, value in expected.__dict__.items():
        mine = getattr(found, name)
        if name in COLUMNS:
            assert np.array_equal(mine, value), name
            assert mine.dtype.kind == np.asarray(value).dtype.kind, name
        else:
            assert mine == value and type(mine) is type(value), name


def test_predictions_come_back_from_disk_as_they_were(tmp_path):
    written = [
        make_prediction(4, threshold=0.25, adapt_seconds=1.5, n_trainable=12),
        make_prediction(7, method="zero-shot", record_id="a-longer-name", seed=8),
        make_prediction(0, subject_id="nothing-to-test"),
        make_prediction(2, is_one_class=True, seed=9),
    ]
    save_predictions(tmp_path / "predictions.npz", iter(written))
    found = load_predictions(tmp_path / "predictions.npz")
    assert len(found) == 4
    for one, expected in zip(found, written, strict=True):
        assert_same(one, expected)


def test_no_prediction_at_all_comes_back_as_none_at_all(tmp_path):
    save_predictions(tmp_path / "predictions.npz", [])
    assert load_predictions(tmp_path / "predictions.npz") == []


def test_nothing_is_pickled_even_where_record_ids_are_objects(tmp_path):
    path = tmp_path / "predictions.npz"
    as_objects = np.array(["r1", "r2", "r1"], dtype=object)
    save_predictions(path, [make_prediction(3, record_ids=as_objects)])
    with zipfile.ZipFile(path) as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())
    with np.load(path, allow_pickle=False) as stored:
        assert not any(stored[name].dtype.hasobject for name in stored.files)
        assert isinstance(json.loads(str(stored["facts"])), list)
    assert load_predictions(path)[0].record_ids.tolist() == ["r1", "r2", "r1"]


def test_the_file_has_the_name_that_was_asked_for(tmp_path):
    save_predictions(tmp_path / "predictions.part", [make_prediction()])
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.part"]


def test_a_pickled_file_is_not_opened(tmp_path):
    path = tmp_path / "predictions.npz"
    columns = {name: np.array([{"a": 1}], dtype=object) for name in COLUMNS}
    np.savez(path, facts=np.array("[]"), **columns)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_predictions(path)


def test_a_window_at_the_threshold_of_its_prediction_is_flagged():
    probabilities = np.array([0.1, 0.3, 0.5, 0.7])
    assert make_prediction(4, probabilities=probabilities).flagged.tolist() == [0, 0, 1, 1]
    strict = make_prediction(4, probabilities=probabilities, threshold=0.7)
    assert strict.flagged.tolist() == [False, False, False, True]


def test_without_mixed_windows_every_column_loses_the_same_rows_and_the_rest_stays():
    mixed = np.array([False, True, True, False])
    whole = make_prediction(4, is_mixed=mixed, threshold=0.3, n_trainable=5)
    clean = whole.without_mixed()
    for name in COLUMNS:
        assert np.array_equal(getattr(clean, name), getattr(whole, name)[[0, 3]]), name
    assert (clean.threshold, clean.n_trainable, clean.seed) == (0.3, 5, 3)
    assert len(whole.labels) == 4


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_that_do_not_line_up_are_refused(column):
    with pytest.raises(DataError, match=f"'s-ä' has columns of different lengths.*'{column}': 5"):
        make_prediction(4, **{column: np.zeros(5)})
