"""Signals and marks on their way to the server: facts are stated, numbers arrive as they are."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from metaecg.client.errors import ServerError
from metaecg.client.marks import joined, labels_of_mark
from metaecg.client.results import Segments, StreamWindows, read, read_rows
from metaecg.client.signals import csv_row, csv_signal, json_signal, numbers, signal_of
from metaecg.client.uploads import format_of, send_files
from metaecg.errors import DataError

FACTS = {"fs_hz": 250.0, "unit": "mV", "lead_names": "II"}


def record(signal_mv: np.ndarray) -> SimpleNamespace:
    names = tuple(f"lead {i}" for i in range(len(signal_mv)))
    return SimpleNamespace(
        record_id="demo/1", signal_mv=signal_mv, fs_hz=360, lead_names=names, subject_id="demo/1"
    )


def test_a_record_brings_its_facts_along():
    signal = signal_of(record(np.zeros((2, 5))), fs_hz=None, unit=None, lead_names=None)
    assert signal.facts() == {"fs_hz": 360.0, "unit": "mV", "lead_names": ["lead 0", "lead 1"]}
    assert (signal.name, signal.values.dtype) == ("demo/1", np.float32)


def test_a_fact_beside_a_record_is_refused():
    with pytest.raises(ValueError, match="unit was given beside a record"):
        signal_of(record(np.zeros((1, 5))), fs_hz=None, unit="uV", lead_names=None)


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_that_is_missing_is_not_guessed(name):
    with pytest.raises(ValueError, match=f"{name} is missing.*nothing is guessed"):
        signal_of(np.zeros(5), **{**FACTS, name: None})


def test_one_lead_may_be_a_plain_list():
    assert signal_of([1, 2, 3], **FACTS).values.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("signal", "facts", "words"),
    [
        ([], {}, "at least one sample"),
        (np.zeros((1, 1, 5)), {}, r"shape \(1, 1, 5\)"),
        (np.zeros((2, 5)), {}, "2 leads and lead_names has 1"),
        ([0.0, np.inf], {}, "sample 1 of lead 'II' is infinite"),
        ([0.0], {"unit": "mmHg"}, "unit is 'mmHg'; expected one of V, mV, uV"),
        ([0.0], {"fs_hz": 0}, "fs_hz is 0; a number above 0"),
    ],
)
def test_a_signal_that_cannot_be_one_is_refused(signal, facts, words):
    with pytest.raises(ValueError, match=words):
        signal_of(signal, **{**FACTS, **facts})


def test_every_float32_and_every_gap_arrives_as_it_is():
    values = np.frombuffer(np.random.default_rng(3).bytes(40_000), dtype=np.float32)
    values = values[np.isfinite(values)]
    values = np.stack([values, np.where(np.arange(len(values)) % 7, values, np.nan)])
    signal = signal_of(values, fs_hz=250.0, unit="uV", lead_names=["II", "V5"])
    back = np.array(json.loads(json_signal(signal)), dtype=np.float32)
    np.testing.assert_array_equal(back, values)
    head, *rows = [line.split(",") for line in csv_signal(signal).decode().splitlines()]
    assert head == ['"II"', '"V5"']
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32).T, values)


def test_numbers_are_text_with_the_gap_that_was_asked_for():
    assert numbers(np.array([0.1, np.nan, -2.0], np.float32), gap="null") == "0.1,null,-2.0"


def test_numbers_are_exact_whatever_the_caller_prints():
    third = np.array([1 / 3], np.float32)
    with np.printoptions(legacy="1.13", precision=2):
        text = numbers(third, gap="null"), csv_signal(signal_of(third, **FACTS)).split()[1].decode()
    assert text == ("0.33333334", "0.33333334")


def test_a_day_of_three_leads_from_a_converter_fits_into_an_upload():
    steps = np.random.default_rng(1).integers(-2048, 2048, (3, 10_000))
    signal = signal_of(steps / 200, fs_hz=250.0, unit="mV", lead_names=["I", "II", "V5"])
    per_row = len(csv_signal(signal)) / steps.shape[1]
    assert per_row * 250 * 86400 < 400 * 2**20  # the default is 512


def test_a_comma_or_a_quotation_mark_in_a_name_of_a_lead_stays_in_it():
    names = ["V5, new", 'the "old" one']
    signal = signal_of(np.zeros((2, 1)), fs_hz=250.0, unit="mV", lead_names=names)
    assert next(csv.reader(csv_signal(signal).decode().splitlines())) == names
    assert next(csv.reader([csv_row(names)])) == names


def windows_of(n: int, width_s: float = 2.0) -> Segments:
    start_s = width_s * np.arange(n)
    return Segments(
        index=np.arange(n), start_s=start_s, stop_s=start_s + width_s, label=(None,) * n
    )


def test_a_mark_labels_the_windows_that_lie_wholly_inside():
    assert labels_of_mark(windows_of(10), (3.0, 8.0, "va")) == {2: "va", 3: "va"}


def test_a_mark_without_a_window_is_refused():
    with pytest.raises(DataError, match="no segment lies wholly between 3 s and 4.5 s"):
        labels_of_mark(windows_of(10), (3.0, 4.5, "va"))


def test_two_classes_for_one_segment_are_refused():
    assert joined({1: "va"}, {1: "va", 2: "other"}) == {1: "va", 2: "other"}
    with pytest.raises(DataError, match="segment 1 is marked 'va' and 'other'"):
        joined({1: "va"}, {1: "other"})


def test_rows_become_arrays_that_nobody_can_change():
    rows = [{"index": 3, "start_s": 6.0, "stop_s": 8.0, "probability": 0.5, "label": "va"}]
    found = read_rows(StreamWindows, rows)
    assert (found.index.tolist(), found.label, len(found)) == ([3], ("va",), 1)
    with pytest.raises(ValueError, match="read-only"):
        found.probability[0] = 1.0
    assert len(read_rows(StreamWindows, [])) == 0


def test_a_row_that_lacks_something_is_named_without_its_values():
    with pytest.raises(ServerError, match="no StreamWindows: 'probability' is missing"):
        read_rows(StreamWindows, [{"index": 3, "start_s": 6.0, "stop_s": 8.0}])
    with pytest.raises(ServerError, match="no StreamWindows: index") as caught:
        read(StreamWindows, {"index": ["0.123456"], "start_s": [0.123456]})
    assert "0.123456" not in str(caught.value)


def test_a_file_without_a_known_suffix_or_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="418.dat have no suffix of a format"):
        format_of([tmp_path / "418.dat"])
    with pytest.raises(DataError, match="can't be read.*No such file"):
        send_files(
            None, "s", [tmp_path / "a.edf"], file_format=None, facts={}, lead=None, name=None
        )


def test_a_machine_that_only_asks_needs_no_torch():
    code = "import sys, metaecg.client; print(sorted({'torch', 'scipy', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
