"""Personalize a VF/VFL/VT detector to every held-out patient with ten windows per class.

    python -m metaecg.experiments.va_fewshot                       # generated patients
    python -m metaecg.experiments.va_fewshot --data DIR --databases mitdb,vfdb,cudb --out runs/va

What happens, in order: windows are prepared; folds are made; for each fold, seed and kind of base
one job trains the base and personalizes it to the held-out subjects; figures, report and a base are
written to --out, and the run is recorded with MLflow.
"""

import functools
import shutil
import sys
from collections.abc import Collection
from contextlib import contextmanager

from metaecg.errors import ConfigError, DataError
from metaecg.experiments.cli import as_yaml, progress, run_main
from metaecg.experiments.config import VAConfig
from metaecg.experiments.out_folder import run_folder
from metaecg.experiments.va_methods import (
    BASE_ONLY_METHODS,
    METHODS,
    PREFERRED_BASES,
    choose_methods,
    points_of_curve,
)
from metaecg.experiments.va_options import make_parser, resolve


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    arguments = make_parser(__doc__).parse_intermixed_args(argv)
    if arguments.list_methods:
        print("\n".join(f"{name:34s} {m.description}" for name, m in METHODS.items()))
        return 0
    return run_main(
        lambda: _main(arguments),
        resume_hint="Finished parts are kept: the same command goes on from there, and with --resume "
        "from within the meta-trainings that were under way.",
    )


def _main(arguments) -> None:
    config = resolve(arguments)
    if arguments.dry_run:
        print(as_yaml(config))
        return
    results = run(config, resume=arguments.resume)
    print(summary_table(results))
    files = ["results.json", "report.html", "predictions.npz", *([] if config.base else ["model/"])]
    print(f"\nwritten to {config.out}: {', '.join(files)}")


def run(config: VAConfig, *, resume: bool = False) -> dict:
    """Run the recipe and write everything to ``config.out``; return the content of results.json.

    Finished jobs of an interrupted run are taken up; with `resume` its meta-trainings go on from
    their checkpoints, otherwise they start afresh. The figures are the same.

    Raises
    ------
    ConfigError, DataError, LeakageError, CheckpointError
        What is wrong, before anything is trained or written.
    AdaptationError
        A loss is not finite; the message says where the last good state is.
    """
    with run_folder(config.out, base="model"):
        return _run(config, resume=resume)


def _run(config: VAConfig, *, resume: bool) -> dict:
    from metaecg.experiments.tracking import warm_up

    settings = config.tracking  # first of all: the next imports take seconds of one core only
    warm_up(enabled=settings.enabled, uri=settings.uri, out=config.out)

    from metaecg.evaluate.protocol import eligibility, prepare_for_protocol
    from metaecg.experiments.provenance import git_commit, versions, write_provenance
    from metaecg.experiments.tracking_facts import record_base, record_run
    from metaecg.experiments.va_outputs import assemble, first_curriculum, flat_figures
    from metaecg.experiments.va_splits import splits_of

    with progress("starting"):
        _check_network(config)
    methods = choose_methods(config.methods, table=BASE_ONLY_METHODS if config.base else METHODS)
    methods = _possible(config, methods) | _curve(config)
    dataset = prepare_windows(config)
    who = eligibility(dataset, protocol=config.protocol, n_shots=config.n_shots)
    splits = splits_of(config, dataset, who)
    jobs = _jobs(config, methods, splits, who)
    commit, base = git_commit(), _fingerprint(config)
    facts = {"data": dataset.manifest_sha256, "commit": commit, "base": base}
    facts["versions"] = versions()
    left = _left_over(config, jobs, facts, resume)
    write_provenance(config.out, config, dataset, splits=splits, commit=commit, base=base)
    with _tracked(config, dataset, commit) as tracker:
        load = functools.partial(_load, config)
        done = _run_jobs(config, jobs, load, facts, tracker, left, resume=resume)
        if not config.base:
            _model_of(done).save(config.out / "model")
            record_base(tracker, config.out)
        dataset = prepare_for_protocol(dataset, config.protocol)
        predictions = [p for _, result in done.values() for p in result.predictions]
        with progress("figures"):
            results = assemble(config, methods, dataset, who, splits, predictions, commit=commit)
        _write(config, results, dataset, predictions, first_curriculum(done))
        with progress("recording the MLflow run"):
            figures, register_as = flat_figures(results), config.tracking.register_as
            record_run(tracker, config.out, figures, register_as=register_as)
    if not config.keep_jobs:
        shutil.rmtree(config.out / "jobs", ignore_errors=True)
    return results


def summary_table(results: dict) -> str:
    """Return the table of methods as text; says "demo data" and the protocol's caveat."""
    caveat = [results["data"]] if results["data"] == "demo data" else []
    caveat += [results["caveat"]] if results["caveat"] else []
    lines = [
        f"{results['protocol']}, {results['n_subjects']} held-out subjects, "
        f"{len(results['seeds'])} seed(s)" + "".join(f" - {text}" for text in caveat),
        f"{'method':34s} {'AUC mean':>8s} {'std':>6s} {'worst':>6s} {'F1':>6s} {'pooled AUC':>11s} "
        f"{'F1':>6s} {'alarms/h':>9s}",
    ]
    for name, figures in results["methods"].items():
        auc, f1, pooled = figures["subject_auc"], figures["subject_f1"], figures["pooled"]
        values = (auc["mean"], auc["std"], auc["worst"], f1["mean"], pooled["auc"], pooled["f1"])
        shown = [f"{v:.3f}" if v is not None else "-" for v in values]
        alarms = figures["false_alarms_per_hour"]
        lines.append(
            f"{name:34s} {shown[0]:>8s} {shown[1]:>6s} {shown[2]:>6s} {shown[3]:>6s} {shown[4]:>11s} "
            f"{shown[5]:>6s} {alarms if alarms is None else round(alarms, 1)!s:>9s}"
        )
    return "\n".join(lines)


# --- data ---------------------------------------------------------------------------


def _check_network(config: VAConfig) -> None:
    """Refuse arguments that the network doesn't have, before anything is prepared."""
    from metaecg.checks import did_you_mean
    from metaecg.models.registry import architecture_arguments

    known = architecture_arguments(config.network.name)
    unknown = [name for name in config.network.arguments if name not in known]
    if unknown:
        raise ConfigError(
            [
                f"network.arguments has {name!r}; {config.network.name} takes "
                f"{did_you_mean(name, known)}"
                for name in unknown
            ]
        )


def _possible(config: VAConfig, methods: dict) -> dict:
    """Leave out context where a given base has no rhythm model, or windows have no order in time.

    It is an error where it is named: here without a rhythm model, in `va_options` without an order.
    """
    from metaecg.models.checkpoints import load_base

    if not config.base:
        return methods
    if config.protocol == "deploy" and load_base(config.base).rhythm is not None:
        return methods
    in_time = [name for name, method in methods.items() if method.context]
    if in_time and config.methods:
        raise ConfigError(
            f"methods has {in_time[0]!r}, but the base {config.base} has no rhythm model; leave out "
            f"{', '.join(in_time)}, or train a base with a method such as ensemble+full+causal."
        )
    return {name: method for name, method in methods.items() if not method.context}


def _curve(config: VAConfig) -> dict:
    table = BASE_ONLY_METHODS if config.base else METHODS
    if not config.shots.n_shots:
        return {}
    return points_of_curve(config.shots.method, config.shots.n_shots, table=table)


def _fingerprint(config: VAConfig) -> str | None:
    from metaecg.models.checkpoints import load_base

    return load_base(config.base).fingerprint if config.base else None


def prepare_windows(config: VAConfig, *, only: Collection[str] | None = None):
    """Return the windows of the configured databases, generating patients if they are asked for.

    With `only`, the recordings of other subjects stay closed, see `metaecg.data.datasets.prepare`.
    """
    from metaecg.data.datasets import prepare
    from metaecg.experiments.demo_data import provide_demo
    from metaecg.experiments.va_bases import model_preprocessing
    from metaecg.models.checkpoints import load_base

    databases = config.databases
    provide_demo(config.demo, data=config.data, databases=databases, cache=config.cache)
    preprocessing = model_preprocessing(config)
    if config.base:
        preprocessing = load_base(config.base).preprocessing
    with progress("preparing windows") as bar:
        return prepare(
            config.data,
            config.databases,
            preprocessing,
            cache_root=config.cache,
            dense_va=config.protocol == "as_published",
            only=only,
            on_record=bar.set,
        )


def _load(config: VAConfig):
    """Open the prepared windows in a worker process: a memory map, shared by all."""
    from metaecg.evaluate.protocol import prepare_for_protocol

    return prepare_for_protocol(prepare_windows(config), config.protocol)


# --- jobs --------------------------------------------------------------------------------------


def _jobs(config: VAConfig, methods, splits, who) -> list:
    """Return a job per fold, seed and kind of base, and one for the base that is written."""
    from metaecg.experiments.va_jobs import Job

    kinds = list(dict.fromkeys(method.base for method in methods.values()))
    jobs = [
        Job(
            kind=kind,
            seed=seed,
            split=split,
            methods={name: m for name, m in methods.items() if m.base == kind},
            eligible=tuple(s for s in split.test if s in who.eligible),
            one_class=tuple(s for s in split.test if s in who.one_class),
            base=config.base,
        )
        for seed in config.seeds
        for kind in kinds
        for split in splits
    ]
    if not any(job.eligible for job in jobs):
        reasons = [f"{s}: {who.reasons[s]}" for job in jobs[:1] for s in job.split.test[:3]]
        raise DataError(
            "no held-out subject is eligible, so there is nothing to evaluate. " + " ".join(reasons)
        )
    final = _final_job(config, methods, kinds, splits)
    # Seed by seed, so that a run that is stopped has whole seeds; within one the long jobs first,
    # so that no process waits for another at the end.
    order = {seed: i for i, seed in enumerate(config.seeds)}
    return sorted(jobs + final, key=lambda job: (order[job.seed], -job.cost(config)))


def _final_job(config: VAConfig, methods, kinds: list[str], splits) -> list:
    """Return the job that trains OUT/model on everybody, if the folds do not give it already."""
    from metaecg.data.splits import Split
    from metaecg.experiments.va_jobs import Job

    kind = next((k for k in PREFERRED_BASES if k in kinds), None)
    if config.base or len(splits) == 1 or kind is None:
        return []
    in_time = any(m.context for m in methods.values() if m.base == kind)
    everybody = tuple(sorted({*splits[0].train, *splits[0].test}))
    split = Split(name="everybody", train=everybody, test=())
    return [
        Job(
            kind=kind,
            seed=config.seeds[0],
            split=split,
            methods={},
            eligible=(),
            one_class=(),
            in_time=in_time,
        )
    ]


@contextmanager
def _tracked(config: VAConfig, dataset, commit: str | None):
    """Open the MLflow run, and close it with what became of it."""
    from metaecg.experiments.va_outputs import start_tracking

    with progress("opening the MLflow run"):
        tracker = start_tracking(config, dataset, commit=commit)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()


def _left_over(config: VAConfig, jobs, facts: dict, resume: bool):
    from metaecg.experiments.va_jobs import job_checkpoint
    from metaecg.experiments.va_resume import find_interrupted

    checkpoints = {job.name: job_checkpoint(job, config, facts=facts) for job in jobs}
    return find_interrupted(checkpoints, is_asked_for=resume)


def _run_jobs(config: VAConfig, jobs, load, facts: dict, tracker, left, *, resume: bool) -> dict:
    """Run what is not finished yet; return every job's result by name."""
    from metaecg.experiments import pool
    from metaecg.experiments.va_jobs import job_checkpoint, job_stamp, load_result, save_result
    from metaecg.experiments.va_outputs import record_training
    from metaecg.experiments.va_resume import resume_notes

    folder, done = config.out / "jobs", {}
    stamp = functools.partial(job_stamp, config=config, facts=facts)
    for job in jobs:
        result = load_result(folder / job.name, stamp=stamp(job))
        if result is not None:
            done[job.name] = result
            record_training(tracker, job.name, result.history)
    for note in resume_notes(left, n_finished=len(done), resume=resume, out=config.out):
        print(note, file=sys.stderr)
    missing = [job for job in jobs if job.name not in done]
    total = sum(job.cost(config) for job in missing)
    with progress(f"{len(missing)} jobs", max(total, 1)) as bar:

        def keep(job, result) -> None:
            save_result(folder / job.name, result, stamp=stamp(job))
            if checkpoint := job_checkpoint(job, config, facts=facts):
                checkpoint.remove()
            done[job.name] = result
            record_training(tracker, job.name, result.history)
            bar.describe(f"{len(done)} of {len(jobs)} jobs done")

        going_on = frozenset(left.n_done if resume else ())
        work = functools.partial(_work, config, load, facts, going_on)
        pool.run_all(missing, work, n_workers=config.workers, on_progress=bar.advance, on_done=keep)
    return {job.name: (job, done[job.name]) for job in jobs}


def _work(config: VAConfig, load, facts: dict, going_on: frozenset[str], job, report):
    from metaecg.experiments.va_jobs import job_checkpoint, run_job

    return run_job(
        job,
        config,
        load(),
        on_progress=report,
        checkpoint=job_checkpoint(job, config, facts=facts),
        resume=job.name in going_on,
    )


# --- results -----------------------------------------------------------------------------------


def _write(config: VAConfig, results: dict, dataset, predictions, curriculum) -> None:
    """Write the predictions, the report and, when those are whole, the figures."""
    from metaecg.evaluate.predictions import save_predictions
    from metaecg.evaluate.report import write_report
    from metaecg.experiments.provenance import write_json
    from metaecg.experiments.va_outputs import strips_for_report

    with progress("writing", total=3) as bar:
        save_predictions(config.out / "predictions.npz", predictions)
        bar.advance()
        write_report(
            config.out / "report.html",
            results,
            strips=strips_for_report(config, results, dataset, predictions),
            curriculum=curriculum,
        )
        bar.advance()
        write_json(config.out / "results.json", results)
        bar.advance()


def _model_of(done):
    """Return the base for OUT/model: trained on everybody, or the only fold's."""
    found = {
        (job.split.name == "everybody", -PREFERRED_BASES.index(job.kind), -job.seed): result.model
        for job, result in done.values()
        if job.kind in PREFERRED_BASES
    }
    if found:
        return found[max(found)]
    return next(iter(done.values()))[1].model


if __name__ == "__main__":
    sys.exit(main())
