"""MetaVA as its authors released it: a yardstick, kept with its weak points, not a recommendation.

First-order MAML over subjects with a schedule from easy to hard, then pre-fine-tuning and
fine-tuning on the new subject's support. Written from a description of the release; where that
leaves a choice open, the function's Notes say what was taken. What the release does one task after
the other is done here for all tasks of a meta-batch at once, with the same result.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.checks import check_positive, check_windows
from metaecg.errors import AdaptationError, DataError
from metaecg.meta.metava_tasks import Task, TasksAtOnce, fold_statistics, with_seeded_dropout
from metaecg.seeding import numpy_generator, torch_generator

META_BATCH_SIZE = 9
N_ALWAYS = 2
"""Of the meta-batch: the easiest subjects that have ventricular arrhythmia, in every iteration."""
N_PER_CLASS = 20
"""Windows of each class in the support, and again in the query, of a meta-training task."""
MINIBATCH = 4
INNER_EPOCHS, INNER_LR = 5, 1e-3
OUTER_LR = 5e-3
WEIGHT_DECAY = 1e-4
META_CLIP = 8.0
NOTHING_MOVES_LR = 1e-8
"""Adam steps of this size are lost in the rounding of float32 weights."""

PREFINE_ROUNDS, PREFINE_LR = 5, 1e-3
FINE_LR, FINE_MINIBATCH, FINE_CLIP = 5e-4, 8, 1.0
VA = 1
"""Index of the class that makes a task contain ventricular arrhythmia."""
N_SCORED = 200
"""At most this many windows of a subject, evenly spread, are scored for its difficulty."""

Subject = tuple[np.ndarray, np.ndarray]


@dataclass(kw_only=True)
class History:
    """What happened in `train_metava_released`, one entry per iteration."""

    losses: list[float] = field(default_factory=list)
    """Mean query loss of the meta-batch."""
    learning_rates: list[float] = field(default_factory=list)
    """The outer rate that the iteration was run with."""
    chosen: list[tuple[str, ...]] = field(default_factory=list)
    """Subjects of the meta-batch, in the order in which they touch the running statistics."""
    seconds: list[float] = field(default_factory=list)
    difficulty: dict[str, float] = field(default_factory=dict)
    """Share of each subject in the summed exponentiated losses; they add up to 1."""
    stopped: str = ""
    """Why training ended before `n_iterations`; empty if it didn't."""


def initialise_metava_released(network: nn.Module, *, seed: int) -> None:
    """Set `network` to the untrained state: Xavier weights, zero biases, fresh batch-norm."""
    generator = torch_generator(seed, "metava-released", "init")
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
            module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif name == "bias":
                nn.init.zeros_(parameter)


def train_metava_released(
    network: nn.Module,
    subjects: Mapping[str, Subject],
    *,
    seed: int,
    n_iterations: int = 300,
    on_iteration: Callable[[int, float, float], None] | None = None,
) -> History:
    """Initialise and meta-train `network` in place, as released; it is left in eval mode.

    Parameters
    ----------
    network
        Any network of (batch, n_leads, n_samples) -> logits whose batch-norm layers, if any, are
        `nn.BatchNorm1d`. Its present weights are replaced.
    subjects
        For each subject id, normalised windows (n_windows, n_leads, n_samples) and labels
        (n_windows,), 1 for ventricular arrhythmia. A subject with one class makes one-class tasks.
    seed
        Same seed, same weights, on the same machine and thread count.
    n_iterations
        Meta-batches at most; see `History.stopped`.
    on_iteration
        Called with (iteration from 1, loss, learning rate) after each.

    Returns
    -------
    History

    Raises
    ------
    DataError
        If there is no subject, or windows and labels don't fit together.
    AdaptationError
        If a loss is not finite.

    Notes
    -----
    The release keeps one set of batch-norm running statistics for the meta model and every inner
    clone; so the network's own answer depends on the last two tasks or so. Its rate schedule
    watches the training loss, which jumps when the schedule opens the pool of tasks near
    iteration 45, and then cuts the rate tenfold about every 11 iterations. Once the rate is below
    `NOTHING_MOVES_LR` no weight changes any more and training stops.

    Choices where the description is open: support and query of a class are two halves of windows
    drawn at random in every iteration, repeated where there are fewer than 20; the query is
    judged in minibatches of 4 in training mode; the outer gradient is the mean over tasks.

    References
    ----------
    .. [1] Sun et al., PLOS Digital Health 4(10):e0001037, 2025 (first as arXiv:2202.12450).
    """
    subjects = {subject_id: _checked(subject_id, pair) for subject_id, pair in subjects.items()}
    check_positive("n_iterations", n_iterations)
    if not subjects:
        raise DataError("subjects is empty; meta-training needs at least one subject.")
    initialise_metava_released(network, seed=seed)
    rng = numpy_generator(seed, "metava-released", "tasks")
    difficulty = _difficulty(network, subjects, rng)
    history = History(difficulty=dict(zip(subjects, difficulty.tolist(), strict=True)))
    has_va = np.array([bool((labels == VA).any()) for _, labels in subjects.values()])
    n_chosen = np.zeros(len(subjects), dtype=np.int64)
    tasks_at_once = TasksAtOnce(
        network,
        n_epochs=INNER_EPOCHS,
        learning_rate=INNER_LR,
        rng=numpy_generator(seed, "metava-released", "dropout"),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=OUTER_LR, weight_decay=WEIGHT_DECAY)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)

    ids = list(subjects)
    for iteration in range(1, n_iterations + 1):
        started = time.perf_counter()
        rate = optimizer.param_groups[0]["lr"]
        if rate < NOTHING_MOVES_LR:
            history.stopped = (
                f"the plateau schedule cut the rate to {rate:.0e} before iteration {iteration}; "
                "no weight would change any more."
            )
            break
        chosen = choose_subjects(difficulty, has_va, n_chosen, iteration=iteration, rng=rng)
        n_chosen[chosen] += 1
        tasks = [draw_task(*subjects[ids[i]], rng) for i in chosen]
        loss = _meta_step(network, optimizer, tasks_at_once, tasks)
        plateau.step(loss)
        history.losses.append(loss)
        history.learning_rates.append(rate)
        history.chosen.append(tuple(ids[i] for i in chosen))
        history.seconds.append(time.perf_counter() - started)
        if on_iteration is not None:
            on_iteration(iteration, loss, rate)
    network.eval()
    return history


def _checked(subject_id: str, pair: Subject) -> Subject:
    windows, labels = pair
    windows = check_windows(windows, name=f"windows of subject {subject_id!r}")
    labels = np.asarray(labels, dtype=np.int64)
    if labels.shape != (len(windows),) or not len(windows):
        raise DataError(
            f"subject {subject_id!r} has {len(windows)} windows and labels of shape "
            f"{labels.shape}; expected one label per window and at least one window."
        )
    return windows, labels


def _meta_step(network, optimizer, tasks_at_once: TasksAtOnce, tasks: list[Task]) -> float:
    """Adapt a copy to every task, move `network` by the mean query gradient; return the loss."""
    losses, gradients, statistics = tasks_at_once.adapt_all(network, tasks)
    loss = float(np.mean(losses))
    _check_finite(loss, "meta-training")
    for name, parameter in network.named_parameters():
        parameter.grad = gradients[name]
    nn.utils.clip_grad_norm_(network.parameters(), META_CLIP)
    optimizer.step()
    for one_task in statistics:
        fold_statistics(network, one_task)
    return loss


def _check_finite(loss: float, where: str) -> None:
    if not np.isfinite(loss):
        raise AdaptationError(
            f"the loss of {where} is {loss}; a finite number was expected. Check that the windows "
            "were normalised."
        )


# --- which subjects, which windows -----------------------------------------------------------


def _difficulty(network, subjects: Mapping[str, Subject], rng: np.random.Generator) -> np.ndarray:
    """Return the softmax over subjects of the loss after one step on one window of each."""
    losses = []
    for windows, labels in subjects.values():
        first = int(rng.integers(len(labels)))
        rest = np.delete(np.arange(len(labels)), first) if len(labels) > 1 else np.array([first])
        rest = rest[np.linspace(0, len(rest) - 1, min(len(rest), N_SCORED)).astype(int)]
        losses.append(_loss_after_one_step(network, windows, labels, first, rest, rng))
    shares = np.exp(np.array(losses) - 1)
    return shares / shares.sum()


def _loss_after_one_step(network, windows, labels, first: int, rest, rng) -> float:
    model = with_seeded_dropout(network, rng).train()
    x, y = torch.from_numpy(windows), torch.from_numpy(labels)
    F.cross_entropy(model(x[[first]]), y[[first]]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= INNER_LR * parameter.grad
        loss = F.cross_entropy(model.eval()(x[rest]), y[rest]).item()
    _check_finite(loss, "the difficulty")
    return loss


def choose_subjects(
    difficulty: np.ndarray,
    has_va: np.ndarray,
    n_chosen: np.ndarray,
    *,
    iteration: int,
    rng: np.random.Generator,
) -> list[int]:
    """Return the subjects of one meta-batch by a schedule close to the released one.

    `metaecg.tasks.pacing.MetaVA` is the released one: there a subject can be drawn several times in
    a batch, only draws by chance count, and the next easiest are taken while nobody is below the
    threshold. This one stays because stored figures were made with it (docs/curriculum.md).

    The two easiest subjects with arrhythmia are always in. The others are drawn without
    replacement from those below a difficulty threshold, the less often chosen the likelier. While
    fewer are below it than needed, the easiest others are taken: in effect until iteration 43 to
    50, where the threshold jumps from the smallest difficulty to 1.

    Parameters
    ----------
    difficulty, has_va, n_chosen
        One entry per subject: share from `_difficulty`, whether any window is VA, how often it
        was in a meta-batch so far.
    iteration
        From 1.
    """
    by_ease = np.argsort(difficulty, kind="stable")
    always = [int(i) for i in by_ease if has_va[i]][:N_ALWAYS]
    others = np.array([i for i in by_ease if i not in always], dtype=np.int64)
    n_needed = min(META_BATCH_SIZE - len(always), len(others))
    easiest = difficulty.min()
    threshold = easiest + (1 - easiest) * np.exp(min(iteration - 50, 0))
    pool = others[difficulty[others] < threshold]
    if len(pool) < n_needed or n_needed == 0:
        return always + others[:n_needed].tolist()
    score = np.maximum(0.0, 1 - n_chosen[pool] / iteration) + 1e-12  # all may be 0: then evenly
    drawn = rng.choice(pool, size=n_needed, replace=False, p=score / score.sum())
    return always + drawn.tolist()


def draw_task(windows: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Task:
    """Draw 20 support and 20 query windows per class, class after class (unshuffled)."""
    support, query = [], []
    for label in np.unique(labels):
        found = rng.permutation(np.flatnonzero(labels == label))[: 2 * N_PER_CLASS]
        half = (len(found) + 1) // 2
        support.append(np.resize(found[:half], N_PER_CLASS))
        query.append(np.resize(found[half:] if len(found) > 1 else found, N_PER_CLASS))
    parts = {}
    for name, index in (("support", np.concatenate(support)), ("query", np.concatenate(query))):
        index = index.reshape(-1, MINIBATCH)
        parts[f"{name}_x"] = torch.from_numpy(windows[index])
        parts[f"{name}_y"] = torch.from_numpy(labels[index])
    return Task(**parts)


# --- a new subject ---------------------------------------------------------------------------


def adapt_metava_released(
    network: nn.Module,
    support_x: np.ndarray,
    support_y: np.ndarray,
    *,
    seed: int,
    n_epochs: int = 30,
    prefine: bool = True,
) -> nn.Module:
    """Return a copy of `network` adapted to one subject, as released, in eval mode.

    Pre-fine-tuning (ten full-batch gradient steps, for in the release both of its steps use the
    same support) and then `n_epochs` of Adam. No labels beyond the support are used, where the
    release spends as many again on early stopping.

    Parameters
    ----------
    network
        Trained, or for the control `initialise_metava_released`; it isn't changed.
    support_x, support_y
        Normalised windows (n_windows, n_leads, n_samples) and labels (n_windows,).
    seed
        Seeds the order of minibatches and the dropout.
    n_epochs
        Passes over the support after pre-fine-tuning.
    prefine
        False leaves pre-fine-tuning out.

    Raises
    ------
    AdaptationError
        If a loss is not finite.
    """
    windows, labels = _checked("support", (support_x, support_y))
    rng = numpy_generator(seed, "metava-released", "adapt")
    model = with_seeded_dropout(network, rng).train()
    device = next(model.parameters()).device
    x, y = torch.from_numpy(windows).to(device), torch.from_numpy(labels).to(device)
    if prefine:
        _prefine(model, x, y)
    _fine_tune(model, x, y, n_epochs=n_epochs, rng=rng)
    adapted = copy.deepcopy(network)
    adapted.load_state_dict(model.state_dict())
    return adapted.eval()


def _prefine(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Take the ten steps; gradients add up over the minibatches, as in the release."""
    optimizer = torch.optim.SGD(model.parameters(), lr=PREFINE_LR)
    for _ in range(2 * PREFINE_ROUNDS):
        optimizer.zero_grad()
        for start in range(0, len(y), FINE_MINIBATCH):
            part = slice(start, start + FINE_MINIBATCH)
            F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()


def _fine_tune(model, x, y, *, n_epochs: int, rng: np.random.Generator) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=FINE_LR, weight_decay=WEIGHT_DECAY)
    for _ in range(n_epochs):
        order = torch.from_numpy(rng.permutation(len(y))).to(y.device)
        for part in order.split(FINE_MINIBATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[part]), y[part])
            loss.backward()
            _check_finite(loss.item(), "the released adaptation")
            nn.utils.clip_grad_norm_(model.parameters(), FINE_CLIP)
            optimizer.step()
