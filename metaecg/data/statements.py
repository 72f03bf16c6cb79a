"""Diagnostic statements of 12-lead recordings become classes: PTB-XL's SCP codes, SNOMED CT.

A recording may carry several statements, so labels are a matrix of 0 and 1, one column per class.
"""

import ast
import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from metaecg.checks import check_option, check_positive
from metaecg.errors import DataError

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
"""PTB-XL's five diagnostic superclasses: normal, myocardial infarction, ST/T change, conduction
disturbance, hypertrophy (Wagner et al. 2020, table 5)."""

LEVELS = ("superclass", "subclass", "diagnostic", "form", "rhythm", "all")
"""What PTB-XL's statements can be asked for. The first two pool diagnostic statements; the next
three are statements of one kind; ``all`` is every statement."""

SCORED = {
    "164889003": ("AF", "atrial fibrillation"),
    "164890007": ("AFL", "atrial flutter"),
    "6374002": ("BBB", "bundle branch block"),
    "426627000": ("Brady", "bradycardia"),
    "733534002": ("CLBBB", "complete left bundle branch block"),
    "713427006": ("CRBBB", "complete right bundle branch block"),
    "270492004": ("IAVB", "1st degree AV block"),
    "713426002": ("IRBBB", "incomplete right bundle branch block"),
    "39732003": ("LAD", "left axis deviation"),
    "445118002": ("LAnFB", "left anterior fascicular block"),
    "164909002": ("LBBB", "left bundle branch block"),
    "251146004": ("LQRSV", "low QRS voltages"),
    "698252002": ("NSIVCB", "nonspecific intraventricular conduction disorder"),
    "426783006": ("NSR", "sinus rhythm"),
    "284470004": ("PAC", "premature atrial contraction"),
    "10370003": ("PR", "pacing rhythm"),
    "365413008": ("PRWP", "poor R wave progression"),
    "427172004": ("PVC", "premature ventricular contractions"),
    "164947007": ("LPR", "prolonged PR interval"),
    "111975006": ("LQT", "prolonged QT interval"),
    "164917005": ("QAb", "Q wave abnormal"),
    "47665007": ("RAD", "right axis deviation"),
    "59118001": ("RBBB", "right bundle branch block"),
    "427393009": ("SA", "sinus arrhythmia"),
    "426177001": ("SB", "sinus bradycardia"),
    "427084000": ("STach", "sinus tachycardia"),
    "63593006": ("SVPB", "supraventricular premature beats"),
    "164934002": ("TAb", "T wave abnormal"),
    "59931005": ("TInv", "T wave inversion"),
    "17338001": ("VPB", "ventricular premature beats"),
}
"""SNOMED CT code -> abbreviation and name of the diagnoses that the PhysioNet Challenge 2021 scores
(its evaluation code's ``dx_mapping_scored.csv``; Reyna et al. 2022)."""

SAME_DIAGNOSIS = {"CLBBB": "LBBB", "CRBBB": "RBBB", "SVPB": "PAC", "VPB": "PVC"}
"""Abbreviation -> the one that the Challenge scores as the same diagnosis (same source)."""


@dataclass(frozen=True, kw_only=True)
class ScpStatements:
    """PTB-XL's table of statements, ``scp_statements.csv``."""

    rows: Mapping[str, Mapping[str, str]]
    """Code -> the row of the table."""

    def canonical(self, code: str, *, where: str) -> str:
        """Return a code as the table writes it.

        Copies of PTB-XL whose codes were rebuilt from other tables write ``NST`` for ``NST_`` and
        name a whole subclass (``AVB`` for ``_AVB``) where the statement isn't known; a subclass
        that is no statement of its own comes back as the table writes the subclass.

        Raises
        ------
        DataError
            The table knows neither a statement nor a subclass of this name.
        """
        if code in self.rows:
            return code
        bare = code.strip("_")
        for known in (*self.rows, *self._subclasses):
            if known.strip("_") == bare:
                return known
        raise DataError(
            f"{where} has the statement {code!r}, which scp_statements.csv doesn't describe. Take "
            "both tables from the same version of PTB-XL."
        )

    def classes_of(self, code: str, level: str) -> set[str]:
        """Return the classes (none or one) that a canonical code stands for at a level."""
        row = self.rows.get(code) or self._subclasses[code]
        if level == "all":
            return {code}
        if level in ("superclass", "subclass"):
            column = "diagnostic_class" if level == "superclass" else "diagnostic_subclass"
            return {row[column]} - {""}
        return {code} if row[level] else set()

    @cached_property
    def _subclasses(self) -> dict[str, Mapping[str, str]]:
        """Return subclass -> one of its rows, which has everything that the subclass determines."""
        return {
            row["diagnostic_subclass"]: {**row, "form": "", "rhythm": ""}
            for row in self.rows.values()
            if row["diagnostic_subclass"]
        }


def read_scp_statements(file: Path) -> ScpStatements:
    """Read PTB-XL's ``scp_statements.csv``; a missing file or column raises DataError."""
    needed = ("", "diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")
    return ScpStatements(rows={row[""]: row for row in read_table(file, needed)})


def read_table(file: Path, columns: Collection[str]) -> list[dict[str, str]]:
    """Return the rows of a comma-separated table that has at least these columns."""
    try:
        with open(file, newline="", encoding="utf-8") as text:
            reader = csv.DictReader(text)
            rows, found = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table {file} can't be read: {error}. Fetch it again.") from error
    missing = [repr(name) for name in columns if name not in found]
    if missing:
        raise DataError(
            f"the table {file} lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(map(repr, found))}. Fetch it again."
        )
    return rows


def scp_codes(cell: str, *, where: str) -> list[str]:
    """Return the codes of one cell of PTB-XL's ``scp_codes``, such as ``{'NORM': 100.0}``.

    The number beside a code is a likelihood in per cent, 0 where none was given. A statement counts
    whatever its likelihood, as in PTB-XL's own example.

    Examples
    --------
    >>> scp_codes("{'NORM': 100.0, 'SR': 0.0}", where="record 1")
    ['NORM', 'SR']
    """
    try:
        found = ast.literal_eval(cell)
        if isinstance(found, dict):
            return [str(code) for code in found]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    raise DataError(
        f"{where} has scp_codes {cell[:60]!r}; expected a mapping such as {{'NORM': 100.0}}. Fetch "
        "the table again."
    )


def snomed_codes(comments: Sequence[str], *, where: str) -> list[str]:
    """Return the SNOMED CT codes of a header's comment ``Dx:``, each once.

    Parameters
    ----------
    comments
        The header's comment lines; ``#Dx: 1,2``, ``# Dx: 1,2`` and ``Dx: 1,2`` all count.
    where
        What the message calls the record.

    Raises
    ------
    DataError
        There is no such comment, or it holds something that is no code.

    Examples
    --------
    >>> snomed_codes(["#Age: 59", "# Dx: 164934002,426783006"], where="record 'HR06000'")
    ['164934002', '426783006']
    """
    lines = [comment.lstrip("# \t") for comment in comments]
    found = [line[3:] for line in lines if line[:3].lower() == "dx:"]
    if not found:
        raise DataError(
            f"{where} has no comment 'Dx:' in its header; expected SNOMED CT codes there, as in the "
            "PhysioNet Challenge 2021. Fetch the header again, or leave the record out."
        )
    codes = [code.strip() for line in found for code in line.split(",") if code.strip()]
    odd = [code for code in codes if not code.isdigit()]
    if odd:
        raise DataError(
            f"{where} has the diagnosis {odd[0]!r}; expected SNOMED CT codes, digits with commas "
            "between them. Correct the header or leave the record out."
        )
    return list(dict.fromkeys(codes))


def challenge_classes(codes: Sequence[str], *, scored_only: bool, merge: bool) -> set[str]:
    """Return the classes of a record of the Challenge: abbreviations, the bare code without one.

    Examples
    --------
    >>> sorted(challenge_classes(["59118001", "713427006"], scored_only=True, merge=False))
    ['CRBBB', 'RBBB']
    >>> challenge_classes(["59118001", "713427006"], scored_only=True, merge=True)
    {'RBBB'}
    """
    kept = [code for code in codes if code in SCORED or not scored_only]
    names = [SCORED[code][0] if code in SCORED else code for code in kept]
    return {SAME_DIAGNOSIS.get(name, name) if merge else name for name in names}


def label_matrix(
    classes_of_records: Sequence[Collection[str]],
    *,
    min_positives: int,
    order: Sequence[str] = (),
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return 0/1 labels for the classes that enough records have.

    Parameters
    ----------
    classes_of_records
        The classes of each record.
    min_positives
        Fewest records that a class needs to be kept, at least 1.
    order
        Classes in the order of the columns; others follow by name.

    Returns
    -------
    labels
        Shape ``(n_records, n_classes)``, uint8.
    class_names
        The name of each column.

    Raises
    ------
    DataError
        No class has that many records.

    Examples
    --------
    >>> labels, names = label_matrix([{"b"}, {"a", "b"}, {"c"}], min_positives=1, order=["c"])
    >>> names, labels.tolist()
    (('c', 'a', 'b'), [[0, 0, 1], [0, 1, 1], [1, 0, 0]])
    """
    check_positive("min_positives", min_positives)
    counts = Counter(name for classes in classes_of_records for name in set(classes))
    kept = [name for name in order if counts[name] >= min_positives]
    kept += sorted(n for n, count in counts.items() if count >= min_positives and n not in order)
    if not kept:
        most = counts.most_common(1)
        found = (
            f"the most frequent is {most[0][0]!r} with {most[0][1]}" if most else "there is none"
        )
        raise DataError(
            f"no class has min_positives={min_positives} of {len(classes_of_records)} records; "
            f"{found}. Lower min_positives or choose other classes."
        )
    labels = [[name in classes for name in kept] for classes in classes_of_records]
    return np.array(labels, dtype=np.uint8), tuple(kept)


def check_level(level: str) -> str:
    """Return `level` if it is one of `LEVELS`, else raise ValueError with the nearest."""
    return check_option("classes", level, LEVELS)
