"""Train a small network to answer as a large one does: for a wearable that has room for neither.

A batch is mixed by CutMix, both networks see it, and the student learns from two answers:

    loss = L(student, labels) + L(student, teacher)

L is the binary cross-entropy of each statement (several may be true), or the cross-entropy over
the classes (one is true). Where the student is to run on few leads, the others are zero for it,
while the teacher sees all of them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaecg.adapt.cutmix import cutmix
from metaecg.adapt.h_tuning import rate_factor
from metaecg.adapt.training import check_finite, check_parameters
from metaecg.checks import check_positive, check_windows
from metaecg.errors import AdaptationError, DataError
from metaecg.models.inference import network_logits, softmax
from metaecg.seeding import borrowed_torch_stream

REDUCED_LEADS = {12: tuple(range(12)), 3: (1, 6, 10), 1: (0,)}
"""How many leads -> their places among I, II, III, aVR, aVL, aVF, V1 ... V6: three are II, V1 and
V5, one is I, as published [1]_.

.. [1] R. Zhou, L. Zhang, Y. Dong, "H-Tuning: Toward Low-Cost and Efficient ECG-based Cardiovascular
   Disease Detection with Pre-Trained Models", ICML 2025.
"""

OnStep = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What happened while the student learned."""

    losses: list[float] = field(repr=False)
    """Of each step that was taken, over its batch: both parts together."""
    scores: dict[int, float]
    """Step -> mean average precision on the validation windows, of the student after that step."""
    best_step: int
    """Whose weights the student has now: the one with the best score, or the last."""


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    windows: np.ndarray,
    labels: np.ndarray,
    *,
    n_steps: int,
    rng: np.random.Generator,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    leads: Sequence[int] | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    cutmix_beta: float | None = 0.75,
    check_every: int = 50,
    patience: int = 10,
    on_step: OnStep | None = None,
) -> Distillation:
    """Train `student` in place, by AdamW, on the labels and on what `teacher` says.

    The same `rng` state gives the same student; the global random state is left as it was. After
    an error the student is as it was before.

    Parameters
    ----------
    student, teacher
        Networks from windows to logits, on the same device. The student's weights that have
        ``requires_grad`` are trained, its batch norm is in train mode. The teacher is evaluated
        and never changed. ``teacher=None``: the labels alone, the control that shows what a
        teacher adds.
    windows
        Shape ``(n_windows, n_leads, n_samples)``, normalised as both networks want it.
    labels
        Shape ``(n_windows, n_classes)`` of 0 and 1: statements, several may be true. Or shape
        ``(n_windows,)``, whole numbers: the one class of each window.
    n_steps
        At most so many steps, each on `batch_size` windows drawn without replacement until too
        few are left for a batch.
    rng
        Draws the batches, the boxes of CutMix and the seed of the dropout.
    validation
        Windows and labels of other patients, for the mean average precision. The best weights
        are restored. ``None``: all steps are taken, and the last weights stay.
    leads
        Places of the leads that the student sees, the others are zero for it, in `validation`
        too; `REDUCED_LEADS` has the published ones. ``None``: all. For deployment cut the
        student's first layer down to them.
    lr, weight_decay
        Of AdamW. The rate rises over the first hundredth of the steps and falls to 0 at the last.
    cutmix_beta
        Of `cutmix`; ``None``: batches stay as they are.
    check_every, patience
        The score is taken every so many steps and after the last; training ends when it has not
        risen so many times in a row.
    on_step
        Called with the step, from 1, and ``{"loss": ..., "lr": ...}``.

    Returns
    -------
    Distillation
        Losses, scores, and the step whose weights the student has.

    Raises
    ------
    DataError
        If windows, labels and networks don't fit each other, or no class of the validation has a
        true label.
    AdaptationError
        If the teacher's answer, the loss or a weight is not finite, with the number of the step.
    ValueError
        If a number is out of its range.

    References
    ----------
    .. [1] R. Zhou, L. Zhang, Y. Dong, "H-Tuning: Toward Low-Cost and Efficient ECG-based
       Cardiovascular Disease Detection with Pre-Trained Models", ICML 2025.
    .. [2] G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    for name, value in {"n_steps": n_steps, "lr": lr, "patience": patience}.items():
        check_positive(name, value)
    check_positive("check_every", check_every)
    windows = check_windows(windows)
    leads = _checked_leads(leads, windows.shape[1])
    answers = _Answers(student, teacher, leads, multi_label=np.ndim(labels) == 2)
    n_classes = answers.n_classes(windows[:1])
    targets = _targets(labels, len(windows), n_classes, "labels")
    best = _Best(answers, _checked_validation(validation, windows, n_classes), patience)
    batches = _batches(windows, targets, batch_size, cutmix_beta, rng)
    own_dropout = borrowed_torch_stream(int(rng.integers(2**62)), device=answers.device)
    with _restored_on_error(student), own_dropout, _evaluated(teacher):
        losses = []
        for step, loss in enumerate(
            _steps(answers, batches, n_steps, lr, weight_decay, on_step), start=1
        ):
            losses.append(loss)
            if step % check_every == 0 or step == n_steps:
                check_parameters(list(student.parameters()), f"after step {step}", lr)
                if best.is_over(step):
                    break
        best.restore()
    student.zero_grad()
    student.eval()
    return Distillation(losses=losses, scores=best.scores, best_step=best.step)


def mask_leads(x: Tensor, leads: Sequence[int] | None) -> Tensor:
    """Return the windows with all leads but `leads` (places, from 0) set to zero.

    `x` has shape ``(n_windows, n_leads, n_samples)``; ``None`` keeps all, and `x` itself.
    """
    if leads is None:
        return x
    kept = torch.zeros_like(x)
    kept[:, list(leads)] = x[:, list(leads)]
    return kept


def _steps(
    answers: "_Answers",
    batches: Iterator[tuple[Tensor, Tensor]],
    n_steps: int,
    lr: float,
    weight_decay: float,
    on_step: OnStep | None,
) -> Iterator[float]:
    """Take the steps one by one, yielding the loss of each."""
    parameters = [p for p in answers.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate_factor(done, n_steps))
    for step in range(1, n_steps + 1):
        where = f"step {step} of {n_steps}"
        loss = answers.loss(*next(batches), where)
        value = check_finite(loss, where, lr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_step:
            on_step(step, {"loss": value, "lr": schedule.get_last_lr()[0]})
        schedule.step()
        yield value


@dataclass(frozen=True)
class _Answers:
    """What student and teacher say to windows, and the loss between."""

    student: nn.Module
    teacher: nn.Module | None
    leads: tuple[int, ...] | None
    multi_label: bool

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def n_classes(self, window: np.ndarray) -> int:
        """Return how many logits one window gets; DataError if not the same number from both."""
        shapes = {}
        for name in ("student", "teacher"):
            network = getattr(self, name)
            if network is not None:
                with _evaluated(network), torch.inference_mode():
                    shapes[name] = tuple(network(torch.tensor(window, device=self.device)).shape)
        first = shapes["student"]
        if len(first) != 2 or first[0] != 1 or {*shapes.values()} != {first}:
            raise DataError(
                f"the answers to one window have the shapes {shapes}; expected (1, n_classes), the "
                "same from both. Build student and teacher for the same classes."
            )
        return first[1]

    def loss(self, x: Tensor, y: Tensor, where: str) -> Tensor:
        """Return the student's loss; AdaptationError if the teacher's answer is not finite."""
        x, y = x.to(self.device), y.to(self.device)
        soft = None if self.teacher is None else self._taught(x, where)
        self.student.train()
        logits = self.student(mask_leads(x, self.leads))
        loss = F.binary_cross_entropy_with_logits if self.multi_label else F.cross_entropy
        return loss(logits, y) if soft is None else loss(logits, y) + loss(logits, soft)

    def score(self, windows: np.ndarray, targets: np.ndarray) -> float:
        """Return the student's mean average precision."""
        masked = mask_leads(torch.from_numpy(windows), self.leads).numpy()
        logits = network_logits(self.student, masked, n_classes=targets.shape[1])
        probabilities = _sigmoid(logits) if self.multi_label else softmax(logits)
        return mean_average_precision(targets, probabilities)

    def _taught(self, x: Tensor, where: str) -> Tensor:
        with torch.no_grad():
            logits = self.teacher(x)
        if not bool(torch.isfinite(logits).all()):
            raise AdaptationError(
                f"the teacher's answer holds NaN or infinity at {where}; finite logits were "
                "expected. Check the teacher's weights and that it wants windows like these."
            )
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)


class _Best:
    """Remembers the student at its best on the validation windows."""

    def __init__(self, answers: _Answers, validation, patience: int) -> None:
        self.answers, self.validation, self.patience = answers, validation, patience
        self.scores: dict[int, float] = {}
        self.step = 0
        self.state: dict | None = None

    def is_over(self, step: int) -> bool:
        """Take the score after `step`; tell whether it has not risen for too long."""
        if self.validation is None:
            self.step = step
            return False
        self.scores[step] = self.answers.score(*self.validation)
        if self.state is None or self.scores[step] > self.scores[self.step]:
            self.step, self.state = step, copy.deepcopy(self.answers.student.state_dict())
        return sum(checked > self.step for checked in self.scores) >= self.patience

    def restore(self) -> None:
        if self.state is not None:
            self.answers.student.load_state_dict(self.state)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))  # no overflow


def mean_average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the average precision, averaged over the classes that occur among the labels.

    Parameters
    ----------
    labels, probabilities
        Shape ``(n_windows, n_classes)``; labels are 0 and 1.

    Raises
    ------
    DataError
        If no label is 1.
    """
    from sklearn.metrics import average_precision_score

    present = np.flatnonzero(labels.any(axis=0))
    if len(present) == 0:
        raise DataError(
            f"none of {labels.shape[1]} classes is true in any of {len(labels)} validation windows; "
            "at least one was expected. Choose other validation patients."
        )
    return float(
        np.mean([average_precision_score(labels[:, k], probabilities[:, k]) for k in present])
    )


def _targets(labels: np.ndarray, n_windows: int, n_classes: int, name: str) -> np.ndarray:
    """Return labels as float32, one row per window and one column per class."""
    labels = np.asarray(labels)
    if labels.shape not in ((n_windows,), (n_windows, n_classes)) or n_windows == 0:
        raise DataError(
            f"{name} has shape {labels.shape}; expected ({n_windows},) or ({n_windows}, "
            f"{n_classes}) for {n_windows} windows and {n_classes} logits, at least one window."
        )
    if labels.ndim == 1:
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= n_classes:
            raise DataError(
                f"{name} goes from {labels.min()} to {labels.max()} ({labels.dtype}); whole numbers "
                f"from 0 to {n_classes - 1} were expected, the class of each window."
            )
        labels = np.eye(n_classes)[labels]
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"{name} holds {np.setdiff1d(labels, (0, 1))[0]}; expected 0 and 1 alone.")
    return labels.astype(np.float32)


def _checked_leads(leads: Sequence[int] | None, n_leads: int) -> tuple[int, ...] | None:
    if leads is None:
        return None
    if not leads or len({*leads}) < len(leads) or not all(0 <= lead < n_leads for lead in leads):
        raise ValueError(
            f"leads is {leads!r}; different places from 0 to {n_leads - 1} were expected, at least "
            "one."
        )
    return tuple(leads)


def _checked_validation(validation, windows: np.ndarray, n_classes: int):
    """Return windows and labels, as for training; None stays None."""
    if validation is None:
        return None
    found = check_windows(validation[0], name="validation windows")
    if found.shape[1:] != windows.shape[1:]:
        raise DataError(
            f"validation windows have (n_leads, n_samples) {found.shape[1:]}; {windows.shape[1:]} "
            "was expected, as for training."
        )
    targets = _targets(validation[1], len(found), n_classes, "validation labels")
    return found, targets


def _batches(windows, targets, batch_size: int, cutmix_beta, rng) -> Iterator:
    size = min(check_positive("batch_size", batch_size), len(windows))
    while True:
        order = rng.permutation(len(windows))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            x, y = torch.from_numpy(windows[chosen]), torch.from_numpy(targets[chosen])
            yield (x, y) if cutmix_beta is None else cutmix(x, y, rng=rng, beta=cutmix_beta)


@contextmanager
def _restored_on_error(network: nn.Module) -> Iterator[None]:
    before = copy.deepcopy(network.state_dict())
    flags = [(module, module.training) for module in network.modules()]
    try:
        yield
    except BaseException:
        network.load_state_dict(before)
        network.zero_grad()
        for module, was_training in flags:
            module.training = was_training
        raise


@contextmanager
def _evaluated(network: nn.Module | None) -> Iterator[None]:
    flags = [] if network is None else [(m, m.training) for m in network.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, was_training in flags:
            module.training = was_training
