"""What a study leaves behind: best.yaml, split.json, study.json, a table, and its MLflow run."""

import socket
import sys
import textwrap
import warnings
from collections import Counter
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from metaecg.data.splits import Split, write_manifest
from metaecg.experiments.provenance import git_commit, versions, write_json, write_text
from metaecg.experiments.tracking import make_tracker
from metaecg.experiments.tracking_facts import datasets_of, recipe_tags
from metaecg.experiments.tune_options import Plan
from metaecg.experiments.tune_recipe import Development
from metaecg.experiments.tune_storage import GRACE_S, describe_worker, shown
from metaecg.experiments.tune_study import (
    COMMIT,
    DECIDES,
    DEFAULTS,
    REASON,
    RUN,
    STORE,
    WORKER,
    best_trials,
    finished,
    is_lost,
    reason_of,
    running,
    taken,
)
from metaecg.models.registry_uri import without_password

SCHEMA = 1
FILES = ("best.yaml", "split.json", "study.json")
N_SHOWN, WIDTH = 5, 100
MIN_FOR_IMPORTANCE = 8
"""Complete trials from which on it is said which fields mattered."""


def write_split(plan: Plan, split: Split) -> Path:
    """Write who is held out, for `va_fewshot --split`; return the file."""
    path = plan.config.out / "split.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(path, split)
    return path


def write_outputs(plan: Plan, study) -> dict[str, Any]:
    """Write the best trial's configuration and the study; return the content of study.json."""
    content = describe(plan, study)
    write_json(plan.config.out / "study.json", content)
    if content["best"] is not None:
        write_text(plan.config.out / "best.yaml", _best_yaml(plan, study))
    else:
        (plan.config.out / "best.yaml").unlink(missing_ok=True)
    return content


def describe(plan: Plan, study) -> dict[str, Any]:
    """Return the content of study.json (docs/tuning.md has its fields)."""
    best = best_trials(study)
    importance, note = importances(study)
    return {
        "schema": SCHEMA,
        "recipe": plan.recipe.name,
        "study": study.study_name,
        "storage": shown(plan.config.storage_url).strip("'"),
        "objective": list(plan.config.objectives),
        "directions": [direction.name.lower() for direction in study.directions],
        "sampler": plan.config.sampler,
        "pruner": plan.config.pruner if len(plan.config.objectives) == 1 else "none",
        "n_trials": plan.config.n_trials,
        "states": _states(study),
        "best": best[0].number if best else None,
        "front": [trial.number for trial in best] if len(study.directions) > 1 else None,
        "importance": importance,
        "importance_note": note,
        "decides": study.user_attrs.get(DECIDES),
        "mlflow_run_id": study.user_attrs.get(RUN),
        "git_commit": git_commit(),
        "git_commits": _commits(study),
        "versions": {**versions(), "optuna": metadata.version("optuna")},
        "trials": [_trial(trial) for trial in study.get_trials(deepcopy=False)],
    }


def importances(study) -> tuple[dict[str, float] | None, str | None]:
    """Return how much each field sets the best trials apart, and what to say about that.

    By PED-ANOVA; of a multi-objective study the best are its front. None where it can't be said.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    values = [tuple(trial.values) for trial in trials if trial.state.name == "COMPLETE"]
    if len(values) < MIN_FOR_IMPORTANCE:
        return None, f"{len(values)} complete trials; at least {MIN_FOR_IMPORTANCE} are needed"
    if len(set(values)) == 1:
        return None, "all trials are worth the same"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        # Without a target: with one, optuna asks what leads to its low values, not to good ones.
        found = optuna.importance.get_param_importances(study)
    note = f"from {len(values)} complete trials"
    if said:
        note += ", few for some fields: a hint, no more"
    return {name: float(value) for name, value in found.items()}, note


def table(plan: Plan, study) -> str:
    """Return the best trials, what mattered, and what failed, as text."""
    names = plan.config.objectives
    best = best_trials(study)
    counted = _states(study)
    lines = [
        f"study {study.study_name!r}: "
        + ", ".join(f"{n} {state}" for state, n in counted.items() if n)
        + (" - demo data" if "demo" in (plan.config.databases or ()) else ""),
    ]
    if best:
        lines += [
            f"mean over the meta-validation subjects by protocol deploy; {_of(best, names)}:",
            "  ".join(["trial", *(f"{name:>13s}" for name in names), f"{'seconds':>7s}", "method"]),
        ]
    for trial in best[:N_SHOWN]:
        cells = [f"{trial.number:5d}", *(_number(value).rjust(13) for value in trial.values)]
        cells.append(f"{trial.duration.total_seconds():7.1f}")
        lines.append(
            "  ".join([*cells, plan.recipe.with_values(plan.shared, trial.params).methods[0]])
        )
    if best:
        chosen = ", ".join(f"{name}={_number(value)}" for name, value in best[0].params.items())
        lines += textwrap.wrap(f"trial {best[0].number}: {chosen}", WIDTH, subsequent_indent="  ")
    importance, note = importances(study)
    if importance:
        first = sorted(importance.items(), key=lambda item: -item[1])[:N_SHOWN]
        shares = ", ".join(f"{name} {100 * value:.0f} %" for name, value in first)
        lines.append(f"mattered most ({note}): {shares}")
    else:
        lines.append(f"what mattered can't be said: {note}")
    return "\n".join([*lines, *_failures(study), *_mixed(study), *_running(plan, study)])


def _of(best, names) -> str:
    if len(names) == 1:
        return f"the best {min(len(best), N_SHOWN)}"
    return f"nobody is better in both ({len(best)} trials), from the highest AUC on"


def _failures(study) -> list[str]:
    failed = [t for t in finished(study) if t.state.name == "FAIL"]
    reasons = Counter(reason_of(trial)[:160] for trial in failed)
    return [f"failed ({n}): {reason}" for reason, n in reasons.most_common(3)]


def _mixed(study) -> list[str]:
    commits = _commits(study)
    if len(commits) < 2:
        return []
    shares = ", ".join(f"{n} of {commit}" for commit, n in commits.items())
    return [f"trials of several commits are mixed ({shares}): their values may not be comparable"]


def _commits(study) -> dict[str, int]:
    """Count the trials of each commit; "unknown" are those of no checkout, or of an old version."""
    return dict(Counter(trial.user_attrs.get(COMMIT) or "unknown" for trial in taken(study)))


def _running(plan: Plan, study) -> list[str]:
    """Say which trials run in other processes: this command's have all ended."""
    found = [trial.user_attrs.get(WORKER) for trial in running(study)]
    if not found:
        return []
    who = ", ".join(sorted({describe_worker(name) if name else "not known" for name in found}))
    if plan.config.storage_url.startswith("journal:"):
        what = "the same command with --take-over replaces them"
    else:
        what = f"{GRACE_S} s after they were heard of last the same command replaces them"
    return [
        f"still running elsewhere: {len(found)} ({who}). The command that ends last has all trials in "
        f"its files. If their processes are gone, {what}."
    ]


def _states(study) -> dict[str, int]:
    """Count trials by what became of them; lost ones were replaced and don't count as failed."""
    found = {"complete": 0, "pruned": 0, "failed": 0, "lost": 0, "running": 0}
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name in names:
            found["lost" if is_lost(trial) else names[trial.state.name]] += 1
    return found


def _trial(trial) -> dict[str, Any]:
    start, end = trial.datetime_start, trial.datetime_complete
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "is_lost": is_lost(trial),
        "values": trial.values if trial.state.name == "COMPLETE" else None,
        "params": trial.params,
        "intermediate": {str(step): v for step, v in sorted(trial.intermediate_values.items())},
        "figures": trial.user_attrs.get("figures"),
        "subject_auc": trial.user_attrs.get("subject_auc"),
        "is_default": bool(trial.user_attrs.get(DEFAULTS)),
        "reason": trial.user_attrs.get(REASON),
        "git_commit": trial.user_attrs.get(COMMIT),
        "started": _time(start),
        "seconds": (end - start).total_seconds() if start and end else None,
    }


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def _best_yaml(plan: Plan, study) -> str:
    """Return the best trial as a configuration of the recipe, with the split that it is due."""
    import yaml

    trial = best_trials(study)[0]
    config = plan.recipe.with_values(plan.shared, trial.params)
    out = plan.config.out
    config = plan.recipe.final(config, split=out / "split.json", out=out / "test")
    values = ", ".join(_number(value) for value in trial.values)
    head = (
        f"# Trial {trial.number} of study {study.study_name!r}: {plan.config.objective} {values} on "
        f"the meta-validation subjects.\n# The held-out subjects of split.json score it once:\n"
        f"#   python -m metaecg.experiments.{plan.recipe.name} --config {out / 'best.yaml'}\n"
    )
    return head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- MLflow --------------------------------------------------------------------------------------


def start_tracking(plan: Plan, study, development: Development, *, commit: str | None):
    """Open a run for this command: the study's, or a child of it if the study has one."""
    settings = plan.config.tracking
    parent = study.user_attrs.get(RUN) if settings.enabled else None
    tracker = make_tracker(
        enabled=settings.enabled,
        uri=settings.uri,
        experiment=settings.experiment,
        out=plan.config.out,
        name=f"{plan.config.study} taken up" if parent else plan.config.study,
        parent_run_id=parent,
        tags={
            **recipe_tags("tune", commit=commit, seeds=[plan.config.seed]),
            "recipe": plan.recipe.name,
            "protocol": plan.shared.protocol,
            "data": "demo data" if "demo" in development.databases else "recordings",
            "data_manifest_sha256": development.manifest_sha256,
            "study": plan.config.study,
            "seed": plan.config.seed,
        },
    )
    tracker.params(plan.config.model_dump(mode="json", exclude={"space"}))
    tracker.datasets(datasets_of(development))
    if tracker.uri is None:
        return tracker
    if parent is None:
        study.set_user_attr(STORE, _store(plan, tracker.uri))
        study.set_user_attr(RUN, tracker.run_id)
    else:
        _warn_of_store(study, _store(plan, tracker.uri))
    return tracker


def _store(plan: Plan, uri: str) -> str:
    """Name a store without its password; a file of one machine is none of another's."""
    is_shared = plan.config.storage_url.startswith("postgresql")
    is_file = uri.startswith(("sqlite:", "file:")) or "://" not in uri
    place = f" on {socket.gethostname()}" if is_shared and is_file else ""
    return without_password(uri) + place


def _warn_of_store(study, ours: str) -> None:
    """Say so if the study's run lies in another store than the runs of this command will."""
    theirs = study.user_attrs.get(STORE)  # older versions don't say
    if theirs not in (None, ours):
        print(
            f"warning: the study's MLflow run is in {theirs}, the runs of this command go to {ours}, "
            "where it is not. Set MLFLOW_TRACKING_URI or tracking.uri to one store for all.",
            file=sys.stderr,
        )


def record_outputs(tracker, plan: Plan, content: dict[str, Any]) -> None:
    """Record the best trial and the files."""
    best = next((t for t in content["trials"] if t["number"] == content["best"]), None)
    if best:
        names = plan.config.objectives
        tracker.metrics({f"best/{n}": v for n, v in zip(names, best["values"], strict=True)})
    tracker.metrics({f"trials/{state}": float(n) for state, n in content["states"].items()})
    tracker.artifacts(plan.config.out / name for name in FILES)
