"""Begin a study or join it, and know which of its trials count."""

import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from metaecg.data.splits import Split
from metaecg.errors import ConfigError
from metaecg.experiments.tune_options import Plan, leaves
from metaecg.experiments.tune_storage import GRACE_S, is_dead, is_here, shown, was_restarted

DECIDES, SPLIT, RUN, STORE = "decides", "split", "mlflow_run_id", "mlflow_store"
"""Attributes of a study: what decides its values, who is held out, its MLflow run and the store
that has it."""
WORKER, REASON, LOST, DEFAULTS, COMMIT = "worker", "reason", "lost", "defaults", "git_commit"
"""Attributes of a trial: who runs it, why it failed, whether that was none of its own fault, whether
it is the recipe as it is configured, of which commit the code is."""
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

    The other one's may have other settings and hold out others: see `check_same` and `split_of`. A
    study whose process ended before it was whole is made whole.

    Raises
    ------
    ConfigError
        There is such a half-begun study, with other objectives.
    """
    import optuna

    name = plan.config.study
    directions = [DIRECTIONS[figure] for figure in plan.config.objectives]
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        if _settled(study) is not None or _is_begun(study):
            return study
        _check_directions(study, plan, directions)
    study.set_user_attr(SPLIT, _split_to_dict(split))
    if plan.config.start_with_defaults and not _defaults_of(study):
        _enqueue(study, plan)
    study.set_user_attr(DECIDES, dict(decides))  # the last: with it the study is whole
    return study


def _check_directions(study, plan: Plan, directions: Sequence[str]) -> None:
    """Refuse a half-begun study that can't become this one: its directions stand."""
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        raise ConfigError(
            f"study {study.study_name!r} in {shown(plan.config.storage_url)} was begun, but not to its "
            f"end, to {' and '.join(found)}; objective {plan.config.objective} is to "
            f"{' and '.join(directions)}. Name another study with --study."
        )


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


def running(study) -> list:
    """Return the trials that are running, as far as the storage knows."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def fail_dead(study, storage, *, take_over: bool = False) -> None:
    """Mark the running trials of processes that are gone as failed, so that others replace them.

    A process of this machine is looked up. Of another machine's a database knows when it was heard
    of last; of a journal's nothing is known, and only `take_over` counts it as gone.
    """
    import optuna

    is_journal = isinstance(storage, optuna.storages.JournalStorage)
    for trial in running(study):
        reason = _why_dead(trial, is_journal=is_journal, take_over=take_over)
        if reason:
            _fail(study, storage, trial, reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Optuna does so itself before a trial, which the last ones of a study have none behind them.
        optuna.storages.fail_stale_trials(study)


def _why_dead(trial, *, is_journal: bool, take_over: bool) -> str | None:
    """Return why a running trial can't end any more; None if it may."""
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # begun a moment ago, or by a process that died before it said who it is
        age = datetime.now() - trial.datetime_start
        return "its process fell silent" if age.total_seconds() > GRACE_S else None
    if is_dead(worker):
        return "its process was killed, perhaps for want of memory"
    if is_journal and was_restarted(worker):  # one machine's alone: names of several may be equal
        return "its machine was started anew"
    if take_over and not is_here(worker):
        return "it was given up with --take-over"
    return None


def fail_unnamed(study, storage) -> None:
    """Mark the running trials that nobody has put a name to as failed.

    For who was interrupted while beginning one. Another's that is being begun at this very moment
    is begun again.
    """
    for trial in running(study):
        if WORKER not in trial.user_attrs:
            _fail(study, storage, trial, "interrupted")


def _fail(study, storage, trial, reason: str) -> None:
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        storage.set_trial_user_attr(trial._trial_id, LOST, True)
        storage.set_trial_user_attr(trial._trial_id, REASON, reason)
    except UpdateFinishedTrialError:  # another process was faster
        return
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def replace_defaults(study, plan: Plan) -> None:
    """Let the recipe as it is configured be the next trial, if that trial was lost."""
    tried = _defaults_of(study)
    if tried and all(is_lost(trial) for trial in tried):
        _enqueue(study, plan)


def _defaults_of(study) -> list:
    """Return the trials of the recipe as it is configured."""
    return [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(DEFAULTS)]


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
