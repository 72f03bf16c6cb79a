"""What a network sees of a beat: from the past alone."""

from dataclasses import replace

import numpy as np
import pytest

from metaecg.data.beat_input import beat_forms, beat_inputs, number_names, running_mean
from metaecg.data.beats import BeatSet
from metaecg.data.rr import rr_features, rr_names
from metaecg.errors import DataError

FS_HZ, BEFORE_S, WINDOW_S = 125.0, 0.4, 0.8


def make_beats(n: int, *, odd: tuple[int, ...] = (), height: float = 1.0, rr_s=None) -> BeatSet:
    """Narrow beats of one height; those of `odd` are broad and turned over."""
    time_s = np.arange(round(WINDOW_S * FS_HZ)) / FS_HZ - BEFORE_S
    narrow, broad = np.exp(-((time_s / 0.02) ** 2)), -np.exp(-((time_s / 0.06) ** 2))
    windows = np.stack([broad if i in odd else narrow for i in range(n)])[:, None] * height
    peaks_s = np.cumsum(np.full(n, 0.8) if rr_s is None else rr_s)
    return BeatSet(
        windows=windows.astype(np.float32),
        labels=np.array([2 if i in odd else 0 for i in range(n)]),
        is_mixed=np.zeros(n, dtype=bool),
        subject_ids=np.full(n, "own/p"),
        record_ids=np.full(n, "own/p"),
        start_s=peaks_s - BEFORE_S,
        time_s=peaks_s - BEFORE_S,
        sample=np.round(peaks_s * FS_HZ).astype(np.int64),
        symbols=np.array(["V" if i in odd else "N" for i in range(n)]),
        rr=rr_features(peaks_s),
        rr_names=rr_names(),
        before_s=BEFORE_S,
        fs_hz=FS_HZ,
        window_s=WINDOW_S,
    )


def numbers_of(beats: BeatSet, name: str) -> np.ndarray:
    return beat_inputs(beats)[:, 1, number_names(beats.rr_names).index(name)]


def test_a_beat_depends_on_what_came_before_alone():
    beats = make_beats(40, odd=(5, 20, 33))
    whole = beat_inputs(beats)
    assert np.array_equal(beat_inputs(beats.select(np.arange(25))), whole[:25])


def test_a_patient_with_twice_the_amplitude_looks_the_same():
    small, large = (
        beat_inputs(make_beats(30, odd=(9,))),
        beat_inputs(make_beats(30, odd=(9,), height=2)),
    )
    assert np.allclose(small, large, atol=0.05)


def test_a_larger_beat_stays_larger_than_the_usual_one():
    beats = make_beats(30)
    windows = beats.windows.copy()
    windows[20] *= 2
    found = beat_inputs(replace(beats, windows=windows))
    assert np.ptp(found[20, 0]) == pytest.approx(2 * np.ptp(found[19, 0]))


def test_a_broad_beat_is_unlike_the_usual_one_and_broader():
    beats = make_beats(30, odd=(20,))
    likeness, width = numbers_of(beats, "likeness"), numbers_of(beats, "width_to_usual")
    assert likeness[20] < 0 < likeness[19]
    assert width[20] > 1 > width[19]


def test_premature_beats_hardly_move_the_usual_beat():
    """Every second beat is broad and early: the usual beat stays the narrow one."""
    rr_s = np.where(np.arange(60) % 2, 0.5, 1.1)
    beats = make_beats(
        60, odd=tuple(range(21, 60, 2)), rr_s=np.where(np.arange(60) < 20, 0.8, rr_s)
    )
    likeness = numbers_of(beats, "likeness")
    assert (likeness[22::2] > 1.5).all()
    assert (likeness[21::2] < 0).all()


def test_the_running_mean_fades():
    values = np.concatenate([np.zeros(100), np.ones(100)])
    found = running_mean(values, np.ones(200), n_memory=10)
    assert found[100] == 0.0
    assert found[110] == pytest.approx(1 - 0.9**10)


def test_like_beats_have_like_forms():
    beats = make_beats(12, odd=(6, 9))
    forms = beat_forms(beat_inputs(beats), beats)
    near = np.linalg.norm(forms[6] - forms[9])
    assert near < 0.5 * np.linalg.norm(forms[6] - forms[8])


def test_no_beat_gives_no_input():
    assert beat_inputs(make_beats(2).select(np.zeros(0, dtype=int))).shape == (0, 2, 100)


def test_the_inputs_of_a_lead_are_those_of_that_lead_alone():
    beats = make_beats(9)
    second = replace(beats, windows=beats.windows[:, :, ::-1].copy())
    both = replace(beats, windows=np.concatenate([beats.windows, second.windows], axis=1))
    assert np.array_equal(beat_inputs(both), beat_inputs(beats))
    assert np.array_equal(beat_inputs(both, lead=1), beat_inputs(second))
    assert not np.array_equal(beat_inputs(both, lead=1), beat_inputs(beats))


def test_a_lead_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="lead is 1; the beats have 1 leads"):
        beat_inputs(make_beats(3), lead=1)


def test_beats_out_of_order_are_refused():
    with pytest.raises(DataError, match="not in the order of time"):
        beat_inputs(make_beats(4).select(np.array([0, 2, 1, 3])))
