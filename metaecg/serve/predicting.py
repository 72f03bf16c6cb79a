"""What a patient's detector says: of a stored recording, of windows at hand, of many patients' windows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from starlette.concurrency import run_in_threadpool

from metaecg.errors import CheckpointError, DataError
from metaecg.serve.api_errors import ApiError
from metaecg.serve.personalizing import check_rhythm
from metaecg.serve.recordings import (
    Judged,
    Opened,
    Seen,
    episodes_of,
    judge,
    open_recording,
    positive_column,
    see,
)
from metaecg.serve.segment_probabilities import (
    default_rhythm_of,
    positive_class,
    threshold_of,
)
from metaecg.serve.segments import Segments
from metaecg.serve.state import Services
from metaecg.serve.store_rows import ActiveDetector
from metaecg.serve.units import in_millivolts

if TYPE_CHECKING:
    from metaecg.serve.mixed_adapters import LoadedAdapter

MAX_WINDOWS = 1024
"""Of a stretch that is judged at once; a longer one is better stored as a recording."""


def predictions_for(
    services: Services,
    org_id: int,
    subject_id: str,
    recording_id: str,
    version: int | None,
    rhythm: str | None,
    between_s: tuple[float | None, float | None],
) -> dict:
    """Return what a version (``None``: the active one) says of a recording, or of a part of it.

    Neighbours count over the whole recording, so a part is a part of the whole answer.

    Returns
    -------
    dict
        The fields of `metaecg.serve.schemas_predictions.Predictions`.
    """
    where = (org_id, subject_id, recording_id)
    opened = open_recording(services.store, services.segmentation, *where)
    adapter = services.detectors.get(org_id, subject_id, version)
    rhythm = check_rhythm(services.base, rhythm or _rhythm_of(services, adapter))
    judged = judged_by(services, where, opened, adapter, rhythm)
    threshold = threshold_of(services.base, rhythm, services.detectors.mixed.model_of(adapter))
    return _described(services.base, judged, adapter, rhythm, threshold, between_s)


async def logits_of(
    services: Services, windows: np.ndarray, adapters: Sequence["LoadedAdapter | None"]
) -> np.ndarray:
    """Return the logits of windows, each by its own detector, together with other requests' ones."""
    if services.batcher.n_waiting + len(windows) > services.settings.max_waiting:
        raise ApiError("too_many", "too many windows wait to be judged. Try again in a moment.")
    services.metrics.windows.inc(len(windows))
    if len(windows) == 1:
        return (await services.batcher.logits(windows[0], adapters[0]))[None]
    return await services.batcher.logits_many(windows, list(adapters))


async def active_adapters(
    services: Services, org_id: int, subject_ids: Sequence[str]
) -> list["LoadedAdapter | None"]:
    """Return the detectors in use of patients, ``None`` for the base; one that isn't there is an error."""
    known = {s: services.active.get((org_id, s)) for s in dict.fromkeys(subject_ids)}
    missing = [subject_id for subject_id, found in known.items() if found is None]
    if missing:
        known |= await run_in_threadpool(_looked_up, services, org_id, missing)
    peek = services.detectors.peek
    loaded = {s: peek(org_id, s, found.version, found.digest) for s, found in known.items()}
    absent = [s for s, found in known.items() if found.version and loaded[s] is None]
    if absent:
        loaded |= await run_in_threadpool(_loaded, services, org_id, {s: known[s] for s in absent})
    return [loaded[subject_id] for subject_id in subject_ids]


def windows_of(
    services: Services, signal: np.ndarray, *, fs_hz: float, unit: str, n_most: int
) -> tuple[Segments, np.ndarray]:
    """Return the windows of a stretch of one lead, as the network takes them.

    Raises
    ------
    DataError
        The stretch holds no whole measured window, more than `n_most`, or no possible millivolts.
    ApiError
        The base judges beats.
    """
    _refuse_beats(services)
    signal_mv = in_millivolts(signal, unit)
    window_s = services.base.preprocessing.window_s
    if len(signal_mv) > (n_most + 1) * window_s * fs_hz:
        raise DataError(
            f"the signal lasts {len(signal_mv) / fs_hz:g} s; at most {n_most} windows of {window_s:g} s "
            "are taken here. Send less at once, or upload a recording."
        )
    segments, inputs = services.segmentation.inputs(signal_mv[None], fs_hz)
    if not len(segments):
        raise DataError(
            f"the signal ({len(signal_mv) / fs_hz:g} s) holds no window of {window_s:g} s that was "
            "measured throughout. Send a longer stretch without gaps."
        )
    return segments, inputs


def single_windows(
    services: Services, signals: Sequence[np.ndarray], *, fs_hz: float, unit: str
) -> np.ndarray:
    """Return the one window that each signal holds, ``(n, 1, n_samples)``; alike ones are cut together.

    Raises as `windows_of`, with the place of the signal.
    """
    _refuse_beats(services)
    alike: dict[tuple[int, int], list[int]] = {}
    signals_mv = []
    for place, signal in enumerate(signals):
        try:
            signals_mv.append(in_millivolts(signal, unit))
        except DataError as error:
            raise DataError(f"items[{place}]: {error}") from error
        # A gap would be one in all that are cut together.
        alone = place if np.isnan(signal).any() else -1
        alike.setdefault((len(signal), alone), []).append(place)
    n_samples = services.base.preprocessing.n_samples
    found = np.empty((len(signals), 1, n_samples), dtype=np.float32)
    for places in alike.values():
        together = np.stack([signals_mv[place] for place in places])
        segments, inputs = services.segmentation.inputs_of_each(together, fs_hz)
        if len(segments) != 1:
            raise DataError(
                f"items[{places[0]}] holds {len(segments)} windows; exactly one was expected. Send "
                "each window as an item."
            )
        found[places] = inputs
    return found


def _refuse_beats(services: Services) -> None:
    if services.segmentation.kind != "windows":
        raise ApiError(
            "streams_need_windows",
            "this server's base judges beats, which need the recording around them. Upload the recording "
            "and ask for its predictions.",
        )


def own_threshold(
    services: Services, adapter: "LoadedAdapter | None", rhythm: str = "none"
) -> float:
    """Return the probability from which a detector names the positive class."""
    return threshold_of(services.base, rhythm, services.detectors.mixed.model_of(adapter))


def names_of(base, probability: np.ndarray, threshold: float) -> list[str]:
    """Return the class that is named for each row of ``(n, n_classes)``.

    The positive one from `threshold` on, else the most probable of the others.
    """
    column = positive_column(base)
    others = probability.copy()
    others[:, column] = -np.inf
    chosen = np.where(probability[:, column] >= threshold, column, others.argmax(axis=1))
    return [base.classes[place] for place in chosen]


def _rhythm_of(services: Services, adapter) -> str:
    """Return the rhythm that a detector was fitted with; among beats that of the base."""
    if adapter is None or services.segmentation.kind == "beats":
        return default_rhythm_of(services.base)
    return adapter.rhythm


def judged_by(services: Services, where, opened, adapter, rhythm: str) -> Judged:
    """Return what a detector (``None``: the base) says of a whole recording, remembered for a while."""
    base, segmentation = services.base, services.segmentation
    model = services.detectors.mixed.model_of(adapter)
    key = (opened.info.recording_id, "" if adapter is None else adapter.digest)

    def seen() -> Seen:
        return services.probabilities.get_or_make(key, lambda: _seen(services, opened, model))

    if segmentation.kind == "windows":
        return judge(base, model, seen(), rhythm)
    labels = labels_of(services, where)
    return services.probabilities.get_or_make(
        (*key, rhythm, frozenset(labels.items())),
        lambda: judge(base, model, seen(), rhythm, labels),
    )


def _seen(services: Services, opened: Opened, model) -> Seen:
    found = see(services.segmentation, opened, model)
    services.metrics.windows.inc(len(found.logits))
    return found


def labels_of(services: Services, where: tuple[int, str, str]) -> dict[int, str]:
    """Return the labels of a recording, by the number of the segment."""
    org_id, subject_id, recording_id = where
    name = services.segmentation.name
    found = services.store.labels_of(
        org_id, subject_id, segmentation=name, recording_id=recording_id
    )
    return {label.index: label.label for label in found}


def _described(base, judged: Judged, adapter, rhythm: str, threshold: float, between_s) -> dict:
    positive = judged.probability[:, positive_column(base)]
    low, high = between_s
    keep = np.ones(len(positive), dtype=bool)
    if low is not None:
        keep &= judged.stop_s > low
    if high is not None:
        keep &= judged.start_s < high
    episodes = episodes_of(judged, positive >= threshold, positive)
    return {
        "version": 0 if adapter is None else adapter.version,
        "threshold": threshold,
        "classes": list(base.classes),
        "positive": positive_class(base),
        "rhythm": rhythm,
        "index": judged.index[keep].tolist(),
        "start_s": np.round(judged.start_s[keep], 6).tolist(),
        "stop_s": np.round(judged.stop_s[keep], 6).tolist(),
        "probability": positive[keep].tolist(),
        "label": names_of(base, judged.probability[keep], threshold),
        "episodes": [e for e in episodes if _touches(e, low, high)],
    }


def _touches(episode: dict, low: float | None, high: float | None) -> bool:
    return (low is None or episode["stop_s"] > low) and (high is None or episode["start_s"] < high)


def _looked_up(
    services: Services, org_id: int, subject_ids: list[str]
) -> dict[str, ActiveDetector]:
    generation = services.active.generation
    found = services.store.active_detectors(org_id, subject_ids)
    for subject_id, detector in found.items():
        services.active.put((org_id, subject_id), detector, generation=generation)
    return found


def _loaded(services: Services, org_id: int, wanted: dict[str, ActiveDetector]) -> dict:
    return {s: _loaded_one(services, org_id, s, found) for s, found in wanted.items()}


def _loaded_one(services: Services, org_id: int, subject_id: str, found: ActiveDetector):
    try:
        return services.detectors.load(org_id, subject_id, found.version, found.digest)
    except CheckpointError as error:  # among many patients it must be said whose it is
        raise CheckpointError(
            f"version {found.version} of patient {subject_id!r} can't be used: {error}"
        ) from error
