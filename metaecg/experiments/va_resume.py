"""What an interrupted run of `va_fewshot` has left, and whether it may be gone on with."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from metaecg.errors import CheckpointError, MetaECGWarning
from metaecg.meta.training_state import Checkpoint


@dataclass(frozen=True, kw_only=True)
class LeftOver:
    """The interrupted trainings of a run."""

    n_done: dict[str, int] = field(default_factory=dict)
    """Job to the iterations that its meta-training has done."""
    damaged: list[str] = field(default_factory=list)
    """What can't be read, one sentence each."""


def find_interrupted(
    checkpoints: Mapping[str, Checkpoint | None], *, is_asked_for: bool
) -> LeftOver:
    """Look at the checkpoint of every job.

    Raises
    ------
    CheckpointError
        One belongs to other settings, data or versions, and it `is_asked_for` to go on from it:
        starting that training afresh would not be what was asked for, and would replace it.
    """
    n_done, damaged = {}, []
    for name, checkpoint in checkpoints.items():
        if checkpoint is None:
            continue
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", MetaECGWarning)
                state = checkpoint.load()
        except CheckpointError:
            if is_asked_for:
                raise
            continue
        damaged += [str(warning.message) for warning in caught]
        if state is not None:
            n_done[name] = state.n_done
    return LeftOver(n_done=n_done, damaged=damaged)


def resume_notes(left: LeftOver, *, n_finished: int, resume: bool, out: object) -> list[str]:
    """Return what to tell before the jobs start, one sentence each."""
    trainings = "; ".join(f"{name} at iteration {n}" for name, n in sorted(left.n_done.items()))
    if not resume:
        if not left.n_done:
            return []
        return [
            f"interrupted meta-trainings start afresh: {trainings}. Stop now and add --resume to go "
            "on with them."
        ]
    if not left.n_done and not n_finished:
        return [
            *left.damaged,
            f"--resume: there is nothing to go on with in {out}; starting afresh.",
        ]
    going_on = f"; meta-trainings go on: {trainings}" if left.n_done else ""
    return [*left.damaged, f"--resume: finished jobs taken up: {n_finished}{going_on}."]
