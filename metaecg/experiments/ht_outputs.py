"""What a run of `h_tuning` leaves behind: figures, the table, the MLflow record."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from metaecg.evaluate.multilabel import FIGURES, best_thresholds, multilabel_metrics
from metaecg.experiments.ht_base import TwelveLeadBase
from metaecg.experiments.ht_bootstrap import Answers, draw, interval, paired_intervals, resampled
from metaecg.experiments.ht_config import HTConfig
from metaecg.experiments.ht_data import Cohort
from metaecg.experiments.ht_distill import (
    DISTILLATION,
    LABELS_ONLY,
    TEACHER,
    describe,
    networks_of,
)
from metaecg.experiments.ht_jobs import Job, JobResult
from metaecg.experiments.ht_methods import METHODS, REFERENCE
from metaecg.experiments.ht_tables import summary_table, verdicts
from metaecg.experiments.provenance import versions, write_json, write_text
from metaecg.experiments.tracking_facts import recipe_tags
from metaecg.seeding import numpy_generator

RESULT_FILES = ("results.json", "results.md")

Done = Mapping[str, tuple[Job, JobResult]]


def write_provenance(config: HTConfig, base: TwelveLeadBase, cohorts, jobs, *, commit) -> None:
    """Write ``config.yaml`` (can be given to ``--config``) and ``run.json``; remove old results."""
    import yaml

    config.out.mkdir(parents=True, exist_ok=True)
    for name in RESULT_FILES:
        (config.out / name).unlink(missing_ok=True)
    values = config.model_dump(mode="json")
    write_text(config.out / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    splits = {
        f"{job.task}--seed-{job.seed}": {
            side: list(getattr(job.split, side)) for side in ("train", "validation", "test")
        }
        for job in jobs
    }
    facts = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": commit,
        "config_hash": config.hash(),
        "base_fingerprint": base.fingerprint,
        "base_subject_ids": base.training["subject_ids"],
        "data_sha256": {name: found.sha256 for name, found in cohorts.items()},
        "splits": splits,
    }
    write_json(config.out / "run.json", facts)


def assemble(
    config: HTConfig, base: TwelveLeadBase, cohorts: dict[str, Cohort], done: Done, *, commit
) -> dict:
    """Return the content of results.json (schema in docs/h_tuning.md)."""
    tasks = {}
    for job, _ in done.values():
        if job.task not in tasks:
            mine = [found for found in done.values() if found[0].task == job.task]
            tasks[job.task] = _task(config, cohorts[job.database], mine)
    return {
        "schema": 1,
        "experiment": "h_tuning",
        "pretraining": _pretraining(base),
        "network": {"name": "cnn-transformer", "size": base.size},
        "input": base.input.to_dict(),
        "device": config.device,
        "budget": config.train.budget,
        "seeds": config.seeds,
        "config_hash": config.hash(),
        "git_commit": commit,
        "versions": versions(),
        "base_fingerprint": base.fingerprint,
        "difference_to": REFERENCE,
        "tasks": tasks,
    }


def write_results(config: HTConfig, results: dict) -> None:
    """Write the table and, last, results.json; remove the kept jobs."""
    write_text(config.out / "results.md", "# H-Tuning\n\n" + summary_table(results))
    write_json(config.out / "results.json", results)
    if not config.keep_jobs:
        shutil.rmtree(config.out / "jobs", ignore_errors=True)


def start_tracking(config: HTConfig, cohorts: dict[str, Cohort], *, commit: str | None):
    """Open the MLflow run and record what decides it."""
    from metaecg.experiments.ht_mlflow import datasets_of
    from metaecg.experiments.tracking import make_tracker

    settings = config.tracking
    tracker = make_tracker(
        enabled=settings.enabled,
        uri=settings.uri,
        experiment=settings.experiment,
        out=config.out,
        name=f"{config.network.size} {config.out.name}",
    )
    tracker.params(config.decisive())
    tracker.tags(
        {
            **recipe_tags("h_tuning", commit=commit, seeds=config.seeds),
            "protocol": "splits by patient: " + ", ".join(config.splits),
            "data": "recordings",
            "device": config.device,
            "config_hash": config.hash(),
        }
    )
    tracker.datasets(datasets_of(cohorts))
    return tracker


def record_results(tracker, config: HTConfig, results: dict, base: TwelveLeadBase) -> None:
    """Record every figure, the files and the base."""
    for task, found in results["tasks"].items():
        for method, figures in found["methods"].items():
            values = {name: figures[name]["mean"] for name in FIGURES}
            for name in ("peak_bytes", "step_seconds", "trainable_parameters"):
                values[name] = figures[name]
            tracker.metrics({f"{task}/{method}/{name}": v for name, v in values.items()})
        for network, figures in found.get(DISTILLATION, {}).get("networks", {}).items():
            values = {name: figures[name]["mean"] for name in FIGURES}
            for name in ("answer_bytes", "answer_seconds", "parameters"):
                values[name] = figures[name]
            tracker.metrics({f"{task}/{network}/{name}": v for name, v in values.items()})
    tracker.artifacts([config.out / name for name in (*RESULT_FILES, "run.json", "config.yaml")])
    if config.base is None:  # a given one is another run's
        from metaecg.experiments.ht_mlflow import pyfunc_facts

        folder, name = config.out / "base", config.tracking.register_as
        tracker.model(pyfunc_facts(base), folder=folder, register_as=name)


# --- one task ------------------------------------------------------------------------------------


def _task(config: HTConfig, cohort: Cohort, done: list[tuple[Job, JobResult]]) -> dict:
    """Return everything about one database and split."""
    records, job = cohort.records, done[0][0]
    of_methods = [found for found in done if found[0].name_of_method != DISTILLATION]
    methods, drawn = _compared(config, cohort, of_methods)
    for name, figures in methods.items():
        facts = [result.facts for _, result in _of(done, name)]
        figures.update(description=METHODS[name].description, **_costs_of_training(facts))
        if REFERENCE in methods:
            figures["difference"] = _difference(methods, drawn, name, REFERENCE)
    distilled = _of(done, DISTILLATION)
    distillation = {DISTILLATION: _distillation(config, cohort, distilled)} if distilled else {}
    return {
        "database": cohort.database,
        "split": job.split_kind,
        "classes": records.positives,
        "n_records": len(records),
        "n_patients": len(set(records.subject_ids.tolist())),
        "subjects_known": records.subjects_known,
        "left_out": len(records.dropped),
        "notes": list(cohort.notes),
        "sides": _sides(cohort, done),
        "methods": methods,
        "verdicts": verdicts(methods),
        **distillation,
    }


def _compared(config: HTConfig, cohort: Cohort, done: list[tuple[Job, JobResult]]):
    """Return name -> figures, and name -> those of each resample: the same draws for every name."""
    names = list(dict.fromkeys(job.name_of_method for job, _ in done))
    tested = {name: _tested(cohort, done, name) for name in names}
    people = {s for each in tested.values() for t in each for s in t.subject_ids.tolist()}
    draws = draw(
        sorted(people),
        n_seeds=len(config.seeds),
        n_resamples=config.n_resamples,
        rng=numpy_generator(0, "bootstrap", done[0][0].task),
    )
    drawn = {name: resampled(each, draws) for name, each in tested.items()}
    classes = cohort.records.class_names
    found = {name: _figures(classes, _of(done, name), tested[name]) for name in names}
    for name, figures in found.items():
        for figure in FIGURES:
            figures[figure]["ci95"] = interval(drawn[name][figure])
    return found, drawn


def _distillation(config: HTConfig, cohort: Cohort, done: list[tuple[Job, JobResult]]) -> dict:
    """Return the figures of teacher and students, and what they lose and what teaching adds."""
    apart = [found for job, result in done for found in networks_of(job, result)]
    networks, drawn = _compared(config, cohort, apart)
    for name, figures in networks.items():
        facts = [result.facts for _, result in _of(apart, name)]
        figures["description"] = describe(name, facts[0])
        for key in ("size", "n_leads", "parameters", "answer_bytes"):
            figures[key] = facts[0][key]
        figures["answer_seconds"] = float(np.median([fact["answer_seconds"] for fact in facts]))
        figures["difference"] = _difference(networks, drawn, name, TEACHER)
        if name + LABELS_ONLY in networks:
            control = _difference(networks, drawn, name, name + LABELS_ONLY)
            figures["difference_to_labels_only"] = control
    return {"teacher": config.distill.teacher, "difference_to": TEACHER, "networks": networks}


def _of(done: list[tuple[Job, JobResult]], name: str) -> list[tuple[Job, JobResult]]:
    return [found for found in done if found[0].name_of_method == name]


def _tested(cohort: Cohort, done, name: str) -> list[Answers]:
    """Return what a method said under each seed, with thresholds from the validation alone."""
    found = []
    for job, result in _of(done, name):
        rows = job.split.rows(cohort.records.subject_ids)
        labels = cohort.records.labels
        thresholds, blind = best_thresholds(labels[rows["validation"]], result.validation)
        found.append(
            Answers(
                labels=labels[rows["test"]],
                probabilities=result.test,
                thresholds=thresholds,
                subject_ids=cohort.records.subject_ids[rows["test"]],
                undetermined=tuple(cohort.records.class_names[column] for column in blind),
            )
        )
    return found


def _figures(class_names, done: list[tuple[Job, JobResult]], tested: list[Answers]) -> dict:
    """Return the figures of one network: means over seeds, and every seed's own."""
    of_seeds = [
        multilabel_metrics(
            each.labels, each.probabilities, thresholds=each.thresholds, class_names=class_names
        )
        for each in tested
    ]
    seeds = [str(job.seed) for job, _ in done]
    facts = [result.facts for _, result in done]
    figures = {
        name: {
            "mean": _mean([found[name] for found in of_seeds]),
            "seeds": dict(zip(seeds, [found[name] for found in of_seeds], strict=True)),
        }
        for name in FIGURES
    }
    runs = {
        seed: {
            **_without_losses(fact),
            "classes": found["classes"],
            "left_out": found["left_out"],
            "undetermined": list(each.undetermined),
        }
        for seed, fact, found, each in zip(seeds, facts, of_seeds, tested, strict=True)
    }
    return {**figures, "runs": runs}


def _costs_of_training(facts: list[dict]) -> dict:
    return {
        "peak_bytes": max(fact["peak_bytes"] for fact in facts),
        "step_seconds": float(np.median([fact["step_seconds"] for fact in facts])),
        "train_seconds": float(np.mean([f["step_seconds"] * f["n_steps"] for f in facts])),
        "seconds_to_best": float(np.mean([f["step_seconds"] * f["best_step"] for f in facts])),
        "trainable_parameters": facts[0]["n_trained"],
        "n_per_step": facts[0]["n_per_step"],
    }


def _difference(compared: dict, drawn: dict, name: str, reference: str) -> dict:
    """Return figure -> mean difference to `reference`, by seed, and its interval."""
    intervals = paired_intervals(drawn[name], drawn[reference])
    found = {}
    for figure in FIGURES:
        mine, other = (compared[each][figure]["seeds"] for each in (name, reference))
        by_seed = {
            seed: None if None in (mine[seed], other[seed]) else mine[seed] - other[seed]
            for seed in mine
        }
        found[figure] = {
            "mean": _mean(list(by_seed.values())),
            "ci95": intervals[figure],
            "seeds": by_seed,
        }
    return found


def _sides(cohort: Cohort, done) -> dict:
    found = {}
    for job, _ in done:
        rows = job.split.rows(cohort.records.subject_ids)
        found[str(job.seed)] = {side: len(indices) for side, indices in rows.items()}
    return found


def _without_losses(facts: dict) -> dict:
    return {name: value for name, value in facts.items() if name != "losses"}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _pretraining(base: TwelveLeadBase) -> dict:
    facts = base.training
    return {
        **{name: value for name, value in facts.items() if name != "subject_ids"},
        "n_patients": len(facts["subject_ids"]),
        "classes": list(base.class_names),
        "statement": f"The base was trained by us with supervision, on {facts['n_records']} "
        f"recordings of {len(facts['subject_ids'])} patients of {facts['database']} and "
        f"{len(base.class_names)} superclasses, in {facts['n_steps']} steps. None of these "
        "patients is in a split. The published work starts from a network pre-trained on CODE, "
        "which isn't open: its figures can't be compared with these.",
    }
