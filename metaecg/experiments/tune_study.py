"""Begin a study or join it, and know which of its trials count."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from metaecg.data.splits import Split
from metaecg.errors import ConfigError
from metaecg.experiments.tune_options import Plan, leaves
from metaecg.experiments.tune_storage import is_dead, shown

DECIDES, SPLIT, RUN = "decides", "split", "mlflow_run_id"
"""Attributes of a study: what decides its values, who is held out, its MLflow run."""
WORKER, REASON, LOST, DEFAULTS = "worker", "reason", "lost", "defaults"
"""Attributes of a trial: who runs it, why it failed, whether that was none of its own fault, whether
it is the recipe as it is configured."""
DIRECTIONS = {"auc": "maximize", "f1": "maximize"} | {
    "adapt_seconds": "minimize", "adapter_bytes": "minimize"
}  # fmt: skip
SETTLING_S = 10
"""How long a study that another process has just begun may take to say what it is."""
SHOWN_DIFFERENCES = 8


def find_study(storage, name: str):
    """Return the study of that name; None if there is none, or nothing of it but the name."""
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None
    # Who began it may have been killed before it could say what the study is.
    return study if _settled(study) is not None or _is_begun(study) else None


def begin_study(storage, plan: Plan, *, decides: Mapping[str, Any], split: Split):
    """Return a new study, or the one that another process has begun meanwhile.

    Raises
    ------
    ConfigError
        There is one of that name with other settings.
    """
    import optuna

    name = plan.config.study
    directions = [DIRECTIONS[figure] for figure in plan.config.objectives]
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        if _settled(study) is not None or _is_begun(study):
            check_same(study, plan, decides)
            return study
    study.set_user_attr(SPLIT, _split_to_dict(split))
    if plan.config.start_with_defaults:
        _enqueue(study, plan)
    study.set_user_attr(DECIDES, dict(decides))  # the last: with it the study is whole
    return study


def check_same(
    study, plan: Plan, decides: Mapping[str, Any], *, without: Sequence[str] = ()
) -> None:
    """Raise ConfigError with the differences if a study was begun with other settings.

    The parts of `decides` in `without` are not compared.
    """
    where = f"study {plan.config.study!r} in {shown(plan.config.storage_url)}"
    theirs = _settled(study)
    if theirs is None:
        raise ConfigError(
            f"{where} was not begun by {plan.recipe.name}'s tuning: it doesn't say what decides its "
            "values. Name another study with --study."
        )
    ours, theirs = leaves(decides), leaves(theirs)
    names = sorted({*ours, *theirs} - set(without))
    different = [name for name in names if ours.get(name) != theirs.get(name)]
    if different:
        lines = [
            f"{n} is {_shortly(theirs.get(n, 'not set'))} there, "
            f"{_shortly(ours.get(n, 'not set'))} here"
            for n in different[:SHOWN_DIFFERENCES]
        ]
        more = len(different) - len(lines)
        raise ConfigError(
            f"{where} was begun with other settings: {'; '.join(lines)}"
            f"{f'; and {more} more' if more else ''}. Give the same settings, or name another study "
            "with --study."
        )


def _shortly(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _settled(study) -> dict | None:
    """Return what a study says of itself; one that is just being begun gets a moment."""
    for _ in range(SETTLING_S * 2):
        found = study.user_attrs.get(DECIDES)
        if found is not None or _is_begun(study):
            return found
        time.sleep(0.5)
    return None


def _is_begun(study) -> bool:
    """Whether a trial was ever run; one that waits to be run is part of the beginning."""
    return any(trial.state.name != "WAITING" for trial in study.get_trials(deepcopy=False))


def split_of(study) -> Split:
    """Return who develops and who is held out in a study."""
    values = study.user_attrs[SPLIT]
    return Split(
        name="split",
        train=tuple(values["train"]),
        test=tuple(values["test"]),
        checksums=values["checksums"],
    )


def _split_to_dict(split: Split) -> dict:
    return {
        "train": list(split.train),
        "test": list(split.test),
        "checksums": dict(split.checksums),
    }


# --- trials --------------------------------------------------------------------------------------


def is_lost(trial) -> bool:
    """Whether a trial ended through no fault of its own: it doesn't count, another replaces it.

    Optuna's heartbeat fails a trial without a reason; our own failures have one.
    """
    from optuna.trial import TrialState

    attributes = trial.user_attrs
    return trial.state == TrialState.FAIL and (REASON not in attributes or LOST in attributes)


def reason_of(trial) -> str:
    """Return why a trial failed."""
    return trial.user_attrs.get(REASON, "its process fell silent")


def taken(study) -> list:
    """Return the trials that count: finished ones, and those that are running."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state != TrialState.WAITING and not is_lost(t)]


def finished(study) -> list:
    """Return the trials that count and have ended: complete, pruned or failed by themselves."""
    return [trial for trial in taken(study) if trial.state.is_finished()]


def fail_dead(study, storage) -> int:
    """Mark the running trials whose process on this machine has ended as failed; count them."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    n_failed = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if worker is None or not is_dead(worker):
            continue
        try:
            storage.set_trial_user_attr(trial._trial_id, LOST, True)
            storage.set_trial_user_attr(
                trial._trial_id, REASON, "its process was killed, perhaps for want of memory"
            )
        except UpdateFinishedTrialError:  # another process was faster
            continue
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        n_failed += 1
    return n_failed


def replace_defaults(study, plan: Plan) -> None:
    """Let the recipe as it is configured be the next trial, if that trial was lost."""
    tried = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(DEFAULTS)]
    if tried and all(is_lost(trial) for trial in tried):
        _enqueue(study, plan)


def _enqueue(study, plan: Plan) -> None:
    values = plan.recipe.defaults(plan.space, plan.shared)
    study.enqueue_trial(values, user_attrs={DEFAULTS: True})


def best_trials(study) -> list:
    """Return the complete trials from the best on; of a multi-objective study its front.

    Equal ones stand in the order in which they were run.
    """
    from optuna.trial import TrialState

    is_single = len(study.directions) == 1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = complete if is_single else study.best_trials
    return sorted(found, key=lambda trial: (-trial.values[0], trial.number))
