"""A rhythm lasts: judge a window by its neighbours too, with a two-state hidden Markov model.

The states are the classes of a window, the network's logit is what is seen of it, and a rhythm
begins or ends between two windows with a probability of its own. Training subjects give the
probabilities (`metaecg.models.rhythm_fit`); the times of a patient's support move them.

    evidence = BOUND tanh((logit - bias) / (temperature BOUND))
    state    other -> va with p_onset, va -> other with p_end, per step

Everything is in log odds of the positive class, natural logarithm.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from metaecg.checks import check_positive
from metaecg.errors import DataError
from metaecg.models.smoothing import filtered, smoothed

BOUND = 12.0
"""No single window's evidence is beyond it. It grows towards it and never stops growing, so that
windows with different logits keep different posteriors."""
ONSET_RANGE = (1e-4, 0.5)
END_RANGE = (1e-3, 0.9)
"""What `p_onset` and `p_end` may be. With `BOUND` they keep every posterior within 29 in log odds,
where probabilities in float64 are still apart from 0 and 1."""
ADJACENT_STEPS = 1.005
"""Windows at most so many steps apart belong to one run; the half percent is for rounded times."""
LEAST_STEPS = 0.995
"""Windows that start fewer steps apart overlap: their evidence is in part the same, and would count
twice."""
MODES = ("offline", "causal")


@dataclass(frozen=True, kw_only=True)
class RhythmChain:
    """How often a rhythm begins and ends: a patient's, or a population's."""

    p_onset: float
    """Probability that the next window is positive after one that isn't, per step."""
    p_end: float
    """Probability that the next window isn't positive after one that is, per step."""

    def __post_init__(self) -> None:
        _set_number(self, "p_onset", *ONSET_RANGE)
        _set_number(self, "p_end", *END_RANGE)

    @property
    def p_va(self) -> float:
        """Share of positive windows in the long run."""
        return self.p_onset / (self.p_onset + self.p_end)

    def decay(self, gap_s: float, step_s: float) -> float:
        """Return how much of a state is left `gap_s` later: 1 all, 0 nothing.

        Times are rounded to whole steps, one at least. A gap of 0 or less starts anew: 0.
        """
        if gap_s <= 0:
            return 0.0
        return (1 - self.p_onset - self.p_end) ** max(1, round(gap_s / step_s))

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RhythmChain":
        """Rebuild from `to_dict`'s values; other keys or impossible values raise ValueError."""
        return cls(**_checked_keys(cls, values))


@dataclass(frozen=True, kw_only=True)
class RhythmModel:
    """What training subjects tell about rhythms and logits; it belongs to a base.

    Examples
    --------
    >>> model = RhythmModel(p_onset=0.03, p_end=0.2, strength_onset=100, strength_end=10,
    ...                     temperature=3, bias=1, step_s=2)
    >>> logits, start_s = [-2, -1, 9, 8, -1, 9, 7, -3], np.arange(8) * 2.0
    >>> (model.posterior(logits, start_s) > 0).tolist()
    [False, False, True, True, True, True, True, False]
    >>> (model.posterior(logits, start_s, mode="causal") > 0).tolist()
    [False, False, False, True, True, True, True, False]
    """

    p_onset: float
    """Probability per step that a rhythm begins, 1e-4 to 0.5."""
    p_end: float
    """Probability per step that a rhythm ends, 1e-3 to 0.9."""
    strength_onset: float
    """So many steps without a rhythm of the patient's own weigh as much as `p_onset`; above 0."""
    strength_end: float
    """So many steps within a rhythm of the patient's own weigh as much as `p_end`; above 0."""
    temperature: float
    """A logit counts as 1 / `temperature` of itself: neighbours err together. Above 0."""
    bias: float
    """The logit that speaks for neither class."""
    threshold: float = 0.5
    """Posterior probability from which a window is called positive, between 0 and 1."""
    step_s: float
    """Seconds from the start of one window to the start of the next, above 0."""

    def __post_init__(self) -> None:
        _set_number(self, "p_onset", *ONSET_RANGE)
        _set_number(self, "p_end", *END_RANGE)
        for name in ("strength_onset", "strength_end", "temperature", "step_s"):
            check_positive(name, getattr(self, name))
            _set_number(self, name, 0.0, math.inf)
        _set_number(self, "bias", -math.inf, math.inf)
        _set_number(self, "threshold", 0.0, 1.0)

    @property
    def chain(self) -> RhythmChain:
        """The population's probabilities."""
        return RhythmChain(p_onset=self.p_onset, p_end=self.p_end)

    def for_patient(self, start_s: np.ndarray, labels: np.ndarray) -> RhythmChain:
        """Return a patient's own probabilities, from when the windows of the support lie.

        With `e` runs of neighbouring positive windows, `n_va` of them, and `n` steps from the first
        to the last window of the support,

            p_onset = (e + strength_onset * p_onset) / (n - n_va + strength_onset)
            p_end   = (e + strength_end * p_end) / (n_va + strength_end)

        kept within `ONSET_RANGE` and `END_RANGE`. Times and labels of the support are all it uses:
        nothing of the signal between them, and nothing later. Steps of that span that no positive
        window covers count as negative, which they are if the support holds the first positive
        windows, as under the protocol ``deploy``.

        Parameters
        ----------
        start_s
            Starts of the support's windows in seconds on one clock, shape ``(n_windows,)``, any
            order. None at all gives the population's probabilities.
        labels
            Shape ``(n_windows,)``: 1 or True for the positive class, else 0 or False.

        Raises
        ------
        DataError
            If the shapes differ, a time is not finite or a label is neither 0 nor 1.
        """
        start_s, labels = checked_support(start_s, labels)
        n_runs, n_va, n_other = support_counts(start_s, labels, self.step_s)
        onset = shrunk(n_runs, n_other, self.p_onset, self.strength_onset, ONSET_RANGE)
        end = shrunk(n_runs, n_va, self.p_end, self.strength_end, END_RANGE)
        return RhythmChain(p_onset=float(onset), p_end=float(end))

    def evidence(self, logit: float) -> float:
        """Return what one logit (positive minus the other) says, in log odds within `BOUND`."""
        return BOUND * math.tanh((logit - self.bias) / (self.temperature * BOUND))

    def posterior(
        self,
        logits: np.ndarray,
        start_s: np.ndarray,
        *,
        chain: RhythmChain | None = None,
        record_ids: np.ndarray | None = None,
        mode: str | float = "offline",
    ) -> np.ndarray:
        """Return the log odds that each window is positive, given its neighbours.

        Where a record ends or time doesn't move on, the rhythm starts anew from its share in the
        long run. A gap of several steps is forgotten step by step. Windows that overlap are refused.

        Parameters
        ----------
        logits
            Shape ``(n_windows,)``: the network's logit of the positive class minus the other's.
        start_s
            Shape ``(n_windows,)``: when each window starts, seconds, in the order of time, one
            `step_s` apart at least.
        chain
            The patient's probabilities; ``None``: the population's.
        record_ids
            Shape ``(n_windows,)``: which recording a window is from; ``None``: all from one.
        mode
            ``"causal"`` uses windows up to the one that is judged: no delay. A number uses windows
            that start at most so many seconds later: a delay of as much. ``"offline"`` uses the
            whole recording. The time that a lag takes grows with it.

        Returns
        -------
        numpy.ndarray
            Shape ``(n_windows,)``, float64, within 29 of 0.

        Raises
        ------
        DataError
            If the shapes differ, a logit or a time is not finite, or windows overlap.
        ValueError
            If `mode` is none of these.
        """
        _check_mode(mode)
        logits, start_s = _checked_series(logits, start_s)
        chain = self.chain if chain is None else chain
        decays = _decays(chain, start_s, record_ids, self.step_s)
        evidence = [self.evidence(logit) for logit in logits.tolist()]
        if mode == "causal":
            return np.array(filtered(evidence, decays, chain.p_va))
        if mode == "offline":
            return smoothed(evidence, decays, chain.p_va)
        return smoothed(evidence, decays, chain.p_va, start_s=start_s, lag_s=float(mode))

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RhythmModel":
        """Rebuild from `to_dict`'s values; other keys or impossible values raise ValueError."""
        return cls(**_checked_keys(cls, values))


class RhythmFilter:
    """The causal posterior of a stream, window by window: the numbers of ``mode="causal"``.

    Parameters
    ----------
    model
        Gives the evidence and the length of a step.
    chain
        The patient's probabilities; ``None``: the population's.

    Examples
    --------
    >>> model = RhythmModel(p_onset=0.03, p_end=0.2, strength_onset=100, strength_end=10,
    ...                     temperature=3, bias=1, step_s=2)
    >>> stream = RhythmFilter(model)
    >>> [stream.step(logit, start_s) > 0 for logit, start_s in [(9, 0), (8, 2), (-1, 4)]]
    [True, True, True]
    """

    def __init__(self, model: RhythmModel, chain: RhythmChain | None = None) -> None:
        self.model = model
        self.chain = model.chain if chain is None else chain
        self._last: tuple[float, float, str | None] | None = None  # log odds, start_s, record

    def step(self, logit: float, start_s: float, *, record_id: str | None = None) -> float:
        """Return the log odds that this window is positive, given those before it.

        `start_s` in seconds; a time that doesn't move on, or another record, starts anew. A number
        that is not finite, or a window that overlaps the one before, is a DataError and leaves the
        filter as it was.
        """
        (logit,), (start_s,) = (part.tolist() for part in _checked_series([logit], [start_s]))
        known, decay = 0.0, 0.0
        if self._last is not None and self._last[2] == record_id:
            known, gap_s = self._last[0], start_s - self._last[1]
            if _overlap(gap_s, self.model.step_s):
                raise DataError(
                    _overlap_message("this window and the last", gap_s, self.model.step_s)
                )
            decay = self.chain.decay(gap_s, self.model.step_s)
        (log_odds,) = filtered([self.model.evidence(logit)], [decay], self.chain.p_va, known)
        self._last = (log_odds, start_s, record_id)
        return log_odds

    def to_dict(self) -> dict:
        """Return the model, the chain and the state as plain JSON values."""
        last = None if self._last is None else list(self._last)
        return {"model": self.model.to_dict(), "chain": self.chain.to_dict(), "last": last}

    @classmethod
    def from_dict(cls, values: dict) -> "RhythmFilter":
        """Rebuild from `to_dict`'s values: it goes on where that one stood.

        Other keys or impossible values raise ValueError.
        """
        if not isinstance(values, dict) or set(values) != {"model", "chain", "last"}:
            raise ValueError(f"RhythmFilter was given {values!r}; expected what to_dict returned.")
        found = cls(RhythmModel.from_dict(values["model"]), RhythmChain.from_dict(values["chain"]))
        if values["last"] is not None:
            log_odds, start_s, record_id = values["last"]
            found._last = (float(log_odds), float(start_s), record_id)
        return found


def checked_support(start_s: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts as float64 and labels as bool; what can't be used is a DataError."""
    labels, start_s = np.asarray(labels), np.asarray(start_s, dtype=np.float64)
    if labels.shape != start_s.shape or labels.ndim != 1 or not np.isfinite(start_s).all():
        raise DataError(
            f"start_s has shape {start_s.shape} and labels {labels.shape}; one finite time in "
            "seconds and one label per window of the support were expected."
        )
    if not np.isin(labels, (0, 1)).all():
        strange = labels[~np.isin(labels, (0, 1))][0].item()
        raise DataError(f"labels holds {strange!r}; 1 for the positive class or 0 was expected.")
    return start_s, labels.astype(bool)


def support_counts(
    start_s: np.ndarray, labels: np.ndarray, step_s: float
) -> tuple[int, int, float]:
    """Return the runs of positive windows, the positive windows and the other steps of a support.

    `labels` is bool. Without a window all are 0.
    """
    positive = np.sort(start_s[labels])
    n_va = len(positive)
    n_runs = min(n_va, 1) + int((np.diff(positive) > ADJACENT_STEPS * step_s).sum())
    n_steps = (start_s.max() - start_s.min()) / step_s + 1 if len(start_s) else 0.0
    return n_runs, n_va, max(n_steps - n_va, 0.0)


def shrunk(count, n_steps, p, strength, allowed: tuple[float, float]):
    """Return the rate of `count` in `n_steps`, drawn towards `p` as by `strength` steps more."""
    return np.clip((count + strength * p) / (n_steps + strength), *allowed)


def _decays(
    chain: RhythmChain, start_s: np.ndarray, record_ids: np.ndarray | None, step_s: float
) -> list[float]:
    """Return what is left of the window before, for each window; 0 where it starts anew."""
    gaps = np.diff(start_s, prepend=start_s[:1])
    if record_ids is not None:
        record_ids = np.asarray(record_ids)
        if record_ids.shape != start_s.shape:
            raise DataError(
                f"record_ids has shape {record_ids.shape}; expected {start_s.shape}, one per window."
            )
        gaps[1:][record_ids[1:] != record_ids[:-1]] = 0.0
    if _overlap(gaps, step_s).any():
        at = int(np.argmax(_overlap(gaps, step_s)))
        raise DataError(_overlap_message(f"windows {at - 1} and {at}", gaps[at], step_s))
    known: dict[float, float] = {}
    return [
        known[gap] if gap in known else known.setdefault(gap, chain.decay(gap, step_s))
        for gap in gaps.tolist()
    ]


def _overlap(gap_s, step_s: float):
    return (gap_s > 0) & (gap_s < LEAST_STEPS * step_s)


def _overlap_message(which: str, gap_s: float, step_s: float) -> str:
    return (
        f"{which} start {gap_s:g} s apart, but the rhythm model's step is {step_s:g} s: windows that "
        "overlap would count the same signal twice. Give windows at least a step apart, or judge each "
        "by itself with rhythm='none'."
    )


def _checked_series(logits: Sequence, start_s: Sequence) -> tuple[np.ndarray, np.ndarray]:
    logits, start_s = (np.asarray(part, dtype=np.float64) for part in (logits, start_s))
    if logits.ndim != 1 or logits.shape != start_s.shape:
        raise DataError(
            f"logits has shape {logits.shape} and start_s {start_s.shape}; expected (n_windows,) "
            "for both: one logit difference and one time in seconds per window."
        )
    for name, values in (("logits", logits), ("start_s", start_s)):
        if not np.isfinite(values).all():
            at = int(np.argmin(np.isfinite(values)))
            raise DataError(f"{name}[{at}] is {values[at]}; a finite number was expected.")
    return logits, start_s


def _check_mode(mode: str | float) -> None:
    is_number = isinstance(mode, (int, float, np.number)) and not isinstance(mode, bool)
    if mode in MODES or (is_number and 0 <= mode < math.inf):
        return
    raise ValueError(
        f"mode is {mode!r}; expected 'offline', 'causal', or a lag in seconds of 0 or more."
    )


def _set_number(owner: object, name: str, least: float, most: float) -> None:
    """Make the field a float, so that what is written and read again is the same to the bit."""
    value = getattr(owner, name)
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        between = "" if math.isinf(least) else f" from {least:g} to {most:g}"
        raise ValueError(f"{name} is {value!r}; a finite number{between} was expected.")
    object.__setattr__(owner, name, float(value))


def _checked_keys(kind: type, values: dict) -> dict:
    known = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or set(values) != known:
        found = sorted(values) if isinstance(values, dict) else values
        raise ValueError(f"{kind.__name__} was given {found!r}; expected {sorted(known)}.")
    return values
