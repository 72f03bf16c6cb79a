"""Tune a recipe with optuna; no trial ever sees the held-out subjects.

    python -m metaecg.experiments.tune --n-trials 20                # generated patients
    python -m metaecg.experiments.tune --config experiments/configs/va_tune.yaml --workers 2

What happens, in order: some subjects are held out, by the folds of the protocol or by a manifest, and
split.json names them; from then on their recordings are not opened. The others are dealt into inner
folds. Each trial chooses values from the recipe's search space, trains on all but one of these folds
and is judged on the one left, in turn. The best values are in best.yaml; the recipe scores them on
the held-out subjects once.

The same command again takes the study up, and on another machine, with a storage that both reach,
joins it: --n-trials is how many trials the study has in all. See docs/tuning.md.
"""

import sys
from contextlib import ExitStack, contextmanager
from typing import Any

from metaecg.data.splits import Split
from metaecg.errors import AdaptationError, ConfigError
from metaecg.experiments.cli import progress, run_main
from metaecg.experiments.tune_options import Plan, as_yaml, make_parser, resolve


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    arguments = make_parser(__doc__).parse_intermixed_args(argv)
    return run_main(
        lambda: _main(arguments),
        resume_hint="Finished trials are kept: the same command goes on to --n-trials in all.",
    )


def _main(arguments) -> None:
    plan = resolve(arguments)
    if arguments.dry_run:
        print(as_yaml(plan))
        return
    print(run(plan, must_exist=arguments.resume, take_over=arguments.take_over))
    out = plan.config.out
    if not (out / "best.yaml").exists():  # other processes have all trials in hand
        print(f"\nwritten to {out}: split.json, study.json")
        return
    print(f"\nwritten to {out}: best.yaml, split.json, study.json")
    print(
        f"next, once: python -m metaecg.experiments.{plan.recipe.name} --config {out / 'best.yaml'} "
        f"--split {out / 'split.json'}"
    )


def run(plan: Plan, *, must_exist: bool = False, take_over: bool = False) -> str:
    """Run a study to its number of trials and write what it found; return a table.

    Parameters
    ----------
    plan
        What `metaecg.experiments.tune_options.make_plan` returned.
    must_exist
        Only take a study up.
    take_over
        Replace running trials of which it can't be told from here whether they still run.

    Raises
    ------
    ConfigError, DataError, LeakageError
        What is wrong, before any trial.
    StorageAwayError
        The study's storage (a DataError); finished trials are kept in it.
    AdaptationError
        No trial was completed, or every worker was killed.
    """
    from metaecg.experiments.tracking import warm_up

    settings = plan.config.tracking  # first of all: trials begin when the store has answered
    warm_up(enabled=settings.enabled, uri=settings.uri, out=plan.config.out)

    from metaecg.experiments.tune_storage import opened_storage
    from metaecg.experiments.tune_workers import quiet_optuna

    with ExitStack() as stack:
        with progress("starting"):
            quiet_optuna()
            storage = stack.enter_context(opened_storage(plan.config.storage_url))
        return _run(plan, storage, must_exist=must_exist, take_over=take_over)


def _run(plan: Plan, storage, *, must_exist: bool, take_over: bool) -> str:
    from metaecg.experiments.provenance import git_commit
    from metaecg.experiments.tune_outputs import record_outputs, table, write_outputs, write_split
    from metaecg.experiments.tune_study import fail_dead, finished
    from metaecg.experiments.tune_workers import Task

    study, decides, split, development = _begun(plan, storage, must_exist=must_exist)
    write_split(plan, split)
    fail_dead(study, storage, take_over=take_over)
    for note in _notes(plan, len(finished(study))):
        print(note, file=sys.stderr)
    commit = git_commit()
    with _tracked(plan, study, development, commit) as (tracker, run_id):
        task = Task(plan=plan, split=split, decides=decides, run_id=run_id, commit=commit)
        _run_trials(task, study, storage)
        content = write_outputs(plan, study)
        with progress("recording the MLflow run"):
            record_outputs(tracker, plan, content)
    _check_outcome(plan, study, content)
    return table(plan, study)


def _run_trials(task, study, storage) -> None:
    """Run the trials; if that ends early, write what there is of them."""
    from metaecg.experiments.tune_outputs import write_outputs
    from metaecg.experiments.tune_workers import run_trials

    n_trials = task.plan.config.n_trials
    with progress(f"{n_trials} trials", n_trials) as bar:
        try:
            run_trials(task, study, storage, on_finished=lambda n: bar.set(n, n_trials))
        except BaseException:
            try:
                write_outputs(task.plan, study)
            except Exception as error:  # perhaps for the same cause, which is the one to be told
                print(f"warning: study.json was not written ({error}).", file=sys.stderr)
            raise


def _begun(plan: Plan, storage, *, must_exist: bool) -> tuple[Any, dict, Split, Any]:
    """Return the study, what decides its values, who is held out, and the others' windows.

    The split of a study that exists is the study's: the held-out subjects' recordings need not be
    here. For a new one they are opened once, to see who has enough windows to be judged on.
    """
    from metaecg.experiments.tune_study import begin_study, check_same, find_study, split_of

    study = find_study(storage, plan.config.study)
    decides = _decides(plan)
    if study is not None:
        check_same(study, plan, decides, without=("data_sha256",))
        split = split_of(study)
    elif must_exist:
        raise ConfigError(
            f"--resume: there is no study {plan.config.study!r} to take up; leave --resume out to "
            "begin it."
        )
    else:
        split = plan.recipe.hold_out(plan.shared, plan.config.hold_out_folds)
    development = plan.recipe.develop(plan.shared, split)
    plan.recipe.inner_folds(plan.shared, development, plan.config.n_inner_folds)
    decides["data_sha256"] = development.manifest_sha256
    if study is None:
        study = begin_study(storage, plan, decides=decides, split=split)
        if split_of(study) != split:  # another process was faster, and holds out others
            return _begun(plan, storage, must_exist=must_exist)
    check_same(study, plan, decides)
    return study, decides, split, development


def _decides(plan: Plan) -> dict[str, Any]:
    """Return what decides the value of a trial, but for the data: JSON values."""
    import hashlib

    config = plan.config
    manifest = config.split.read_bytes() if config.split else b""
    return {
        "recipe": plan.recipe.name,
        "objective": config.objective,
        "hold_out_folds": None if config.split else config.hold_out_folds,
        "split_sha256": hashlib.sha256(manifest).hexdigest() if config.split else None,
        "n_inner_folds": config.n_inner_folds,
        "seed": config.seed,
        "space": {name: entry.to_dict() for name, entry in plan.space.items()},
        "config": plan.recipe.decisive(plan.shared),
    }


def _notes(plan: Plan, n_finished: int) -> list[str]:
    """Return what to say before the first trial."""
    config, notes = plan.config, []
    if n_finished:
        notes.append(
            f"study {config.study!r} has {n_finished} finished trials; going on to "
            f"{config.n_trials} in all."
        )
    if len(config.objectives) > 1 and config.pruner != "none":
        notes.append("no trial is stopped early: with two objectives, optuna has no pruning.")
    return notes


@contextmanager
def _tracked(plan: Plan, study, development, commit: str | None):
    """Open this command's MLflow run, and close it with what became of it."""
    from metaecg.experiments.tune_outputs import start_tracking
    from metaecg.experiments.tune_study import RUN

    with progress("opening the MLflow run"):
        tracker = start_tracking(plan, study, development, commit=commit)
    try:
        yield tracker, study.user_attrs.get(RUN)
    except KeyboardInterrupt:
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()


def _check_outcome(plan: Plan, study, content: dict[str, Any]) -> None:
    """Raise AdaptationError if there is no best trial, and none running that may become it."""
    from metaecg.experiments.tune_study import finished, reason_of

    states = content["states"]
    if content["best"] is not None or states["running"]:
        return
    if not states["failed"]:
        raise AdaptationError(
            f"all {states['pruned']} trials were stopped early by the pruner {plan.config.pruner!r}, "
            "and none is complete. Give the same command with --pruner none and a higher --n-trials."
        )
    reasons = [reason_of(t) for t in finished(study) if t.state.name == "FAIL"]
    because = f" The first one failed: {reasons[0]}" if reasons else ""
    raise AdaptationError(
        f"none of the {states['failed'] + states['pruned']} trials that ended could be completed: "
        f"{states['failed']} failed, {states['pruned']} were stopped early.{because} All reasons are in {plan.config.out / 'study.json'}. Mend the configuration or narrow the "
        "space, and begin another study with --study."
    )


if __name__ == "__main__":
    sys.exit(main())
