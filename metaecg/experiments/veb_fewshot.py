"""Find ventricular beats, and personalize the detector with ten labelled beats per class.

    python -m metaecg.experiments.veb_fewshot                           # generated patients
    python -m metaecg.experiments.veb_fewshot --data DIR --databases mitdb --out runs/veb --seeds 0,1,2
    python -m metaecg.experiments.veb_fewshot --base veb-base --data DIR --databases mitdb

Protocol aami: DS1 of mitdb trains, DS2 is tested, EC57 counts. What happens, in order: beats are
prepared; for each seed one job trains the base on folds of the training subjects, chooses its threshold
on them, and judges every method on every test subject; figures, report and a base are written to --out,
and the run is recorded with MLflow.
"""

import functools
import shutil
import sys
from contextlib import contextmanager

from metaecg.errors import DataError
from metaecg.experiments.cli import as_yaml, progress, run_main
from metaecg.experiments.out_folder import run_folder
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_methods import METHODS, choose_methods
from metaecg.experiments.veb_options import make_parser, resolve


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    arguments = make_parser(__doc__).parse_intermixed_args(argv)
    if arguments.list_methods:
        print("\n".join(f"{name:26s} {m.description}" for name, m in METHODS.items()))
        return 0
    return run_main(
        lambda: _main(arguments),
        resume_hint="Finished parts are kept: the same command goes on from there.",
    )


def _main(arguments) -> None:
    from metaecg.experiments.veb_outputs import summary_table

    config = resolve(arguments)
    if arguments.dry_run:
        print(as_yaml(config))
        return
    results = run(config)
    print(summary_table(results))
    for line in refusals(results):
        print(line, file=sys.stderr)
    files = ["results.json", "report.html", "predictions.npz", *([] if config.base else ["model/"])]
    print(f"\nwritten to {config.out}: {', '.join(files)}")


def run(config: VebConfig) -> dict:
    """Run the recipe and write everything to ``config.out``; return the content of results.json.

    Raises
    ------
    ConfigError, DataError, LeakageError, CheckpointError
        What is wrong, before anything is trained or written.
    AdaptationError
        A loss is not finite.
    """
    with run_folder(config.out, base="model"):
        return _run(config)


def _run(config: VebConfig) -> dict:
    from metaecg.experiments.tracking import warm_up

    settings = config.tracking  # first of all: the next imports take seconds of one core only
    warm_up(enabled=settings.enabled, uri=settings.uri, out=config.out)

    from metaecg.experiments.provenance import git_commit, versions, write_provenance
    from metaecg.experiments.tracking_facts import record_base, record_run
    from metaecg.experiments.veb_data import prepare, splits_of
    from metaecg.experiments.veb_outputs import assemble, flat_figures

    methods, base = choose_methods(config.methods), _base(config)
    test = prepare(config, base)
    splits = splits_of(config, test)
    jobs = _jobs(config, methods, splits)
    commit, fingerprint = git_commit(), base.fingerprint if base else None
    facts = {"data": test.manifest_sha256, "commit": commit, "base": fingerprint}
    facts["versions"] = versions()
    plain = [split.split for split in splits]
    write_provenance(config.out, config, test, splits=plain, commit=commit, base=fingerprint)
    with _tracked(config, test, commit) as tracker:
        done = _run_jobs(config, jobs, facts, tracker)
        predictions = [p for result in done for p in result.predictions]
        if not any(len(p.labels) or any(p.n_missed.values()) for p in predictions):
            raise DataError("no test subject has a beat, so there is nothing to evaluate.")
        if not config.base:
            done[0].model.save(config.out / "model")
            record_base(tracker, config.out)
        with progress("figures"):
            results = assemble(
                config,
                methods,
                test,
                splits,
                predictions,
                classes=done[0].model.classes,
                held_out={j.name: r.curriculum for j, r in zip(jobs, done, strict=True)},
                commit=commit,
            )
        _write(config, results, predictions)
        with progress("recording the MLflow run"):
            figures, register_as = flat_figures(results), config.tracking.register_as
            record_run(tracker, config.out, figures, register_as=register_as)
    if not config.keep_jobs:
        shutil.rmtree(config.out / "jobs", ignore_errors=True)
    return results


def refusals(results: dict) -> list[str]:
    """Return a sentence per method and subject that has the base's answer instead of its own: the
    personalization was refused in any seed, or the beats asked for make no support."""
    found = []
    for name, figures in results["methods"].items():
        for subject_id, values in figures["subjects"].items():
            if values["no_support"]:
                why = f"no support: {name} for {subject_id}: {values['no_support']}"
            elif values["n_refused"]:
                n_seeds = len(values["seeds"])
                why = f"refused: {name} for {subject_id} in {values['n_refused']} of {n_seeds} seed(s);"
            else:
                continue
            found.append(f"{why} the base's answer is kept.")
    return found


def _base(config: VebConfig):
    """Return the given base, if there is one; another kind than one for beats is refused."""
    from metaecg.models.beat_detector import BeatDetector
    from metaecg.models.checkpoints import load_base

    return BeatDetector(load_base(config.base)).base if config.base else None


def _jobs(config: VebConfig, methods: dict, splits) -> list:
    from metaecg.experiments.veb_jobs import Job

    return [
        Job(seed=seed, split=split, methods=methods, base=config.base)
        for seed in config.seeds
        for split in splits
    ]


@contextmanager
def _tracked(config: VebConfig, dataset, commit: str | None):
    """Open the MLflow run, and close it with what became of it."""
    from metaecg.experiments.veb_outputs import start_tracking

    with progress("opening the MLflow run"):
        tracker = start_tracking(config, dataset, commit=commit)
    with ended(tracker):
        yield tracker


@contextmanager
def ended(tracker):
    """End the run of a tracker with what became of the block."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()


def _run_jobs(config: VebConfig, jobs, facts: dict, tracker) -> list:
    """Run what is not finished yet; return every job's result, in order."""
    from metaecg.evaluate.ec57 import BeatPrediction
    from metaecg.experiments import pool
    from metaecg.experiments.va_jobs import load_result, save_result
    from metaecg.experiments.va_outputs import record_training
    from metaecg.experiments.veb_jobs import job_stamp

    folder, done = config.out / "jobs", {}
    stamp = functools.partial(job_stamp, config=config, facts=facts)

    def keep(job, result) -> None:
        done[job.name] = result
        record_training(tracker, job.name, result.history)

    for job in jobs:
        result = load_result(folder / job.name, stamp=stamp(job), kind=BeatPrediction)
        if result is not None:
            keep(job, result)
    missing = [job for job in jobs if job.name not in done]
    with progress(f"{len(missing)} jobs", max(sum(job.cost(config) for job in missing), 1)) as bar:

        def finish(job, result) -> None:
            save_result(folder / job.name, result, stamp=stamp(job))
            keep(job, result)
            bar.describe(f"{len(done)} of {len(jobs)} jobs done")

        work = functools.partial(_work, config)
        pool.run_all(
            missing, work, n_workers=config.workers, on_progress=bar.advance, on_done=finish
        )
    return [done[job.name] for job in jobs]


def _work(config: VebConfig, job, report):
    """Run a job in its process: the prepared beats are memory maps, shared by all."""
    from metaecg.experiments.veb_data import prepare
    from metaecg.experiments.veb_jobs import run_job

    test = prepare(config, _base(config))
    needs_other = job.base is None and config.r_peaks != "annotated"
    training = prepare(config, None, r_peaks="annotated") if needs_other else test
    return run_job(job, config, training, test, on_progress=report)


def _write(config: VebConfig, results: dict, predictions) -> None:
    """Write the predictions, the report and, when those are whole, the figures."""
    from metaecg.evaluate.predictions import save_predictions
    from metaecg.evaluate.report import write_report
    from metaecg.experiments.provenance import write_json

    with progress("writing", total=3) as bar:
        save_predictions(config.out / "predictions.npz", predictions)
        bar.advance()
        write_report(config.out / "report.html", results)
        bar.advance()
        write_json(config.out / "results.json", results)


if __name__ == "__main__":
    raise SystemExit(main())
