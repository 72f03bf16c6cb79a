"""Check the labelled windows of a patient before anything is trained on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from metaecg.errors import DataError, NotEnoughWindowsError
from metaecg.models.base_windows import is_for_beats

if TYPE_CHECKING:
    from metaecg.data.records import Record
    from metaecg.data.windows import WindowSet


def marked_windows(
    base, record: "Record", marks: Sequence[tuple[float, float, str]]
) -> "WindowSet":
    """Return the windows of `record` between the marks; a base for beats is a DataError."""
    from metaecg.data.windows import windows_from_marks

    if is_for_beats(base):
        raise DataError(
            "the base judges beats, and what lies between marks is cut into windows. Cut the beats "
            "with metaecg.data.beats.cut_beats and call `fit` with their "
            "metaecg.data.beat_input.beat_inputs."
        )
    return windows_from_marks(record, marks, base.preprocessing, classes=base.classes)


def label_index(labels: Sequence, classes: Sequence[str], *, n_windows: int) -> np.ndarray:
    """Return the index into `classes` of every label, int64.

    `labels` are class names or whole numbers. Another number of them than `n_windows`, or one
    that names no class, is a DataError.
    """
    labels = np.asarray(labels)
    if labels.shape != (n_windows,):
        raise DataError(
            f"labels has shape {labels.shape}; expected ({n_windows},), one per window."
        )
    names = list(classes)
    if labels.dtype.kind in "iu":
        known = {index: index for index in range(len(names))}
    else:
        known = {name: index for index, name in enumerate(names)}
    unknown = sorted({repr(v) for v in labels.tolist() if v not in known})
    if unknown:
        raise DataError(
            f"labels holds {', '.join(unknown[:3])}; expected names of {names} or their indices."
        )
    return np.array([known[v] for v in labels.tolist()], dtype=np.int64)


def class_counts(index: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of windows per class name."""
    counts = np.bincount(index, minlength=len(classes))
    return {name: int(n) for name, n in zip(classes, counts, strict=True)}


def windows_of_each(prefine: str | None) -> int:
    """Return how many windows of a class a fit needs: two where the support is split in time."""
    return 2 if prefine == "intended" else 1


def check_enough(
    index: np.ndarray, classes: Sequence[str], *, subject_id: str, n_each: int = 1
) -> None:
    """Refuse a support of a single class, or with fewer than `n_each` of a class that it has."""
    counts = class_counts(index, classes)
    present = [name for name, n in counts.items() if n > 0]
    few = [name for name in present if counts[name] < n_each]
    if len(present) < 2:
        few = [name for name in classes if name not in present]
    if few:
        raise NotEnoughWindowsError(
            subject_id=subject_id,
            label=few[0],
            n_found=counts[few[0]],
            n_needed=n_each,
            where=f"among the {len(index)} given",
        )


def checked_times(time_s: np.ndarray, *, n_windows: int) -> np.ndarray:
    """Return `time_s` as float64; another length or a time that is not finite is a DataError."""
    time_s = np.asarray(time_s, dtype=np.float64)
    if time_s.shape != (n_windows,) or not np.isfinite(time_s).all():
        raise DataError(
            f"time_s has shape {time_s.shape}; expected ({n_windows},), one finite time in "
            "seconds per window."
        )
    return time_s
