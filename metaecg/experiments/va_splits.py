"""Who trains and who is held out in a run of `va_fewshot`."""

from metaecg.data.datasets import Dataset
from metaecg.data.splits import Split, check_split, make_folds, read_manifest
from metaecg.errors import LeakageError
from metaecg.evaluate.protocol import Eligibility
from metaecg.experiments.config import VAConfig
from metaecg.models.checkpoints import load_base
from metaecg.seeding import numpy_generator


def splits_of(config: VAConfig, dataset: Dataset, who: Eligibility) -> tuple[Split, ...]:
    """Return the folds, the manifest's split, or who a given base has not seen.

    Raises
    ------
    LeakageError
        A subject, or one recording under two names, stands on both sides.
    """
    check_contents(dataset)
    if config.base:
        return base_split(config, dataset)

    if config.split:
        split = read_manifest(config.split)
        check_split(split, dataset.subject_ids, file_checksums(dataset))
        return (split,)
    database = {record.subject_id: record.database for record in dataset.records}
    strata = {
        s: f"{database[s]}, {'eligible' if s in who.eligible else 'not'}"
        for s in dataset.subject_ids
    }
    # The folds belong to the protocol, not to a seed: all seeds are judged on the same ones.
    folds = make_folds(strata, n_folds=config.folds, rng=numpy_generator(0, "folds"))
    return folds[: config.max_folds]


def base_split(config, dataset: Dataset) -> tuple[Split, ...]:
    """Return a split whose test side is who the base has not seen."""
    training = load_base(config.base).training
    contents = set(training.get("file_sha256", ()))
    seen = {
        record.subject_id
        for record in dataset.records
        if record.subject_id in training.get("subject_ids", ())
        or contents & record.signal_checksums
    }
    if config.include_seen:
        return (Split(name="base", train=(), test=tuple(dataset.subject_ids)),)
    test = tuple(s for s in dataset.subject_ids if s not in seen)
    if not test:
        raise LeakageError(
            f"the base {config.base} was trained on all {len(seen)} subjects of {config.data}. Give "
            "it unseen subjects, or add --include-seen for figures that are not held out."
        )
    return (Split(name="base", train=tuple(sorted(seen)), test=test),)


def file_checksums(dataset: Dataset) -> dict[str, str]:
    """Return the SHA-256 of every file, as ``database/name``, for a split manifest."""
    return {
        f"{record.database}/{name}": checksum
        for record in dataset.records
        for name, checksum in record.checksums.items()
    }


def check_contents(dataset: Dataset) -> None:
    """Refuse one signal under two subjects' names: it would stand on both sides of some split."""
    owners: dict[str, str] = {}
    for record in dataset.records:
        for checksum in record.signal_checksums:
            other = owners.setdefault(checksum, record.subject_id)
            if other != record.subject_id:
                raise LeakageError(
                    f"{record.record_id} holds the very signal of subject {other!r}: one person under "
                    "two names. Leave one of the two out."
                )
