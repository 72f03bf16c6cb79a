"""The named protocols: what a held-out subject's support and test part are (docs/protocol.md)."""

from dataclasses import dataclass, replace

import numpy as np

from metaecg.checks import check_option
from metaecg.data.datasets import Dataset
from metaecg.data.windows import WindowSet
from metaecg.errors import DataError
from metaecg.tasks.sampler import Task, deploy_task, published_task

PROTOCOLS = {
    "deploy": "",
    "as_published": "optimistic, not a deployment figure",
}
"""Protocol to the words that its results always carry."""


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """Who can be evaluated, and why the others can't."""

    eligible: tuple[str, ...]
    reasons: dict[str, str]
    one_class: tuple[str, ...]
    """Subjects without any VA: only their false alarms count."""


def held_out_task(
    windows: WindowSet, *, protocol: str, n_shots: int, rng: np.random.Generator | None = None
) -> Task:
    """Return support and test part of one held-out subject under a protocol.

    Parameters
    ----------
    windows
        One subject's windows in the order of time.
    protocol
        ``"deploy"`` (nothing is drawn) or ``"as_published"``.
    n_shots
        Support windows per class.
    rng
        Draws the support of ``as_published``; ``deploy`` has no use for it.

    Raises
    ------
    NotEnoughWindowsError
        The subject is not eligible.
    ValueError
        The protocol is unknown, or draws and got no `rng`.
    """
    check_option("protocol", protocol, PROTOCOLS)
    if protocol == "deploy":
        return deploy_task(windows, n_shots=n_shots)
    if rng is None:
        raise ValueError(f"protocol {protocol!r} draws its support; pass rng, a numpy Generator.")
    return published_task(windows, n_shots=n_shots, rng=rng)


def eligibility(dataset: Dataset, *, protocol: str, n_shots: int) -> Eligibility:
    """Sort the subjects into those that can be evaluated and the others, with the reason."""
    eligible, reasons, one_class = [], {}, []
    for subject_id in dataset.subject_ids:
        windows = dataset.of_subject(subject_id)
        if not len(windows):
            reasons[subject_id] = "no usable window: gaps, noise or asystole throughout"
            continue
        if not windows.count("va"):
            one_class.append(subject_id)
        try:
            rng = np.random.default_rng(0)  # whether it can be drawn doesn't depend on the draw
            held_out_task(windows, protocol=protocol, n_shots=n_shots, rng=rng)
            eligible.append(subject_id)
        except DataError as error:
            reasons[subject_id] = str(error)
    return Eligibility(eligible=tuple(eligible), reasons=reasons, one_class=tuple(one_class))


def prepare_for_protocol(dataset: Dataset, protocol: str) -> Dataset:
    """Apply what a protocol does to whole subjects: ``as_published`` scales each by its own mean
    and spread over everything, test part included, which no deployment can."""
    check_option("protocol", protocol, PROTOCOLS)
    if protocol == "deploy":
        return dataset
    values = np.array(dataset.windows.windows, dtype=np.float32)
    for subject_id in dataset.subject_ids:
        mine = dataset.windows.subject_ids == subject_id
        if mine.any():
            values[mine] = (values[mine] - values[mine].mean()) / max(values[mine].std(), 1e-6)
    return Dataset(windows=replace(dataset.windows, windows=values), records=dataset.records)
