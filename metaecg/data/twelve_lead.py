"""12-lead recordings of about ten seconds with multi-label statements: PTB-XL, Challenge 2021.

Two layouts are read, each from a folder, into one kind of set:

- PTB-XL's own: ``ptbxl_database.csv``, ``scp_statements.csv``, ``records100/`` or ``records500/``;
- the PhysioNet Challenge 2021: any tree of ``.hea`` and ``.mat`` with ``Dx:`` in the header.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from metaecg.checks import check_option, check_positive
from metaecg.data.databases import Database
from metaecg.data.statements import (
    SUPERCLASSES,
    challenge_classes,
    check_level,
    label_matrix,
    read_scp_statements,
    read_table,
    scp_codes,
    snomed_codes,
)
from metaecg.data.twelve_lead_files import STANDARD_LEADS
from metaecg.data.twelve_lead_input import TwelveLeadInput
from metaecg.data.twelve_lead_set import Entry, TwelveLeadSet, assemble
from metaecg.errors import DataError

CC_BY = "CC BY 4.0"
"""Creative Commons Attribution 4.0: name the source wherever results are published."""

PTB_XL = Database(
    slug="ptb-xl",
    title="PTB-XL, a large publicly available electrocardiography dataset",
    n_records=21799,
    fs_hz=500.0,
    version="1.0.3",
    licence=CC_BY,
    leads=STANDARD_LEADS,
    citation="Wagner P, Strodthoff N, Bousseljot R-D, Kreiseler D, Lunze FI, Samek W, Schaeffter "
    "T. PTB-XL, a large publicly available electrocardiography dataset. Scientific Data 7:154, 2020.",
    notes="18,869 people. A copy at 100 Hz lies beside. Versions before 1.0.2 have 21,837 records.",
)
CHALLENGE_2021 = Database(
    slug="challenge-2021",
    title="Will Two Do? Varying Dimensions in Electrocardiography: The PhysioNet Challenge 2021",
    n_records=88253,
    fs_hz=500.0,
    version="1.0.3",
    licence=CC_BY,
    leads=STANDARD_LEADS,
    citation="Reyna MA, Sadr N, Perez Alday EA, et al. Issues in the automated classification of "
    "multilead ECGs using heterogeneous labels and populations. Physiol Meas 43(8):084001, 2022.",
    notes="Eight databases, of which ptb has 1000 Hz and st_petersburg_incart 257 Hz. Its record "
    "HR00001 is PTB-XL's ECG 1, and so on; who else was recorded isn't published.",
)
"""Not among `metaecg.data.databases.DATABASES`: those are downloaded as flat folders of records
with beat or rhythm annotations."""

_SOURCES = {
    "A": "cpsc_2018",
    "Q": "cpsc_2018_extra",
    "I": "st_petersburg_incart",
    "S": "ptb",
    "HR": "ptb-xl",
    "E": "georgia",
}
_LAST_OF_CHAPMAN = 10646  # JS00001 to JS10646 are chapman_shaoxing, the rest of JS is ningbo


def read_ptbxl(
    folder: str | Path,
    *,
    fs_hz: float,
    classes: str = "superclass",
    min_positives: int = 1,
    preprocessing: TwelveLeadInput | None = None,
    cache_root: str | Path | None = None,
) -> TwelveLeadSet:
    """Read a folder in PTB-XL's own layout.

    Parameters
    ----------
    folder
        Holds ``ptbxl_database.csv``, ``scp_statements.csv`` and the records it names.
    fs_hz
        Which of the two copies to read: 100 or 500 Hz.
    classes
        One of `metaecg.data.statements.LEVELS`: the five superclasses, the subclasses, statements
        of one kind, or all statements. A statement counts whatever likelihood stands beside it.
    min_positives
        Fewest records, of all in the folder, that a class needs to be kept. Records without a kept
        class are dropped.
    preprocessing
        Filter, rate, length; None leaves the signals as they are, 10 s of them.
    cache_root
        Where prepared signals are kept between calls, memory-mapped; None keeps none.

    Raises
    ------
    DataError
        A table or a file is missing or damaged, or no class is left.

    Notes
    -----
    Where ``scp_codes`` were rebuilt from the published superclasses and subclasses (column
    ``scp_codes_source``), one code stands for a subclass: superclass and subclass are exact there,
    single diagnostic statements are not.
    """
    check_level(classes)
    column = {100.0: "filename_lr", 500.0: "filename_hr"}.get(float(fs_hz))
    if column is None:
        raise ValueError(f"fs_hz is {fs_hz!r}; PTB-XL has 100 and 500 Hz.")
    folder = Path(folder)
    needed = ("ecg_id", "patient_id", "scp_codes", "strat_fold", column)
    rows = read_table(folder / "ptbxl_database.csv", needed)
    known = read_scp_statements(folder / "scp_statements.csv")
    records, classes_of_records = [], []
    for row in rows:
        record = _ptbxl_record(folder, row, column, known)
        records.append(record)
        classes_of_records.append(set().union(*(known.classes_of(c, classes) for c in record.codes)))  # fmt: skip
    order = SUPERCLASSES if classes == "superclass" else ()
    return assemble(
        records,
        label_matrix(classes_of_records, min_positives=min_positives, order=order),
        duration_s=10.0,
        preprocessing=preprocessing,
        cache_root=cache_root,
        subjects_known=True,
    )


def read_challenge(
    folder: str | Path,
    *,
    scored_only: bool = True,
    merge_same: bool = False,
    min_positives: int = 1,
    sources: Collection[str] | None = None,
    subjects: Mapping[str, str] | None = None,
    duration_s: float = 10.0,
    preprocessing: TwelveLeadInput | None = None,
    cache_root: str | Path | None = None,
) -> TwelveLeadSet:
    """Read a folder, with all folders below it, in the layout of the PhysioNet Challenge 2021.

    Parameters
    ----------
    folder
        Holds ``.hea`` and ``.mat`` files.
    scored_only
        Keep the diagnoses that the Challenge scores; False keeps every code, named by its
        abbreviation or, without one, by the code itself.
    merge_same
        Take the four pairs that the Challenge scores as the same diagnosis as one class.
    min_positives
        Fewest records, of all that are read, that a class needs; H-Tuning takes 201. Records
        without a kept class are dropped.
    sources
        Databases to read, such as ``["georgia"]``; by default all.
    subjects
        Record name -> subject, where it is known: `ptbxl_subjects` for the records ``HR...``.
        Elsewhere the record stands for its own person. The Challenge doesn't say who they are,
        so two records of one person may stand on two sides of a split.
    duration_s
        Length that is kept without `preprocessing`: the first seconds, zeros behind a shorter one.
    preprocessing, cache_root
        As in `read_ptbxl`.

    Raises
    ------
    DataError
        There is no record, a file is damaged, a header has no ``Dx:``, or no class is left.

    Notes
    -----
    Records with the same signal file byte for byte become one subject; E07509 and E07510 of
    georgia are such a pair.
    """
    check_positive("duration_s", duration_s)
    headers = sorted(Path(folder).rglob("*.hea"))
    records = [_challenge_record(header, subjects or {}) for header in headers]
    if sources is not None:
        for source in sources:
            check_option("sources", source, {record.source for record in records})
        records = [record for record in records if record.source in set(sources)]
    if not records:
        raise DataError(
            f"the folder {folder} holds no .hea file; expected records of the Challenge 2021 in it "
            "or below it. Check the path."
        )
    names = [
        challenge_classes(record.codes, scored_only=scored_only, merge=merge_same)
        for record in records
    ]
    return assemble(
        records,
        label_matrix(names, min_positives=min_positives),
        duration_s=duration_s,
        preprocessing=preprocessing,
        cache_root=cache_root,
        subjects_known=all(record.path.name in (subjects or {}) for record in records),
    )


def ptbxl_subjects(folder: str | Path) -> dict[str, str]:
    """Return the Challenge's record name -> PTB-XL's subject, from ``ptbxl_database.csv``.

    The Challenge's ``HR06005`` is PTB-XL's ECG 6005. With this in `read_challenge` nobody of PTB-XL
    has two names, and the two may be used side by side.
    """
    rows = read_table(Path(folder) / "ptbxl_database.csv", ("ecg_id", "patient_id"))
    numbers = [(_number(row, "ecg_id"), _number(row, "patient_id")) for row in rows]
    return {f"HR{ecg:05d}": f"{PTB_XL.slug}/patient-{patient}" for ecg, patient in numbers}


def _ptbxl_record(folder: Path, row: dict[str, str], column: str, known) -> Entry:
    number = _number(row, "ecg_id")
    where = f"ECG {number} of {folder.name}"
    if not row[column]:
        raise DataError(
            f"{where} has no {column} in ptbxl_database.csv. Read the other rate: fs_hz=100 is "
            "filename_lr, fs_hz=500 is filename_hr."
        )
    codes = [
        known.canonical(code, where=where) for code in scp_codes(row["scp_codes"], where=where)
    ]
    return Entry(
        path=folder / row[column],
        record_id=f"{PTB_XL.slug}/{number}",
        subject_id=f"{PTB_XL.slug}/patient-{_number(row, 'patient_id')}",
        codes=tuple(dict.fromkeys(codes)),
        source=PTB_XL.slug,
        label_source=row.get("scp_codes_source") or "original",
        report=row.get("report") or "",
        fold=_number(row, "strat_fold"),
    )


def _challenge_record(header: Path, subjects: Mapping[str, str]) -> Entry:
    name = header.stem
    lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    record_id = f"{CHALLENGE_2021.slug}/{name}"
    return Entry(
        path=header.with_suffix(""),
        record_id=record_id,
        subject_id=subjects.get(name, record_id),
        codes=tuple(snomed_codes(comments, where=f"record {name!r}")),
        source=_source(header),
    )


def _source(header: Path) -> str:
    """Return the database that a record's name tells, else the folder's name."""
    match = re.fullmatch(r"([A-Z]+)(\d+)", header.stem)
    if match and match[1] == "JS":
        return "chapman_shaoxing" if int(match[2]) <= _LAST_OF_CHAPMAN else "ningbo"
    return _SOURCES.get(match[1] if match else "", header.parent.name)


def _number(row: Mapping[str, str], column: str) -> int:
    """Return a whole number of a table, also where it is written ``9012.0``."""
    try:
        value = float(row[column])
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise DataError(
        f"ptbxl_database.csv has the {column} {row[column]!r} (ecg_id {row['ecg_id']!r}); expected "
        "a whole number. Fetch the table again."
    )
