"""The databases metaecg knows: version, licence, leads, rate, and which records are one person.

Facts were taken from the databases' own PhysioNet pages (title, number of records, rate, papers to
cite), from the recordings' headers (lead names, patient comments), and, for the licences, from
published registries that list PhysioNet's licence files. What none of these confirmed isn't here.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metaecg.checks import did_you_mean
from metaecg.errors import DataError

ODC_BY = "ODC-By 1.0"
"""Open Data Commons Attribution License 1.0: name the source wherever results are published."""

PHYSIONET_CITATION = (
    "Goldberger AL, Amaral LAN, Glass L, Hausdorff JM, Ivanov PCh, Mark RG, Mietus JE, Moody GB, "
    "Peng C-K, Stanley HE. PhysioBank, PhysioToolkit, and PhysioNet. Circulation "
    "101(23):e215-e220, 2000."
)


@dataclass(frozen=True, kw_only=True)
class Database:
    """What has to be known of a database before one of its records can be used."""

    slug: str
    """Its short name on PhysioNet, and the name of its folder."""
    title: str
    n_records: int
    fs_hz: float
    """Sampling rate of every record, in hertz. A header that says otherwise is wrong."""
    leads: tuple[str, ...]
    """Lead names, the preferred one first. The position of a lead in the file means nothing."""
    citation: str = ""
    """The database's own paper; empty where PhysioNet's page asks for `PHYSIONET_CITATION` only."""
    version: str = "1.0.0"
    licence: str = ODC_BY
    annotation_extension: str = "atr"
    vocabularies: tuple[str, ...] = ()
    """Which labels of `metaecg.data.labels` its annotations can give: ``va`` needs marks of
    ventricular rhythm, ``aami`` needs beats by kind. Without ``va`` a window that nobody marked
    can't be told from one without arrhythmia."""
    lead_exceptions: Mapping[str, str] = field(default_factory=dict)
    """Records without the preferred lead, and the lead `choose_lead` takes instead."""
    same_person: Mapping[str, str] = field(default_factory=dict)
    """Record -> the record whose name stands for the person."""
    patient_comment: bool = False
    """Whether a header comment ``patient N`` says who it is; `subject_id` then insists on it."""
    notes: str = ""

    @property
    def url_path(self) -> str:
        """The folder below a PhysioNet file server: ``slug/version/``."""
        return f"{self.slug}/{self.version}/"

    @property
    def page(self) -> str:
        """The address of the database's page, with its licence and its citation."""
        return f"https://physionet.org/content/{self.url_path}"


_ALL = (
    Database(
        slug="mitdb",
        title="MIT-BIH Arrhythmia Database",
        n_records=48,
        fs_hz=360.0,
        vocabularies=("va", "aami"),
        leads=("MLII", "V5"),
        lead_exceptions={"102": "V5", "104": "V5"},
        same_person={"202": "201"},
        citation="Moody GB, Mark RG. The impact of the MIT-BIH Arrhythmia Database. IEEE Eng Med "
        "Biol Mag 20(3):45-50, 2001.",
        notes="47 people. Record 114 has its two leads in the other order. 102, 104, 107 and 217 "
        "have paced beats.",
    ),
    Database(
        slug="vfdb",
        title="MIT-BIH Malignant Ventricular Ectopy Database",
        n_records=22,
        fs_hz=250.0,
        vocabularies=("va",),
        leads=("ECG",),
        citation="Greenwald SD. Development and analysis of a ventricular fibrillation detector. "
        "M.S. thesis, MIT Dept. of Electrical Engineering and Computer Science, 1986.",
        notes="Two channels, both named ECG. Rhythm marks only, no beats; both VF and VFIB, both N "
        "and NSR occur.",
    ),
    Database(
        slug="cudb",
        title="Creighton University Ventricular Tachyarrhythmia Database",
        n_records=35,
        fs_hz=250.0,
        vocabularies=("va",),
        leads=("ECG",),
        citation="Nolle FM, Badura FK, Catlett JM, Bowser RW, Sketch MH. CREI-GARD, a new concept "
        "in computerized arrhythmia monitoring systems. Computers in Cardiology 13:515-518, 1986.",
        notes="One channel, 8.5 minutes. Fibrillation lies between [ and ].",
    ),
    Database(
        slug="svdb",
        title="MIT-BIH Supraventricular Arrhythmia Database",
        n_records=78,
        fs_hz=128.0,
        vocabularies=("aami",),
        leads=("ECG1",),
        citation="Greenwald SD. Improved detection and classification of arrhythmias in "
        "noise-corrupted electrocardiograms using contextual information. Ph.D. thesis, "
        "Harvard-MIT Division of Health Sciences and Technology, 1990.",
        notes="Supraventricular beats are S here and A in mitdb. Some headers give the gain 0, "
        "WFDB's mark for not calibrated. The headers say nothing about the people.",
    ),
    Database(
        slug="incartdb",
        title="St Petersburg INCART 12-lead Arrhythmia Database",
        n_records=75,
        fs_hz=257.0,
        vocabularies=("aami",),
        leads=("II",),
        patient_comment=True,
        notes="75 half hours out of the Holter recordings of 32 people.",
    ),
    Database(
        slug="nsrdb",
        title="MIT-BIH Normal Sinus Rhythm Database",
        n_records=18,
        fs_hz=128.0,
        vocabularies=("aami",),
        leads=("ECG1",),
        notes="About a day each. The headers give the gain 0, WFDB's mark for not calibrated.",
    ),
    Database(
        slug="afdb",
        title="MIT-BIH Atrial Fibrillation Database",
        n_records=25,
        fs_hz=250.0,
        leads=("ECG1",),
        citation="Moody GB, Mark RG. A new method for detecting atrial fibrillation using R-R "
        "intervals. Computers in Cardiology 10:227-230, 1983.",
        notes="Ten hours each. 00735 and 03665 have annotations but no signal. Rhythm marks only.",
    ),
    Database(
        slug="ltafdb",
        title="Long Term AF Database",
        n_records=84,
        fs_hz=128.0,
        vocabularies=("aami",),
        leads=("ECG",),
        citation="Petrutiu S, Sahakian AV, Swiryn S. Abrupt changes in fibrillatory wave "
        "characteristics at the termination of paroxysmal atrial fibrillation in humans. Europace "
        "9:466-470, 2007.",
        notes="About a day each, 3.4 GB. Two channels, both named ECG: the lead isn't known.",
    ),
)

DATABASES: dict[str, Database] = {database.slug: database for database in _ALL}
"""Every known database by its slug."""


def get_database(slug: str) -> Database:
    """Return the database named `slug`; an unknown one raises DataError with the nearest name."""
    if slug not in DATABASES:
        raise DataError(f"the database is {slug!r}; expected {did_you_mean(slug, DATABASES)}")
    return DATABASES[slug]


def subject_id(slug: str, record_name: str, header_comments: Sequence[str] = ()) -> str:
    """Return who was recorded, such as ``mitdb/201`` for the records 201 and 202 of mitdb.

    A record stands for its own person unless its database says otherwise: mitdb through a list,
    incartdb through the comment ``patient N`` in the header. The person is never guessed.

    Parameters
    ----------
    slug
        Name of the database.
    record_name
        Name of the record without folder and extension.
    header_comments
        Comment lines of the record's header, with or without the leading ``#``.

    Returns
    -------
    str
        ``slug/record`` or, for incartdb, ``incartdb/patient-N``.

    Raises
    ------
    DataError
        The database is unknown, or it names its patients in the header and this header doesn't.

    Examples
    --------
    >>> subject_id("mitdb", "202")
    'mitdb/201'
    >>> subject_id("incartdb", "I02", ["<age>: 65 <sex>: F", "patient 1", "PVCs, noise"])
    'incartdb/patient-1'
    """
    database = get_database(slug)
    if database.patient_comment:
        return f"{slug}/patient-{_patient_number(slug, record_name, header_comments)}"
    return f"{slug}/{database.same_person.get(record_name, record_name)}"


def _patient_number(slug: str, record_name: str, header_comments: Sequence[str]) -> int:
    """Return N of the one comment ``patient N``."""
    lines = [comment.strip().lstrip("#").strip() for comment in header_comments]
    matches = [re.fullmatch(r"patient\s+(\d+)", line, re.IGNORECASE) for line in lines]
    numbers = {int(match[1]) for match in matches if match}
    if len(numbers) != 1:
        found = f"the patients {sorted(numbers)}" if numbers else "no patient"
        raise DataError(
            f"record {record_name!r} of {slug}: its header names {found}; expected exactly one "
            "comment 'patient N', since several records belong to one person. Fetch the .hea file "
            "again."
        )
    return numbers.pop()


def choose_lead(slug: str, lead_names: Sequence[str]) -> int:
    """Return the index of the lead to use, chosen by name.

    The first lead of the database's preference that the record has; of two channels with the same
    name the first.

    Parameters
    ----------
    slug
        Name of the database.
    lead_names
        The record's leads in the order of the file.

    Returns
    -------
    int
        Index into `lead_names`.

    Raises
    ------
    DataError
        The record has none of the preferred leads.

    Examples
    --------
    >>> choose_lead("mitdb", ["V5", "MLII"])
    1
    """
    names = [str(name).strip().upper() for name in lead_names]
    leads = get_database(slug).leads
    for lead in leads:
        if lead.upper() in names:
            return names.index(lead.upper())
    raise DataError(
        f"the leads are {list(lead_names)}; a record of {slug} is expected to have one of "
        f"{', '.join(leads)}. Check that the header belongs to {slug}, or choose the lead yourself."
    )


def default_data_root() -> Path:
    """Return the folder with the databases: ``METAECG_DATA``, else ``data`` in the user's cache."""
    if named := os.environ.get("METAECG_DATA"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("metaecg")) / "data"
