"""Train the base for beats: networks without each fold of the training subjects, together the base."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch

from metaecg.data.beat_input import ROWS, beat_forms, beat_inputs, number_names
from metaecg.data.beats import BeatSet
from metaecg.data.datasets import Dataset
from metaecg.data.splits import Split, make_folds
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_data import cutting_of, preprocessing_of, strata_of
from metaecg.meta.supervised import pretrain
from metaecg.models.backbones.beat_cnn import BeatCNN
from metaecg.models.beat_context import MODES, BeatContext
from metaecg.models.beat_detector import (
    CONTEXT,
    CUTTING,
    TWO_LEADS,
    context_key,
    v_logits,
)
from metaecg.models.checkpoints import BaseModel
from metaecg.models.inference import network_logits
from metaecg.models.registry import build_network
from metaecg.seeding import numpy_generator, torch_generator

CLASSES = {2: ("other", "V"), 5: ("N", "S", "V", "F")}
"""Classes of the network by the recipe's number of classes."""
NAME = "beat-cnn"


@dataclass(frozen=True, kw_only=True)
class TrainedBase:
    """A base, the course of its training, and what the folds said of it."""

    model: BaseModel
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    held_out: dict
    """F1 of V on training subjects held out, by choice, and the choice."""


def train_base(
    config: VebConfig,
    dataset: Dataset,
    split: Split,
    *,
    seed: int,
    on_step: Callable[[int], None] = lambda n_units: None,
) -> TrainedBase:
    """Train on the training side of `split`; threshold and context are chosen on its folds.

    The networks learn from the first lead alone; a second one is judged by them, and has a context
    of its own. F and Q are not trained on where V is told from the rest: they are neither.
    """
    found = train_networks(config, dataset, split, seed=seed, on_step=on_step)
    beats = found.beats
    contexts, held_out = _contexts(config, beats, found.inputs, found.logits)
    model = _assembled(config, found.networks, beats, contexts, dataset, split, seed, held_out)
    return TrainedBase(model=model, history=found.history, held_out=held_out)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetworks:
    """Networks of each fold of the training subjects, and what they say of those they have not seen."""

    networks: list[BeatCNN]
    history: list[dict[str, float]]
    beats: BeatSet
    """Labelled beats of all training subjects."""
    inputs: np.ndarray
    """Of their first lead."""
    logits: np.ndarray
    """Mean log odds of V by the networks that have not seen the beat's subject, ``(n_leads, n_beats)``."""


def train_networks(
    config: VebConfig,
    dataset: Dataset,
    split: Split,
    *,
    seed: int,
    on_step: Callable[[int], None] = lambda n_units: None,
) -> TrainedNetworks:
    """Train networks without each fold of the training side of `split`; nobody else is looked at."""
    beats = _training_beats(dataset, split)
    leads = [beat_inputs(beats, lead=lead) for lead in range(beats.windows.shape[1])]
    labels = labels_of(beats, config.classes)
    folds = make_folds(
        strata_of(dataset, split.train),
        n_folds=config.folds,
        rng=numpy_generator(0, "beat folds"),
    )
    networks, history = [], []
    logits = np.zeros((len(leads), len(beats)))
    for fold, repeat in product(folds, range(config.train.n_repeats)):
        name = f"{fold.name}, {repeat}" if repeat else fold.name
        network = _new_network(config, beats, name, seed)
        chosen = np.isin(beats.subject_ids, fold.train) & (labels >= 0)
        _train(network, config, beats, leads[0], labels, chosen, name, seed, history, on_step)
        out = np.isin(beats.subject_ids, fold.test)
        for found, lead in zip(logits, leads, strict=True):
            given = network_logits(network, lead[out], n_classes=len(CLASSES[config.classes]))
            found[out] += v_logits(given, CLASSES[config.classes]) / config.train.n_repeats
        networks.append(network)
    return TrainedNetworks(
        networks=networks, history=history, beats=beats, inputs=leads[0], logits=logits
    )


def _contexts(
    config: VebConfig, beats: BeatSet, inputs: np.ndarray, logits: np.ndarray
) -> tuple[dict[str, BeatContext], dict]:
    """Return the contexts of one lead and, where there are two, of two, by key; and what they gave.

    Those of the configured mode are the base's own; it has others for the other mode beside them.
    """
    leads = {CONTEXT: logits[0]} | ({TWO_LEADS: logits.min(axis=0)} if len(logits) > 1 else {})
    own, contexts, held_out = config.context.mode, {}, {}
    for mode in sorted(MODES, key=lambda mode: mode != own):
        for key, found in leads.items():
            name = key if mode == own else context_key(key, mode)
            contexts[name], held_out[name] = choose_context(config, beats, inputs, found, mode=mode)
    return contexts, held_out


def labels_of(beats: BeatSet, n_classes: int) -> np.ndarray:
    """Return the index of each beat's class, -1 for what is not trained on."""
    classes = CLASSES[n_classes]
    of = {name: i for i, name in enumerate(classes)}
    if n_classes == 2:
        of |= {"N": 0, "S": 0}
    return np.array([of.get(letter, -1) for letter in beats.letters.tolist()], dtype=np.int64)


def choose_context(
    config: VebConfig, beats: BeatSet, inputs: np.ndarray, logits: np.ndarray, *, mode: str
) -> tuple[BeatContext, dict]:
    """Return the context with the highest gross F1 on held-out training subjects, and all F1."""
    settings = config.context
    medians = [np.median(logits[beats.subject_ids == s]) for s in np.unique(beats.subject_ids)]
    grid = [(0.0, 0.0)]
    if settings.enabled:
        grid = list(product(settings.level_weight, settings.neighbour_weight))
    forms, tried = beat_forms(inputs, beats), []
    for level_weight, neighbour_weight in grid:
        context = BeatContext(
            threshold=0.0,
            usual_logit=float(np.median(medians)),
            level_weight=level_weight,
            neighbour_weight=neighbour_weight,
            n_neighbours=settings.n_neighbours,
            n_recent=settings.n_recent,
            n_searched=settings.n_searched,
            label_logit=settings.label_logit,
        )
        scores = context.log_odds(logits, forms, record_ids=beats.record_ids, mode=mode)
        f1, threshold = best_threshold(scores, beats.letters)
        tried.append((f1, replace(context, threshold=threshold)))
    f1, chosen = max(tried, key=lambda item: item[0])
    by_choice = {
        f"level {c.level_weight:g}, neighbours {c.neighbour_weight:g}": round(f, 4)
        for f, c in tried
    }
    return chosen, {"f1": f1, "threshold": chosen.threshold, "f1_by_choice": by_choice}


def best_threshold(scores: np.ndarray, letters: np.ndarray) -> tuple[float, float]:
    """Return the highest F1 of V as EC57 counts it, and the threshold that gives it.

    Examples
    --------
    >>> f1, threshold = best_threshold(np.array([0.0, 2.0, 3.0, 1.0]), np.array(list("NFVN")))
    >>> (f1, 1.0 < threshold < 3.0)
    (1.0, True)
    """
    counted = np.isin(letters, ("N", "S", "V"))
    order = np.argsort(-scores[counted], kind="stable")
    is_v, sorted_scores = (letters[counted] == "V")[order], scores[counted][order]
    tp, n_called = np.cumsum(is_v), np.arange(1, len(is_v) + 1)
    f1 = 2 * tp / (n_called + is_v.sum())
    at = int(np.argmax(f1))
    below = sorted_scores[min(at + 1, len(sorted_scores) - 1)]
    return float(f1[at]), float((sorted_scores[at] + below) / 2)


def _training_beats(dataset: Dataset, split: Split) -> BeatSet:
    beats = dataset.windows.select(np.isin(dataset.windows.subject_ids, split.train))
    return beats.labelled()


def _arguments(config: VebConfig, beats: BeatSet) -> dict:
    return {**config.network.model_dump(), "n_numbers": len(number_names(beats.rr_names))}


def _new_network(config: VebConfig, beats: BeatSet, fold: str, seed: int, n_members: int = 1):
    return build_network(
        NAME,
        n_leads=len(ROWS),
        n_samples=beats.windows.shape[2],
        fs_hz=beats.fs_hz,
        n_classes=len(CLASSES[config.classes]),
        generator=torch_generator(seed, fold, "initial weights", NAME),
        n_members=n_members,
        **_arguments(config, beats),
    )


def _train(
    network, config, beats, inputs, labels, chosen, fold: str, seed: int, history, on_step
) -> None:
    rows = np.flatnonzero(chosen)
    windows = replace(
        beats.select(rows),
        windows=inputs[rows],
        labels=labels[rows],
        classes=CLASSES[config.classes],
    )

    def record(step: int, values: dict[str, float]) -> None:
        history.append(values)
        on_step(1)

    train = config.train
    pretrain(
        network,
        windows,
        n_steps=train.n_steps,
        batch_size=train.batch_size,
        lr=train.lr,
        weight_decay=train.weight_decay,
        label_smoothing=train.label_smoothing,
        n_signals=len(ROWS) - 1,
        rng=numpy_generator(seed, fold, "pretrain", "batches"),
        generator=torch_generator(seed, fold, "pretrain", "polarity"),
        on_step=record,
    )


def _assembled(
    config: VebConfig,
    networks: Sequence[BeatCNN],
    beats: BeatSet,
    contexts: dict[str, BeatContext],
    dataset: Dataset,
    split: Split,
    seed: int,
    held_out: dict,
) -> BaseModel:
    """Return the networks as one base whose logits are above 0 for V at one lead's threshold."""
    whole = _new_network(config, beats, "all folds", seed, n_members=len(networks))
    network = BeatCNN.assemble(networks, whole)
    moved_by = contexts[CONTEXT].threshold
    with torch.no_grad():
        network.head.bias[CLASSES[config.classes].index("V")] -= moved_by
    facts: dict = {name: _moved(c, moved_by).to_dict() for name, c in contexts.items()}
    facts[CONTEXT]["mode"] = config.context.mode
    facts[CUTTING] = cutting_of(config)
    return BaseModel(
        network=network,
        architecture=NAME,
        architecture_kwargs={**_arguments(config, beats), "n_members": len(networks)},
        n_leads=len(ROWS),
        classes=CLASSES[config.classes],
        preprocessing=preprocessing_of(config),
        training={**facts, **_provenance(config, dataset, split, seed, held_out)},
    )


def _moved(context: BeatContext, by: float) -> BeatContext:
    """Return the context for logits that are lower by so much."""
    return replace(context, threshold=context.threshold - by, usual_logit=context.usual_logit - by)


def _provenance(config, dataset: Dataset, split: Split, seed: int, held_out: dict) -> dict:
    return {
        "recipe": "veb_fewshot",
        "rows": list(ROWS),
        "split": split.name,
        "seed": seed,
        "protocol": "aami",
        "databases": dataset.databases,
        "config_hash": config.hash(),
        "subject_ids": sorted(split.train),
        "held_out": held_out,
        "file_sha256": sorted(
            checksum
            for record in dataset.records
            if record.subject_id in set(split.train)
            for checksum in record.signal_checksums
        ),
    }
