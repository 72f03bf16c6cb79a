"""Uploads: what was written comes back, and equals what the library reads."""

import io
import json
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaecg.data.records import read_record
from metaecg.errors import DataError
from metaecg.serve.upload_json import millivolts
from metaecg.serve.uploading import stated_facts
from metaecg.serve.uploads import (
    FORMATS,
    ParsedRecording,
    UploadFacts,
    UploadLimits,
    parse_upload,
    preferred_lead,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from upload_files import as_csv, as_edf, as_json, as_wfdb, made_recording

WRITERS = {
    "wfdb": as_wfdb,
    "wfdb 212": lambda made: as_wfdb(made, format="212"),
    "edf": as_edf,
    "csv": as_csv,
    "csv without names": lambda made: as_csv(made, has_names=False),
    "json": as_json,
}


def parsed(upload, **facts) -> ParsedRecording:
    return parse_upload(upload.format, upload.files, UploadFacts(**{**upload.facts, **facts}))


def made(seed=0, *, has_gaps=False):
    return made_recording(np.random.default_rng(seed), has_gaps=has_gaps)


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_was_written_comes_back(writer, seed):
    original = made(seed, has_gaps=writer != "edf")
    found = parsed(WRITERS[writer](original))
    assert np.array_equal(found.signal_mv, original.signal_mv, equal_nan=True)
    assert found.signal_mv.dtype == np.float32
    assert (found.fs_hz, found.lead_names) == (original.fs_hz, original.lead_names)


def test_the_same_recording_has_the_same_digest_in_every_format():
    original = made()
    assert len({parsed(write(original)).digest for write in WRITERS.values()}) == 1
    other = parsed(as_json(made(1))).digest
    assert other != parsed(as_json(original)).digest


def test_digests_don_t_depend_on_how_a_gap_is_written():
    original = made(3, has_gaps=True)
    digests = {parsed(as_csv(original, gap=gap)).digest for gap in ("nan", "NaN", "-nan", "")}
    assert digests == {parsed(as_wfdb(original)).digest}


@pytest.mark.parametrize("name", ["mitdb/100", "mitdb/114", "vfdb/418", "cudb/cu02"])
def test_a_real_record_is_the_library_s_bit_for_bit(real_data, name):
    header, signal = (real_data / f"{name}{ending}" for ending in (".hea", ".dat"))
    files = {path.name: path.read_bytes() for path in (header, signal)}
    expected = read_record(real_data / name, annotations=False, leads="all")
    found = parse_upload("wfdb", files)
    assert np.array_equal(found.signal_mv, expected.signal_mv, equal_nan=True)
    assert (found.fs_hz, found.name) == (expected.fs_hz, header.stem)
    judged = read_record(real_data / name, annotations=False)
    assert np.array_equal(found.signal_mv[[found.lead]], judged.signal_mv, equal_nan=True)


def test_an_edf_file_is_that_of_edfio():
    import edfio

    rng = np.random.default_rng(2)
    signals = [
        edfio.EdfSignal(
            rng.standard_normal(2500) * scale,
            sampling_frequency=250,
            label=label,
            physical_dimension=unit,
            physical_range=(-6.5 * scale, 7.0 * scale),
        )
        for label, unit, scale in (("ECG II", "mV", 1), ("ECG V1", "uV", 1000))
    ]
    target = io.BytesIO()
    edfio.Edf(signals, annotations=[edfio.EdfAnnotation(1.0, None, "button")]).write(target)
    found = parse_upload("edf", {"night.edf": target.getvalue()})
    read = edfio.read_edf(target.getvalue())
    expected = [read.signals[0].data, read.signals[1].data / 1000]
    np.testing.assert_allclose(found.signal_mv, expected, rtol=1e-6, atol=1e-6)
    assert (found.name, found.lead_names) == ("night", ("ECG II", "ECG V1"))
    assert (found.fs_hz, found.lead) == (250.0, 0)


@pytest.mark.parametrize("fmt", ["80", "16", "24", "32"])
def test_wfdb_files_of_other_formats_are_read(tmp_path, fmt):
    import wfdb

    limit = 100 if fmt == "80" else 30000
    digital = np.random.default_rng(4).integers(-limit, limit, (500, 2))
    wfdb.wrsamp(
        "r",
        fs=250,
        units=["mV", "uV"],
        sig_name=["II", "V5"],
        d_signal=digital,
        write_dir=str(tmp_path),
        fmt=[fmt] * 2,
        adc_gain=[200.0, 4.0],
        baseline=[3, -4],
    )
    found = parse_upload("wfdb", {name: (tmp_path / name).read_bytes() for name in FILES})
    np.testing.assert_allclose(found.signal_mv[0], (digital[:, 0] - 3) / 200, rtol=1e-6)
    np.testing.assert_allclose(found.signal_mv[1], (digital[:, 1] + 4) / 4000, rtol=1e-6)


FILES = ("r.hea", "r.dat")


@pytest.mark.parametrize(
    ("layout", "n_bytes"),
    [("160", 1004), ("310", 672), ("310", 670), ("311", 672), ("8", 502)]
    + [("16x2", 2008), ("16:5", 1004), ("16+20", 1024), ("212+8", 761)],
)
def test_unusual_layouts_of_wfdb_are_the_library_s(tmp_path, layout, n_bytes):
    content = bytearray(np.random.default_rng(1).integers(1, 90, n_bytes).astype(np.uint8))
    header = f"r 2 250 251\nr.dat {layout} 200/mV 12 0\nr.dat {layout} 200(7)/mV 12 0\n"
    for name, data in zip(FILES, (header.encode(), bytes(content)), strict=True):
        (tmp_path / name).write_bytes(data)
    expected = read_record(tmp_path / "r", annotations=False, leads="all").signal_mv
    found = parse_upload("wfdb", {"r.hea": header.encode(), "r.dat": bytes(content)})
    assert np.array_equal(found.signal_mv, expected, equal_nan=True)


def test_signals_in_several_files_are_put_together():
    one, two = made(5), made(6)
    n = min(one.steps.shape[1], two.steps.shape[1])
    header = f"r 2 250 {n}\na.dat 16 200/mV\nb.dat 16 400/mV 16 0\n"
    rows = [one.steps[0, :n], two.steps[0, :n]]
    files = {"r.hea": header.encode()}
    files |= {f"{x}.dat": row.astype("<i2").tobytes() for x, row in zip("ab", rows, strict=True)}
    found = parse_upload("wfdb", files)
    expected = np.stack([rows[0] / 200, rows[1] / 400]).astype(np.float32)
    assert np.array_equal(found.signal_mv, expected)
    assert found.lead_names == ("lead 1", "lead 2")


def test_leads_are_chosen_by_name_and_in_the_order_asked_for():
    original = next(m for m in map(made, range(20)) if len(m.lead_names) == 3)
    for write in (as_wfdb, as_edf, as_csv, as_json):
        found = parsed(write(original), lead_names=("II", "MLII"))
        assert found.lead_names == ("II", "MLII")
        assert np.array_equal(found.signal_mv, original.signal_mv[[2, 0]])
        assert found.lead == 1
        with pytest.raises(DataError, match="lead_names has 'V6'; the file has 'MLII', 'V5', 'II'"):
            parsed(write(original), lead_names=("V6",))


def test_channels_that_are_no_voltage_can_be_left_out():
    upload = as_edf(next(m for m in map(made, range(20)) if len(m.lead_names) == 3))
    content = upload.files["rec.edf"]
    place = 256 + 3 * (16 + 80) + 8  # the second signal's unit
    content = content[:place] + b"mmHg    " + content[place + 8 :]
    with pytest.raises(DataError, match="signal 'V5': the unit is 'mmHg'; expected mV, uV or V"):
        parse_upload("edf", {"a.edf": content})
    found = parse_upload("edf", {"a.edf": content}, UploadFacts(lead_names=("II",)))
    assert found.lead_names == ("II",)


def test_units_become_millivolts():
    document = {"fs_hz": 250, "lead_names": ["II"], "signal": [[1, -2.5, None]]}
    for unit, scale in (("mV", 1), ("uV", 1e-3), ("\u00b5V", 1e-3), ("V", 1e3), ("mv", 1)):
        content = json.dumps({**document, "unit": unit}).encode()
        found = parse_upload("json", {"a.json": content})
        expected = np.array([[1 * scale, -2.5 * scale, np.nan]], dtype=np.float32)
        assert np.array_equal(found.signal_mv, expected, equal_nan=True)


def test_what_is_stated_beside_a_file_has_to_agree_with_it():
    upload = as_wfdb(made())
    fs_hz = float(made().fs_hz)
    assert parsed(upload, fs_hz=fs_hz, unit="mV", gain_per_mv=200.0).fs_hz == fs_hz
    with pytest.raises(DataError, match=f"fs_hz was stated as 200 and the file says {fs_hz:g} Hz"):
        parsed(upload, fs_hz=200.0)
    with pytest.raises(DataError, match="the file's unit has 1 mV, the unit that was stated is 'u"):
        parsed(upload, unit="uV")
    with pytest.raises(DataError, match="200 steps per mV, gain_per_mv was stated as 1000"):
        parsed(upload, gain_per_mv=1000.0)


def test_a_gain_of_zero_is_not_guessed():
    original = made()
    files = as_wfdb(original).files
    header = files["rec.hea"].replace(b" 200/mV ", b" 0 ")
    with pytest.raises(DataError, match="marked as not calibrated .gain 0.; expected steps per mV"):
        parse_upload("wfdb", {**files, "rec.hea": header})
    found = parse_upload("wfdb", {**files, "rec.hea": header}, UploadFacts(gain_per_mv=100.0))
    assert np.array_equal(found.signal_mv, 2 * original.signal_mv)


def test_the_judged_lead_is_the_stated_one_or_the_usual_one():
    original = next(m for m in map(made, range(20)) if len(m.lead_names) == 3)
    assert parsed(as_wfdb(original)).lead == 0
    assert parsed(as_wfdb(original), lead=2).lead == 2
    assert parsed(as_wfdb(original), lead_names=("V5", "II")).lead == 1
    with pytest.raises(DataError, match="lead is 3; the recording has 3 leads, so 0 to 2"):
        parsed(as_wfdb(original), lead=3)
    document = json.loads(as_json(original).files["rec.json"])
    content = json.dumps({**document, "lead": 1, "name": "night 1"}).encode()
    found = parse_upload("json", {"x.json": content})
    assert (found.lead, found.name) == (1, "night 1")
    assert parse_upload("json", {"x.json": content}, UploadFacts(lead=2, name="b")).name == "b"
    assert [preferred_lead(n) for n in (("V2", "ECG1"), ("Lead II",), ("a", "b"))] == [1, 0, 0]


def test_equal_names_in_a_wfdb_header_are_told_apart():
    original = next(m for m in map(made, range(20)) if len(m.lead_names) == 2)
    files = as_wfdb(original).files
    header = files["rec.hea"].replace(b"MLII", b"ECG").replace(b"V5", b"ECG")
    assert parse_upload("wfdb", {**files, "rec.hea": header}).lead_names == ("ECG", "ECG (2)")


def test_a_csv_with_quotes_line_ends_of_windows_and_a_byte_order_mark_is_read():
    content = b'\xef\xbb\xbf"II","V5"\r\n"0.5",1\r\n, -2\r\n1e-1,nan\r\n\r\n'
    found = parse_upload("csv", {"a.csv": content}, UploadFacts(fs_hz=250.0, unit="mV"))
    assert found.lead_names == ("II", "V5")
    expected = np.array([[0.5, np.nan, 0.1], [1, -2, np.nan]], dtype=np.float32)
    assert np.array_equal(found.signal_mv, expected, equal_nan=True)


def test_empty_fields_of_a_csv_are_gaps_wherever_they_are():
    content = b"a,b,c,d\n,,,1\n2,,,\n,,3,\n4,,,\n"
    found = parse_upload("csv", {"a.csv": content}, UploadFacts(fs_hz=250.0, unit="mV"))
    nan = np.nan
    expected = [[nan, 2, nan, 4], [nan] * 4, [nan, nan, 3, nan], [1, nan, nan, nan]]
    assert np.array_equal(found.signal_mv, np.float32(expected), equal_nan=True)
    content = b"5,6\n,\n,7"
    facts = UploadFacts(fs_hz=250.0, unit="mV", lead_names=("a", "b"))
    found = parse_upload("csv", {"a.csv": content}, facts)
    expected = [[5, nan, nan], [6, nan, 7]]
    assert np.array_equal(found.signal_mv, np.float32(expected), equal_nan=True)


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ('"0"\n0.5\n0\n', ("0",), [[0.5, 0]]),  # quoted names above plain numbers
        ('"nan","0"\n1,2\n', ("nan", "0"), [[1], [2]]),
        ('"0","1"\n5,6\n', ("1",), [[6]]),
        ("0,II\n5,6\n", ("0", "II"), [[5], [6]]),  # a name that is no number
        ("0\n0.5\n", ("1",), [[0, 0.5]]),  # numbers that aren't the names
        ("0.0\n0.5\n", ("0",), [[0, 0.5]]),
        (",\n1,2\n", ("a", "b"), [[np.nan, 1], [np.nan, 2]]),  # nothing measured at first
        ("I,\n1,2\n", ("I",), [[1]]),
        ('"I;II"\n1\n', ("I;II",), [[1]]),
    ],
)
def test_the_first_row_of_a_csv_is_names_or_samples(text, names, expected):
    facts = UploadFacts(fs_hz=250.0, unit="mV", lead_names=names)
    found = parse_upload("csv", {"a.csv": text.encode()}, facts)
    assert found.lead_names == names
    assert np.array_equal(found.signal_mv, np.float32(expected), equal_nan=True)


def test_names_that_are_stated_may_have_commas():
    assert stated_facts(lead_names='"V5, new", II').lead_names == ("V5, new", "II")
    assert stated_facts(lead_names=" ").lead_names is None
    with pytest.raises(DataError, match="lead_names can't be read.*commas between them"):
        stated_facts(lead_names='"II"x')


def test_a_csv_of_many_blocks_is_read_whole():
    values = np.random.default_rng(1).integers(-5000, 5000, (700_000, 2)) / 1000
    text = "\n".join(f"{a},{b}" if i % 7 else f",{b}" for i, (a, b) in enumerate(values.tolist()))
    facts = UploadFacts(fs_hz=500.0, unit="mV", lead_names=("a", "b"))
    found = parse_upload("csv", {"a.csv": text.encode()}, facts)
    values[::7, 0] = np.nan
    assert len(text) > 2 * 4 * 1024 * 1024
    assert np.array_equal(found.signal_mv, values.T.astype(np.float32), equal_nan=True)


def test_the_private_folder_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parsed(as_wfdb(made()))
    files = as_wfdb(made()).files
    bad = files["rec.dat"][:-2] + b"\0\1"
    with pytest.raises(DataError, match="lead 'MLII': the samples sum to|lead 'V5'|lead 'II'"):
        parse_upload("wfdb", {**files, "rec.dat": bad})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_can_t_be_written_is_no_fault_of_the_upload(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError):
        parsed(as_wfdb(made()))


@pytest.mark.parametrize("format", FORMATS)
def test_memory_is_a_small_multiple_of_the_upload(format):
    rng = np.random.default_rng(0)
    original = made_recording(rng, has_gaps=False)
    n_times = 400_000 // original.steps.size
    big = type(original)(
        np.tile(original.steps, n_times), np.tile(original.gaps, n_times),
        original.fs_hz, original.lead_names,
    )  # fmt: skip
    upload = WRITERS[format](big)
    parsed(WRITERS[format](original))  # imports
    size = sum(map(len, upload.files.values()))
    tracemalloc.start()
    parsed(upload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * size + 30e6


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"n_bytes": 100}, "bytes; at most 100 are taken"),
        ({"duration_s": 0.5}, r"lasts \d+ s; at most 0.5 s"),
        ({"n_values": 10}, "samples.*; at most 10 are"),
        ({"min_fs_hz": 600}, "expected 600 to 2000 Hz"),
        ({"max_fs_hz": 110}, "expected 100 to 110 Hz"),
        ({"n_leads": 0}, "leads; at most 0 are taken"),
        ({"n_files": 0}, "files were sent; at most 0"),
    ],
)
@pytest.mark.parametrize("writer", WRITERS)
def test_limits_hold_for_every_format(writer, limits, words):
    upload = WRITERS[writer](made())
    with pytest.raises(DataError, match=words):
        parse_upload(
            upload.format, upload.files, UploadFacts(**upload.facts), UploadLimits(**limits)
        )


def test_lists_become_millivolts():
    found = millivolts([[1, None, 2.5]], 1e-3)
    expected = np.array([[1e-3, np.nan, 2.5e-3]], dtype=np.float32)
    assert np.array_equal(found, expected, equal_nan=True)
    with pytest.raises(DataError, match="lead 0 of signal holds bool, str; expected numbers"):
        millivolts([[True, "1"]], 1.0)
    with pytest.raises(DataError, match="holds a number that is not finite"):
        millivolts([[float("nan")]], 1.0)
    with pytest.raises(DataError, match="holds a number that is not finite"):
        millivolts([[10**400]], 1.0)
