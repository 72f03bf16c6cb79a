"""The reader: equal to wfdb on good recordings, one clear refusal for each kind of bad one."""

import re
from collections import Counter

import numpy as np
import pytest
import wfdb

from metaecg.data.files import file_sha256
from metaecg.data.records import read_record, record_files
from metaecg.errors import DataError

RAMP = np.arange(-50, 51)


def real_paths(real_data, slugs=("mitdb", "vfdb", "cudb")):
    return [h.with_suffix("") for slug in slugs for h in sorted((real_data / slug).glob("*.hea"))]


# What is read from good files


@pytest.mark.real
def test_every_real_record_reads_as_wfdb_reads_it(real_data):
    paths = real_paths(real_data)
    assert len(paths) == 94
    for path in paths:
        ours = read_record(path, leads="all")
        signal = wfdb.rdrecord(str(path))
        marks = wfdb.rdann(str(path), "atr")
        np.testing.assert_array_equal(
            ours.signal_mv, signal.p_signal.T.astype(np.float32), str(path)
        )
        np.testing.assert_array_equal(ours.annotations.sample, marks.sample, str(path))
        assert ours.annotations.symbol == tuple(marks.symbol)
        assert ours.annotations.note == tuple(n.rstrip("\x00") for n in marks.aux_note)
        assert (ours.fs_hz, ours.lead_names) == (signal.fs, tuple(signal.sig_name))


@pytest.mark.real
def test_the_symbols_of_mitdb_add_up_to_the_known_totals(real_data):
    found = Counter()
    for path in real_paths(real_data, ["mitdb"]):
        found.update(read_record(path).annotations.symbol)
    known = {
        **{"N": 75052, "L": 8075, "R": 7259, "V": 7130, "/": 7028, "A": 2546, "f": 982, "F": 803},
        **{"j": 229, "a": 150, "E": 106, "J": 83, "Q": 33, "e": 16, "S": 2},
    }
    assert {symbol: found[symbol] for symbol in known} == known


@pytest.mark.real
def test_the_preferred_lead_is_found_by_name_whatever_its_place(real_data):
    chosen = {
        n: read_record(real_data / "mitdb" / n).lead_names for n in ("100", "114", "102", "104")
    }
    assert chosen == {"100": ("MLII",), "114": ("MLII",), "102": ("V5",), "104": ("V5",)}
    swapped = read_record(real_data / "mitdb" / "114", leads="all")
    assert swapped.lead_names == ("V5", "MLII")
    one = read_record(real_data / "mitdb" / "114")
    np.testing.assert_array_equal(one.signal_mv[0], swapped.signal_mv[1])
    two = read_record(real_data / "mitdb" / "114", leads="two")
    assert two.lead_names == ("MLII", "V5")
    np.testing.assert_array_equal(two.signal_mv, swapped.signal_mv[::-1])


def test_two_leads_of_a_recording_with_one_are_that_one(write_record):
    path = write_record(RAMP, leads=["I"])
    assert read_record(path, leads="two", annotations=False).lead_names == ("I",)


@pytest.mark.real
def test_201_and_202_are_one_person(real_data):
    records = [read_record(real_data / "mitdb" / name) for name in ("201", "202", "203")]
    assert [r.subject_id for r in records] == ["mitdb/201", "mitdb/201", "mitdb/203"]
    assert [r.record_id for r in records] == ["mitdb/201", "mitdb/202", "mitdb/203"]


@pytest.mark.real
def test_a_copy_of_a_known_database_elsewhere_is_read_as_that_database_when_told(
    real_data, tmp_path
):
    (tmp_path / "mine").mkdir()
    for suffix in (".hea", ".dat", ".atr"):
        source = real_data / "mitdb" / f"114{suffix}"
        (tmp_path / "mine" / source.name).write_bytes(source.read_bytes())
    told = read_record(tmp_path / "mine" / "114", database="mitdb")
    guessed = read_record(tmp_path / "mine" / "114")
    assert (told.record_id, told.lead_names) == ("mitdb/114", ("MLII",))
    assert (guessed.record_id, guessed.lead_names) == ("mine/114", ("V5",))


@pytest.mark.parametrize("fmt", ["212", "16", "24", "32", "80"])
@pytest.mark.parametrize("n_leads", [1, 2, 3])
@pytest.mark.parametrize("n_samples", [1, 100, 101])
def test_every_format_number_of_leads_and_odd_length_reads_as_written(
    write_record, fmt, n_leads, n_samples
):
    digital = np.random.default_rng(0).integers(-100, 100, (n_samples, n_leads))
    path = write_record(digital, fmt=fmt, gain=50.0, baseline=7, marks=((0, "N", ""),))
    record = read_record(path, leads="all")
    np.testing.assert_allclose(record.signal_mv, (digital.T - 7) / 50.0, rtol=1e-6)
    assert (record.n_samples, record.duration_s) == (n_samples, n_samples / 250)


def test_the_extremes_of_12_bits_keep_their_sign_and_the_lowest_means_not_measured(write_record):
    digital = np.array([[2047, -2047], [-2048, 0], [-1, 1], [255, 256]])
    record = read_record(write_record(digital, fmt="212", gain=1.0), leads="all")
    expected = [[2047, np.nan, -1, 255], [-2047, 0, 1, 256]]
    np.testing.assert_array_equal(record.signal_mv, expected)


def test_the_lowest_value_means_not_measured_in_16_bits_too(write_record):
    record = read_record(write_record([5, -32768, -2048], gain=1.0))
    np.testing.assert_array_equal(record.signal_mv, [[5, np.nan, -2048]])


@pytest.mark.parametrize(
    ("unit", "factor"), [("mV", 1.0), ("uV", 1e-3), ("µV", 1e-3), ("μV", 1e-3), ("V", 1e3)]
)
def test_every_unit_of_voltage_becomes_millivolts(write_record, edit_header, unit, factor):
    path = write_record(RAMP, gain=2.0)
    edit_header(path, "/mV", f"/{unit}")
    np.testing.assert_allclose(read_record(path).signal_mv[0], RAMP / 2.0 * factor, rtol=1e-6)


def test_a_record_of_several_files_reads_each_lead_from_its_own(write_record):
    first = write_record(RAMP, name="a", leads=["one"])
    second = write_record(-2 * RAMP, name="b", leads=["two"], fmt="212")
    lines = [p.with_suffix(".hea").read_text().splitlines()[1] for p in (first, second)]
    first.with_name("both.hea").write_text("both 2 250 101\n" + "\n".join(lines) + "\n")
    record = read_record(first.with_name("both"), leads="all", annotations=False)
    np.testing.assert_allclose(record.signal_mv, np.stack([RAMP, -2 * RAMP]) / 200, rtol=1e-6)
    assert record.lead_names == ("one", "two")
    names = [file.name for file in record_files(first.with_name("both"))]
    assert names == ["a.dat", "b.dat", "both.hea"]


def test_several_samples_per_frame_become_their_mean_and_the_checksum_still_counts(
    write_record, edit_header
):
    path = write_record([10, 20, 30, 50, 7, 9], gain=1.0)
    header = path.with_suffix(".hea")
    header.write_text(
        header.read_text().replace("r1 1 250 6", "r1 1 125 3").replace(" 16 ", " 16x2 ", 1)
    )
    np.testing.assert_allclose(read_record(path).signal_mv, [[15, 40, 8]])
    path.with_suffix(".dat").write_bytes(bytes(12))
    with pytest.raises(DataError, match="checksum"):
        read_record(path)


def test_a_skewed_lead_is_moved_back_and_its_end_is_not_measured(write_record, edit_header):
    path = write_record(np.column_stack([[1, 2, 3, 4], [9, 1, 2, 3]]), gain=1.0)
    header = path.with_suffix(".hea").read_text().splitlines()
    header[2] = header[2].replace(" 16 ", " 16:1 ", 1)
    path.with_suffix(".hea").write_text("\n".join(header) + "\n")
    record = read_record(path, leads="all")
    np.testing.assert_array_equal(record.signal_mv, [[1, 2, 3, 4], [1, 2, 3, np.nan]])


def test_only_the_chosen_leads_have_to_be_voltages(write_record, edit_header):
    path = write_record(np.column_stack([RAMP, RAMP]), leads=["ECG", "RESP"])
    lines = path.with_suffix(".hea").read_text().splitlines()
    lines[2] = lines[2].replace("/mV", "/Ohm")
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")
    assert read_record(path).lead_names == ("ECG",)
    with pytest.raises(DataError, match="'RESP': the unit is 'Ohm'; expected mV"):
        read_record(path, leads="all")


def test_marks_come_in_the_order_of_time_with_their_notes(write_record):
    path = write_record(RAMP, marks=((0, "+", "(N"), (10, "N", ""), (40, "+", "(VT")))
    marks = read_record(path).annotations
    assert marks.sample.tolist() == [0, 10, 40]
    assert (marks.symbol, marks.note) == (("+", "N", "+"), ("(N", "", "(VT"))


def test_the_path_may_name_the_header(write_record):
    path = write_record(RAMP)
    a, b = read_record(path), read_record(path.with_suffix(".hea"))
    np.testing.assert_array_equal(a.signal_mv, b.signal_mv)
    assert a.record_id == b.record_id == a.subject_id == "own/r1"


def test_annotations_can_be_left_alone(write_record):
    path = write_record(RAMP, marks=None)
    assert read_record(path, annotations=False).annotations is None


def test_the_files_of_a_record_are_header_signal_and_marks(write_record):
    path = write_record(RAMP)
    assert [file.name for file in record_files(path)] == ["r1.atr", "r1.dat", "r1.hea"]
    assert len(file_sha256(path.with_suffix(".dat"))) == 64


# Gains: what WFDB allows, and what nobody can mean


@pytest.mark.parametrize("written", ["0", "0(0)/mV", "0/mV"])
def test_a_gain_of_0_means_not_calibrated_and_200_is_taken_as_wfdb_does(
    write_record, edit_header, written
):
    path = write_record(RAMP, gain=123.0)
    edit_header(path, "123.0(0)/mV", written)
    np.testing.assert_allclose(read_record(path).signal_mv[0], RAMP / 200, rtol=1e-6)


@pytest.mark.parametrize("written", ["nan", "inf", "abc/mV", "2,5/mV", "200(x)/mV", "200/"])
def test_a_gain_that_is_no_number_is_refused_as_written(write_record, edit_header, written):
    path = write_record(RAMP, gain=123.0)
    edit_header(path, "123.0(0)/mV", written)
    expected = f"'r1', lead .*: the header's gain is written {re.escape(repr(written))}"
    with pytest.raises(DataError, match=expected + ".*expected.*Correct"):
        read_record(path)


@pytest.mark.parametrize(("written", "shown"), [("-200", "-200"), ("1e400/mV", "inf")])
def test_a_gain_that_is_negative_or_infinite_is_refused(write_record, edit_header, written, shown):
    path = write_record(RAMP, gain=123.0)
    edit_header(path, "123.0(0)/mV", written)
    with pytest.raises(DataError, match=f"lead 'lead0': the gain is {shown}; expected a finite"):
        read_record(path)


# Bad input


def test_a_missing_header_is_named_with_the_way_to_fetch_it(tmp_path):
    with pytest.raises(DataError, match="'r9': .*r9.hea does not exist.*download"):
        read_record(tmp_path / "r9")


@pytest.mark.parametrize(
    "text", ["", "hello", "r1\n", "r1 x 250 100\n", "r1 1 250 101\nr1.dat\n", "# only a comment\n"]
)
def test_a_header_that_is_garbage_is_refused(write_record, text):
    path = write_record(RAMP)
    path.with_suffix(".hea").write_text(text)
    with pytest.raises(DataError, match="r1.hea is not a WFDB header.*Fetch the file again"):
        read_record(path)


def test_a_header_of_random_bytes_is_refused(write_record):
    path = write_record(RAMP)
    path.with_suffix(".hea").write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(DataError, match="r1.hea"):
        read_record(path)


@pytest.mark.parametrize("line", ["r1 1 250 0", "r1 1 250", "r1 0 250 101"])
def test_a_record_without_samples_or_signals_is_refused(write_record, edit_header, line):
    path = write_record(RAMP)
    edit_header(path, "r1 1 250 101", line)
    with pytest.raises(DataError, match="names no signal or no length; expected at least one"):
        read_record(path)


def test_a_header_that_lost_a_signal_line_is_refused(write_record, edit_header):
    path = write_record(RAMP)
    edit_header(path, "r1 1 250", "r1 2 250")
    with pytest.raises(DataError, match="r1.hea.*(promises 2 signals and describes 1|not a WFDB)"):
        read_record(path)


def test_a_record_of_segments_is_refused(write_record):
    path = write_record(RAMP)
    path.with_name("all.hea").write_text("all/2 1 250 202\nr1 101\nr1 101\n")
    with pytest.raises(DataError, match="a record of 2 segments; expected one"):
        read_record(path.with_name("all"))


@pytest.mark.parametrize("rate", ["0", "0.0"])
def test_a_sampling_rate_of_0_is_refused(write_record, edit_header, rate):
    path = write_record(RAMP)
    edit_header(path, "r1 1 250 101", f"r1 1 {rate} 101")
    with pytest.raises(DataError, match="sampling rate is 0.*expected a number of hertz above 0"):
        read_record(path)


def test_the_wrong_rate_for_a_known_database_is_refused(write_record):
    path = write_record(RAMP, folder="mitdb", leads=["MLII"])
    with pytest.raises(DataError, match="the header says 250 Hz; mitdb is sampled at 360 Hz"):
        read_record(path)


def test_a_missing_signal_file_is_named(write_record):
    path = write_record(RAMP)
    path.with_suffix(".dat").unlink()
    with pytest.raises(DataError, match="'r1': the signal file .*r1.dat is missing. Fetch it"):
        read_record(path)


@pytest.mark.parametrize(("fmt", "n_bytes"), [("16", 202), ("212", 152), ("32", 404)])
def test_a_signal_file_cut_by_one_byte_is_refused_with_both_sizes(write_record, fmt, n_bytes):
    path = write_record(RAMP, fmt=fmt)
    data = path.with_suffix(".dat").read_bytes()
    path.with_suffix(".dat").write_bytes(data[: n_bytes - 1])
    expected = f"r1.dat has {n_bytes - 1} bytes; .* 101 samples of 1 leads, that is {n_bytes} bytes"
    with pytest.raises(DataError, match=expected):
        read_record(path)


def test_an_empty_signal_file_is_refused(write_record):
    path = write_record(RAMP)
    path.with_suffix(".dat").write_bytes(b"")
    with pytest.raises(DataError, match="r1.dat has 0 bytes"):
        read_record(path)


def test_a_header_longer_than_the_signal_is_refused(write_record, edit_header):
    path = write_record(RAMP)
    edit_header(path, "r1 1 250 101", "r1 1 250 102")
    with pytest.raises(
        DataError, match="has 202 bytes; the header promises 102 samples.*204 bytes"
    ):
        read_record(path)


def test_a_header_shorter_than_the_signal_is_refused_by_the_checksum(write_record, edit_header):
    path = write_record(RAMP)
    edit_header(path, "r1 1 250 101", "r1 1 250 90")
    with pytest.raises(DataError, match="the samples sum to the checksum"):
        read_record(path)


@pytest.mark.parametrize("fmt", ["16", "212"])
def test_one_changed_sample_is_refused_by_the_checksum(write_record, fmt):
    path = write_record(RAMP, fmt=fmt)
    data = bytearray(path.with_suffix(".dat").read_bytes())
    data[0] ^= 1
    path.with_suffix(".dat").write_bytes(data)
    with pytest.raises(DataError, match=r"'lead0': the samples sum to the checksum 1, .* says 0\."):
        read_record(path)


def test_an_unknown_unit_is_refused(write_record, edit_header):
    path = write_record(RAMP)
    edit_header(path, "/mV", "/NU")
    with pytest.raises(DataError, match="'lead0': the unit is 'NU'; expected mV .*Convert"):
        read_record(path)


def test_a_missing_annotation_file_is_named_with_the_way_around(write_record):
    path = write_record(RAMP, marks=None)
    with pytest.raises(DataError, match="annotation file .*r1.atr is missing.*annotations=False"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x00\x00"])
def test_an_empty_annotation_file_is_refused(write_record, content):
    path = write_record(RAMP)
    path.with_suffix(".atr").write_bytes(content)
    with pytest.raises(DataError, match="'r1': r1.atr"):
        read_record(path)


@pytest.mark.parametrize("n_lost", [1, 2, 4])
def test_an_annotation_file_cut_short_is_refused(write_record, n_lost):
    path = write_record(RAMP, marks=[(i, "N", "") for i in range(5, 100, 5)])
    data = path.with_suffix(".atr").read_bytes()
    path.with_suffix(".atr").write_bytes(data[:-n_lost])
    with pytest.raises(DataError, match=r"r1.atr \(\d+ bytes\) (has no end mark|can't be read)"):
        read_record(path)


def test_a_mark_beyond_the_end_is_refused_with_both_numbers(write_record):
    path = write_record(RAMP, marks=((0, "+", "(N"), (102, "N", "")))
    with pytest.raises(DataError, match="a mark at sample 102; expected 0 to 101"):
        read_record(path)


def test_marks_counted_at_another_rate_are_refused(write_record):
    path = write_record(RAMP)
    wfdb.wrann("r1", "atr", np.array([3]), symbol=["N"], fs=500, write_dir=str(path.parent))
    with pytest.raises(DataError, match="counts time at 500 Hz, the signal is sampled at 250 Hz"):
        read_record(path)


def test_an_unknown_choice_of_leads_is_refused(write_record):
    with pytest.raises(ValueError, match="leads is 'MLII'; expected 'preferred', 'two' or 'all'"):
        read_record(write_record(RAMP), leads="MLII")
