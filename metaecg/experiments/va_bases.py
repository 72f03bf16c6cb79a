"""Train the base of one fold and one seed: supervised, meta-learned, or as MetaVA does."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from metaecg.data.augment import Augmentation
from metaecg.data.datasets import Dataset
from metaecg.data.preprocessing import Preprocessing
from metaecg.data.splits import Split, check_disjoint
from metaecg.data.windows import WindowSet
from metaecg.experiments.config import VAConfig
from metaecg.experiments.va_meta import META_COST, meta_learn, n_meta
from metaecg.models.checkpoints import BaseModel
from metaecg.models.registry import build_network
from metaecg.seeding import derive_seed, numpy_generator, torch_generator

OnStep = Callable[[int, dict[str, float]], None]

METAVA_ITERATIONS = 300
METAVA_COST, ADAPT_COST = 450, 30
RHYTHM_COST = 1.0
"""About how many supervised steps one iteration of MetaVA and one personalization take, and how many
trainings of its base a rhythm model: for the progress bar and the order of jobs alone."""


@dataclass(frozen=True, kw_only=True)
class TrainedBase:
    """A base, the course of its training, and the curriculum that it saw."""

    model: BaseModel
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    curriculum: dict | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Looks at a base while it is being trained; they change nothing in the training."""

    shares: tuple[float, ...]
    """When: shares of the budget of windows, above 0 and below 1, increasing."""
    show: Callable[[float, BaseModel], None]
    """Called with the share and the base as it is then; what it raises ends the training."""


def train_base(
    kind: str,
    config: VAConfig,
    dataset: Dataset,
    split: Split,
    *,
    seed: int,
    on_cost: Callable[[int], None],
    checkpoint=None,
    resume: bool = False,
    looks: Looks | None = None,
) -> TrainedBase:
    """Train the base `kind` (a key of `BASES`) on the training side of `split`.

    Randomness depends on `seed`, the split's name and the part at hand alone, so that a method's
    figures don't change with what else is run. A meta-training writes its state to `checkpoint` (a
    `metaecg.meta.training_state.Checkpoint`), and with `resume` goes on from there.
    `looks` are for the bases that pre-training or meta-learning makes.
    """
    check_disjoint(split.train, split.test, what=f"split {split.name!r}")
    windows = training_windows(config, dataset, split)
    history: list[dict[str, float]] = []

    def record(step: int, values: dict[str, float], cost: int = 1) -> None:
        history.append(values)
        on_cost(cost)

    architecture, arguments = _architecture(kind, config)

    def as_model(network) -> BaseModel:
        return BaseModel(
            network=network,
            architecture=architecture,
            architecture_kwargs=arguments,
            n_leads=windows.windows.shape[1],
            classes=windows.classes,
            preprocessing=model_preprocessing(config),
            training=_facts(kind, config, dataset, split, seed),
        )

    watch = _watch(looks, as_model) if looks else None
    meta_learned = partial(_meta_learned, checkpoint=checkpoint, resume=resume, watch=watch)
    trainers = {
        "random": _random,
        "pretrain": partial(_pretrained, watch=watch),
        "ensemble": _ensemble,
        "maml": meta_learned,
        "maml+curriculum": meta_learned,
        "metava-released": _metava_released,
        "metava-random": _random,
        "shuffled": _shuffled,
    }
    network, curriculum = trainers[kind](kind, config, windows, split.name, seed, record)
    return TrainedBase(model=as_model(network), history=history, curriculum=curriculum)


def _watch(looks: Looks, as_model: Callable) -> Callable:
    """Return a function that trainings tell the share of the budget that is spent."""
    left = list(looks.shares)

    def watch(done: float, network) -> None:
        while left and done >= left[0] - 1e-9:
            looks.show(left.pop(0), as_model(network))

    return watch


def model_preprocessing(config: VAConfig) -> Preprocessing:
    """Return the preprocessing of the bases; ``as_published`` has scaled whole subjects before."""
    values = config.preprocessing.model_dump()
    if config.protocol == "as_published":
        values["normalize"] = "none"
    return Preprocessing(**values)


def build_augmentation(config: VAConfig) -> Augmentation | None:
    """Return what changes the training windows of `config`'s bases; None if nothing does."""
    if config.augment.is_off:
        return None
    band_hz = (config.preprocessing.lowcut_hz, config.preprocessing.highcut_hz)
    return Augmentation(**config.augment.model_dump(), band_hz=band_hz)


def training_windows(config: VAConfig, dataset: Dataset, split: Split) -> WindowSet:
    """Return the normalised windows of the training subjects."""
    chosen = dataset.windows.select(np.isin(dataset.windows.subject_ids, split.train))
    normalised = model_preprocessing(config).normalize_windows(chosen.windows)
    return replace(chosen, windows=normalised)


def training_cost(kind: str, config: VAConfig) -> int:
    """Return how long a base takes to train, in supervised steps, for progress and order."""
    meta = _n_pretrain(config, config.meta.warm_start) + n_meta(config) * META_COST
    return {
        "pretrain": _n_pretrain(config, 1.0),
        "ensemble": _n_pretrain(config, 1.0) * config.ensemble.n_members,
        "shuffled": _n_pretrain(config, 1.0),
        "maml": meta,
        "maml+curriculum": meta,
        "metava-released": _n_metava(config) * METAVA_COST,
    }.get(kind, 0)


def _n_pretrain(config: VAConfig, share: float) -> int:
    return (
        max(10, round(share * config.budget_windows / config.pretrain.batch_size)) if share else 0
    )


def base_note(kind: str, config: VAConfig) -> str:
    """Return what the description of a base must add under this configuration."""
    notes = []
    if kind.startswith("maml") and config.meta.algorithm != "maml":
        notes.append(f" (meta.algorithm={config.meta.algorithm})")
    if _is_augmented(kind, config):
        changed = config.augment.model_dump(exclude_defaults=True).items()
        notes.append(f" (augment: {', '.join(f'{name}={value:g}' for name, value in changed)})")
    n_iterations = _n_metava(config)
    if kind == "metava-released" and n_iterations < METAVA_ITERATIONS:
        notes.append(f" (cut to {n_iterations} of {METAVA_ITERATIONS} iterations by the budget)")
    return "".join(notes)


def _is_augmented(kind: str, config: VAConfig) -> bool:
    """Return whether the base `kind` learns from changed windows; MetaVA as released does not."""
    learns = kind in ("pretrain", "ensemble", "shuffled", "maml", "maml+curriculum")
    return learns and not config.augment.is_off


def _n_metava(config: VAConfig) -> int:
    """300 as released; a budget below the default shortens it in proportion."""
    share = config.budget_windows / VAConfig.model_fields["budget_windows"].default
    return max(10, min(METAVA_ITERATIONS, round(METAVA_ITERATIONS * share)))


def _architecture(kind: str, config: VAConfig) -> tuple[str, dict]:
    if kind.startswith("metava"):
        return "metava", {}
    if kind == "ensemble":
        arguments = {**config.network.arguments, "n_members": config.ensemble.n_members}
        return "compact-cnn-ensemble", arguments
    return config.network.name, dict(config.network.arguments)


def _new_network(kind: str, config: VAConfig, windows: WindowSet, fold: str, seed: int):
    """Build a network; its initial weights depend on seed and fold, not on the kind of base."""
    architecture, arguments = _architecture(kind, config)
    return build_network(
        architecture,
        n_leads=windows.windows.shape[1],
        n_samples=windows.windows.shape[2],
        fs_hz=windows.fs_hz,
        n_classes=len(windows.classes),
        generator=torch_generator(seed, fold, "initial weights", architecture),
        **arguments,
    )


def _random(kind, config, windows, fold, seed, on_step):
    network = _new_network(kind, config, windows, fold, seed)
    if kind == "metava-random":
        from metaecg.meta.metava_released import initialise_metava_released

        initialise_metava_released(network, seed=derive_seed(seed, fold, kind))
    return network.eval(), None


def _pretrained(kind, config, windows, fold, seed, on_step, share: float = 1.0, watch=None):
    from metaecg.meta.supervised import pretrain

    n_steps = _n_pretrain(config, share)

    def told(step, values):
        on_step(step, values)
        if watch:
            watch(share * (step + 1) / n_steps, network)

    network = _new_network(kind, config, windows, fold, seed)
    if share:
        pretrain(
            network,
            windows,
            n_steps=n_steps,
            batch_size=config.pretrain.batch_size,
            lr=config.pretrain.lr,
            weight_decay=config.pretrain.weight_decay,
            rng=numpy_generator(seed, fold, "pretrain", "batches"),
            generator=torch_generator(seed, fold, "pretrain", "polarity"),
            augment=build_augmentation(config),
            augment_generator=torch_generator(seed, fold, "pretrain", "augment"),
            on_step=told,
        )
    return network, None


def _ensemble(kind, config, windows, fold, seed, on_step):
    """Pre-train each member as `_pretrained` does, from a seed of its own, and put them together."""
    from metaecg.models.backbones.ensemble import CompactCNNEnsemble

    members = [
        _pretrained("pretrain", config, windows, fold, derive_seed(seed, "member", i), on_step)[0]
        for i in range(config.ensemble.n_members)
    ]
    return CompactCNNEnsemble.assemble(members), None


def _shuffled(kind, config, windows, fold, seed, on_step):
    return _pretrained(kind, config, shuffle_labels(windows, seed, fold), fold, seed, on_step)


def shuffle_labels(windows: WindowSet, seed: int, name: str) -> WindowSet:
    """Return the windows with the labels permuted among all of them.

    Permuting within each subject would not do: subjects differ in how much VA they have, and a
    network that learns which subject a window looks like would rank VA above chance.
    """
    rng = numpy_generator(seed, name, "shuffled labels")
    return replace(windows, labels=rng.permutation(windows.labels))


def _meta_learned(
    kind, config, windows, fold, seed, on_step, checkpoint=None, resume=False, watch=None
):
    def warm_start(share: float, record):
        return _pretrained(kind, config, windows, fold, seed, record, share, watch)[0]

    return meta_learn(
        kind,
        config,
        windows,
        fold,
        seed,
        on_step,
        warm_start=warm_start,
        augment=build_augmentation(config),
        checkpoint=checkpoint,
        resume=resume,
        watch=watch,
    )


def _metava_released(kind, config, windows, fold, seed, on_step):
    from metaecg.meta.metava_released import train_metava_released

    network = _new_network(kind, config, windows, fold, seed)
    subjects = {}
    for subject_id in dict.fromkeys(windows.subject_ids.tolist()):
        mine = windows.of_subject(subject_id)
        subjects[subject_id] = (mine.windows, mine.labels)
    train_metava_released(
        network,
        subjects,
        seed=derive_seed(seed, fold, kind),
        n_iterations=_n_metava(config),
        on_iteration=lambda i, loss, lr: on_step(i, {"loss": loss, "outer_lr": lr}, METAVA_COST),
    )
    return network, None


def _facts(kind: str, config: VAConfig, dataset: Dataset, split: Split, seed: int) -> dict:
    """Return what the base has to say about where it comes from."""
    seen = set(split.train)
    return {
        "recipe": "va_fewshot",
        "base": kind,
        **({"algorithm": config.meta.algorithm} if kind.startswith("maml") else {}),
        **({"augment": config.augment.model_dump()} if _is_augmented(kind, config) else {}),
        "split": split.name,
        "seed": seed,
        "protocol": config.protocol,
        "databases": dataset.databases,
        "config_hash": config.hash(),
        "subject_ids": sorted(seen),
        "file_sha256": sorted(
            checksum
            for record in dataset.records
            if record.subject_id in seen
            for checksum in record.signal_checksums
        ),
    }
