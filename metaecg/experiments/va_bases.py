"""Train the base of one fold and one seed: supervised, meta-learned, or as MetaVA does."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from metaecg.data.datasets import Dataset
from metaecg.data.preprocessing import Preprocessing
from metaecg.data.splits import Split, check_disjoint
from metaecg.data.windows import WindowSet
from metaecg.experiments.config import VAConfig
from metaecg.models.checkpoints import BaseModel
from metaecg.models.registry import build_network
from metaecg.seeding import derive_seed, numpy_generator, torch_generator

OnStep = Callable[[int, dict[str, float]], None]

METAVA_ITERATIONS = 300
META_COST, METAVA_COST, ADAPT_COST = 70, 450, 30
"""About how many supervised steps one meta-iteration, one of MetaVA's and one personalization
take: for the progress bar and the order of jobs alone."""


@dataclass(frozen=True, kw_only=True)
class TrainedBase:
    """A base, the course of its training, and the curriculum that it saw."""

    model: BaseModel
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    curriculum: dict | None = field(default=None, repr=False)


def train_base(
    kind: str,
    config: VAConfig,
    dataset: Dataset,
    split: Split,
    *,
    seed: int,
    on_cost: Callable[[int], None],
) -> TrainedBase:
    """Train the base `kind` (a key of `BASES`) on the training side of `split`.

    Randomness depends on `seed`, the split's name and the part at hand alone, so that a method's
    figures don't change with what else is run.
    """
    check_disjoint(split.train, split.test, what=f"split {split.name!r}")
    windows = training_windows(config, dataset, split)
    history: list[dict[str, float]] = []

    def record(step: int, values: dict[str, float], cost: int = 1) -> None:
        history.append(values)
        on_cost(cost)

    trainers = {
        "random": _random,
        "pretrain": _pretrained,
        "maml": _meta_learned,
        "maml+curriculum": _meta_learned,
        "metava-released": _metava_released,
        "metava-random": _random,
        "shuffled": _shuffled,
    }
    network, curriculum = trainers[kind](kind, config, windows, split.name, seed, record)
    architecture, arguments = _architecture(kind, config)
    model = BaseModel(
        network=network,
        architecture=architecture,
        architecture_kwargs=arguments,
        n_leads=windows.windows.shape[1],
        classes=windows.classes,
        preprocessing=model_preprocessing(config),
        training=_facts(kind, config, dataset, split, seed),
    )
    return TrainedBase(model=model, history=history, curriculum=curriculum)


def model_preprocessing(config: VAConfig) -> Preprocessing:
    """Return the preprocessing of the bases; ``as_published`` has scaled whole subjects before."""
    values = config.preprocessing.model_dump()
    if config.protocol == "as_published":
        values["normalize"] = "none"
    return Preprocessing(**values)


def training_windows(config: VAConfig, dataset: Dataset, split: Split) -> WindowSet:
    """Return the normalised windows of the training subjects."""
    chosen = dataset.windows.select(np.isin(dataset.windows.subject_ids, split.train))
    normalised = model_preprocessing(config).normalize_windows(chosen.windows)
    return replace(chosen, windows=normalised)


def training_cost(kind: str, config: VAConfig) -> int:
    """Return how long a base takes to train, in supervised steps, for progress and order."""
    meta = _n_pretrain(config, config.meta.warm_start) + _n_meta(config) * META_COST
    return {
        "pretrain": _n_pretrain(config, 1.0),
        "shuffled": _n_pretrain(config, 1.0),
        "maml": meta,
        "maml+curriculum": meta,
        "metava-released": _n_metava(config) * METAVA_COST,
    }.get(kind, 0)


def _n_pretrain(config: VAConfig, share: float) -> int:
    return (
        max(10, round(share * config.budget_windows / config.pretrain.batch_size)) if share else 0
    )


def _n_meta(config: VAConfig) -> int:
    """Iterations that see the rest of the budget: support windows count once per inner step."""
    meta = config.meta
    per_task = 2 * config.n_shots * meta.inner_steps + 2 * meta.n_query
    share = (1 - meta.warm_start) * config.budget_windows
    return max(5, round(share / (meta.meta_batch_size * per_task)))


def base_note(kind: str, config: VAConfig) -> str:
    """Return what the description of a base must add under this configuration."""
    n_iterations = _n_metava(config)
    if kind == "metava-released" and n_iterations < METAVA_ITERATIONS:
        return f" (cut to {n_iterations} of {METAVA_ITERATIONS} iterations by the budget)"
    return ""


def _n_metava(config: VAConfig) -> int:
    """300 as released; a budget below the default shortens it in proportion."""
    share = config.budget_windows / VAConfig.model_fields["budget_windows"].default
    return max(10, min(METAVA_ITERATIONS, round(METAVA_ITERATIONS * share)))


def _architecture(kind: str, config: VAConfig) -> tuple[str, dict]:
    if kind.startswith("metava"):
        return "metava", {}
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


def _pretrained(kind, config, windows, fold, seed, on_step, share: float = 1.0):
    from metaecg.meta.supervised import pretrain

    network = _new_network(kind, config, windows, fold, seed)
    if share:
        pretrain(
            network,
            windows,
            n_steps=_n_pretrain(config, share),
            batch_size=config.pretrain.batch_size,
            lr=config.pretrain.lr,
            weight_decay=config.pretrain.weight_decay,
            rng=numpy_generator(seed, fold, "pretrain", "batches"),
            generator=torch_generator(seed, fold, "pretrain", "polarity"),
            on_step=on_step,
        )
    return network, None


def _shuffled(kind, config, windows, fold, seed, on_step):
    return _pretrained(kind, config, shuffle_labels(windows, seed, fold), fold, seed, on_step)


def shuffle_labels(windows: WindowSet, seed: int, name: str) -> WindowSet:
    """Return the windows with the labels permuted among all of them.

    Permuting within each subject would not do: subjects differ in how much VA they have, and a
    network that learns which subject a window looks like would rank VA above chance.
    """
    rng = numpy_generator(seed, name, "shuffled labels")
    return replace(windows, labels=rng.permutation(windows.labels))


def _meta_learned(kind, config, windows, fold, seed, on_step):
    from metaecg.meta.algorithms import Algorithm
    from metaecg.meta.engine import build_engine
    from metaecg.meta.loop import meta_train
    from metaecg.tasks.sampler import TaskSampler

    network, _ = _pretrained(kind, config, windows, fold, seed, on_step, config.meta.warm_start)
    meta = config.meta
    sampler = TaskSampler(
        windows,
        n_shots=config.n_shots,
        n_query=meta.n_query,
        chronological=meta.chronological,
        overlap_allowed=config.protocol == "as_published",
    )
    _check_enough_tasks(sampler, fold)
    algorithm = Algorithm(
        inner_lr=meta.inner_lr, inner_steps=meta.inner_steps, first_order=meta.first_order
    )
    engine = build_engine(meta.engine, network, algorithm, task_chunk=meta.task_chunk)
    curriculum = _make_curriculum(kind, config, network, sampler, fold, seed)
    meta_train(
        network,
        engine=engine,
        sampler=sampler,
        curriculum=curriculum,
        n_iterations=_n_meta(config),
        outer_lr=meta.outer_lr,
        rng=numpy_generator(seed, fold, "meta", "tasks"),
        on_step=lambda step, values: on_step(step, values, META_COST),
    )
    return network, curriculum.to_dict() if kind == "maml+curriculum" else None


def _check_enough_tasks(sampler, fold: str) -> None:
    from metaecg.errors import DataError

    if len(sampler.subject_ids) < 2:
        reasons = "; ".join(list(sampler.ineligible.values())[:2])
        raise DataError(
            f"{fold}: {len(sampler.subject_ids)} training subjects have enough windows of both "
            f"classes for a task; meta-learning needs at least 2 ({reasons}). Add subjects, lower "
            "n_shots, or leave the maml methods out."
        )


class RecordedCurriculum:
    """A curriculum that remembers which subjects it drew, for the report."""

    def __init__(self, curriculum, title: str) -> None:
        self._curriculum = curriculum
        self._difficulty = [float(d) for d in curriculum.difficulty]
        self._title = title
        self._draws: list[list[int]] = []

    def draw(self, iteration: int) -> list[str]:
        """Draw as the curriculum does, and remember."""
        subjects = self._curriculum.draw(iteration)
        self._draws.append([self._curriculum.subject_ids.index(s) for s in subjects])
        return subjects

    def observe(self, subject_ids, losses) -> None:
        """Hand the losses on."""
        self._curriculum.observe(subject_ids, losses)

    def to_dict(self) -> dict:
        """Return what the report plots."""
        return {
            "subjects": list(self._curriculum.subject_ids),
            "difficulty": self._difficulty,
            "draws": self._draws,
            "title": self._title,
        }


def _make_curriculum(kind, config, network, sampler, fold: str, seed: int) -> RecordedCurriculum:
    from metaecg.tasks.curriculum import Curriculum

    settings, uniform = config.curriculum, kind != "maml+curriculum"
    n_subjects = len(sampler.subject_ids)
    curriculum = Curriculum(
        sampler.subject_ids,
        pacing="none" if uniform else settings.pacing,
        difficulty=np.zeros(n_subjects) if uniform else _difficulty(config, network, sampler),
        n_iterations=_n_meta(config),
        meta_batch_size=config.meta.meta_batch_size,
        rng=numpy_generator(seed, fold, "meta", "curriculum"),
    )
    return RecordedCurriculum(
        curriculum, f"{settings.pacing} pacing by {settings.difficulty}, {fold}, seed {seed}"
    )


def _difficulty(config, network, sampler):
    """Measure how hard the training subjects are; the test side is not at hand here."""
    from torch import from_numpy
    from torch.nn.functional import cross_entropy

    from metaecg.models.inference import network_logits
    from metaecg.tasks.curriculum import measure_difficulty

    def windows_of(subject_id: str) -> tuple[np.ndarray, np.ndarray]:
        mine = sampler.windows.of_subject(subject_id)
        return mine.windows, mine.labels

    def loss_of(subject_id: str) -> float:
        windows, labels = windows_of(subject_id)
        logits = network_logits(network, windows, n_classes=len(sampler.windows.classes))
        # Both classes weigh the same: else the share of VA would decide what counts as hard.
        weight = 1.0 / np.bincount(labels, minlength=len(sampler.windows.classes))
        return cross_entropy(from_numpy(logits), from_numpy(labels), from_numpy(weight)).item()

    return measure_difficulty(
        config.curriculum.difficulty,
        sampler.subject_ids,
        loss_of=loss_of,
        windows_of=windows_of,
        fs_hz=sampler.windows.fs_hz,
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
