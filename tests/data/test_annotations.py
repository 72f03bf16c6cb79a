"""The quick unpacking of annotation files agrees with wfdb, and leaves what is unusual to it."""

import numpy as np
import pytest
import wfdb

from metaecg.data.annotations import SYMBOLS, unpack_annotations


def written(folder, sample, symbol, note=None, **options) -> bytes:
    """Let wfdb write marks, and return the file's content."""
    wfdb.wrann(
        "r",
        "atr",
        np.array(sample),
        symbol=list(symbol),
        aux_note=note,
        write_dir=str(folder),
        **options,
    )
    return (folder / "r.atr").read_bytes()


def same_as_wfdb(folder, data: bytes) -> bool:
    ours, theirs = unpack_annotations(data), wfdb.rdann(str(folder / "r"), "atr")
    return (
        ours is not None
        and ours.sample.tolist() == theirs.sample.tolist()
        and ours.symbol == tuple(theirs.symbol)
        and ours.note == tuple(note.strip("\x00 \t") for note in theirs.aux_note)
    )


def test_marks_far_apart_and_notes_of_any_length_agree_with_wfdb(tmp_path):
    sample = [0, 5, 1023, 1024 + 1023, 5000, 2_000_000, 2_000_001]
    note = ["", "(N", "", "(VT", "(AFIB", "", "(B"]
    assert same_as_wfdb(tmp_path, written(tmp_path, sample, "N+V++]+", note))


def test_every_symbol_agrees_with_wfdb(tmp_path):
    symbols = [s for code, s in SYMBOLS.items() if code not in (0, 15, 17)]
    assert same_as_wfdb(tmp_path, written(tmp_path, range(10, 10 + len(symbols)), symbols))


def test_subtypes_channels_and_numbers_are_passed_over(tmp_path):
    data = written(
        tmp_path,
        [3, 9],
        "NV",
        subtype=np.array([1, -1]),
        chan=np.array([0, 1]),
        num=np.array([2, 0]),
    )
    assert same_as_wfdb(tmp_path, data)


def test_a_step_back_in_time_is_followed():
    skip = [59 << 10, 0xFFFF, 0xFFF6]  # minus ten samples, high word first
    words = [(1 << 10) | 100, *skip, (5 << 10) | 0, 0]
    found = unpack_annotations(np.array(words, dtype="<u2").tobytes())
    assert (found.sample.tolist(), found.symbol) == ([100, 90], ("N", "V"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"\0\0", "no mark"),
        (b"\x64\x04", "no end mark"),
        (b"\x64\x04\0", "odd length"),
        (b"\x64\x04\0\0\x64\x04\0\0", "marks after the end"),
        (b"\x64\x3c\0\0", "a code that is not in use"),
        (b"\x64\x04\x04\xfc(V\0\0", "a note that reaches beyond the end"),
        (b"\x64\x04\x02\xfc\xff\xfe\0\0", "a note that is no text"),
        (b"\x64\x04\x00\xec\x01\0", "a jump without its length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_unusual_is_left_to_wfdb(data, what):
    assert unpack_annotations(data) is None, what


def test_a_rate_of_the_files_own_is_left_to_wfdb(tmp_path):
    assert unpack_annotations(written(tmp_path, [3], "N", fs=500)) is None


@pytest.mark.real
def test_every_original_file_takes_the_quick_way(real_data):
    files = [f for slug in ("mitdb", "vfdb") for f in (real_data / slug).glob("*.atr")]
    assert files
    assert [f.name for f in files if unpack_annotations(f.read_bytes()) is None] == []
