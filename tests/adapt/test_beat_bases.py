"""A base for beats takes rows of `beat_inputs`, and nothing that only has their shape."""

import numpy as np
import pytest

from metaecg import load_base
from metaecg.adapt.guard import GuardedPersonalizer
from metaecg.adapt.personalize import Personalizer
from metaecg.data.records import Record
from metaecg.errors import DataError


@pytest.fixture(scope="module")
def veb():
    return load_base("veb-base")


def two_leads() -> Record:
    time_s = np.arange(60 * 360) / 360
    beat = np.exp(-(((time_s % 0.8 - 0.4) / 0.02) ** 2))
    return Record(
        record_id="r",
        subject_id="s",
        fs_hz=360.0,
        lead_names=("MLII", "V1"),
        signal_mv=np.stack([beat, 0.5 * beat]).astype(np.float32),
    )


def rows(n: int, *, behind: float = 0.0) -> np.ndarray:
    """Rows of `beat_inputs`, with `behind` where the numbers end."""
    found = np.zeros((n, 2, 219), np.float32)
    found[:, 0] = np.sin(np.linspace(0, 9, 219))
    found[:, 1, :15] = 0.5
    found[-1, 1, 15:] = behind
    return found


def test_a_recording_with_two_leads_is_not_taken_for_a_signal_and_its_numbers(veb):
    marks = [(2.0, 12.0, "V"), (20.0, 40.0, "other")]
    with pytest.raises(DataError, match="base judges beats.*cut_beats.*beat_inputs"):
        Personalizer(veb, method="head").fit_record(two_leads(), marks)


@pytest.mark.parametrize("use", ["base", "fit", "guard", "predict"])
def test_a_second_lead_in_the_place_of_the_numbers_is_refused(veb, use):
    good, bad, labels = rows(4), rows(4, behind=0.1), ["V", "V", "other", "other"]
    fitted = Personalizer(veb, method="head", n_steps=0).fit(good, labels)
    calls = {
        "base": lambda: veb.logits(bad),
        "fit": lambda: Personalizer(veb, method="head").fit(bad, labels),
        "guard": lambda: GuardedPersonalizer(fitted).fit(bad, labels),
        "predict": lambda: fitted.predict(bad),
    }
    with pytest.raises(DataError, match=r"windows\[3\].*15 numbers.*zero behind.*beat_inputs"):
        calls[use]()


def test_the_shape_is_told_in_the_words_of_beats(veb):
    with pytest.raises(DataError, match=r"\(3, 1, 219\).*\(n_beats, 2, 219\).*beat_inputs"):
        veb.logits(np.zeros((3, 1, 219), np.float32))
    with pytest.raises(DataError, match=r"\(3, 1, 219\).*\(n_beats, 2, 219\).*beat_inputs"):
        Personalizer(veb).fit(np.zeros((3, 1, 219), np.float32), ["V", "V", "other"])
