"""Rhythm marks and brackets become VA; symbols become AAMI classes."""

from collections import Counter

import numpy as np
import pytest

from metaecg.data.labels import (
    AAMI_CLASSES,
    AAMI_OF_SYMBOL,
    DS1,
    DS2,
    PACED,
    VA_RHYTHMS,
    beat_labels,
    covered_fraction,
    va_intervals,
)
from metaecg.data.preprocessing import Preprocessing
from metaecg.data.records import read_record
from metaecg.data.windows import cut_windows
from metaecg.errors import DataError

FS = 250


def at(*marks):
    """Marks given in seconds, as samples: ``at((4, "(VT"), (9, "["))``."""
    return [
        (round(s * FS), text if text in "[]N" else "+", "" if text in "[]N" else text)
        for s, text in marks
    ]


@pytest.fixture
def intervals(make_record):
    def label(*marks, seconds=20):
        return va_intervals(make_record(np.zeros((1, seconds * FS)), marks=at(*marks)))

    return label


@pytest.fixture
def windows(make_record):
    """Cut a made recording; return (start_s, label, is_mixed) of each window and the info."""

    def cut(*marks, seconds=20):
        noise = np.random.default_rng(0).normal(size=(1, seconds * FS))
        found, info = cut_windows(make_record(noise, marks=at(*marks)), Preprocessing())
        rows = zip(
            found.start_s.tolist(), found.labels.tolist(), found.is_mixed.tolist(), strict=True
        )
        return list(rows), info

    return cut


def test_a_rhythm_holds_until_the_next_rhythm_mark(intervals):
    found = intervals((0, "(N"), (4, "(VT"), (5, "N"), (9, "(N"), (12, "(VFL"), (15, "(AFIB"))
    assert found.va == ((4.0, 9.0), (12.0, 15.0))


def test_the_last_rhythm_holds_to_the_end(intervals):
    assert intervals((0, "(N"), (16, "(VT")).va == ((16.0, 20.0),)


@pytest.mark.parametrize("rhythm", ["(VT", "(VF", "(VFIB", "(VFL"])
def test_every_spelling_of_va_counts(intervals, rhythm):
    assert intervals((0, "(N"), (4, rhythm), (8, "(NSR")).va == ((4.0, 8.0),)
    assert rhythm in VA_RHYTHMS


@pytest.mark.parametrize("rhythm", ["(N", "(NSR", "(AFIB", "(B", "(SVTA", "(HGEA", "(PM", "(V"])
def test_no_other_rhythm_counts_as_va_or_is_excluded(intervals, rhythm):
    found = intervals((0, rhythm))
    assert (found.va, found.excluded) == ((), ())


def test_brackets_hold_va_between_them(intervals):
    assert intervals((3, "["), (5, "N"), (8, "]"), (11, "["), (12, "]")).va == (
        (3.0, 8.0),
        (11.0, 12.0),
    )


def test_an_unpaired_opening_bracket_lasts_to_the_end(intervals):
    assert intervals((3, "["), (8, "]"), (11, "[")).va == ((3.0, 8.0), (11.0, 20.0))


def test_a_closing_bracket_alone_means_nothing(intervals):
    assert intervals((3, "]"), (8, "N")).va == ()


def test_a_second_opening_bracket_does_not_end_the_first(intervals):
    assert intervals((3, "["), (5, "["), (8, "]")).va == ((3.0, 8.0),)


def test_brackets_and_rhythm_marks_that_overlap_or_touch_are_one_stretch(intervals):
    assert intervals((0, "(N"), (3, "(VFL"), (4, "["), (6, "(N"), (8, "]")).va == ((3.0, 8.0),)
    assert intervals((3, "(VT"), (6, "(VFIB"), (9, "(N")).va == ((3.0, 9.0),)


def test_brackets_inside_a_rhythm_of_va_do_not_shorten_it(intervals):
    assert intervals((0, "(N"), (3, "(VFL"), (4, "["), (6, "]"), (9, "(N")).va == ((3.0, 9.0),)


def test_noise_and_asystole_are_excluded(intervals):
    found = intervals((0, "(N"), (2, "(NOISE"), (4, "(N"), (10, "(ASYS"), (13, "(VT"))
    assert found.excluded == ((2.0, 4.0), (10.0, 13.0))
    assert found.va == ((13.0, 20.0),)


def test_a_mark_of_a_rhythm_without_a_text_changes_nothing(make_record):
    marks = [(0, "+", "(VT"), (500, "+", ""), (1000, "+", "(N")]
    assert va_intervals(make_record(np.zeros((1, 2000)), marks=marks)).va == ((0.0, 4.0),)


def test_a_record_read_without_annotations_is_refused(write_record):
    record = read_record(write_record(np.zeros(100)), annotations=False)
    with pytest.raises(DataError, match="'own/r1' was read without annotations; read it with"):
        va_intervals(record)


def test_the_covered_fraction_adds_up_over_intervals():
    found = covered_fraction(
        ((1.0, 1.5), (1.75, 9.0)), np.array([0.0, 2.0, 8.0, 10.0]), window_s=2.0
    )
    np.testing.assert_allclose(found, [0.375, 1.0, 0.5, 0.0])


# From intervals to labels of windows


@pytest.mark.parametrize(
    ("start_s", "label"), [(4.0, 1), (4.996, 1), (5.0, 1), (5.004, 0), (5.9, 0)]
)
def test_va_over_at_least_half_of_a_window_makes_it_va(windows, start_s, label):
    rows, _ = windows((0, "(N"), (start_s, "(VT"))
    assert rows[2] == (4.0, label, start_s != 4.0)


def test_a_window_that_touches_both_states_is_mixed_and_keeps_its_majority(windows):
    rows, _ = windows((0, "(N"), (4.5, "(VT"), (11.5, "(N"))
    assert [label for _, label, _ in rows] == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert [start for start, _, is_mixed in rows if is_mixed] == [4.0, 10.0]


def test_a_short_run_inside_one_window_is_mixed_whatever_its_majority(windows):
    rows, _ = windows((0, "(N"), (4.2, "(VT"), (4.6, "(N"), (8.2, "(VT"), (9.8, "(N"))
    assert [(start, label) for start, label, is_mixed in rows if is_mixed] == [(4.0, 0), (8.0, 1)]


def test_windows_that_touch_noise_or_asystole_are_left_out_and_counted(windows):
    rows, info = windows((0, "(N"), (4, "(NOISE"), (8, "(N"), (12.5, "(ASYS"), (12.6, "(VT"))
    assert [start for start, *_ in rows] == [0, 2, 8, 10, 14, 16, 18]
    assert info.excluded == {"gap": 0, "noise or asystole": 3}
    assert info.episodes == ((12.6, 20.0),)


@pytest.mark.real
@pytest.mark.parametrize("slug", ["mitdb", "vfdb", "cudb"])
def test_no_real_window_with_at_least_half_va_is_called_other(real_data, slug):
    for header in sorted((real_data / slug).glob("*.hea")):
        record = read_record(header)
        found, info = cut_windows(record, Preprocessing())
        state = np.zeros(record.n_samples + 1)
        for start_s, stop_s in info.episodes:
            state[round(start_s * record.fs_hz) : round(stop_s * record.fs_hz)] = 1
        n = round(2 * record.fs_hz)
        for start_s, label, is_mixed in zip(
            found.start_s, found.labels, found.is_mixed, strict=True
        ):
            share = state[round(start_s * record.fs_hz) :][:n].mean()
            assert (label == 1) == (share >= 0.5), (header.name, start_s, share)
            assert is_mixed == (0 < share < 1), (header.name, start_s, share)


@pytest.mark.real
def test_both_spellings_of_fibrillation_of_vfdb_are_va(real_data):
    notes = Counter()
    for header in (real_data / "vfdb").glob("*.hea"):
        record = read_record(header)
        marks = record.annotations
        va = va_intervals(record).va
        for sample, note in zip(marks.sample, marks.note, strict=True):
            if note in ("(VF", "(VFIB"):
                notes[note] += 1
                assert any(a <= sample / record.fs_hz < b for a, b in va), (header.name, sample)
    assert min(notes["(VF"], notes["(VFIB"]) > 0


# Beats


def test_every_symbol_has_the_class_of_ec57():
    table = {"N": "NLRBejn", "S": "AaJS", "V": "VEr", "F": "F", "Q": "/fQ?"}
    assert AAMI_OF_SYMBOL == {
        symbol: label for label, symbols in table.items() for symbol in symbols
    }
    assert tuple(table) == AAMI_CLASSES


def test_every_beat_of_wfdbs_table_has_a_class_and_nothing_else_has():
    """PhysioNet, "Annotations": the table of beat annotations; a flutter wave is in the other one."""
    assert set(AAMI_OF_SYMBOL) == set("NLRBAaJSVrFejnE/fQ?")


def test_beats_are_labelled_and_other_marks_left_out(make_record):
    marks = [
        (0, "+", "(N"),
        (5, "N", ""),
        (9, "~", ""),
        (12, "V", ""),
        (20, "A", ""),
        (25, "|", ""),
    ]
    sample, label = beat_labels(make_record(np.zeros((1, 500)), marks=marks).annotations)
    assert sample.tolist() == [5, 12, 20]
    assert label.tolist() == ["N", "V", "S"]


def test_de_chazals_halves_share_no_record_and_hold_all_but_the_paced():
    assert (len(DS1), len(DS2), set(DS1) & set(DS2)) == (22, 22, set())
    assert not set(PACED) & {*DS1, *DS2}


@pytest.mark.real
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (DS1, {"N": 45866, "S": 944, "V": 3788, "F": 415, "Q": 8}),
        (DS2, {"N": 44259, "S": 1837, "V": 3221, "F": 388, "Q": 7}),
    ],
    ids=["DS1", "DS2"],
)
def test_the_beats_of_de_chazals_halves_add_up_to_the_known_totals(real_data, names, expected):
    found = Counter()
    for name in names:
        found.update(beat_labels(read_record(real_data / "mitdb" / name).annotations)[1].tolist())
    assert found == expected
