"""Which subjects make the next meta-batch, and a simulation of it before anything is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from metaecg.checks import check_positive
from metaecg.errors import DataError
from metaecg.tasks.difficulty import (
    DIFFICULTIES,
    RunningLoss,
    check_scores,
    initial_loss,
    measure_difficulty,
    separability,
)
from metaecg.tasks.pacing import PACINGS, MetaVA, Pacing, Progress, make_pacing

if TYPE_CHECKING:
    import plotly.graph_objects

__all__ = [
    "DIFFICULTIES",
    "PACINGS",
    "Curriculum",
    "RunningLoss",
    "Simulation",
    "initial_loss",
    "measure_difficulty",
    "plot_simulation",
    "separability",
    "simulate",
]


class Curriculum:
    """Draw the subjects of every meta-batch, from easy to hard as the pacing says.

    Parameters
    ----------
    subject_ids
        The subjects that may be drawn, each once.
    pacing
        A name of `PACINGS`, or one of its classes with other settings than the defaults.
    difficulty
        One number of at least 0 per subject, in the order of `subject_ids`, higher is harder; or a
        `RunningLoss`, which `observe` then keeps up to date.
    n_iterations
        Length of the training that the pacing spreads over.
    meta_batch_size
        Subjects per draw. If there are fewer subjects, some are drawn more than once.
    rng
        Everything random comes from it: same generator, difficulties and losses, same draws.

    Raises
    ------
    ValueError
        If a name is unknown, a number is out of range or the lengths differ.
    DataError
        If there is no subject or one is named twice.

    Examples
    --------
    >>> rng = np.random.default_rng(7)
    >>> curriculum = Curriculum(["a", "b", "c", "d", "e", "f"], pacing="linear",
    ...                         difficulty=[5, 4, 3, 2, 1, 0], n_iterations=10,
    ...                         meta_batch_size=2, rng=rng)
    >>> sorted(curriculum.draw(0))
    ['e', 'f']
    >>> curriculum.n_admitted(0), curriculum.n_admitted(9)
    (2, 6)
    """

    def __init__(
        self,
        subject_ids: Sequence[str],
        *,
        pacing: str | Pacing,
        difficulty: "Sequence[float] | np.ndarray | RunningLoss",
        n_iterations: int,
        meta_batch_size: int,
        rng: np.random.Generator,
    ) -> None:
        self.subject_ids = _check_subjects(subject_ids)
        self.pacing = make_pacing(pacing)
        self.n_iterations = int(check_positive("n_iterations", n_iterations))
        self.meta_batch_size = int(check_positive("meta_batch_size", meta_batch_size))
        self._follows = difficulty if isinstance(difficulty, RunningLoss) else None
        self._scores = difficulty.scores if self._follows else check_scores(difficulty)
        if len(self._scores) != len(self.subject_ids):
            raise ValueError(
                f"difficulty has {len(self._scores)} numbers for {len(self.subject_ids)} subjects; "
                "one per subject, in the same order, was expected."
            )
        self._losses = self._follows or RunningLoss(np.zeros(len(self.subject_ids)))
        self._rng = rng
        self._n_drawn = np.zeros(len(self.subject_ids), dtype=np.int64)
        self._index = {subject: i for i, subject in enumerate(self.subject_ids)}

    @property
    def difficulty(self) -> np.ndarray:
        """Difficulty of every subject now, shape ``(n_subjects,)``; a copy."""
        return self._follows.scores if self._follows else self._scores.copy()

    def draw(self, iteration: int) -> list[str]:
        """Draw the meta-batch of `iteration` (from 0), ``meta_batch_size`` subjects.

        They are distinct as long as there are enough, except under the pacing ``metava``.
        """
        progress = self._progress(iteration)
        drawn = self.pacing.draw(progress, self._rng)
        counted = self.pacing.counts(drawn, progress) if isinstance(self.pacing, MetaVA) else drawn
        np.add.at(self._n_drawn, counted, 1)
        return [self.subject_ids[i] for i in drawn]

    def observe(self, subject_ids: Sequence[str], losses: Sequence[float]) -> None:
        """Take in the losses of the subjects just trained on, in the order of the draw.

        ``self-paced`` and the difficulty ``running-loss`` follow them, the others ignore them.
        """
        unknown = sorted(set(subject_ids) - set(self._index))
        if unknown:
            raise DataError(
                f"subject {unknown[0]!r} isn't among the curriculum's {len(self._index)} subjects; "
                "pass those that draw returned."
            )
        if len(losses) != len(subject_ids):
            raise ValueError(
                f"{len(losses)} losses for {len(subject_ids)} subjects; one each was expected."
            )
        self._losses.observe(
            [self._index[s] for s in subject_ids], check_scores(losses, name="losses")
        )

    def state(self) -> dict:
        """Return all that decides the next draws, as JSON values for `restore`: a copy."""
        return {
            "subject_ids": list(self.subject_ids),
            "difficulty": self.difficulty.tolist(),
            "losses": self._losses.state(),
            "n_drawn": self._n_drawn.tolist(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict) -> None:
        """Go back to a `state` of a curriculum with the same settings.

        The difficulties are those of the state, so they need not be measured again.

        Raises
        ------
        DataError
            The state is one of other subjects.
        """
        if state["subject_ids"] != list(self.subject_ids):
            raise DataError(
                f"the curriculum's state is one of {len(state['subject_ids'])} other subjects than "
                f"its {len(self.subject_ids)}; restore it into a curriculum of the same ones."
            )
        self._losses.restore(state["losses"])
        if not self._follows:
            self._scores = check_scores(state["difficulty"])
        self._n_drawn = np.array(state["n_drawn"], dtype=np.int64)
        self._rng.bit_generator.state = state["rng"]

    def n_admitted(self, iteration: int) -> int:
        """Count the subjects that may be drawn at `iteration`, as things stand now."""
        return int(self.pacing.admitted(self._progress(iteration)).sum())

    def _progress(self, iteration: int) -> Progress:
        return Progress(
            iteration=iteration,
            n_iterations=self.n_iterations,
            meta_batch_size=self.meta_batch_size,
            difficulty=self.difficulty,
            losses=np.where(self._losses.is_seen, self._losses.scores, np.nan),
            n_drawn=self._n_drawn,
        )


def _check_subjects(subject_ids: Sequence[str]) -> tuple[str, ...]:
    subject_ids = tuple(str(subject) for subject in subject_ids)
    if not subject_ids:
        raise DataError("a curriculum needs at least one subject, and subject_ids is empty.")
    if len(set(subject_ids)) < len(subject_ids):
        twice = next(s for s in subject_ids if subject_ids.count(s) > 1)
        raise DataError(f"subject {twice!r} occurs twice in subject_ids; name each subject once.")
    return subject_ids


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a curriculum would draw, without training anything."""

    subject_ids: tuple[str, ...]
    difficulty: np.ndarray
    """At the start, shape ``(n_subjects,)``."""
    draws: np.ndarray
    """Indices into `subject_ids`, int64, shape ``(n_iterations, meta_batch_size)``."""
    n_admitted: np.ndarray
    """Subjects that could be drawn, int64, shape ``(n_iterations,)``."""


def simulate(
    subject_ids: Sequence[str],
    difficulty: "Sequence[float] | np.ndarray | RunningLoss",
    *,
    pacing: str | Pacing,
    n_iterations: int,
    meta_batch_size: int,
    rng: np.random.Generator,
    loss_at: Callable[[int, str], float] | None = None,
) -> Simulation:
    """Draw every meta-batch of a training that doesn't take place.

    Parameters
    ----------
    subject_ids, difficulty, pacing, n_iterations, meta_batch_size, rng
        As for `Curriculum`. A `RunningLoss` is changed by the losses that `loss_at` gives.
    loss_at
        (iteration, subject_id) -> loss to observe after a draw, to look at the pacings that follow
        losses. None: nothing is observed.

    Returns
    -------
    Simulation
        The draws and how many subjects were admitted, per iteration.

    Examples
    --------
    >>> seen = simulate([f"s{i}" for i in range(9)], range(9), pacing="linear", n_iterations=10,
    ...                 meta_batch_size=2, rng=np.random.default_rng(0))
    >>> seen.n_admitted.tolist()
    [3, 5, 6, 7, 8, 9, 9, 9, 9, 9]
    >>> int(seen.draws[0].max()) < 3
    True
    """
    curriculum = Curriculum(
        subject_ids,
        pacing=pacing,
        difficulty=difficulty,
        n_iterations=n_iterations,
        meta_batch_size=meta_batch_size,
        rng=rng,
    )
    at_start = curriculum.difficulty
    index = {subject: i for i, subject in enumerate(curriculum.subject_ids)}
    draws, n_admitted = [], []
    for iteration in range(curriculum.n_iterations):
        n_admitted.append(curriculum.n_admitted(iteration))
        subjects = curriculum.draw(iteration)
        draws.append([index[subject] for subject in subjects])
        if loss_at:
            curriculum.observe(subjects, [loss_at(iteration, subject) for subject in subjects])
    return Simulation(
        subject_ids=curriculum.subject_ids,
        difficulty=at_start,
        draws=np.array(draws, dtype=np.int64),
        n_admitted=np.array(n_admitted, dtype=np.int64),
    )


def plot_simulation(simulation: Simulation) -> "plotly.graph_objects.Figure":
    """Draw the subjects, ordered by difficulty, against the iterations that drew them."""
    import plotly.graph_objects as go

    order = np.argsort(simulation.difficulty, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    n_iterations, meta_batch_size = simulation.draws.shape
    names = np.array(simulation.subject_ids)[simulation.draws.ravel()]
    figure = go.Figure()
    figure.add_scatter(
        x=np.repeat(np.arange(n_iterations), meta_batch_size),
        y=rank[simulation.draws.ravel()],
        text=names,
        mode="markers",
        marker={"size": 4},
        name="drawn",
    )
    figure.add_scatter(
        x=np.arange(n_iterations),
        y=simulation.n_admitted - 0.5,
        mode="lines",
        line={"shape": "hv"},
        name="number admitted",
    )
    figure.update_layout(
        xaxis_title="iteration",
        yaxis_title="subject, from easy to hard",
        template="plotly_white",
    )
    return figure
