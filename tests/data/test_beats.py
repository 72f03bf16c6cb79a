"""Beats: windows where the R peaks are, labels with their source, counts of what is not there."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metaecg.data import datasets
from metaecg.data.beats import UNMATCHED, BeatRecordInfo, BeatSet, cut_beats, prepare_beats
from metaecg.data.filtering import filter_segment
from metaecg.data.labels import AAMI_CLASSES, DS1, DS2, PACED
from metaecg.data.preprocessing import Preprocessing
from metaecg.data.records import read_record
from metaecg.data.rr import rr_features
from metaecg.data.windows import join
from metaecg.errors import DataError

FS_HZ = 250.0
AT_FS = Preprocessing(fs_hz=FS_HZ, window_s=0.8)
PLACES = np.arange(250, 10_000, 250)  # 39 beats, one a second


def signal_with_beats(places=PLACES, *, n_samples=10_000):
    signal = np.zeros(n_samples)
    signal[places] = 1.0
    return np.convolve(signal, np.hanning(15), mode="same")


@pytest.fixture
def record(make_record):
    """40 s with a beat every second: the tenth is V, the twentieth S, the others normal."""
    symbols = {2500: "V", 5000: "A"}
    marks = [(0, "+", "(N"), *((int(p), symbols.get(int(p), "L"), "") for p in PLACES)]
    return make_record(signal_with_beats(), marks=[*marks, (9990, "~", "")])


def test_a_window_lies_around_every_annotated_beat(record):
    beats, info = cut_beats(record, AT_FS, before_s=0.3)
    assert beats.windows.shape == (39, 1, 200)
    assert beats.windows.dtype == np.float32
    assert (beats.windows[:, 0].argmax(axis=1) == 75).all()  # 0.3 s at 250 Hz
    np.testing.assert_allclose(beats.r_peak_s, np.arange(1, 40))
    np.testing.assert_array_equal(beats.sample, PLACES)
    assert (beats.before_s, round(beats.after_s, 9)) == (0.3, 0.5)
    assert info.excluded == {"edge": 0, "gap": 0}


def test_the_window_is_the_filtered_signal(record):
    beats, _ = cut_beats(record, AT_FS)
    filtered, start = filter_segment(record.signal_mv, start=0, fs_hz=FS_HZ, preprocessing=AT_FS)
    first = PLACES[7] - 75 - start
    np.testing.assert_array_equal(beats.windows[7], filtered[:, first : first + 200])


@pytest.mark.parametrize("r_peaks", ["annotated", PLACES])
def test_of_two_beat_marks_on_one_sample_the_first_counts(make_record, r_peaks):
    """The second V at 10 s and the A at 20 s stand where a beat stands already."""
    marks = [(int(p), "V" if p == 2500 else "N", "") for p in PLACES]
    marks = sorted([*marks, (2500, "V", ""), (5000, "A", "")], key=lambda mark: mark[0])
    beats, info = cut_beats(make_record(signal_with_beats(), marks=marks), AT_FS, r_peaks=r_peaks)
    assert "".join(beats.letters) == "N" * 9 + "V" + "N" * 29
    assert info.annotated == {"N": 38, "S": 0, "V": 1, "F": 0, "Q": 0}
    assert (info.n_doubles, sum(info.missed.values())) == (2, 0)
    assert BeatRecordInfo.from_dict(info.to_dict()) == info


def test_labels_come_from_symbols_and_keep_them(record):
    beats, info = cut_beats(record, AT_FS)
    assert beats.classes == AAMI_CLASSES
    assert "".join(beats.letters) == "N" * 9 + "V" + "N" * 9 + "S" + "N" * 19
    assert [beats.symbols[i] for i in (0, 9, 19)] == ["L", "V", "A"]
    assert (beats.count("N"), beats.count("V"), beats.count("Q")) == (37, 1, 0)
    assert info.annotated == {"N": 37, "S": 1, "V": 1, "F": 0, "Q": 0}
    assert set(info.missed.values()) == {0}


def test_rr_features_are_those_of_all_peaks(record):
    short = Preprocessing(fs_hz=FS_HZ, window_s=3.0)
    beats, info = cut_beats(record, short, before_s=1.5, use_next_rr=True)
    assert info.excluded["edge"] == 2
    expected = rr_features(PLACES / FS_HZ, use_next=True)
    np.testing.assert_array_equal(beats.rr, expected[1:-1])
    assert beats.rr.shape[1] == len(beats.rr_names) == 6
    assert cut_beats(record, short)[0].rr_names == beats.rr_names[:4]


def test_a_window_that_leaves_the_recording_is_left_out_and_its_beat_counts_as_missed(record):
    beats, info = cut_beats(record, Preprocessing(fs_hz=FS_HZ, window_s=2.0), before_s=1.1)
    assert beats.sample[0] == PLACES[1]
    assert info.excluded == {"edge": 1, "gap": 0}
    assert info.missed["N"] == 1


def test_a_window_with_an_unmeasured_sample_is_left_out_and_counted(record):
    signal_mv = record.signal_mv.copy()
    signal_mv[0, 2500 + 124] = np.nan  # the last sample of the V's window
    beats, info = cut_beats(replace(record, signal_mv=signal_mv), AT_FS)
    assert 2500 not in beats.sample and len(beats) == 38
    assert info.excluded == {"edge": 0, "gap": 1}
    assert info.missed == {"N": 0, "S": 0, "V": 1, "F": 0, "Q": 0}
    assert np.isfinite(beats.windows).all()


def test_detected_beats_take_the_label_of_the_annotated_one(record):
    beats, info = cut_beats(record, AT_FS, r_peaks="detected")
    assert "".join(beats.letters) == "N" * 9 + "V" + "N" * 9 + "S" + "N" * 19
    assert beats.symbols[9] == "V"
    assert set(info.missed.values()) == {0}


def test_a_detection_without_an_annotated_beat_is_marked(make_record):
    marks = [(0, "+", "(N"), *((int(p), "N", "") for p in PLACES if p != 5000)]
    beats, info = cut_beats(make_record(signal_with_beats(), marks=marks), r_peaks="detected")
    where = int(np.flatnonzero(np.abs(beats.sample - 5000) < 5)[0])
    assert beats.labels[where] == UNMATCHED
    assert (beats.letters[where], beats.symbols[where]) == ("", "")
    assert len(beats.labelled()) == len(beats) - 1 == 38
    assert info.missed["N"] == 0


def test_an_annotated_beat_that_is_not_detected_is_missed(record):
    signal_mv = signal_with_beats(PLACES[PLACES != 2500])[None].astype(np.float32)
    _, info = cut_beats(replace(record, signal_mv=signal_mv), r_peaks="detected")
    assert info.missed == {"N": 0, "S": 0, "V": 1, "F": 0, "Q": 0}


def test_detection_needs_no_annotations(record):
    beats, info = cut_beats(replace(record, annotations=None), r_peaks="detected")
    assert len(beats) == 39
    assert (beats.labels == UNMATCHED).all()
    assert (info.annotated, info.missed, info.episodes) == ({}, {}, ())


def test_marks_of_a_database_without_kinds_of_beats_give_no_labels(record):
    cudb = replace(record, database="cudb")
    assert (cut_beats(cudb, r_peaks="detected")[0].labels == UNMATCHED).all()
    with pytest.raises(DataError, match="'own/s1' has no annotated beats by kind"):
        cut_beats(cudb)


def test_positions_can_be_given(record):
    moved = PLACES[5:8] + 20
    beats, info = cut_beats(record, AT_FS, r_peaks=moved)
    np.testing.assert_array_equal(beats.sample, moved)
    assert "".join(beats.letters) == "NNN"
    assert info.missed["N"] == 34


@pytest.mark.parametrize(
    ("peaks", "message"),
    [
        (np.array([1.0, 2.0]), "type float64; expected samples"),
        (np.array([[1, 2]]), r"shape \(1, 2\)"),
        (np.array([5, 10_000]), "from 5 to 10000; expected samples of record 'own/s1', 0 to 9999"),
        (np.array([500, 400]), "expected strictly increasing"),
    ],
)
def test_impossible_positions_are_refused(record, peaks, message):
    with pytest.raises(DataError, match=message):
        cut_beats(record, r_peaks=peaks)


def test_impossible_options_are_refused(record):
    with pytest.raises(ValueError, match="r_peaks is 'anotated'.*Did you mean 'annotated'"):
        cut_beats(record, r_peaks="anotated")
    with pytest.raises(ValueError, match="before_s is 0.75; expected .* below the window's 0.75 s"):
        cut_beats(record, before_s=0.75)


def test_all_leads_of_a_record_are_cut(record):
    two = replace(record, signal_mv=np.repeat(record.signal_mv, 2, axis=0), lead_names=("II", "V1"))
    beats, info = cut_beats(two, AT_FS)
    assert beats.windows.shape == (39, 2, 200)
    assert info.lead_names == ("II", "V1")


def test_selecting_and_joining_keep_every_column_in_line(record):
    beats, _ = cut_beats(record, AT_FS)
    both = join([beats.select(np.array([9])), beats.select(np.array([19, 0]))])
    assert isinstance(both, BeatSet)
    assert both.symbols.tolist() == ["V", "A", "L"]
    assert both.sample.tolist() == [2500, 5000, 250]
    assert "".join(both.letters) == "VSN"
    assert len({len(getattr(both, name)) for name in both.columns}) == 1


# Whole databases


@pytest.fixture
def root(write_record):
    """Two recordings in ``own``, and two of mitdb, of which 102 has paced beats."""
    for folder, name, fs_hz in (("own", "a", 250), ("own", "b", 250), ("mitdb", "100", 360),
                                ("mitdb", "102", 360)):  # fmt: skip
        digital = (200 * signal_with_beats()).round()
        marks = [(0, "+", "(N"), *((int(p), "V" if p == 2500 else "N", "") for p in PLACES)]
        path = write_record(
            digital, name=name, folder=folder, fs_hz=fs_hz, leads=["MLII"], marks=marks
        )
    return path.parent.parent


def same(a, b):
    for name in a.windows.columns:
        x, y = getattr(a.windows, name), getattr(b.windows, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, name)
    assert a.records == b.records
    facts = ("classes", "rr_names", "before_s", "window_s", "fs_hz")
    assert all(getattr(a.windows, f) == getattr(b.windows, f) for f in facts)
    return a.manifest_sha256 == b.manifest_sha256


@pytest.mark.parametrize("options", [{}, {"r_peaks": "detected", "use_next_rr": True}])
def test_from_the_cache_comes_the_same_as_without_one(root, tmp_path, monkeypatch, options):
    plain = prepare_beats(root, ["own"], **options)
    first = prepare_beats(root, ["own"], cache_root=tmp_path / "cache", **options)
    monkeypatch.setattr(datasets, "read_record", lambda *a, **b: pytest.fail("a signal was read"))
    again = prepare_beats(root, ["own"], cache_root=tmp_path / "cache", **options)
    assert same(plain, first) and same(plain, again)
    assert isinstance(again.windows, BeatSet) and isinstance(again.windows.windows, np.memmap)


def test_every_option_has_an_entry_of_its_own_and_windows_do_too(root, tmp_path):
    def entries():
        return len(list((tmp_path / "cache" / "windows").iterdir()))

    options = [{}, {"r_peaks": "detected"}, {"before_s": 0.2}, {"n_leads": 2}]
    for n_before, given in enumerate(options):
        prepare_beats(root, ["own"], cache_root=tmp_path / "cache", **given)
        assert entries() == n_before + 1
    prepare_beats(root, ["own"], AT_FS, cache_root=tmp_path / "cache")
    datasets.prepare(root, ["own"], AT_FS, cache_root=tmp_path / "cache")
    assert entries() == 6


def test_one_lead_alone_stands_for_two(root):
    one, two = prepare_beats(root, ["own"]), prepare_beats(root, ["own"], n_leads=2)
    assert np.array_equal(two.windows.windows, np.repeat(one.windows.windows, 2, axis=1))
    assert np.array_equal(two.windows.rr, one.windows.rr)


@pytest.mark.real
def test_the_second_lead_is_cut_beside_the_preferred_one(real_data):
    one = prepare_beats(real_data, ["mitdb"], only=["mitdb/114"]).windows
    two = prepare_beats(real_data, ["mitdb"], only=["mitdb/114"], n_leads=2).windows
    assert two.windows.shape == (len(one), 2, one.windows.shape[2])
    assert np.array_equal(two.windows[:, :1], one.windows)
    assert not np.allclose(two.windows[:, 1], one.windows[:, 0])


def test_paced_records_stay_closed(root):
    (root / "mitdb" / "102.dat").unlink()
    data = prepare_beats(root, ["mitdb"])
    assert data.subject_ids == ["mitdb/100"]
    assert {"mitdb/100.dat"} <= {f"mitdb/{name}" for r in data.records for name in r.checksums}


def test_only_the_subjects_named_are_prepared(root):
    assert prepare_beats(root, ["own"], only=["own/b"]).subject_ids == ["own/b"]
    with pytest.raises(DataError, match="only names 'own/c'"):
        prepare_beats(root, ["own"], only=["own/c"])
    with pytest.raises(DataError, match="every recording .* paced"):
        prepare_beats(root, ["mitdb"], only=["mitdb/102"])


def test_beats_of_a_subject_come_in_the_order_of_its_own_time(root):
    data = prepare_beats(root, ["own"])
    found = data.of_subject("own/b")
    assert (np.diff(found.time_s) > 0).all()
    assert found.sample.tolist() == PLACES.tolist()


# Real recordings


@pytest.fixture(scope="module")
def mitdb(real_data):
    return prepare_beats(real_data, ["mitdb"])


@pytest.mark.real
@pytest.mark.parametrize(
    ("names", "annotated", "missed"),
    [
        (DS1, {"N": 45866, "S": 944, "V": 3788, "F": 415, "Q": 8}, {"N": 20, "F": 1}),
        (DS2, {"N": 44259, "S": 1837, "V": 3221, "F": 388, "Q": 7}, {"N": 20, "V": 1}),
    ],
    ids=["DS1", "DS2"],
)
def test_the_beats_of_de_chazals_halves_add_up(mitdb, names, annotated, missed):
    infos = [r for r in mitdb.records if r.record_id.removeprefix("mitdb/") in names]
    assert sum((Counter(r.annotated) for r in infos), Counter()) == annotated
    assert sum((Counter(r.missed) for r in infos), Counter()) == missed
    rows = np.isin(mitdb.windows.record_ids, [r.record_id for r in infos])
    assert Counter(mitdb.windows.letters[rows]) == Counter(annotated) - Counter(missed)


@pytest.mark.real
def test_every_record_of_the_protocol_has_mlii_and_the_paced_ones_are_left_out(mitdb):
    assert {r.lead_names for r in mitdb.records} == {("MLII",)}
    assert len(mitdb.records) == 44
    assert not {f"mitdb/{name}" for name in PACED} & set(mitdb.windows.record_ids)


@pytest.mark.real
def test_the_same_person_has_one_time_over_two_recordings(mitdb):
    found = mitdb.of_subject("mitdb/201")
    assert found.record_ids[0] == "mitdb/201" and found.record_ids[-1] == "mitdb/202"
    assert (np.diff(found.time_s) > 0).all()


@pytest.mark.real
def test_a_record_without_mlii_says_so(real_data):
    _, info = cut_beats(read_record(real_data / "mitdb" / "104"))
    assert info.lead_names == ("V5",)
