"""The recordings of `h_tuning`: those that the base learns from, and those that are fine-tuned on.

Nobody is on both sides. The base learns from a drawn share of PTB-XL's patients; all others are
left to fine-tuning. The Challenge's records ``HR...`` are PTB-XL's, so their patients are never
drawn, and those whose patient isn't known are left out.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from metaecg.data.splits import Split, check_disjoint
from metaecg.data.stratification import fold_split, multilabel_split
from metaecg.data.twelve_lead import PTB_XL, ptbxl_subjects, read_challenge, read_ptbxl
from metaecg.data.twelve_lead_input import TwelveLeadInput
from metaecg.data.twelve_lead_set import TwelveLeadSet
from metaecg.errors import DataError
from metaecg.experiments.ht_config import HTConfig
from metaecg.seeding import numpy_generator

FEW_RECORDS = 200
"""Below so many test records a task's figures come with a warning."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """What fine-tuning may use of one database."""

    database: str
    records: TwelveLeadSet = field(repr=False)
    notes: tuple[str, ...] = ()
    """What a reader of its figures has to know, a sentence each."""

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum over everything that fine-tuning sees."""
        found = self.records
        digest = hashlib.sha256(repr((found.class_names, found.signals.shape)).encode())
        for ids in (found.record_ids, found.subject_ids):
            digest.update("\n".join(ids.tolist()).encode())
        digest.update(np.ascontiguousarray(found.labels))
        for row in found.signals:
            digest.update(np.ascontiguousarray(row))
        return digest.hexdigest()


def input_of(config: HTConfig) -> TwelveLeadInput:
    """Return how recordings are prepared."""
    return TwelveLeadInput(**config.input.model_dump())


def pretraining_set(config: HTConfig) -> TwelveLeadSet:
    """Return the recordings that the base learns from, with PTB-XL's superclasses."""
    found = _read_ptbxl(config, "superclass")
    everybody = sorted(set(_read_ptbxl(config, config.ptbxl.classes).subject_ids.tolist()))
    known = set(everybody) - _challenge_subjects(config)
    candidates = sorted(set(found.subject_ids.tolist()) & known)
    rng = numpy_generator(config.pretrain.seed, "patients of the base")
    n_chosen = round(config.ptbxl.pretrain_share * len(everybody))
    if not 0 < n_chosen <= len(candidates):
        raise DataError(
            f"ptbxl.pretrain_share is {config.ptbxl.pretrain_share}, {n_chosen} of "
            f"{len(everybody)} patients, of whom {len(candidates)} may be chosen; expected at "
            "least one and at most those. Change it."
        )
    chosen = [candidates[i] for i in rng.permutation(len(candidates))[:n_chosen]]
    return found.select(np.isin(found.subject_ids, chosen))


def cohort(config: HTConfig, database: str, *, seen: Sequence[str]) -> Cohort:
    """Return what is left of a database when those whom the base has `seen` are taken out.

    Raises
    ------
    DataError
        The database can't be read, or no class has enough records.
    LeakageError
        A subject is on both sides.
    """
    if database == "ptbxl_subset":
        found = _read_ptbxl(config, config.ptbxl.classes)
        least, notes = config.ptbxl.min_positives, []
    else:
        found, notes = _without_strangers(_read_challenge(config))
        least = config.cinc2021.min_positives
    is_new = ~np.isin(found.subject_ids, list(seen))
    if not is_new.any():
        raise DataError(
            f"the base was trained on everybody of {database}; nobody is left to fine-tune on. "
            "Lower ptbxl.pretrain_share, or give another base."
        )
    if not is_new.all():
        n_seen = len(set(found.subject_ids[~is_new].tolist()))
        notes.append(f"{n_seen} patients of {database} are left out: the base was trained on them.")
    kept = with_enough(found.select(is_new), least)
    notes += _what_it_cannot_say(database, kept)
    check_disjoint(seen, kept.subject_ids.tolist(), what=f"the base and {database}")
    return Cohort(database=database, records=kept, notes=tuple(notes))


def with_enough(records: TwelveLeadSet, least: int) -> TwelveLeadSet:
    """Return the classes with at least so many records, and the records that have one of them.

    Raises
    ------
    DataError
        No class has that many.
    """
    counts = records.labels.sum(axis=0, dtype=int)
    is_kept = counts >= least
    if not is_kept.any():
        raise DataError(
            f"no class has min_positives={least} of {len(records)} records; the most frequent, "
            f"{records.class_names[int(counts.argmax())]!r}, has {counts.max()}. Lower "
            "min_positives or choose other classes."
        )
    names = tuple(np.array(records.class_names)[is_kept].tolist())
    fewer = replace(records, labels=records.labels[:, is_kept], class_names=names)
    return fewer.select(fewer.labels.any(axis=1))


def split_of(cohort: Cohort, kind: str, config: HTConfig, *, seed: int) -> Split:
    """Return who trains, validates and tests.

    Parameters
    ----------
    kind
        ``"patients"``: drawn by `seed`, stratified by the statements. ``"strat_fold"``: PTB-XL's
        folds, the last one there tests, the one before validates; the same for every seed.
    """
    records = cohort.records
    if kind == "strat_fold":
        *_, validation, test = np.unique(records.strat_fold).tolist()
        return fold_split(
            records.strat_fold, records.subject_ids, validation=(validation,), test=(test,)
        )
    section = config.ptbxl if cohort.database == "ptbxl_subset" else config.cinc2021
    return multilabel_split(
        records.labels,
        records.subject_ids,
        fractions=section.shares,
        rng=numpy_generator(seed, "split", cohort.database),
    )


def check_sides(cohort: Cohort, split: Split, config: HTConfig) -> None:
    """Raise DataError where a side is too small to train, choose or test."""
    rows = split.rows(cohort.records.subject_ids)
    n_train, n_least = len(rows["train"]), max(2, config.h_tuning.n_first_order)
    if n_train < n_least:
        raise DataError(
            f"{cohort.database}, {split.name}: {n_train} records train, and a step needs {n_least}. "
            "Raise the first of shares, or lower h_tuning.n_first_order."
        )
    for side in ("validation", "test"):
        if not cohort.records.labels[rows[side]].any():
            raise DataError(
                f"{cohort.database}, {split.name}: no statement is true in the {side} records "
                f"({len(rows[side])}). Raise its share."
            )


def _read_ptbxl(config: HTConfig, classes: str) -> TwelveLeadSet:
    return read_ptbxl(
        config.data / "ptbxl_subset",
        fs_hz=float(config.ptbxl.records_fs_hz),
        classes=classes,
        preprocessing=input_of(config),
        cache_root=config.cache,
    )


def _read_challenge(config: HTConfig) -> TwelveLeadSet:
    return read_challenge(
        config.data / "cinc2021_sample",
        merge_same=True,
        subjects=_known_subjects(config),
        preprocessing=input_of(config),
        cache_root=config.cache,
    )


def _known_subjects(config: HTConfig) -> dict[str, str]:
    folder = config.data / "ptbxl_subset"
    return ptbxl_subjects(folder) if (folder / "ptbxl_database.csv").is_file() else {}


def _challenge_subjects(config: HTConfig) -> set[str]:
    """Return the patients of PTB-XL who are among the Challenge's records."""
    if "cinc2021_sample" not in config.databases:
        return set()
    return set(_read_challenge(config).subject_ids.tolist())


def _without_strangers(found: TwelveLeadSet) -> tuple[TwelveLeadSet, list[str]]:
    """Leave out PTB-XL's records whose patient isn't known: the base may have seen them."""
    is_stranger = (found.sources == PTB_XL.slug) & (found.subject_ids == found.record_ids)
    if not is_stranger.any():
        return found, []
    note = (
        f"{is_stranger.sum()} records are left out: they are PTB-XL's, and without their patients' "
        "numbers nobody can say whether the base was trained on those."
    )
    return found.select(~is_stranger), [note]


def _what_it_cannot_say(database: str, records: TwelveLeadSet) -> list[str]:
    notes = []
    if not records.subjects_known:
        notes.append(
            f"{database} doesn't say who was recorded: the split is by record, and one person may "
            "be on two sides."
        )
    if len(records) < FEW_RECORDS:
        fewest = int(records.labels.sum(axis=0, dtype=int).min())
        notes.append(
            f"{len(records)} records, {fewest} of the rarest class, a part of them to test: the "
            "figures show that the recipe runs here, and their wide intervals tell how little "
            "else. They rank no methods and say nothing about the database that these come from."
        )
    return notes
