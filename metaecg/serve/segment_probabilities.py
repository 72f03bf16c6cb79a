"""What a base, or a patient's detector, says of the segments of a recording."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from metaecg.checks import check_option
from metaecg.data.beat_input import beat_forms
from metaecg.errors import DataError
from metaecg.serve.segments import Segments

if TYPE_CHECKING:
    from metaecg.adapt.personalize import Personalizer
    from metaecg.models.checkpoints import BaseModel


def rhythms_of(base: "BaseModel") -> tuple[str, ...]:
    """Return the values of `rhythm` that a base allows, ``"none"`` first."""
    has_neighbours = base.rhythm is not None or _beat_mode(base) is not None
    return ("none", "causal", "offline") if has_neighbours else ("none",)


def default_rhythm_of(base: "BaseModel") -> str:
    """Return the `rhythm` that a base was made for; for windows ``"none"``."""
    return _beat_mode(base) or "none"


def positive_class(base: "BaseModel") -> str:
    """Return the class that is looked for: ``"V"`` among beats, else ``"va"`` or the second one."""
    from metaecg.adapt.in_time import positive_index

    return "V" if _is_for_beats(base) else base.classes[positive_index(base.classes)]


def threshold_of(base: "BaseModel", rhythm: str, personal: "Personalizer | None" = None) -> float:
    """Return the probability of `positive_class` from which a segment is called so.

    That of `personal` under the rhythm that it was fitted with, else the base's own.
    """
    from metaecg.adapt.in_time import THRESHOLD, default_threshold

    if personal is not None and rhythm == personal.rhythm:
        return personal.threshold
    return THRESHOLD if _is_for_beats(base) else default_threshold(rhythm, base)


def probabilities(
    base: "BaseModel",
    personal: "Personalizer | None",
    segments: Segments,
    inputs: np.ndarray,
    rhythm: str = "none",
    *,
    labels: Mapping[int, str] | None = None,
    logits: np.ndarray | None = None,
    forms: np.ndarray | None = None,
) -> np.ndarray:
    """Return the probability of every class for segments of one recording.

    Parameters
    ----------
    base
        Decides how neighbours count.
    personal
        The patient's detector, fitted on `base`; ``None``: the base itself judges.
    segments, inputs
        What `Segmentation.inputs` gave.
    rhythm
        One of `rhythms_of`: ``"none"`` judges every segment by itself; ``"causal"`` counts those before it,
        ``"offline"`` also those after it, for windows by the base's rhythm model, for beats by its
        `BeatContext`. A detector that was fitted without a rhythm has the base's chain.
    labels
        Number of a segment to the class that a person gave it. Among beats they count as what they
        are for beats like them (not with ``rhythm="none"``); windows leave them out.
    logits
        Of the network, shape ``(n, n_classes)``, if they are there already.
    forms
        `metaecg.data.beat_input.beat_forms` of beats, if they are there already. With `logits` and
        `forms`, `inputs` isn't looked at.

    Returns
    -------
    numpy.ndarray
        Shape ``(n, n_classes)``, float64, each row summing to 1, columns as ``base.classes``.

    Raises
    ------
    DataError
        A rhythm is asked for and some of the recording's segments are missing.
    ValueError
        `rhythm` is none that the base allows.
    """
    check_option("rhythm", rhythm, rhythms_of(base))
    if rhythm != "none" and not segments.is_whole:
        raise DataError(
            f"rhythm is {rhythm!r}, which judges segments by their neighbours, and only some of the "
            "recording's are here. Take all inputs and choose rows afterwards, or rhythm='none'."
        )
    if logits is None:
        logits = (base if personal is None else personal).logits(inputs)
    if _is_for_beats(base):
        if forms is None and rhythm != "none":
            forms = beat_forms(inputs, segments.beats)
        return _of_beats(base, logits, segments, forms, rhythm, labels or {})
    return _of_windows(base, personal, logits, segments, rhythm)


def _of_windows(base, personal, logits, segments: Segments, rhythm: str) -> np.ndarray:
    from metaecg.adapt.in_time import probabilities_in_time
    from metaecg.models.inference import softmax

    if rhythm == "none":
        return softmax(logits)
    chain = None if personal is None else personal.chain_
    return probabilities_in_time(
        base,
        base.rhythm.chain if chain is None else chain,
        logits,
        segments.start_s,
        record_ids=None,
        rhythm=rhythm,
    )


def _of_beats(base, logits, segments: Segments, forms, rhythm: str, labels) -> np.ndarray:
    """Return the probability of V by the beats around, and the rest of 1 as the network shares it."""
    from scipy.special import expit

    from metaecg.models.beat_detector import BeatDetector, v_logits
    from metaecg.models.inference import softmax

    v = base.classes.index("V")
    log_odds = v_logits(logits, base.classes)
    context = None if rhythm == "none" else BeatDetector(base).context_of(mode=rhythm)
    if context is not None:
        row_of = {number: row for row, number in enumerate(segments.index.tolist())}
        known = {row_of[k]: name == "V" for k, name in labels.items() if k in row_of}
        log_odds = context.log_odds(log_odds, forms, known=known, mode=rhythm)
    found = np.empty(logits.shape)
    is_other = np.arange(len(base.classes)) != v
    found[:, v] = expit(log_odds)
    found[:, is_other] = softmax(logits[:, is_other]) * expit(-log_odds)[:, None]
    return found


def _is_for_beats(base) -> bool:
    from metaecg.models.beat_detector import CUTTING

    return CUTTING in base.training


def _beat_mode(base) -> str | None:
    """Return how the other beats count by default; ``None`` where they don't."""
    from metaecg.models.beat_detector import BeatDetector

    if not _is_for_beats(base):
        return None
    detector = BeatDetector(base)
    return detector.mode if detector.context is not None else None
