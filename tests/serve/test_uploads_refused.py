"""What is wrong with an upload is said in a sentence that names it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from metaecg.errors import DataError
from metaecg.serve.uploads import UploadFacts, parse_upload

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from upload_files import as_edf, as_wfdb, made_recording

MADE = made_recording(np.random.default_rng(0), has_gaps=False)
N = MADE.steps.shape[1]
CSV_FACTS = UploadFacts(fs_hz=250.0, unit="mV")


def refused(format, files, words, facts=None):
    with pytest.raises(DataError, match=words):
        parse_upload(format, files, facts)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/b.dat",
        "C:\\x.dat",
        "..",
        ".x",
        "~",
        "-",
        "",
        "a\0b",
        "x\n",
    ],
)
def test_a_name_that_looks_like_a_path_is_refused_in_every_place(name):
    files = as_wfdb(MADE).files
    words = "the file name '.*' is not a plain name; expected one such as 100.dat"
    refused("wfdb", {**files, name: b""}, words)
    refused("csv", {name: b"II\n1\n"}, words, CSV_FACTS)
    if name.split() == [name]:
        header = files["rec.hea"].replace(b"rec.dat", name.encode())
        words += "|expected text|the header's line|no format that is read"
        refused("wfdb", {"rec.hea": header, "rec.dat": files["rec.dat"]}, words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"rec ", b"rec/2 ", "the record 'rec/2' of several segments; expected one segment"),
        (
            f" {N}\n".encode(),
            b"\n",
            "the header's number of samples is ''; expected a whole number",
        ),
        (f" {N}\n".encode(), b" 3\n", r"'rec.dat' has \d+ bytes; the header promises 3 samples"),
        (
            f" {N}\n".encode(),
            f" {N + 1}\n".encode(),
            rf"promises {N + 1} samples of \d signals, that",
        ),
        (b"200/mV", b"-200/mV", "the gain is -200 steps per mV; expected 0.01 to 1e[+]09"),
        (b"200/mV", b"nan", "has the gain 'nan'; expected steps per unit, such as 200"),
        (b"200/mV", b"2,5", "has the gain '2,5'; expected steps per unit"),
        (b"200/mV", b"1e300/mV", r"the gain is 1e\+300 steps per mV"),
        (b"200/mV", b"200/mmHg", "signal 'MLII': the unit is 'mmHg'; expected mV, uV or V"),
        (b".dat 16 ", b".dat 516 ", "has no format that is read; expected one of 8, 16"),
        (b"rec.dat", b"other.dat", "names the signal file 'other.dat', which was not sent"),
        (b"rec.dat", b"~", "the file name '~' is not a plain name"),
    ],
)
def test_a_wfdb_header_that_lies_is_refused(old, new, words):
    files = as_wfdb(MADE).files
    assert old in files["rec.hea"]
    refused("wfdb", {**files, "rec.hea": files["rec.hea"].replace(old, new)}, words)


def test_files_that_don_t_make_a_wfdb_record_are_refused():
    files = as_wfdb(MADE).files
    refused("wfdb", {"rec.dat": files["rec.dat"]}, "0 header files .* were sent")
    refused("wfdb", {**files, "rec.atr": b"\0\0"}, "'rec.atr' was sent and the header doesn't name")
    header = b"rec 1000000000 250 100\n" + files["rec.hea"].split(b"\n")[1]
    refused("wfdb", {**files, "rec.hea": header}, "promises '1000000000' signals and describes 1")
    refused("wfdb", {**files, "rec.hea": b"#" * 300_000}, "has 300000 bytes; at most 262144")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, b"\xffBIOSEMI", "expected 0, the version of EDF.*BDF"),
        (184, b"256     ", "number of bytes in the header in the EDF header is '256'"),
        (192, b"EDF+D", "the file is EDF.D, with interruptions"),
        (236, b"-1      ", "number of data records in the EDF header is '-1'; expected a whole"),
        (236, b"99      ", r"has \d+ bytes; its header promises 99 data records"),
        (244, b"0       ", "the duration of a data record is 0 s; expected more than 0"),
        (244, b"nan     ", "duration of a data record in the EDF header is 'nan'"),
        (252, b"9999", "number of signals in the EDF header is '9999'; expected .* 1 to 256"),
    ],
)
def test_an_edf_header_that_lies_is_refused(place, value, words):
    content = as_edf(MADE).files["rec.edf"]
    refused("edf", {"a.edf": content[:place] + value + content[place + len(value) :]}, words)


def test_an_edf_file_of_another_length_than_promised_is_refused():
    content = as_edf(MADE).files["rec.edf"]
    for n_bytes in (len(content) - 2, len(content) + 2):
        words = rf"has {n_bytes} bytes; its header promises .* {len(content)} in all"
        refused("edf", {"a.edf": (content + b"\0\0")[:n_bytes]}, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("II\n1\nx\n", "field 1 of line 3 is no number"),
        ("II,V5\n1,2\n3\n", "line 3 has 1 fields and those before it 2"),
        ("II,V5\n1,2,3\n4,5,6\n", "the lines from 2 on have 3 fields, the first line .* has 2"),
        ("II\n1\n\n2\n", "line 3 is empty"),
        ("II\n1\ninf\n", "line 3 holds an infinite number"),
        ("II\n1e5\n", "lead 'II' has a sample beyond 10000 mV"),
        ("II\nnan\n", "every sample is marked as not measured"),
        ("II;V5\n1,5;2\n", "separated by semicolons or tabs; export with commas"),
        ("1,II\n1,2\n", "the first line holds both numbers and names"),
        ("1,2\n", "lead_names are not stated and the file has no row of names"),
        ("time,II\n0,1\n", "the column 'time' is no lead; expected leads only"),
        ("II,II\n1,2\n", "two leads are named 'II'"),
        ("a," * 300 + "b\n", "the first line has 301 fields; at most 256"),
        ("1" * 70000, "the first line has more than 65536 bytes"),
        ("", "the file is empty"),
        ("II\n", "1 leads of 0 samples"),
        ("I\0I\n1", "has a zero byte at 1, so it is no CSV"),
    ],
)
def test_a_csv_that_is_no_table_of_numbers_is_refused(text, words):
    refused("csv", {"a.csv": text.encode()}, words, CSV_FACTS)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0\n0\n0\n", ("0",)),
        ('"0"\n"0"\n', ("0",)),  # every sample in quotation marks, too
        ("nan,1\n1,1\n", ("1", "nan")),
        ("0,5\n0,6\n", ("0",)),  # a decimal comma
    ],
)
def test_a_csv_whose_first_row_may_be_names_or_samples_is_refused(text, names):
    facts = UploadFacts(fs_hz=250.0, unit="mV", lead_names=names)
    words = "the first line may be a row of names or of samples.*quotation marks"
    refused("csv", {"a.csv": text.encode()}, words, facts)


def test_an_empty_first_line_of_a_csv_is_refused():
    facts = UploadFacts(fs_hz=250.0, unit="mV", lead_names=("II",))
    refused("csv", {"a.csv": b"\n1\n2\n"}, "the first line is empty", facts)
    refused("csv", {"a.csv": b",\n1,2\n"}, "lead_names are not stated", CSV_FACTS)


def test_a_csv_without_its_facts_is_refused():
    refused("csv", {"a.csv": b"II\n1\n"}, "fs_hz is not stated", UploadFacts(unit="mV"))
    refused("csv", {"a.csv": b"II\n1\n"}, "the unit is not stated", UploadFacts(fs_hz=250.0))
    facts = UploadFacts(fs_hz=250.0, unit="mV", lead_names=("II",))
    refused("csv", {"a.csv": b"0,5\n0,6\n"}, "has 2 columns .* Are decimal commas", facts)


GOOD = {"fs_hz": 250, "unit": "mV", "lead_names": ["II"], "signal": [[0.5, None]]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fs_hz": 0}, "fs_hz is '0.0'; expected 100 to 2000 Hz"),
        ({"fs_hz": "250"}, "fs_hz is '250'; expected"),
        ({"unit": None}, "the unit is 'None'"),
        ({"lead_names": "II"}, "lead_names is no list"),
        ({"lead_names": ["II", "V5"]}, "signal has 1 leads and lead_names 2"),
        ({"lead_names": [""]}, "a lead is named ''"),
        ({"signal": [[1], 2]}, "signal has 2 leads and lead_names 1"),
        ({"lead_names": ["a", "b"], "signal": [[1], [2, 3]]}, "not lists of one length"),
        ({"signal": [["1"]]}, "lead 0 of signal holds str"),
        ({"signal": [[1e300]]}, "lead 'II' has a sample beyond 10000 mV"),
        ({"extra": 1}, "it has 'extra'; expected fs_hz, unit, lead_names, signal"),
        ({"lead": 1}, "lead is 1; the recording has 1 leads"),
        ({"name": "a\nb"}, None),
    ],
)
def test_a_json_document_of_another_shape_is_refused(change, words):
    content = json.dumps({**GOOD, **change}).encode()
    if words is None:
        assert parse_upload("json", {"a.json": content}).name == "ab"
    else:
        refused("json", {"a.json": content}, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"fs_hz": NaN}', "the document holds NaN, which is no JSON; write null"),
        (b'{"a": 1, "b": 2, "a": 3}', "the document has 'a' twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "the document is no JSON: Expecting property name"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"[]", "the document is a list; expected an object"),
        (b'{"fs_hz": 250}', "it lacks unit, lead_names, signal"),
    ],
)
def test_what_is_no_json_is_refused(content, words):
    refused("json", {"a.json": content}, words)


def test_an_unknown_format_and_no_file_at_all_are_refused():
    refused("wav", {"a.wav": b""}, "the format is 'wav'; expected one of csv, edf, json, wfdb")
    refused("csv", {}, "no file was sent")
    refused("csv", {"a.csv": b"1", "b.csv": b"2"}, "2 files were sent; a CSV recording is one")


def test_no_message_holds_a_value_of_the_signal():
    secret = "7.31415"
    for format, content in (
        ("csv", f"II\n0.1\n{secret}x\n"),
        ("csv", f"II,V5\n0.1,0.2\n{secret}\n"),
        ("json", json.dumps({**GOOD, "signal": [[secret]]})),
        ("json", json.dumps({**GOOD, "signal": [[float(secret) * 1e6]]})),
    ):
        with pytest.raises(DataError) as caught:
            parse_upload(format, {"a.x": content.encode()}, CSV_FACTS if format == "csv" else None)
        assert "314" not in str(caught.value)
