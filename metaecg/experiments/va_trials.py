"""Trials of `va_fewshot`: their configuration, the subjects they may see, and what they are worth."""

from collections.abc import Callable, Mapping
from typing import Any

from metaecg.data.splits import Split
from metaecg.errors import ConfigError, DataError
from metaecg.experiments.config import NO_FIGURE, VAConfig, merge
from metaecg.experiments.tune_recipe import Development, Fold, Score
from metaecg.experiments.va_methods import METHODS, choose_methods
from metaecg.experiments.va_options import resolve_values
from metaecg.seeding import numpy_generator

TUNED_METHODS = (
    "maml+curriculum+lora",
    "maml+curriculum+full",
    "maml+curriculum+prefine+lora",
    "maml+curriculum+prefine+full",
    "maml+lora",
    "maml+full",
    "pretrain+lora",
    "pretrain+full",
    "head",
)
"""Base, pre-fine-tuning and adaptation in one choice; the first is where a study starts."""

UNTUNABLE = ("metava-released", "metava-scratch", "shuffled-labels")
BYTES_PER_NUMBER = 4
"""Adapters hold float32."""

ELSEWHERE = {"methods": "method", "seeds": "seed"} | {
    name: name for name in ("data", "databases", "out", "cache", "workers", "split", "folds")
}
"""Fields of the recipe that a study sets through a field of its own."""
NOT_HERE = ("base", "include_seen", "max_folds", "keep_jobs", "tracking")


# --- configuration -----------------------------------------------------------------------------


def resolve(values: Mapping[str, Any], places: Mapping[str, Any]) -> VAConfig:
    """Return the configuration that all trials share; every mistake is in one ConfigError.

    Parameters
    ----------
    values
        The section ``config``.
    places
        What the study's own fields say of the recipe's, such as ``data``; None is the default.
    """
    problems = [
        f"config has {name!r}; {_instead(name)}"
        for name in values
        if name in (*ELSEWHERE, *NOT_HERE)
    ]
    if values.get("protocol", "deploy") != "deploy":
        problems.append(
            f"config.protocol is {values['protocol']!r}; expected deploy, by which trials are judged."
        )
    kept = {name: v for name, v in values.items() if name not in (*ELSEWHERE, *NOT_HERE)}
    given = {name: v for name, v in places.items() if v is not None}
    given.setdefault("methods", list(TUNED_METHODS))
    try:
        config = resolve_values({}, {**kept, **given})
    except ConfigError as error:
        raise ConfigError([*problems, *(_placed(text, kept) for text in error.problems)]) from None
    unfit = [m for m in config.methods or () if m in UNTUNABLE]
    problems += [f"method has {m!r}, which has nothing to tune; leave it out." for m in unfit]
    if problems:
        raise ConfigError(problems)
    spelt_out = [m for name in config.methods for m in choose_methods([name], table=METHODS)]
    return config.model_copy(update={"methods": list(dict.fromkeys(spelt_out))})


def _instead(name: str) -> str:
    if name in ELSEWHERE:
        return f"expected the study's own field {ELSEWHERE[name]}."
    return "a study has no use for it; leave it out."


def _placed(problem: str, section: Mapping) -> str:
    """Say where a mistake lies: in the section ``config``, or in a field of the study."""
    if problem.startswith("methods has"):
        return problem.replace("methods", "method", 1)
    return f"config.{problem}" if problem.split(" ")[0].split(".")[0] in section else problem


def with_values(config: VAConfig, chosen: Mapping[str, Any]) -> VAConfig:
    """Return the configuration of a trial; what doesn't go together is a ConfigError."""
    values = config.model_dump(mode="json")
    values["methods"] = [chosen.get("method", config.methods[0])]
    if chosen.get("network.name", config.network.name) != config.network.name:
        values["network"] = {"arguments": {}}  # the arguments of another network
    for name, value in chosen.items():
        if name != "method":
            values = merge(values, name.split("."), value)
    return resolve_values({}, values)


def decisive(config: VAConfig) -> dict[str, Any]:
    """Return, as JSON values, what of the shared configuration decides a figure."""
    return config.values(without=NO_FIGURE | {"methods", "seeds", "max_folds", "split"})


def final(config: VAConfig, *, split, out) -> VAConfig:
    """Return the configuration that scores the held-out subjects of `split` once."""
    values = config.model_dump(mode="json") | {"split": str(split), "out": str(out)}
    return resolve_values({}, values)


# --- data --------------------------------------------------------------------------------------


def hold_out(config: VAConfig, folds: list[int]) -> Split:
    """Return who develops and who is held out, by the folds of the protocol or by a manifest.

    Raises
    ------
    ConfigError
        `folds` names one that doesn't exist, or all.
    """
    from metaecg.evaluate.protocol import eligibility
    from metaecg.experiments.va_fewshot import prepare_windows
    from metaecg.experiments.va_splits import file_checksums, splits_of

    dataset = prepare_windows(config)
    who = eligibility(dataset, protocol=config.protocol, n_shots=config.n_shots)
    splits = splits_of(config, dataset, who)
    if config.split:
        train, test = {*splits[0].train, *splits[0].validation}, set(splits[0].test)
    else:
        if not set(folds) < set(range(len(splits))):
            raise ConfigError(
                f"hold_out_folds is {folds}; expected some of 0 to {len(splits) - 1}, not all."
            )
        test = {subject for i in folds for subject in splits[i].test}
        train = set(dataset.subject_ids) - test
    return Split(
        name="split",
        train=tuple(s for s in dataset.subject_ids if s in train),
        test=tuple(s for s in dataset.subject_ids if s in test),
        checksums=file_checksums(dataset),
    )


def develop(config: VAConfig, split: Split) -> Development:
    """Return the windows of the development subjects; no other recording is opened."""
    from metaecg.experiments.va_fewshot import prepare_windows

    dataset = prepare_windows(config, only=split.train)
    return Development(
        windows=dataset.windows, records=dataset.records, held_out=frozenset(split.test)
    )


def inner_folds(config: VAConfig, development: Development, n_folds: int) -> tuple[Fold, ...]:
    """Return subject-disjoint folds among the development subjects, the same for every seed.

    Raises
    ------
    DataError
        A fold would have nobody to judge a trial on.
    """
    from metaecg.data.splits import make_folds
    from metaecg.evaluate.protocol import eligibility

    who = eligibility(development, protocol=config.protocol, n_shots=config.n_shots)
    if len(who.eligible) < n_folds:
        raise DataError(
            f"{len(who.eligible)} development subjects are eligible, n_inner_folds is {n_folds}; "
            "expected at least one for each. Lower n_inner_folds, hold out fewer folds or add "
            "subjects."
        )
    database = {record.subject_id: record.database for record in development.records}
    strata = {
        s: f"{database[s]}, {'eligible' if s in who.eligible else 'not'}"
        for s in development.subject_ids
    }
    splits = make_folds(strata, n_folds=n_folds, rng=numpy_generator(0, "inner folds"))
    folds = tuple(
        Fold(split=split, eligible=tuple(s for s in split.test if s in who.eligible))
        for split in splits
    )
    empty = next((fold.split.name for fold in folds if not fold.eligible), None)
    if empty:
        raise DataError(
            f"inner {empty} has no eligible subject to judge a trial on; lower n_inner_folds, which "
            f"is {n_folds}."
        )
    return folds


# --- a trial -----------------------------------------------------------------------------------


def evaluate(
    config: VAConfig,
    development: Development,
    fold: Fold,
    *,
    seed: int,
    shares: tuple[float, ...] = (),
    show: Callable[[float, list[Score]], None] | None = None,
) -> list[Score]:
    """Train on the fold's training side and judge each eligible subject of the other one.

    The protocol is `deploy`: the support is the first ten windows per class, the test what follows.
    With `show`, the base is judged in the same way at each of the `shares` of its budget too.

    Raises
    ------
    LeakageError
        The fold names a held-out subject.
    """
    from metaecg.experiments.va_bases import Looks
    from metaecg.experiments.va_jobs import Job, predict_held_out, run_job

    development.refuse({*fold.split.train, *fold.split.test, *fold.eligible})
    name = config.methods[0]
    job = Job(
        kind=METHODS[name].base,
        seed=seed,
        split=fold.split,
        methods={name: METHODS[name]},
        eligible=fold.eligible,
        one_class=(),
    )

    def look(share: float, base) -> None:
        show(share, _scores(predict_held_out(job, base, config, development)))

    looks = Looks(shares=shares, show=look) if show else None
    result = run_job(job, config, development, on_progress=lambda n_units: None, looks=looks)
    return _scores(result.predictions)


def _scores(predictions) -> list[Score]:
    from metaecg.evaluate.metrics import f1, roc_auc

    return [
        Score(
            subject_id=p.subject_id,
            auc=roc_auc(p.labels, p.probabilities),
            f1=f1(p.labels, p.probabilities, threshold=p.threshold),
            adapt_seconds=p.adapt_seconds,
            adapter_bytes=BYTES_PER_NUMBER * p.n_trainable,
        )
        for p in predictions
    ]
