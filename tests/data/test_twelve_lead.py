"""Folders in PTB-XL's and in the Challenge's layout become sets whose rows belong together."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import wfdb

from metaecg.data import twelve_lead_files
from metaecg.data.twelve_lead import ptbxl_subjects, read_challenge, read_ptbxl
from metaecg.data.twelve_lead_files import STANDARD_LEADS, read_twelve_leads
from metaecg.data.twelve_lead_input import TwelveLeadInput
from metaecg.errors import DataError

STATEMENTS = """,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass
NORM,1.0,,,NORM,NORM
AMI,1.0,,,MI,AMI
IMI,1.0,,,MI,IMI
PVC,,1.0,,,
SR,,,1.0,,
"""
COLUMNS = ("ecg_id", "patient_id", "report", "scp_codes", "strat_fold", "filename_lr", "filename_hr")  # fmt: skip


def leads(seconds=10.0, fs_hz=100, first=100):
    """Return whole numbers of shape (n_samples, 12): lead i starts at `first` + 100 i and rises."""
    return np.arange(round(seconds * fs_hz))[:, None] % 50 + first + 100 * np.arange(12)


@pytest.fixture
def ptbxl(tmp_path, write_record):
    """Write a folder like PTB-XL's: ``ptbxl(codes, patients=..., folds=..., signals=...)``."""

    def write(codes, *, patients=None, folds=None, signals=None, names=STANDARD_LEADS, unit="mV"):
        rows = []
        for i, cell in enumerate(codes):
            digital = leads(first=100 + i) if signals is None else signals[i]
            write_record(digital, name=f"{i:05d}_lr", folder="ptb/records100", fs_hz=100,
                         leads=list(names), unit=unit, marks=())  # fmt: skip
            patient = f"{(patients or range(len(codes)))[i]}.0"
            fold = (folds or [1] * len(codes))[i]
            rows.append((i, patient, f"text {i}", cell, fold, f"records100/{i:05d}_lr", ""))
        folder = tmp_path / "ptb"
        with open(folder / "ptbxl_database.csv", "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        (folder / "scp_statements.csv").write_text(STATEMENTS)
        return folder

    return write


@pytest.fixture
def challenge(tmp_path):
    """Write a record as the Challenge does: header, and 24 bytes before the samples of a .mat."""

    def write(name, codes, *, folder="g1", digital=None, fs_hz=500, names=STANDARD_LEADS):
        digital = leads(fs_hz=fs_hz) if digital is None else digital
        place = tmp_path / "training" / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.mat").write_bytes(bytes(24) + digital.astype("<i2").tobytes())
        lines = [f"{name} 12 {fs_hz} {len(digital)}"]
        lines += [f"{name}.mat 16x1+24 1000.0(0)/mV 16 0 {digital[0, i]} {_sum(digital[:, i])} 0 {lead}"
                  for i, lead in enumerate(names)]  # fmt: skip
        lines += ["# Age: 50", f"# Dx: {codes}", ""]
        (place / f"{name}.hea").write_text("\n".join(lines))
        return tmp_path / "training"

    return write


def _sum(digital):
    return int(np.array(int(digital.sum()) & 0xFFFF, dtype=np.uint16).view(np.int16))


def test_labels_people_and_signals_of_ptbxl_line_up(ptbxl):
    folder = ptbxl(
        ["{'AMI': 80.0, 'SR': 0.0}", "{'NORM': 100.0}", "{'IMI': 0.0, 'NORM': 50.0}"],
        patients=[9, 8, 9], folds=[3, 1, 3],
    )  # fmt: skip
    found = read_ptbxl(folder, fs_hz=100)
    assert found.class_names == ("NORM", "MI")
    assert found.labels.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert found.record_ids.tolist() == ["ptb-xl/0", "ptb-xl/1", "ptb-xl/2"]
    assert found.subject_ids.tolist() == [f"ptb-xl/patient-{i}" for i in (9, 8, 9)]
    assert found.strat_fold.tolist() == [3, 1, 3]
    assert found.reports == ("text 0", "text 1", "text 2")
    assert found.statements[0] == ("AMI", "SR")
    assert (found.signals.shape, found.signals.dtype) == ((3, 12, 1000), np.float32)
    assert found.signals[:, 0, 0] == pytest.approx(
        [0.5, 0.505, 0.51]
    )  # 100, 101, 102 of 200 per mV
    assert (found.unit, found.fs_hz, found.subjects_known) == ("mV", 100.0, True)


def test_selected_records_keep_what_belongs_to_them(ptbxl):
    found = read_ptbxl(ptbxl(["{'AMI': 0.0}", "{'NORM': 0.0}", "{'IMI': 0.0}"]), fs_hz=100)
    for rows in ([2, 0], np.array([2, 0])):
        chosen = found.select(rows)
        assert chosen.record_ids.tolist() == ["ptb-xl/2", "ptb-xl/0"]
        assert chosen.reports == ("text 2", "text 0")
        assert chosen.positives == {"NORM": 0, "MI": 2}
        assert np.array_equal(chosen.signals, found.signals[[2, 0]])
    assert len(found.select(np.array([True, False, False]))) == 1


@pytest.mark.parametrize(
    ("level", "names"),
    [("subclass", ("AMI", "NORM")), ("form", ("PVC",)), ("rhythm", ("SR",)),
     ("all", ("AMI", "NORM", "PVC", "SR"))],
)  # fmt: skip
def test_each_level_has_its_own_classes_and_drops_who_has_none(ptbxl, level, names):
    found = read_ptbxl(ptbxl(["{'AMI': 0, 'PVC': 0}", "{'NORM': 0, 'SR': 0}"]), fs_hz=100, classes=level)  # fmt: skip
    assert found.class_names == names
    assert len(found) + len(found.dropped) == 2
    assert set(found.dropped.values()) <= {"no kept class"}


def test_a_class_with_too_few_records_takes_its_records_along(ptbxl):
    folder = ptbxl(["{'AMI': 0}", "{'NORM': 0}", "{'NORM': 0}"])
    found = read_ptbxl(folder, fs_hz=100, min_positives=2)
    assert found.class_names == ("NORM",)
    assert found.dropped == {"ptb-xl/0": "no kept class"}
    assert found.record_ids.tolist() == ["ptb-xl/1", "ptb-xl/2"]


def test_leads_come_in_standard_order_whatever_the_order_of_the_file(ptbxl):
    names = [name.upper() for name in reversed(STANDARD_LEADS)]
    found = read_ptbxl(ptbxl(["{'NORM': 0}"], names=names), fs_hz=100)
    assert found.lead_names == STANDARD_LEADS
    assert found.signals[0, :, 0] == pytest.approx(np.arange(1200, 0, -100) / 200)


def test_a_missing_and_a_doubled_lead_are_named(challenge):
    folder = challenge("E1", "426783006", names=[*STANDARD_LEADS[:11], "V5"])
    with pytest.raises(DataError, match="'E1' has the leads I, .* once, and V5, V6 is not"):
        read_challenge(folder)


def test_amplitudes_without_a_unit_are_read_and_said_to_be_so(ptbxl):
    assert read_ptbxl(ptbxl(["{'NORM': 0}"], unit="NU"), fs_hz=100).unit == "NU"


def test_an_unknown_unit_is_refused(ptbxl):
    folder = ptbxl(["{'NORM': 0}"], unit="kPa")
    with pytest.raises(DataError, match="the unit is 'kPa'; expected mV"):
        read_ptbxl(folder, fs_hz=100)


def test_recordings_in_two_units_are_refused(ptbxl, edit_header):
    folder = ptbxl(["{'NORM': 0}", "{'NORM': 0}"])
    header = folder / "records100" / "00001_lr.hea"
    edit_header(header.with_suffix(""), "mV", "NU")
    with pytest.raises(DataError, match="00001_lr': its leads have the units NU, mV"):
        read_ptbxl(folder, fs_hz=100)
    header.write_text(header.read_text().replace("mV", "NU"))
    with pytest.raises(DataError, match="'00001_lr' is in NU, those before it are in mV"):
        read_ptbxl(folder, fs_hz=100)


def test_a_recording_with_an_unmeasured_sample_is_dropped_with_the_number(ptbxl):
    gap = leads()
    gap[5:8, 3] = -32768
    folder = ptbxl(["{'NORM': 0}", "{'AMI': 0}"], signals=[gap, leads()], patients=[7, 8])
    found = read_ptbxl(folder, fs_hz=100)
    assert found.subject_ids.tolist() == ["ptb-xl/patient-8"]
    assert found.dropped == {"ptb-xl/0": "3 of 1000 samples were not measured"}
    assert found.record_ids.tolist() == ["ptb-xl/1"]
    assert found.labels.tolist() == [[0, 1]]


def test_without_a_usable_recording_the_reason_is_given(ptbxl):
    folder = ptbxl(["{'NORM': 0}"], signals=[np.full((1000, 12), -32768)])
    with pytest.raises(DataError, match="none of 1 recordings .* 1000 of 1000 samples"):
        read_ptbxl(folder, fs_hz=100)


def test_every_recording_gets_ten_seconds_and_the_others_are_counted(ptbxl):
    signals = [leads(12.0), leads(10.0), leads(8.0)]
    found = read_ptbxl(ptbxl(["{'NORM': 0}"] * 3, signals=signals), fs_hz=100)
    assert found.signals.shape == (3, 12, 1000)
    assert (found.n_cropped, found.n_padded) == (1, 1)
    assert not found.signals[2, :, 800:].any() and found.signals[2, :, :800].all()


def test_preprocessing_is_applied_record_by_record(ptbxl):
    chosen = TwelveLeadInput(fs_hz=500.0, n_samples=6144)
    folder = ptbxl(["{'NORM': 0}", "{'AMI': 0}"])
    raw, found = (read_ptbxl(folder, fs_hz=100, preprocessing=p) for p in (None, chosen))
    assert np.allclose(found.signals, chosen.prepare(raw.signals, fs_hz=100.0))
    assert (found.fs_hz, found.unit, found.n_padded) == (500.0, "sd", 2)


def test_the_cache_gives_the_same_set_without_reading_again(ptbxl, tmp_path, monkeypatch):
    folder = ptbxl(["{'NORM': 0}", "{'AMI': 0}", "{'AMI': 0}"])
    plain = read_ptbxl(folder, fs_hz=100)
    first = read_ptbxl(folder, fs_hz=100, cache_root=tmp_path / "cache")
    monkeypatch.setattr(twelve_lead_files, "read_twelve_leads", None)  # would fail if called
    again = read_ptbxl(folder, fs_hz=100, cache_root=tmp_path / "cache")
    for found in (first, again):
        assert np.array_equal(found.signals, plain.signals)
        assert found.labels.tolist() == plain.labels.tolist()
        assert found.manifest_sha256 == plain.manifest_sha256
    for other in (
        {"min_positives": 2},
        {"preprocessing": TwelveLeadInput(fs_hz=100.0, n_samples=9)},
    ):
        with pytest.raises(TypeError):  # another entry, which has to be read
            read_ptbxl(folder, fs_hz=100, cache_root=tmp_path / "cache", **other)


def test_a_damaged_cache_entry_is_made_anew(ptbxl, tmp_path):
    folder = ptbxl(["{'NORM': 0}"])
    expected = np.array(read_ptbxl(folder, fs_hz=100, cache_root=tmp_path / "c").signals)
    (file,) = (tmp_path / "c").rglob("signals.f32")
    os.truncate(file, 100)
    assert np.array_equal(read_ptbxl(folder, fs_hz=100, cache_root=tmp_path / "c").signals, expected)  # fmt: skip


def test_a_rate_that_ptbxl_lacks_and_a_copy_that_is_not_there_are_refused(ptbxl):
    folder = ptbxl(["{'NORM': 0}"])
    with pytest.raises(ValueError, match="fs_hz is 250; PTB-XL has 100 and 500 Hz"):
        read_ptbxl(folder, fs_hz=250)
    with pytest.raises(DataError, match="ECG 0 of ptb has no filename_hr"):
        read_ptbxl(folder, fs_hz=500)
    with pytest.raises(ValueError, match="classes is 'superclas'; .*Did you mean 'superclass'"):
        read_ptbxl(folder, fs_hz=100, classes="superclas")


def test_a_patient_that_is_no_number_is_refused(ptbxl):
    with pytest.raises(DataError, match="patient_id 'x.0' .ecg_id '0'."):
        read_ptbxl(ptbxl(["{'NORM': 0}"], patients=["x"]), fs_hz=100)


def test_labels_names_and_samples_of_the_challenge_line_up(challenge):
    challenge("E00001", "426783006,164889003", folder="georgia/g1")
    folder = challenge("JS20000", "164889003,55827005", folder="ningbo/g9", digital=leads(fs_hz=500, first=300))  # fmt: skip
    found = read_challenge(folder)
    assert found.class_names == ("AF", "NSR")
    assert found.labels.tolist() == [[1, 1], [1, 0]]
    assert found.record_ids.tolist() == ["challenge-2021/E00001", "challenge-2021/JS20000"]
    assert found.sources.tolist() == ["georgia", "ningbo"]
    assert found.subject_ids.tolist() == found.record_ids.tolist() and not found.subjects_known
    assert found.signals[:, 0, 0] == pytest.approx([0.1, 0.3])
    assert found.strat_fold is None
    assert read_challenge(folder, scored_only=False).class_names == ("55827005", "AF", "NSR")
    assert len(read_challenge(folder, sources=["ningbo"])) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [("A0001", "cpsc_2018"), ("Q0001", "cpsc_2018_extra"), ("I0001", "st_petersburg_incart"),
     ("S0001", "ptb"), ("HR00001", "ptb-xl"), ("JS10646", "chapman_shaoxing"),
     ("JS10647", "ningbo"), ("x1", "g1")],
)  # fmt: skip
def test_a_records_name_tells_its_database(challenge, name, source):
    assert read_challenge(challenge(name, "426783006")).sources.tolist() == [source]


def test_the_same_signal_under_two_names_is_one_person(challenge):
    challenge("JS20000", "426783006")
    challenge("JS20001", "426783006", digital=leads(fs_hz=500, first=300))
    found = read_challenge(challenge("JS20002", "426783006"))
    first, second, third = found.subject_ids.tolist()
    assert first == third != second


def test_a_record_of_ptbxl_in_the_challenge_gets_ptbxls_person(challenge, ptbxl):
    subjects = ptbxl_subjects(ptbxl(["{'NORM': 0}", "{'AMI': 0}"], patients=[7, 7]))
    assert subjects == {"HR00000": "ptb-xl/patient-7", "HR00001": "ptb-xl/patient-7"}
    challenge("HR00000", "426783006")
    folder = challenge("HR00001", "426783006", digital=leads(fs_hz=500, first=300))
    found = read_challenge(folder, subjects=subjects)
    assert found.subject_ids.tolist() == ["ptb-xl/patient-7"] * 2
    assert found.subjects_known


def test_another_rate_needs_preprocessing(challenge):
    challenge("E1", "426783006")
    folder = challenge("S1", "426783006", fs_hz=1000)
    with pytest.raises(DataError, match="'S1' has 1000 Hz, those before it have 500 Hz"):
        read_challenge(folder)
    found = read_challenge(folder, preprocessing=TwelveLeadInput(fs_hz=100.0, n_samples=1000))
    assert found.signals.shape == (2, 12, 1000)


def test_an_empty_folder_and_an_unknown_source_are_refused(challenge, tmp_path):
    with pytest.raises(DataError, match="holds no .hea file"):
        read_challenge(tmp_path)
    with pytest.raises(ValueError, match="sources is 'ningba'; .*ningbo"):
        read_challenge(challenge("JS20000", "426783006"), sources=["ningba"])


def test_a_changed_sample_of_the_challenge_is_refused_by_the_checksum(challenge):
    folder = challenge("E1", "426783006")
    file = folder / "g1" / "E1.mat"
    content = bytearray(file.read_bytes())
    content[24] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="'E1', lead 'I': the samples sum to the checksum"):
        read_challenge(folder)


# Real recordings


@pytest.fixture(scope="module")
def shared() -> Path:
    named = os.environ.get("METAECG_DATA")
    for folder in ("ptbxl_subset", "cinc2021_sample"):
        if not named or not (Path(named) / folder).is_dir():
            pytest.skip(f"METAECG_DATA names no folder with {folder}")
    return Path(named)


def test_real_recordings_read_as_wfdb_reads_them(shared):
    records = sorted((shared / "ptbxl_subset").rglob("*.hea"))[::400]
    for header in (*records, *sorted((shared / "cinc2021_sample").glob("*.hea"))[::12]):
        signals, fs_hz, unit = read_twelve_leads(header.with_suffix(""))
        expected = wfdb.rdrecord(str(header.with_suffix("")))
        assert (fs_hz, unit.lower()) == (expected.fs, expected.units[0].lower())
        assert np.allclose(signals, expected.p_signal.T, atol=1e-6)


def test_the_rebuilt_statements_give_the_published_superclasses(shared):
    from metaecg.data.statements import read_scp_statements, read_table, scp_codes

    known = read_scp_statements(shared / "ptbxl_subset" / "scp_statements.csv")
    for row in read_table(shared / "ptbxl_subset" / "ptbxl_database.csv", ()):
        codes = [known.canonical(c, where="") for c in scp_codes(row["scp_codes"], where="")]
        found = set().union(*(known.classes_of(c, "superclass") for c in codes))
        assert found == set(row["diagnostic_superclass"].split()), row["ecg_id"]


def test_the_sample_of_the_challenge_has_its_known_diagnoses(shared):
    found = read_challenge(shared / "cinc2021_sample")
    assert (len(found), len(found.dropped), found.signals.shape[1:]) == (48, 2, (12, 5000))
    assert [found.positives[name] for name in ("STach", "PAC", "NSR", "TAb")] == [23, 20, 15, 10]
    assert sorted(set(found.sources.tolist())) == ["georgia", "ningbo", "ptb-xl"]
    # E07510.mat is E07509.mat byte for byte.
    owner = dict(zip(found.record_ids.tolist(), found.subject_ids.tolist(), strict=True))
    shared_names = {record: subject for record, subject in owner.items() if record != subject}
    assert shared_names == {"challenge-2021/E07510": "challenge-2021/E07509"}
