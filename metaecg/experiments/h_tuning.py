"""Compare ways to fine-tune a 12-lead network: quality, memory of a step, time of a step.

    python -m metaecg.experiments.h_tuning --data DIR            # ptbxl_subset, cinc2021_sample
    python -m metaecg.experiments.h_tuning --data DIR --quick

What happens, in order: a base is trained on patients who are in no split; for each database, split,
seed and method one job fine-tunes it, stops and chooses by the validation and looks at the test
once; figures and a table are written to --out, and the run is recorded with MLflow. A finished job
is kept: the same command takes it up.
"""

import functools
import shutil
import sys
from contextlib import contextmanager

from metaecg.errors import ConfigError, LeakageError
from metaecg.experiments.cli import as_yaml, progress, run_main
from metaecg.experiments.ht_config import HTConfig
from metaecg.experiments.ht_methods import METHODS, choose_methods
from metaecg.experiments.ht_options import make_parser, resolve
from metaecg.experiments.out_folder import run_folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    arguments = make_parser(__doc__).parse_intermixed_args(argv)
    if arguments.list_methods:
        print("\n".join(f"{name:22s} {m.description}" for name, m in METHODS.items()))
        return 0
    return run_main(
        lambda: _main(arguments),
        resume_hint="Finished jobs are kept: the same command goes on from there.",
    )


def _main(arguments) -> None:
    from metaecg.experiments.ht_tables import summary_table

    config = resolve(arguments)
    if arguments.dry_run:
        print(as_yaml(config))
        return
    results = run(config)
    print(summary_table(results))
    print(f"written to {config.out}: results.json, results.md, run.json, config.yaml, base/")


def run(config: HTConfig) -> dict:
    """Run the recipe and write everything to ``config.out``; return the content of results.json.

    Raises
    ------
    ConfigError, DataError, LeakageError, CheckpointError
        What is wrong, before anything is fine-tuned.
    AdaptationError
        A loss is not finite.
    """
    with run_folder(config.out, base=None if config.base else "base"):
        return _run(config)


def _run(config: HTConfig) -> dict:
    from metaecg.experiments.tracking import warm_up

    settings = config.tracking  # first of all: the next imports take seconds of one core only
    warm_up(enabled=settings.enabled, uri=settings.uri, out=config.out)

    from metaecg.experiments.ht_data import cohort
    from metaecg.experiments.ht_outputs import (
        assemble,
        record_results,
        write_provenance,
        write_results,
    )
    from metaecg.experiments.provenance import git_commit

    methods = choose_methods(config.methods)
    _check_device(config.device)
    commit = git_commit()
    base = _base(config, commit)
    seen = base.training["subject_ids"]
    with progress("preparing recordings"):
        cohorts = {name: cohort(config, name, seen=seen) for name in config.databases}
    jobs = _jobs(config, methods, cohorts)
    write_provenance(config, base, cohorts, jobs, commit=commit)
    with _tracked(config, cohorts, commit) as tracker:
        done = _run_jobs(config, jobs, base, cohorts, commit, tracker)
        with progress("figures"):
            results = assemble(config, base, cohorts, done, commit=commit)
        write_results(config, results)
        with progress("recording the MLflow run"):
            record_results(tracker, config, results, base)
    return results


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda', and torch finds no GPU; expected cpu, or a torch built for the GPU "
            "that is there."
        )


# --- the base ------------------------------------------------------------------------------------


def _base(config: HTConfig, commit: str | None):
    """Return the given base, the one that a run with the same settings and code left, or a new one."""
    from metaecg.errors import CheckpointError
    from metaecg.experiments.ht_base import load_twelve_lead_base
    from metaecg.experiments.ht_data import input_of

    if config.base is not None:
        base = load_twelve_lead_base(config.base)
        expected = (config.network.size, input_of(config))
        if (base.size, base.input) != expected:
            raise CheckpointError(
                f"the base {config.base} is {base.size} on {base.input}; the configuration says "
                f"{expected[0]} on {expected[1]}. Set network.size and input.* to the base's."
            )
        return base
    return _own_base(config, commit)


def _own_base(config: HTConfig, commit: str | None):
    from metaecg.errors import CheckpointError
    from metaecg.experiments.ht_base import load_twelve_lead_base, train_base
    from metaecg.experiments.ht_data import input_of, pretraining_set
    from metaecg.experiments.pool import limit_threads

    with progress("preparing recordings"):
        records = pretraining_set(config)
    facts = _facts_of_base(config, records, commit)
    folder = config.out / "base"
    try:
        left = load_twelve_lead_base(folder)
        if left.training == facts:
            return left
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)  # there is none, or a damaged one
    settings = config.pretrain
    limit_threads()  # sums in other orders would make another base of the same seed
    with progress("training the base", settings.n_steps) as bar:
        base = train_base(
            records.signals,
            records.labels,
            size=config.network.size,
            class_names=records.class_names,
            preparation=input_of(config),
            facts=facts,
            n_steps=settings.n_steps,
            batch_size=settings.batch_size,
            lr=settings.lr,
            seed=settings.seed,
            device=config.device,
            on_step=lambda step: bar.advance(),
        )
    base.save(folder)
    return base


def _facts_of_base(config: HTConfig, records, commit: str | None) -> dict:
    """Return what decides the base and isn't in its own description; plain JSON values."""
    from metaecg.experiments.ht_data import Cohort
    from metaecg.experiments.provenance import versions

    return {
        "database": "ptbxl_subset",
        "subject_ids": sorted(set(records.subject_ids.tolist())),
        "n_records": len(records),
        **config.pretrain.model_dump(mode="json"),
        "size": config.network.size,
        "device": config.device,
        "commit": commit,
        "versions": versions(),
        "data_sha256": Cohort(database="ptbxl_subset", records=records).sha256,
    }


# --- jobs ----------------------------------------------------------------------------------------


def _jobs(config: HTConfig, methods: dict, cohorts: dict) -> list:
    """Return a job per database, split, seed and method; whole seeds are finished one by one."""
    from metaecg.experiments.ht_data import check_sides, split_of
    from metaecg.experiments.ht_distill import distillation_job
    from metaecg.experiments.ht_jobs import Job

    jobs = []
    for seed in config.seeds:
        for name, found in cohorts.items():
            for kind in config.splits:
                if kind == "strat_fold" and found.records.strat_fold is None:
                    continue  # the Challenge has no folds
                split = split_of(found, kind, config, seed=seed)
                check_sides(found, split, config)
                jobs += [
                    Job(
                        database=name,
                        split_kind=kind,
                        split=split,
                        seed=seed,
                        name_of_method=method_name,
                        method=method,
                    )
                    for method_name, method in methods.items()
                ]
                if config.distill.enabled:
                    jobs.append(distillation_job(jobs[-1], config))
    return jobs


def _run_jobs(config: HTConfig, jobs, base, cohorts: dict, commit, tracker) -> dict:
    """Run what is not finished yet; return name -> (job, result), in the order of `jobs`."""
    from metaecg.experiments import pool
    from metaecg.experiments.ht_jobs import (
        forget_opened,
        job_stamp,
        load_result,
        run_in_worker,
        save_result,
    )
    from metaecg.experiments.provenance import versions

    folder, done = config.out / "jobs", {}
    seen = set(base.training["subject_ids"])
    for job in jobs:
        _check_unseen(job, seen)
    facts = {"base": base.fingerprint, "commit": commit, "versions": versions()}

    def stamp(job) -> str:
        return job_stamp(job, config, facts={**facts, "data": cohorts[job.database].sha256})

    for job in jobs:
        result = load_result(folder / job.name, stamp=stamp(job))
        if result is not None:
            done[job.name] = result
            _record_training(tracker, job, result)
    missing = [job for job in jobs if job.name not in done]
    n_stale = sum((folder / job.name).is_dir() for job in missing)
    for n, what in (
        (len(done), "taken up"),
        (n_stale, "of other settings, data or code, done again"),
    ):
        if n:
            print(f"finished jobs {what}: {n} of {len(jobs)}", file=sys.stderr)
    with progress(f"{len(missing)} jobs", max(1, sum(j.cost(config) for j in missing))) as bar:

        def keep(job, result) -> None:
            save_result(folder / job.name, result, stamp=stamp(job))
            done[job.name] = result
            _record_training(tracker, job, result)
            bar.describe(f"{len(done)} of {len(jobs)} jobs done")

        forget_opened()
        work = functools.partial(run_in_worker, config, config.base or config.out / "base")
        pool.run_all(missing, work, n_workers=config.workers, on_progress=bar.advance, on_done=keep)
    return {job.name: (job, done[job.name]) for job in jobs}


def _record_training(tracker, job, result) -> None:
    for name, losses in job.histories(result.facts).items():
        tracker.history(name, ((step, {"loss": x}) for step, x in enumerate(losses, start=1)))


def _check_unseen(job, seen: set[str]) -> None:
    """Raise LeakageError if the base was trained on anybody of a split."""
    both = sorted(seen & {*job.split.train, *job.split.validation, *job.split.test})
    if both:
        raise LeakageError(
            f"{job.task}: the base was trained on {len(both)} of its subjects, first {both[0]!r}; "
            "nobody was expected on both sides. Give another base, or train one."
        )


@contextmanager
def _tracked(config: HTConfig, cohorts: dict, commit: str | None):
    """Open the MLflow run, and close it with what became of it."""
    from metaecg.experiments.ht_outputs import start_tracking

    with progress("opening the MLflow run"):
        tracker = start_tracking(config, cohorts, commit=commit)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()


if __name__ == "__main__":
    sys.exit(main())
