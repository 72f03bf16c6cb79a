"""The processes that run the trials of a study, and what becomes of them."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from metaecg.data.splits import Split
from metaecg.errors import AdaptationError
from metaecg.experiments.tune_options import Plan
from metaecg.experiments.tune_storage import StorageAwayError, opened_storage
from metaecg.experiments.tune_study import (
    WORKER,
    check_same,
    fail_dead,
    fail_unnamed,
    find_study,
    finished,
    is_lost,
    replace_defaults,
    taken,
)

POLL_S = 0.3
"""How often the first process looks how far the study is."""
STOP_S = 30
"""How long a worker may take to come to its end when it is told to stop."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker process needs to know."""

    plan: Plan
    split: Split
    decides: dict
    run_id: str | None
    commit: str | None


def run_trials(task: Task, study, storage, *, on_finished: Callable[[int], None]) -> None:
    """Run trials until the study has as many as it should, finished and running ones counted.

    Parameters
    ----------
    task
        The study.
    study, storage
        The same, as this process sees it.
    on_finished
        Called with the number of finished trials whenever it may have grown.

    Raises
    ------
    AdaptationError
        Every process was killed from outside before the study had its trials.
    """
    n_workers = min(task.plan.config.workers, task.plan.config.n_trials)
    if n_workers == 1:
        _work(task, study, storage, on_trial=lambda: on_finished(len(finished(study))))
        return
    n_trials = task.plan.config.n_trials
    while len(taken(study)) < n_trials:
        n_before = len(finished(study))
        _run_processes(task, study, storage, n_workers, on_finished)
        # A killed worker's trial is to be replaced, unless killing is all that happens.
        if len(taken(study)) < n_trials and len(finished(study)) == n_before:
            raise AdaptationError(
                "every worker process was killed from outside, most likely for want of memory; "
                f"{n_before} of {n_trials} trials are done. They are kept: give the same command "
                "again, with fewer --workers."
            )


def _work(task: Task, study, storage, *, on_trial: Callable[[], None]) -> None:
    """Run one trial after the other in this process."""
    from filelock import FileLock

    from metaecg.experiments.pool import limit_threads
    from metaecg.experiments.tune_trial import Workplace, make_pruner, make_sampler

    limit_threads()
    plan = task.plan
    development = plan.recipe.develop(plan.shared, task.split)
    folds = plan.recipe.inner_folds(plan.shared, development, plan.config.n_inner_folds)
    place = Workplace(
        plan=plan, development=development, folds=folds, run_id=task.run_id, commit=task.commit
    )
    study.pruner = make_pruner(plan.config)
    # One trial is begun at a time, so that two workers don't both begin the last one. The lock
    # ends with its process.
    gate = FileLock(plan.config.out / ".tune.lock")

    def objective(trial):
        gate.release()
        study.sampler = make_sampler(plan.config, number=trial.number)
        return place.objective(trial)

    while not _is_orphan():
        gate.acquire()
        try:
            check_same(study, plan, task.decides)  # another may have begun it at the same moment
            fail_dead(study, storage)
            n_taken = len(taken(study))
            if n_taken >= plan.config.n_trials:
                return
            replace_defaults(study, plan)
            study.sampler = make_sampler(plan.config, number=len(study.get_trials(deepcopy=False)))
            _run_one(study, storage, objective)
        finally:
            gate.release(force=True)
        on_trial()


def _run_one(study, storage, objective: Callable) -> None:
    """Run one trial; that another process has declared it dead meanwhile doesn't end the study."""
    seen: dict = {}

    def watched(trial):
        seen["trial"] = trial
        try:
            return objective(trial)
        except KeyboardInterrupt as error:
            seen["interrupt"] = error
            raise

    try:
        study.optimize(watched, n_trials=1, catch=(Exception,))
    except BaseException as error:
        interrupt = seen.get("interrupt")
        if "trial" not in seen:  # it may have been begun all the same
            with suppress(StorageAwayError):
                fail_unnamed(study, storage)
        elif interrupt is None and isinstance(error, Exception) and _was_ended(storage, **seen):
            return
        if interrupt is not None:
            raise interrupt from None
        raise


def _was_ended(storage, trial) -> bool:
    """Whether a trial's end is known to the study although optuna couldn't tell it; say why."""
    found = storage.get_trial(trial._trial_id)
    if is_lost(found):  # else it was told, and only the answer was lost
        print(
            f"warning: trial {trial.number} was declared dead by another process while it ran here; "
            "it doesn't count, and the study goes on.",
            file=sys.stderr,
        )
    return found.state.is_finished()


def _is_orphan() -> bool:
    """Whether this is a worker process whose first process is gone: nobody would stop it."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


# --- processes -----------------------------------------------------------------------------------


def _run_processes(task: Task, study, storage, n_workers: int, on_finished) -> None:
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for _ in range(n_workers):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_in_process, args=(task, there))
            process.start()
            there.close()
            processes.append(process)
            pipes.append(here)
        _watch(processes, pipes, study, storage, on_finished)
    finally:
        _stop(processes)
        with suppress(StorageAwayError):  # it would hide what has happened before
            fail_dead(study, storage)
        for pipe in pipes:
            pipe.close()


def _watch(processes, pipes, study, storage, on_finished) -> None:
    """Wait until all processes have ended; a killed one's trial fails, the others go on."""
    counted: set[int] = set()
    lost_before = {t.number for t in study.get_trials(deepcopy=False) if is_lost(t)}
    while len(counted) < len(processes):
        time.sleep(POLL_S)
        for i, process in enumerate(processes):
            if process.exitcode is None or i in counted:
                continue
            counted.add(i)
            if (error := _sent(pipes[i])) is not None:
                raise error
            if process.exitcode:
                fail_dead(study, storage)  # another worker may have done so already
                n_failed = _n_lost(study, process.pid, lost_before)
                print(
                    f"warning: a worker process was killed (exit code {process.exitcode}); "
                    f"{n_failed} trial failed by that, the others go on.",
                    file=sys.stderr,
                )
        on_finished(len(finished(study)))


def _n_lost(study, pid: int, lost_before: set[int]) -> int:
    """Count the trials that ended with a process, but for those of an earlier one of its number."""
    lost = [t for t in study.get_trials(deepcopy=False) if is_lost(t)]
    workers = [t.user_attrs.get(WORKER, "") for t in lost if t.number not in lost_before]
    return sum(f"|{pid}|" in worker for worker in workers)


def _sent(pipe) -> Exception | None:
    """Return the error that a process sent before it ended."""
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:  # it sent nothing
        return None


def _stop(processes) -> None:
    """End what is left: at first kindly, so that a trial can say that it was interrupted."""
    running = [process for process in processes if process.is_alive()]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _in_process(task: Task, pipe) -> None:
    """Work in a process of its own; an error goes to the first process."""
    # The first process decides when to stop: a terminal sends Ctrl-C to every process of a group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    quiet_optuna()
    try:
        with opened_storage(task.plan.config.storage_url) as storage:
            study = find_study(storage, task.plan.config.study)
            _work(task, study, storage, on_trial=lambda: None)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except Exception as error:  # raised again where the command was given
        pipe.send(_plain(error))
        sys.exit(1)


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def _plain(error: Exception) -> Exception:
    """Return what survives the way to another process."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # some drivers' errors hold connections
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def quiet_optuna() -> None:
    """Keep optuna's own lines off the terminal: tables and files say the same."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
