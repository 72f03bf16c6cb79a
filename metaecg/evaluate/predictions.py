"""A method's output on the test part of one subject, and its way to disk."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from metaecg.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Probabilities of one method, seed and subject; the arrays line up, one row per test window.

    Raises
    ------
    DataError
        The arrays have different lengths.
    """

    method: str
    seed: int
    subject_id: str
    record_ids: np.ndarray = field(repr=False)
    start_s: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    is_mixed: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)
    """Probability of ``va``, float64."""
    threshold: float = 0.5
    look_ahead_s: float | None = 0.0
    """How long after a window's end its probability is known, beside the filter's; None: once the
    recording is whole."""
    adapt_seconds: float = 0.0
    n_trainable: int = 0
    is_one_class: bool = False
    """No VA and no support: false alarms of the base alone."""

    columns: ClassVar[tuple[str, ...]] = tuple(
        "record_ids start_s labels is_mixed probabilities".split()
    )
    """Every array, one row per test window."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in self.columns}
        if len(set(lengths.values())) != 1:
            raise DataError(
                f"the prediction of {self.method!r} for subject {self.subject_id!r} has columns of "
                f"different lengths: {lengths}; one row per test window was expected."
            )

    @property
    def flagged(self) -> np.ndarray:
        """Which windows the detector calls ``va``."""
        return self.probabilities >= self.threshold

    def without_mixed(self) -> "Prediction":
        """Return the same without the windows that touch both states."""
        kept = ~self.is_mixed
        columns = {name: getattr(self, name)[kept] for name in self.columns}
        return type(self)(**{**self.__dict__, **columns})


def save_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as one compressed ``.npz`` (arrays and JSON text, nothing pickled).

    The file appears whole or not at all.
    """
    predictions = list(predictions)
    names = predictions[0].columns if predictions else Prediction.columns
    facts = [
        {k: v for k, v in p.__dict__.items() if k not in names} | {"n": len(p.labels)}
        for p in predictions
    ]
    columns = {
        name: np.concatenate([getattr(p, name) for p in predictions])
        if predictions
        else np.zeros(0)
        for name in names
    }
    columns["record_ids"] = columns["record_ids"].astype(str)  # never objects: those are pickled
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **columns)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_predictions(path: Path, kind: type[Prediction] = Prediction) -> list[Prediction]:
    """Read what `save_predictions` wrote of predictions of one `kind`."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in kind.columns}
        facts = json.loads(str(stored["facts"]))
    found, start = [], 0
    for values in facts:
        stop = start + values.pop("n")
        found.append(kind(**values, **{k: v[start:stop] for k, v in columns.items()}))
        start = stop
    return found
