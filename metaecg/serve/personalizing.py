"""One personalization: gather the labelled segments, fit, look at what came out."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metaecg import __version__
from metaecg.adapt.personalize import Personalizer
from metaecg.adapt.support import check_enough, label_index
from metaecg.checks import check_option
from metaecg.errors import NotEnoughWindowsError
from metaecg.serve.adapter_file import adapter_bytes
from metaecg.serve.api_errors import ApiError
from metaecg.serve.recordings import inputs_of, open_recording
from metaecg.serve.segment_probabilities import default_rhythm_of, rhythms_of
from metaecg.serve.state import Services
from metaecg.serve.store_rows import Label

DEFAULT_METHOD = "lora"
FITTED_SHARE = 0.9
"""Part of the progress that the fit stands for."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """Labelled segments of one patient in the order of time."""

    inputs: np.ndarray = field(repr=False)
    """As the base's network takes them, shape ``(n, n_leads, n_samples)``."""
    names: np.ndarray
    """The class of each."""
    time_s: np.ndarray
    """Start of each; the patient's recordings lie end to end in the order of their upload."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a personalization leaves behind."""

    result: dict
    """For the job; the store adds the version."""
    detector: tuple[bytes, dict, str]
    """Adapter, facts, fingerprint of the base."""
    activate: bool


def check_request(services: Services, org_id: int, subject_id: str, request: Mapping) -> dict:
    """Return a request with the model's defaults filled in; refuse at once what can't work.

    Raises
    ------
    NotFoundError
        There is no such patient.
    ApiError
        The base doesn't have this rhythm.
    NotEnoughWindowsError
        A class has too few labels.
    """
    base = services.base
    found = dict(request)
    found["method"] = found.get("method") or DEFAULT_METHOD
    found["rhythm"] = found.get("rhythm") or default_rhythm_of(base)
    labels = _labels(services, org_id, subject_id)
    check_rhythm(base, found["rhythm"])
    _check_counts(base, Counter(label.label for label in labels), subject_id, found.get("n_shots"))
    return found


def check_rhythm(base, rhythm: str) -> str:
    """Return `rhythm` if the base has it; else the request is invalid."""
    try:
        return check_option("rhythm", rhythm, rhythms_of(base))
    except ValueError as error:
        raise ApiError("invalid", str(error)) from error


def personalize(
    services: Services,
    org_id: int,
    subject_id: str,
    request: Mapping,
    on_progress: Callable[[float], None],
) -> Outcome:
    """Fit the patient's own detector to the labels as they are now.

    Parameters
    ----------
    services
        The server's parts.
    org_id, subject_id
        Whose patient, and who.
    request
        What `check_request` returned.
    on_progress
        Called with 0 to 1 after each step; what it raises ends the work.

    Raises
    ------
    NotEnoughWindowsError
        A class has too few labels.
    AdaptationError
        Training leaves the finite numbers, or the method fits no layer.
    """
    base = services.base
    support = earliest(
        gathered(services, org_id, subject_id, on_progress),
        request.get("n_shots"),
        base,
        subject_id,
    )
    personal = Personalizer(
        base, method=request["method"], rhythm=_rhythm_of_fit(services, request["rhythm"])
    )
    personal.fit(
        support.inputs,
        support.names,
        time_s=support.time_s,
        on_step=lambda done, total: on_progress(0.05 + FITTED_SHARE * done / max(total, 1)),
    )
    return _outcome(services, personal, support, request)


def gathered(
    services: Services, org_id: int, subject_id: str, on_progress: Callable[[float], None]
) -> Support:
    """Return all labelled segments of a patient that the base's classes know."""
    of_recording: dict[str, dict[int, str]] = {}
    for label in _labels(services, org_id, subject_id):
        of_recording.setdefault(label.recording_id, {})[label.index] = label.label
    parts, names, times, offset_s = [], [], [], 0.0
    for info in services.store.list_recordings(org_id, subject_id):
        labels = of_recording.get(info.recording_id)
        if labels:
            where = (org_id, subject_id, info.recording_id)
            opened = open_recording(services.store, services.segmentation, *where)
            segments, inputs = inputs_of(services.segmentation, opened, sorted(labels))
            parts.append(inputs)
            names += [labels[index] for index in segments.index.tolist()]
            times.append(offset_s + segments.start_s)
            on_progress(0.0)
        offset_s += info.duration_s
    if not parts:
        shape = (0, services.base.n_leads, services.base.preprocessing.n_samples)
        return Support(inputs=np.empty(shape, np.float32), names=np.array([]), time_s=np.empty(0))
    return Support(
        inputs=np.concatenate(parts), names=np.array(names), time_s=np.concatenate(times)
    )


def earliest(support: Support, n_shots: int | None, base, subject_id: str) -> Support:
    """Return the first `n_shots` segments of every class, all if it is ``None``, if there are enough."""
    counts = Counter(support.names.tolist())
    _check_counts(base, counts, subject_id, n_shots)
    if n_shots is None:
        return support
    rows = [np.flatnonzero(support.names == name)[:n_shots] for name in counts]
    rows = np.sort(np.concatenate(rows))
    return Support(
        inputs=support.inputs[rows], names=support.names[rows], time_s=support.time_s[rows]
    )


def facts_of(personal: Personalizer, rhythm: str, source: str) -> dict:
    """Return what is kept beside an adapter, JSON values."""
    return {
        "source": source,
        "method": personal.fitted_params_["method"],
        "rhythm": rhythm,
        "n_support": {str(name): int(n) for name, n in personal.n_support_.items()},
        "fit_seconds": float(personal.fit_seconds_),
        "n_trainable": int(personal.n_trainable_),
        "metaecg_version": __version__,
    }


def support_errors(base, personal: Personalizer, support: Support) -> dict[str, int]:
    """Return how many segments of the support base and detector name wrongly, each by itself."""
    index = label_index(support.names, base.classes, n_windows=len(support.names))
    return {
        "errors_base": _errors(base, support.inputs, index),
        "errors_personal": _errors(personal, support.inputs, index),
        "n": len(index),
    }


def _outcome(services: Services, personal: Personalizer, support: Support, request) -> Outcome:
    adapter = adapter_bytes(personal)
    errors = support_errors(services.base, personal, support)
    reasons = _reasons(errors)
    curve = personal.loss_curve_
    result = {
        "n_support": {str(name): int(n) for name, n in personal.n_support_.items()},
        "fit_seconds": float(personal.fit_seconds_),
        "loss_first": float(curve[0]) if curve else None,
        "loss_last": float(curve[-1]) if curve else None,
        "n_bytes": len(adapter),
        "support": errors,
        "refused": bool(reasons),
        "reasons": reasons,
    }
    facts = facts_of(personal, request["rhythm"], "personalization")
    facts |= {
        key: result[key] for key in ("loss_first", "loss_last", "support", "refused", "reasons")
    }
    return Outcome(
        result=result,
        detector=(adapter, facts, services.base.fingerprint),
        activate=bool(request.get("activate", True)) and not reasons,
    )


def _reasons(errors: Mapping[str, int]) -> list[str]:
    """Return why a detector must not come into use: its own labels speak against it."""
    if errors["errors_personal"] <= errors["errors_base"]:
        return []
    return [
        f"of the {errors['n']} labelled segments it was fitted to it names "
        f"{errors['errors_personal']} wrongly, the base {errors['errors_base']}. Check the labels."
    ]


def _errors(model, inputs: np.ndarray, index: np.ndarray) -> int:
    return int((model.logits(inputs).argmax(axis=1) != index).sum())


def _rhythm_of_fit(services: Services, rhythm: str) -> str:
    """Return the rhythm that `Personalizer` is told: among beats their context comes later."""
    return rhythm if services.base.rhythm is not None else "none"


def _labels(services: Services, org_id: int, subject_id: str) -> Sequence[Label]:
    name = services.segmentation.name
    found = services.store.labels_of(org_id, subject_id, segmentation=name)
    return [label for label in found if label.label in services.base.classes]


def _check_counts(base, counts: Mapping[str, int], subject_id: str, n_shots: int | None) -> None:
    index = np.repeat(np.arange(len(base.classes)), [counts.get(name, 0) for name in base.classes])
    check_enough(index, base.classes, subject_id=subject_id)
    for name in base.classes:
        if n_shots is not None and 0 < counts.get(name, 0) < n_shots:
            raise NotEnoughWindowsError(
                subject_id=subject_id,
                label=name,
                n_found=counts[name],
                n_needed=n_shots,
                where="with a label",
            )
