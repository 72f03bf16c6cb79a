"""From a recording with marks to a personal detector, on real ECG."""

import numpy as np
import pytest

from metaecg.adapt.personalize import Personalizer
from metaecg.data.labels import va_intervals
from metaecg.data.preprocessing import Preprocessing
from metaecg.data.records import read_record
from metaecg.data.windows import cut_windows, windows_from_marks
from metaecg.models.checkpoints import BaseModel
from metaecg.models.registry import build_network
from metaecg.seeding import torch_generator

CLASSES = ("other", "va")


def make_base() -> BaseModel:
    preprocessing = Preprocessing()
    network = build_network(
        "compact-cnn",
        n_leads=1,
        n_samples=preprocessing.n_samples,
        fs_hz=preprocessing.fs_hz,
        n_classes=2,
        generator=torch_generator(0, "base"),
    )
    return BaseModel(
        network=network,
        architecture="compact-cnn",
        n_leads=1,
        classes=CLASSES,
        preprocessing=preprocessing,
    )


def marks_of(record, *, n_windows: int) -> list[tuple[float, float, str]]:
    """Mark one long enough stretch of each class, as a person would."""
    va = next((a, b) for a, b in va_intervals(record).va if b - a >= 2 * n_windows)
    before = max(0.0, va[0] - 2 * n_windows - 2)
    return [
        (before, before + 2 * n_windows, "other"),
        (va[0], va[0] + 2 * n_windows, "va"),
    ]


@pytest.mark.real
@pytest.mark.parametrize("method", ["head", "lora"])
def test_marks_on_a_real_recording_give_a_detector_for_the_rest_of_it(real_data, method):
    record = read_record(real_data / "mitdb" / "207")
    base = make_base()
    marks = marks_of(record, n_windows=10)
    personal = Personalizer(base, method=method).fit_record(record, marks)
    assert personal.n_support_ == {"other": 10, "va": 10}
    windows, _ = cut_windows(record, base.preprocessing)
    later = windows.select(windows.start_s > marks[1][1] + 2)
    probability = personal.predict_proba(later.windows)[:, 1]
    on_va = probability[later.labels == 1].mean()
    assert on_va > probability[later.labels == 0].mean() + 0.2


@pytest.mark.real
def test_marks_and_arrays_give_the_same_detector(real_data):
    record = read_record(real_data / "mitdb" / "207")
    base, marks = make_base(), marks_of(record, n_windows=5)
    found = windows_from_marks(record, marks, base.preprocessing)
    by_record = Personalizer(base, method="head").fit_record(record, marks)
    by_array = Personalizer(base, method="head").fit(found.windows, found.labels)
    one, other = by_record.predict_proba(found.windows), by_array.predict_proba(found.windows)
    assert np.array_equal(one, other)
