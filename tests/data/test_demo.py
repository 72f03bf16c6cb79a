"""The generated patients: real WFDB files, enough arrhythmia where promised, safe to rewrite."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import wfdb

from metaecg.data.demo import _is_current, write_demo_database
from metaecg.data.demo_patients import CAST, FS_HZ, MIN_DURATION_S, generate_patient
from metaecg.errors import DataError

VA = ("VT", "VF", "VFL")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return write_demo_database(tmp_path_factory.mktemp("cache") / "new")


def count_windows(segments, start_s, stop_s):
    """Count two-second windows of each class by majority; noise counts as neither."""
    n_va = n_other = 0
    for begin in np.arange(start_s, stop_s - 2.0 + 1e-9, 2.0):
        shares = {"va": 0.0, "noise": 0.0}
        for s in segments:
            overlap = max(0.0, min(s.stop_s, begin + 2.0) - max(s.start_s, begin))
            key = "va" if s.rhythm in VA else "noise" if s.rhythm == "NOISE" else None
            if key:
                shares[key] += overlap
        n_va += shares["noise"] == 0 and shares["va"] >= 1.0
        n_other += shares["noise"] == 0 and shares["va"] < 1.0
    return n_va, n_other


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_default_patients_are_sixteen_readable_recordings(database):
    names = (database / "RECORDS").read_text().split()
    assert database.name == "demo"
    assert len(names) == len(set(names)) == 16
    for name in names:
        header = wfdb.rdheader(str(database / name))
        assert (header.fs, header.sig_len) == (250, 75_000)
        assert (header.sig_name, header.units) == (["ECG"], ["mV"])
        assert "not recorded from a person" in header.comments[0]


def test_the_files_hold_the_generated_signal_and_marks(database):
    patient = generate_patient(4, duration_s=300.0, seed=0)
    record = wfdb.rdrecord(str(database / "demo05"))
    notes = wfdb.rdann(str(database / "demo05"), "atr")
    np.testing.assert_allclose(record.p_signal[:, 0], patient.signal_mv, atol=0.0026)
    marks = [note.strip("\x00") for note in notes.aux_note if note.strip("\x00")]
    assert marks == [f"({segment.rhythm}" for segment in patient.segments]
    assert {"(N", "(VT", "(VF", "(NOISE"} <= set(marks)
    assert sum(symbol != "+" for symbol in notes.symbol) == len(patient.beats)


def test_every_kind_of_rhythm_occurs_among_the_patients():
    found = set()
    for index in range(16):
        patient = generate_patient(index, duration_s=300.0, seed=0)
        found |= {segment.rhythm for segment in patient.segments}
    assert found == {"N", "AFIB", "VT", "VF", "VFL", "NOISE"}


@pytest.mark.parametrize("duration_s", [MIN_DURATION_S, 300.0, 900.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_patients_with_arrhythmia_have_ten_windows_in_the_first_half_and_five_later(
    seed, duration_s
):
    for index, role in enumerate(CAST):
        segments = generate_patient(index, duration_s=duration_s, seed=seed).segments
        n_va, n_other = count_windows(segments, 0.0, duration_s / 2)
        later_va, later_other = count_windows(segments, duration_s / 2 + 2.0, duration_s)
        if role.va and not role.has_few_va:
            assert min(n_va, n_other) >= 10, (index, n_va, n_other)
            assert min(later_va, later_other) >= 5, (index, later_va, later_other)


def test_three_patients_have_no_arrhythmia_and_one_has_too_little():
    n_va = [
        count_windows(generate_patient(i, duration_s=300.0, seed=0).segments, 0.0, 300.0)[0]
        for i in range(16)
    ]
    assert n_va.count(0) == 3
    assert sum(0 < n <= 5 for n in n_va) == 1


@pytest.mark.parametrize("index", range(16))
def test_the_rhythms_follow_one_another_without_holes_and_episodes_last_5_to_40_s(index):
    segments = generate_patient(index, duration_s=300.0, seed=0).segments
    assert segments[0].start_s == 0.0
    assert segments[-1].stop_s == 300.0
    for before, after in zip(segments, segments[1:], strict=False):
        assert before.stop_s == after.start_s
        assert before.stop_s - before.start_s >= 2.9
    lengths = [s.stop_s - s.start_s for s in segments if s.rhythm in VA]
    assert all(5.0 <= length <= 40.0 for length in lengths)


def test_fibrillation_has_its_peak_between_3_and_7_hz():
    patient = generate_patient(2, duration_s=300.0, seed=0)
    episode = max(
        (s for s in patient.segments if s.rhythm == "VF"), key=lambda s: s.stop_s - s.start_s
    )
    wave = patient.signal_mv[round(episode.start_s * FS_HZ) : round(episode.stop_s * FS_HZ)]
    power = np.abs(np.fft.rfft(wave)) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / FS_HZ)
    band = frequency > 1.0
    assert 3.0 <= frequency[band][power[band].argmax()] <= 7.0


def test_ventricular_tachycardia_beats_are_ventricular_and_fast():
    patient = generate_patient(0, duration_s=300.0, seed=0)
    episode = next(s for s in patient.segments if s.rhythm == "VT")
    inside = [b for b in patient.beats if episode.start_s <= b[0] / FS_HZ < episode.stop_s]
    assert {symbol for _, symbol in inside} == {"V"}
    rates = 60.0 * FS_HZ / np.diff([sample for sample, _ in inside])
    assert 130 <= np.median(rates) <= 240


def test_patients_differ_and_do_not_depend_on_how_many_there_are(tmp_path, database):
    few = write_demo_database(tmp_path, n_subjects=2)
    assert (few / "demo02.dat").read_bytes() == (database / "demo02.dat").read_bytes()
    assert (few / "demo01.dat").read_bytes() != (few / "demo02.dat").read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first = write_demo_database(tmp_path / "a", n_subjects=3, seed=5)
    second = write_demo_database(tmp_path / "b", n_subjects=3, seed=5)
    other = write_demo_database(tmp_path / "c", n_subjects=3, seed=6)
    assert contents(first) == contents(second)
    assert contents(first)["demo01.dat"] != contents(other)["demo01.dat"]


def test_an_existing_copy_is_kept_as_it_is(tmp_path):
    folder = write_demo_database(tmp_path, n_subjects=2)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_demo_database(tmp_path, n_subjects=2) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_damaged_or_older_copy_is_replaced_as_a_whole(tmp_path):
    folder = write_demo_database(tmp_path, n_subjects=2)
    good = contents(folder)
    (folder / "demo01.dat").write_bytes(b"damaged")
    assert contents(write_demo_database(tmp_path, n_subjects=2)) == good
    about = json.loads((folder / "demo.json").read_text())
    (folder / "demo.json").write_text(json.dumps({**about, "demo_version": 0}))
    (folder / "left-over.dat").write_bytes(b"")
    assert contents(write_demo_database(tmp_path, n_subjects=2)) == good
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_several_writers_at_once_leave_one_complete_copy(tmp_path):
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: write_demo_database(tmp_path, n_subjects=2), range(6)))
    assert set(folders) == {tmp_path / "demo"}
    about = json.loads((tmp_path / "demo" / "demo.json").read_text())
    about.pop("files")
    assert _is_current(tmp_path / "demo", about)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_folder_that_metaecg_did_not_write_is_never_replaced(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="has no demo.json.*Choose another folder"):
        write_demo_database(tmp_path)
    assert (tmp_path / "demo" / "mine.txt").read_text() == "keep"


def test_a_recording_too_short_for_a_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match="duration_s is 60.0; at least 180 s"):
        write_demo_database(tmp_path, duration_s=60.0)
    with pytest.raises(ValueError, match="n_subjects is 0"):
        write_demo_database(tmp_path, n_subjects=0)


def test_two_patients_of_the_same_role_differ():
    first, second = (generate_patient(i, duration_s=300.0, seed=0) for i in (0, len(CAST)))
    assert first.role == second.role
    assert not np.array_equal(first.signal_mv, second.signal_mv)
