"""Write generated patients as WFDB recordings: a data set that needs no download."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from metaecg.checks import check_positive
from metaecg.data.demo_patients import (
    FS_HZ,
    LEAD,
    MIN_DURATION_S,
    GeneratedPatient,
    Role,
    generate_patient,
)
from metaecg.data.files import file_sha256
from metaecg.errors import DataError

DEMO_VERSION = 1
"""Raise it whenever the generated signals or annotations change: old copies are then replaced."""

SLUG = "demo"
_GAIN_PER_MV = 200.0


def write_demo_database(
    folder: str | os.PathLike,
    *,
    n_subjects: int = 16,
    duration_s: float = 300.0,
    seed: int = 0,
) -> Path:
    """Write generated patients under ``folder/demo``, or keep those that are there already.

    The same arguments give the same bytes. A copy with other arguments, of an older version or
    with a damaged file is replaced as a whole. Recordings appear complete or not at all, also when
    several processes write at once.

    Parameters
    ----------
    folder
        Where the database folder ``demo`` goes; created if it doesn't exist.
    n_subjects
        Number of patients, one recording each, ``demo01`` and so on. Of the default sixteen twelve
        have enough arrhythmia for a few-shot task, three have none and one has too little.
    duration_s
        Length of every recording in seconds, at least `MIN_DURATION_S`.
    seed
        Draws the patients. Patient i of a seed is the same whatever `n_subjects` is.

    Returns
    -------
    pathlib.Path
        ``folder/demo``: per patient ``.hea``, ``.dat`` (250 Hz, one lead, mV) and ``.atr``
        (rhythm marks and beats), a ``RECORDS`` file, and ``demo.json`` with a checksum per file.

    Raises
    ------
    ValueError
        If `n_subjects` is not a whole number above 0 or `duration_s` is too short.
    DataError
        If ``folder/demo`` exists and was not written by this function: it is never replaced.
    """
    settings = _check_settings(n_subjects, duration_s, seed)
    target = Path(folder) / SLUG
    if _is_current(target, settings):
        return target
    _refuse_foreign(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{SLUG}-") as scratch:
        built = Path(scratch) / SLUG
        built.mkdir()
        _write_all(built, settings)
        _swap_in(built, target, settings, old=Path(scratch) / "old")
    return target


def _check_settings(n_subjects: int, duration_s: float, seed: int) -> dict:
    check_positive("n_subjects", n_subjects)
    check_positive("duration_s", duration_s)
    if n_subjects != int(n_subjects):
        raise ValueError(f"n_subjects is {n_subjects!r}; a whole number was expected.")
    if duration_s < MIN_DURATION_S:
        raise ValueError(
            f"duration_s is {duration_s!r}; at least {MIN_DURATION_S:g} s are needed, so that "
            "both halves of a recording have room for arrhythmia."
        )
    return {
        "demo_version": DEMO_VERSION,
        "n_subjects": int(n_subjects),
        "duration_s": float(duration_s),
        "seed": int(seed),
    }


def _is_current(target: Path, settings: dict) -> bool:
    """Tell whether `target` holds what `settings` would write, file by file."""
    try:
        found = json.loads((target / "demo.json").read_text())
        files = found.pop("files")
        return found == settings and all(file_sha256(target / f) == s for f, s in files.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _refuse_foreign(target: Path) -> None:
    if target.exists() and not (target / "demo.json").is_file():
        raise DataError(
            f"{target} exists and has no demo.json, so it was not written by metaecg and is not "
            "replaced. Choose another folder or move it away."
        )


def _swap_in(built: Path, target: Path, settings: dict, *, old: Path) -> None:
    """Rename `built` to `target`; another process that was faster with the same wins."""
    for _ in range(20):
        try:
            os.rename(built, target)
            return
        except OSError:  # the target is there and not empty
            if _is_current(target, settings):
                return
        try:
            os.rename(target, old)
        except FileNotFoundError:  # another process moved it away between the two lines
            continue
        shutil.rmtree(old)
    raise DataError(
        f"{target} is being rewritten by other processes with other settings. Give each its own "
        "folder."
    )


def _write_all(folder: Path, settings: dict) -> None:
    n_subjects = settings["n_subjects"]
    n_digits = max(2, int(math.log10(n_subjects)) + 1)
    names = [f"demo{number:0{n_digits}d}" for number in range(1, n_subjects + 1)]
    for index, name in enumerate(names):
        patient = generate_patient(index, duration_s=settings["duration_s"], seed=settings["seed"])
        _write_recording(folder, name, patient)
    (folder / "RECORDS").write_text("".join(f"{name}\n" for name in names))
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    (folder / "demo.json").write_text(json.dumps({**settings, "files": files}, indent=1) + "\n")


def _write_recording(folder: Path, name: str, patient: GeneratedPatient) -> None:
    import wfdb

    wfdb.wrsamp(
        name,
        fs=FS_HZ,
        units=["mV"],
        sig_name=[LEAD],
        d_signal=np.round(patient.signal_mv * _GAIN_PER_MV).astype(np.int64)[:, None],
        fmt=["212"],
        adc_gain=[_GAIN_PER_MV],
        baseline=[0],
        comments=["generated by metaecg, not recorded from a person", _describe(patient.role)],
        write_dir=str(folder),
    )
    # A rhythm mark stands before a beat at the same sample, as in the public databases.
    marks = [(max(1, round(s.start_s * FS_HZ)), 0, "+", f"({s.rhythm}") for s in patient.segments]
    beats = [(sample, 1, symbol, "") for sample, symbol in patient.beats]
    rows = sorted(marks + beats)
    wfdb.wrann(
        name,
        "atr",
        sample=np.array([row[0] for row in rows]),
        symbol=[row[2] for row in rows],
        aux_note=[row[3] for row in rows],
        write_dir=str(folder),
    )


def _describe(role: Role) -> str:
    parts = [role.background, "/".join(role.va) or "no ventricular arrhythmia"]
    parts += ["bundle-branch block"] if role.is_wide else []
    parts += ["slow VT"] if role.is_slow_vt else []
    parts += ["restless"] if role.is_restless else []
    return ", ".join(parts)
