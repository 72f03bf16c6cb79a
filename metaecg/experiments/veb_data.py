"""Who trains and who is tested in a run of `veb_fewshot`, and on which recordings."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metaecg.data.beats import BeatRecordInfo, BeatSet, prepare_beats
from metaecg.data.datasets import Dataset
from metaecg.data.labels import DS1, DS2
from metaecg.data.preprocessing import Preprocessing
from metaecg.data.splits import Split, check_split, make_folds, read_manifest
from metaecg.errors import DataError, LeakageError
from metaecg.experiments.va_splits import base_split, check_contents, file_checksums
from metaecg.experiments.veb_config import VebConfig
from metaecg.models.beat_detector import CUTTING, TWO_LEADS
from metaecg.models.checkpoints import BaseModel
from metaecg.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class BeatSplit:
    """A split of subjects, and which of their recordings count."""

    split: Split
    records: Mapping[str, dict[str, list[str]]] = field(default_factory=dict)
    """Subject to recordings by part (``support``, ``test``); the others have all in both."""

    def beats_of(self, dataset: Dataset, subject_id: str) -> BeatSet:
        """Return a test subject's beats, of the recordings that count, in the order of time."""
        beats = dataset.of_subject(subject_id)
        named = [record.record_id for record in self.records_of(dataset, subject_id)]
        return beats.select(np.isin(beats.record_ids, named))

    def records_of(self, dataset: Dataset, subject_id: str) -> list[BeatRecordInfo]:
        """Return a test subject's recordings that count, also those without a beat."""
        named = {name for part in self.records.get(subject_id, {}).values() for name in part}
        return [
            record
            for record in dataset.records
            if record.subject_id == subject_id and (not named or record.record_id in named)
        ]

    def parts_of(self, subject_id: str) -> dict[str, tuple[str, ...]]:
        """Return the arguments of `time_order_task` that name recordings; none of one alone."""
        parts = self.records.get(subject_id, {})
        if parts.get("support", []) == parts.get("test", []):
            return {}
        return {f"{name}_records": tuple(found) for name, found in parts.items()}


def prepare(config: VebConfig, base: BaseModel | None, *, r_peaks: str | None = None) -> Dataset:
    """Return the beats of the configured databases, generating patients if they are asked for."""
    from metaecg.experiments.cli import progress
    from metaecg.experiments.demo_data import provide_demo

    databases = config.databases
    provide_demo(config.demo, data=config.data, databases=databases, cache=config.cache)
    cutting = base.training[CUTTING] if base else cutting_of(config)
    with progress("preparing beats") as bar:
        return prepare_beats(
            config.data,
            config.databases,
            base.preprocessing if base else preprocessing_of(config),
            r_peaks=r_peaks or config.r_peaks,
            n_leads=1 if base and TWO_LEADS not in base.training else config.beats.leads,
            cache_root=config.cache,
            on_record=bar.set,
            **cutting,
        )


def preprocessing_of(config: VebConfig) -> Preprocessing:
    """Return the preprocessing of the configured beats; scaling is `beat_inputs`' part."""
    beats = config.beats
    return Preprocessing(
        fs_hz=beats.fs_hz,
        window_s=beats.before_s + beats.after_s,
        lowcut_hz=beats.lowcut_hz,
        highcut_hz=beats.highcut_hz,
        normalize="none",
    )


def cutting_of(config: VebConfig) -> dict:
    """Return the other arguments of `cut_beats`."""
    return {"before_s": config.beats.before_s, "use_next_rr": config.beats.use_next_rr}


def splits_of(config: VebConfig, dataset: Dataset) -> tuple[BeatSplit, ...]:
    """Return DS1 and DS2, the folds of DS1, the manifest's split, or who a base has not seen.

    Of mitdb only the recordings of DS2 are tested, unless a manifest names others. 201 (DS1) and 202
    (DS2) are one person: 201 is not trained on.

    Raises
    ------
    DataError
        There is no default split for these databases, or the manifest can't be used.
    LeakageError
        A subject, or one recording under two names, stands on both sides.
    """
    check_contents(dataset)
    if config.split:
        return (_of_manifest(config, dataset),)
    if config.base:
        split = base_split(config, dataset)[0]
        split = Split(name="base", train=split.train, test=_tested(split.test, dataset))
        return (BeatSplit(split=split, records=_ds2_records(dataset)),)
    if dataset.databases == ["demo"]:
        found = make_folds(
            {s: "demo" for s in dataset.subject_ids}, n_folds=3, rng=numpy_generator(0, "folds")
        )
        return (BeatSplit(split=found[0]),)
    if dataset.databases != ["mitdb"]:
        raise DataError(
            f"databases is {dataset.databases}; DS1 and DS2 are a split of mitdb alone. Name the sides "
            "with --split, or give a trained base with --base."
        )
    return _development(dataset) if config.development else (_ds1_ds2(dataset),)


def _subjects_of(dataset: Dataset, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return subject to those of its recordings that are among mitdb's `names`."""
    found: dict[str, list[str]] = {}
    for record in dataset.records:
        if record.record_id in {f"mitdb/{name}" for name in names}:
            found.setdefault(record.subject_id, []).append(record.record_id)
    return found


def _ds2_records(dataset: Dataset) -> dict[str, dict[str, list[str]]]:
    found = _subjects_of(dataset, DS2)
    return {s: {"support": records, "test": records} for s, records in found.items()}


def _tested(subjects: tuple[str, ...], dataset: Dataset) -> tuple[str, ...]:
    """Leave out subjects of mitdb without a recording in DS2."""
    its = {record.subject_id for record in dataset.records if record.database == "mitdb"}
    tested = _subjects_of(dataset, DS2)
    return tuple(s for s in subjects if s not in its or s in tested)


def _ds1_ds2(dataset: Dataset) -> BeatSplit:
    test = _subjects_of(dataset, DS2)
    train = [s for s in _subjects_of(dataset, DS1) if s not in test]
    if not train or not test:
        raise DataError(
            "mitdb has no recording of DS1, or none of DS2; expected both. Fetch the whole database, or "
            "name the sides with --split."
        )
    split = Split(name="ds1-ds2", train=tuple(sorted(train)), test=tuple(sorted(test)))
    return BeatSplit(split=split, records=_ds2_records(dataset))


def _development(dataset: Dataset) -> tuple[BeatSplit, ...]:
    """Return folds among the training subjects; nobody of DS2 is in any."""
    train = _ds1_ds2(dataset).split.train
    folds = make_folds(strata_of(dataset, train), n_folds=4, rng=numpy_generator(0, "development"))
    return tuple(BeatSplit(split=fold) for fold in folds)


def strata_of(dataset: Dataset, subjects: tuple[str, ...]) -> dict[str, str]:
    """Return each subject's stratum: whether there are V enough to judge a detector on."""
    n_v = {s: int((dataset.of_subject(s).letters == "V").sum()) for s in subjects}
    return {s: "many V" if n >= 100 else "some V" if n >= 10 else "few V" for s, n in n_v.items()}


def _of_manifest(config: VebConfig, dataset: Dataset) -> BeatSplit:
    split = read_manifest(config.split)
    check_split(split, dataset.subject_ids, file_checksums(dataset))
    if config.base and not config.include_seen:
        seen = set(base_split(config, dataset)[0].train) & set(split.test)
        if seen:
            raise LeakageError(
                f"the base {config.base} was trained on {', '.join(sorted(seen)[:3])}, whom the manifest "
                "tests. Take them out, or add --include-seen for figures that are not held out."
            )
    records = _records_of_manifest(config.split, split, dataset)
    return BeatSplit(split=split, records=records)


def _records_of_manifest(path: Path, split: Split, dataset: Dataset) -> dict:
    """Return subject to recordings by part, as the manifest's ``records`` say."""
    named = json.loads(Path(path).read_text()).get("records", {})
    owner = {record.record_id: record.subject_id for record in dataset.records}
    if not isinstance(named, dict) or not all(isinstance(p, dict) for p in named.values()):
        raise DataError(
            f"the split manifest {path}: 'records' must map a test subject to its recordings, such as "
            '{"mitdb/201": {"support": ["mitdb/201"], "test": ["mitdb/202"]}}.'
        )
    for subject_id, parts in named.items():
        wrong = [r for part in parts.values() for r in part if owner.get(r) != subject_id]
        both = sorted(set(parts.get("support", ())) & set(parts.get("test", ())))
        if subject_id not in split.test or set(parts) != {"support", "test"} or wrong:
            raise DataError(
                f"the split manifest {path}: 'records' of {subject_id!r} are {parts}; expected lists "
                "'support' and 'test' of recordings of that test subject. It has "
                f"{', '.join(r for r, s in owner.items() if s == subject_id) or 'none'}."
            )
        if both:
            raise LeakageError(
                f"the split manifest {path}: {both[0]!r} is in the support and in the test of "
                f"{subject_id!r}. Leave 'records' out to split a recording in time."
            )
    return named
