"""Statements become classes: PTB-XL's levels and spellings, SNOMED codes, the label matrix."""

import pytest

from metaecg.data.statements import (
    SAME_DIAGNOSIS,
    SCORED,
    challenge_classes,
    label_matrix,
    read_scp_statements,
    read_table,
    scp_codes,
    snomed_codes,
)
from metaecg.errors import DataError

TABLE = """,description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,normal ECG,1.0,,,NORM,NORM
1AVB,first degree AV block,1.0,,,CD,_AVB
2AVB,second degree AV block,1.0,1.0,,CD,_AVB
NST_,non-specific ST changes,1.0,1.0,,STTC,NST_
PVC,ventricular premature complex,,1.0,,,
SR,sinus rhythm,,,1.0,,
"""


@pytest.fixture
def known(tmp_path):
    (tmp_path / "scp_statements.csv").write_text(TABLE)
    return read_scp_statements(tmp_path / "scp_statements.csv")


@pytest.mark.parametrize(
    ("code", "level", "classes"),
    [
        ("1AVB", "superclass", {"CD"}),
        ("1AVB", "subclass", {"_AVB"}),
        ("1AVB", "diagnostic", {"1AVB"}),
        ("1AVB", "rhythm", set()),
        ("NST_", "diagnostic", {"NST_"}),
        ("NST_", "form", {"NST_"}),
        ("PVC", "superclass", set()),
        ("PVC", "form", {"PVC"}),
        ("SR", "rhythm", {"SR"}),
        ("SR", "all", {"SR"}),
        ("_AVB", "superclass", {"CD"}),
        ("_AVB", "subclass", {"_AVB"}),
        ("_AVB", "diagnostic", {"_AVB"}),
        ("_AVB", "form", set()),
    ],
)
def test_a_statement_stands_for_its_classes_at_each_level(known, code, level, classes):
    assert known.classes_of(code, level) == classes


@pytest.mark.parametrize(
    ("written", "meant"), [("SR", "SR"), ("NST", "NST_"), ("AVB", "_AVB"), ("_AVB", "_AVB")]
)
def test_a_rebuilt_spelling_is_read_as_the_table_writes_it(known, written, meant):
    assert known.canonical(written, where="ECG 1") == meant


def test_a_code_that_nobody_describes_is_refused_with_the_record(known):
    with pytest.raises(DataError, match="ECG 7 has the statement 'XYZ', which scp_statements.csv"):
        known.canonical("XYZ", where="ECG 7")


@pytest.mark.parametrize("cell", ["", "NORM", "['NORM']", "{'NORM': 100.0", "{[]: 1}", "1 + 1"])
def test_a_cell_that_is_no_mapping_of_codes_is_refused(cell):
    with pytest.raises(DataError, match="ECG 7 has scp_codes .*expected a mapping"):
        scp_codes(cell, where="ECG 7")


def test_nothing_in_a_table_is_executed(tmp_path):
    cell = f"{{open({str(tmp_path / 'made')!r}, 'w'): 1}}"
    with pytest.raises(DataError, match="expected a mapping"):
        scp_codes(cell, where="ECG 7")
    assert not (tmp_path / "made").exists()


def test_a_table_without_a_column_or_without_a_file_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert read_table(tmp_path / "t.csv", ["a"]) == [{"a": "1", "b": "2"}]
    with pytest.raises(DataError, match="lacks the columns 'c', 'd'; it has 'a', 'b'"):
        read_table(tmp_path / "t.csv", ["a", "c", "d"])
    with pytest.raises(DataError, match="nowhere.csv can't be read"):
        read_table(tmp_path / "nowhere.csv", ["a"])
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="t.csv can't be read"):
        read_table(tmp_path / "t.csv", ["a"])


@pytest.mark.parametrize("line", ["#Dx: 1,2", "# Dx: 1, 2 ", "Dx:1,2,1", "# dx: 1,2,"])
def test_every_spelling_of_the_diagnosis_line_is_read(line):
    assert snomed_codes(["# Age: 3", line, "# Rx: Unknown"], where="record 'r'") == ["1", "2"]


def test_a_header_without_diagnosis_and_one_without_code_are_refused():
    with pytest.raises(DataError, match="record 'r' has no comment 'Dx:'"):
        snomed_codes(["# Age: 3"], where="record 'r'")
    with pytest.raises(DataError, match="record 'r' has the diagnosis 'Unknown'"):
        snomed_codes(["# Dx: Unknown"], where="record 'r'")


def test_the_thirty_scored_codes_have_names_of_their_own_and_four_pairs_are_one_diagnosis():
    short = [name for name, _ in SCORED.values()]
    assert len(SCORED) == len(set(short)) == 30
    assert {*SAME_DIAGNOSIS, *SAME_DIAGNOSIS.values()} <= set(short)
    assert len({SAME_DIAGNOSIS.get(name, name) for name in short}) == 26


def test_unscored_codes_are_left_out_or_keep_their_number():
    codes = ["426783006", "55827005"]
    assert challenge_classes(codes, scored_only=True, merge=False) == {"NSR"}
    assert challenge_classes(codes, scored_only=False, merge=False) == {"NSR", "55827005"}


def test_a_class_with_too_few_records_is_not_kept():
    found = [{"a"}, {"a", "b"}, {"a", "b"}, set()]
    labels, names = label_matrix(found, min_positives=2)
    assert (names, labels.tolist()) == (("a", "b"), [[1, 0], [1, 1], [1, 1], [0, 0]])
    assert label_matrix(found, min_positives=3)[1] == ("a",)


def test_without_a_class_that_is_left_the_most_frequent_is_named():
    with pytest.raises(DataError, match="min_positives=4 of 2 records; .* 'a' with 2"):
        label_matrix([{"a"}, {"a", "b"}], min_positives=4)
    with pytest.raises(DataError, match="of 1 records; there is none"):
        label_matrix([set()], min_positives=1)
