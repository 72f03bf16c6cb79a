"""From easy to hard: which subjects a meta-batch may hold at an iteration, and who is drawn.

A pacing is a frozen dataclass with two methods, ``admitted(progress)`` and
``draw(progress, rng)``; what has happened so far comes in as a `Progress`.
"""

from dataclasses import dataclass

import numpy as np

from metaecg.checks import check_option


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands when a meta-batch is drawn; arrays have shape ``(n_subjects,)``."""

    iteration: int
    n_iterations: int
    meta_batch_size: int
    difficulty: np.ndarray
    """Higher is harder; at least 0."""
    losses: np.ndarray
    """Running mean of the observed losses; NaN for a subject not yet observed."""
    n_drawn: np.ndarray
    """How often each subject was drawn, as the pacing counts it."""


def _draw_uniformly(admitted: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `n` of the admitted subjects; nobody twice before everybody once."""
    pool = np.flatnonzero(admitted)
    rounds = [rng.permutation(pool) for _ in range(-(-n // len(pool)))]
    return np.concatenate(rounds)[:n]


def _easiest(order: np.ndarray, share: float, progress: Progress) -> np.ndarray:
    """Admit the first `share` of `order`, and never fewer than fill a meta-batch."""
    n = len(order)
    n_admitted = min(n, max(int(np.ceil(share * n - 1e-9)), progress.meta_batch_size))
    admitted = np.zeros(n, dtype=bool)
    admitted[order[:n_admitted]] = True
    return admitted


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """No curriculum: everybody is admitted from the start."""

    def admitted(self, progress: Progress) -> np.ndarray:
        """Return who may be drawn, bool, shape ``(n_subjects,)``."""
        return np.ones(len(progress.difficulty), dtype=bool)

    def draw(self, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        """Return subject indices, shape ``(meta_batch_size,)``."""
        return _draw_uniformly(self.admitted(progress), progress.meta_batch_size, rng)


@dataclass(frozen=True, kw_only=True)
class _Growing:
    """A share of the subjects, the easiest first, that grows until everybody is admitted."""

    start_share: float = 1 / 3
    """Share of the subjects admitted at iteration 0."""
    full_at: float = 0.5
    """Share of the iterations after which everybody is admitted."""

    def __post_init__(self) -> None:
        for name in ("start_share", "full_at"):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name} is {value!r}; a number above 0 and up to 1 was expected.")

    def _grown(self, progress: Progress) -> float:
        """Return how far the growth has gone, 0 to 1."""
        return min(1.0, progress.iteration / max(1.0, self.full_at * progress.n_iterations))

    def draw(self, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        """Return subject indices, shape ``(meta_batch_size,)``."""
        return _draw_uniformly(self.admitted(progress), progress.meta_batch_size, rng)


@dataclass(frozen=True, kw_only=True)
class Linear(_Growing):
    """The share of admitted subjects grows by the same amount every iteration."""

    def admitted(self, progress: Progress) -> np.ndarray:
        """Return who may be drawn, bool, shape ``(n_subjects,)``."""
        share = self.start_share + (1.0 - self.start_share) * self._grown(progress)
        return _easiest(np.argsort(progress.difficulty, kind="stable"), share, progress)


@dataclass(frozen=True, kw_only=True)
class Exponential(_Growing):
    """The share of admitted subjects grows by the same factor every iteration: slow, then fast."""

    def admitted(self, progress: Progress) -> np.ndarray:
        """Return who may be drawn, bool, shape ``(n_subjects,)``."""
        share = self.start_share ** (1.0 - self._grown(progress))
        return _easiest(np.argsort(progress.difficulty, kind="stable"), share, progress)


@dataclass(frozen=True, kw_only=True)
class SelfPaced(_Growing):
    """Those are admitted whose own loss is now below a quantile that grows like ``linear``'s share.

    A subject not yet observed counts as average; among equals the initial difficulty decides. So
    nobody is shut out by a first guess, and a subject that the model has learned comes back in.
    """

    def admitted(self, progress: Progress) -> np.ndarray:
        """Return who may be drawn, bool, shape ``(n_subjects,)``."""
        is_seen = np.isfinite(progress.losses)
        average = progress.losses[is_seen].mean() if is_seen.any() else 0.0
        expected = np.where(is_seen, progress.losses, average)
        order = np.lexsort((progress.difficulty, expected))  # by `expected`, then by difficulty
        share = self.start_share + (1.0 - self.start_share) * self._grown(progress)
        return _easiest(order, share, progress)


@dataclass(frozen=True, kw_only=True)
class MetaVA:
    """The schedule of MetaVA's released code, which in effect is a switch near iteration 43 to 50.

    Checked against ``SampleTasks`` in MAML.py of commit 0708f1a. The base ``metava-released``
    (`metaecg.meta.metava_released.choose_subjects`) has one of its own that departs from the
    release: nobody twice in a batch, every choice counts, the next easiest as long as too few lie
    below the threshold, iterations from 1. docs/curriculum.md sets them side by side.

    Of a meta-batch of B, ``int(0.3 B)`` subjects are always the easiest. The rest is drawn among
    the others whose difficulty V lies below ``V_min + (1 - V_min) exp(t - 50)``, with a chance in
    proportion to ``max(0, 1 - n / t)`` where n counts a subject's earlier draws by chance; the same
    subject can be drawn several times in a batch. When nobody lies below the threshold, the rest
    is the next easiest.

    What that does: exp(t - 50) is 0.0003 at t = 42, 0.0025 at t = 44 and 1 at t = 50, and V is a
    softmax over all subjects, about 1/n each. So for some 43 iterations the batch is one fixed set
    of the B easiest, during a handful a few subjects more may come in and fill the whole rest of
    the batch, and from iteration 50 on everybody is drawn: two stages, not a gradual pace, and the
    same 50 iterations however long training is.

    Difficulties are taken as shares of their sum, which leaves MetaVA's own softmax as it is. The
    released code takes its easiest among subjects that have both classes; every subject of a
    `Curriculum` is taken to have both.
    """

    easiest_share: float = 0.3
    opens_at: int = 50
    """Iteration from which on everybody is admitted."""

    def admitted(self, progress: Progress) -> np.ndarray:
        """Return who may be drawn, bool, shape ``(n_subjects,)``."""
        always, others = self._always(progress)
        candidates = self._candidates(progress, others)
        if not len(candidates):
            candidates = others[: progress.meta_batch_size - len(always)]
        admitted = np.zeros(len(progress.difficulty), dtype=bool)
        admitted[always] = True
        admitted[candidates] = True
        return admitted

    def draw(self, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        """Return subject indices, shape ``(meta_batch_size,)``; it may hold a subject twice."""
        always, others = self._always(progress)
        n_rest = progress.meta_batch_size - len(always)
        candidates = self._candidates(progress, others)
        if len(candidates):
            rest = rng.choice(candidates, n_rest, p=self._chances(progress, candidates))
        else:
            pool = others if len(others) else always
            rest = np.resize(pool, n_rest)  # the next easiest; again from the start if too few
        return np.concatenate([always, rest])

    def counts(self, drawn: np.ndarray, progress: Progress) -> np.ndarray:
        """Return the drawn subjects that count as draws: those of the roulette only."""
        always, others = self._always(progress)
        return drawn[len(always) :] if len(self._candidates(progress, others)) else drawn[:0]

    def _always(self, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Return the subjects in every batch, and the others, both from easy to hard."""
        order = np.argsort(progress.difficulty, kind="stable")
        n_always = int(progress.meta_batch_size * self.easiest_share)
        return order[:n_always], order[n_always:]

    def _candidates(self, progress: Progress, others: np.ndarray) -> np.ndarray:
        total = progress.difficulty.sum()
        n = len(progress.difficulty)
        shares = progress.difficulty / total if total > 0 else np.full(n, 1.0 / n)
        if progress.iteration >= self.opens_at:
            return others
        opened = np.exp(float(progress.iteration - self.opens_at))
        threshold = shares.min() + (1.0 - shares.min()) * opened
        return others[shares[others] < threshold]

    def _chances(self, progress: Progress, candidates: np.ndarray) -> np.ndarray:
        scores = np.maximum(0.0, 1.0 - progress.n_drawn[candidates] / max(1, progress.iteration))
        if scores.sum() <= 0:
            scores = np.ones(len(candidates))
        return scores / scores.sum()


PACINGS = {
    "metava": MetaVA,
    "linear": Linear,
    "exponential": Exponential,
    "self-paced": SelfPaced,
    "none": Uniform,
}

Pacing = Uniform | Linear | Exponential | SelfPaced | MetaVA


def make_pacing(pacing: str | Pacing) -> Pacing:
    """Return the pacing of that name with its default settings, or the pacing itself."""
    if not isinstance(pacing, str):
        return pacing
    return PACINGS[check_option("pacing", pacing, PACINGS)]()
