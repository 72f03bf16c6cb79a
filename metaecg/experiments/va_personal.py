"""One held-out subject under one method: personalize to the support, predict the test part."""

import functools
import time
from collections.abc import Callable

import numpy as np
from scipy.special import expit

from metaecg.adapt.h_tuning import HTuning
from metaecg.adapt.personalize import Personalizer
from metaecg.data.datasets import Dataset
from metaecg.data.windows import WindowSet
from metaecg.errors import NotEnoughWindowsError
from metaecg.evaluate.predictions import Prediction
from metaecg.evaluate.protocol import held_out_task
from metaecg.experiments.config import VAConfig
from metaecg.experiments.va_bases import shuffle_labels
from metaecg.experiments.va_methods import Method
from metaecg.models.checkpoints import BaseModel
from metaecg.seeding import derive_seed, numpy_generator


def predict_subject(
    name: str,
    method: Method,
    kind: str,
    seed: int,
    base: BaseModel,
    subject_id: str,
    config: VAConfig,
    dataset: Dataset,
) -> Prediction:
    """Personalize `base`, of the kind `kind`, to the subject's support; predict its test part."""
    support, query = _support_and_query(method, seed, dataset.of_subject(subject_id), config)
    if kind == "shuffled":
        support = shuffle_labels(support, seed, f"support of {subject_id}")
    begin = time.perf_counter()
    predict, n_trainable, threshold = _personal(method, base, support, config, seed, subject_id)
    seconds = time.perf_counter() - begin
    return Prediction(
        method=name,
        seed=seed,
        subject_id=subject_id,
        record_ids=query.record_ids,
        start_s=query.start_s,
        labels=query.labels,
        is_mixed=query.is_mixed,
        probabilities=predict(query)[:, 1],
        threshold=threshold,
        look_ahead_s=None if method.context == "offline" else 0.0,
        adapt_seconds=seconds if method.adapt else 0.0,
        n_trainable=n_trainable,
    )


def is_on_curve(method: Method, windows: WindowSet) -> bool:
    """Whether a subject has windows enough for every point of the method's curve; True without one.

    A single window of each class may be the hardest to have: a recording can begin with VA.
    """
    try:
        for n_shots in filter(None, method.curve):
            held_out_task(windows, protocol="deploy", n_shots=n_shots)
    except NotEnoughWindowsError:
        return False
    return True


def _support_and_query(
    method: Method, seed: int, windows: WindowSet, config: VAConfig
) -> tuple[WindowSet, WindowSet]:
    rng = numpy_generator(seed, "support", windows.subject_ids[0])  # the same for every method
    if not method.curve:
        task = held_out_task(windows, protocol=config.protocol, n_shots=config.n_shots, rng=rng)
        return task.support, task.query
    query = held_out_task(windows, protocol="deploy", n_shots=max(method.curve)).query
    own = method.n_shots or max(method.curve)  # with no shots the support is not looked at
    return held_out_task(windows, protocol="deploy", n_shots=own).support, query


def fitted(
    base: BaseModel, method: Method, support: WindowSet, config: VAConfig, *, seed: int
) -> Personalizer:
    """Return the patient's detector that `method` makes of the support."""
    settings, is_h_tuning = config.personalize, method.adapt == "h-tuning"
    subject_id = support.subject_ids[0]
    return Personalizer(
        base,
        method=method.adapt,
        n_steps=settings.n_steps,
        lr=settings.lr,
        rank=settings.rank,
        micro_batch=settings.micro_batch,
        freeze=settings.freeze,
        h_tuning=HTuning(**settings.h_tuning.model_dump()) if is_h_tuning else None,
        prefine=settings.prefine if method.prefine else None,
        rhythm=method.context or "none",
        random_state=derive_seed(seed, "personalize", subject_id) % 2**31,
    ).fit(support.windows, support.labels, time_s=support.time_s)


Predict = Callable[[WindowSet], np.ndarray]


def _personal(
    method: Method,
    base: BaseModel,
    support: WindowSet,
    config: VAConfig,
    seed: int,
    subject_id: str,
) -> tuple[Predict, int, float]:
    """Return a function from windows to probabilities, the trained parameters and the threshold."""
    if method.adapt == "metava":
        return _personal_metava(method, base, support, derive_seed(seed, "metava", subject_id))
    if method.adapt is None:
        return functools.partial(_unadapted, base, method), 0, _threshold(base, method)
    personal = fitted(base, method, support, config, seed=seed)
    if method.context is None:
        predict = lambda query: personal.predict_proba(query.windows)  # noqa: E731
    else:
        predict = functools.partial(_in_time, personal, support)
    return predict, personal.n_trainable_, personal.threshold


def _threshold(base: BaseModel, method: Method) -> float:
    return base.rhythm.threshold if method.context else 0.5


def _unadapted(base: BaseModel, method: Method, windows: WindowSet) -> np.ndarray:
    """Return the base's probabilities, in time by the population's rhythm."""
    if method.context is None:
        return base.predict_proba(windows.windows)
    logits = np.diff(base.logits(windows.windows), axis=1)[:, 0]
    log_odds = base.rhythm.posterior(
        logits, windows.time_s, record_ids=windows.record_ids, mode=method.context
    )
    positive = expit(log_odds)
    return np.stack([1 - positive, positive], axis=1)


def _in_time(personal: Personalizer, support: WindowSet, query: WindowSet) -> np.ndarray:
    """Predict the test part as what follows the support, whose windows come before it in time."""
    both = [support, query]
    probabilities = personal.predict_proba(
        np.concatenate([part.windows for part in both]),
        time_s=np.concatenate([part.time_s for part in both]),
        record_ids=np.concatenate([part.record_ids for part in both]),
    )
    return probabilities[len(support) :]


def _personal_metava(
    method: Method, base: BaseModel, support: WindowSet, seed: int
) -> tuple[Predict, int, float]:
    from metaecg.meta.metava_released import adapt_metava_released
    from metaecg.models.inference import network_logits, softmax

    normalise = base.preprocessing.normalize_windows
    network = adapt_metava_released(
        base.new_network(),
        normalise(support.windows),
        support.labels,
        seed=seed,
        prefine=method.prefine,
    )

    def predict(query: WindowSet) -> np.ndarray:
        logits = network_logits(network, normalise(query.windows), n_classes=len(base.classes))
        return softmax(logits)

    return predict, sum(p.numel() for p in network.parameters()), 0.5


def false_alarms_alone(
    name: str, method: Method, seed: int, base: BaseModel, subject_id: str, dataset: Dataset
) -> Prediction:
    """Return what the unadapted base says of a subject without VA: false alarms alone."""
    windows = dataset.of_subject(subject_id)
    return Prediction(
        method=name,
        seed=seed,
        subject_id=subject_id,
        record_ids=windows.record_ids,
        start_s=windows.start_s,
        labels=windows.labels,
        is_mixed=windows.is_mixed,
        probabilities=_unadapted(base, method, windows)[:, 1],
        threshold=_threshold(base, method),
        is_one_class=True,
    )
