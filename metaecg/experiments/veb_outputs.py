"""What a run of `veb_fewshot` leaves behind: figures, the summary, the MLflow record."""

from collections.abc import Sequence

from metaecg.data.datasets import Dataset
from metaecg.evaluate.ec57 import BeatPrediction, method_figures
from metaecg.evaluate.results import compare_methods
from metaecg.experiments.provenance import versions
from metaecg.experiments.tracking import make_tracker
from metaecg.experiments.tracking_facts import datasets_of, recipe_tags
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_data import BeatSplit
from metaecg.experiments.veb_methods import METHODS
from metaecg.experiments.veb_personal import why_not_eligible

PROTOCOL = "aami"
COUNTED = ("n_refused", "n_no_support")
"""How often a method has the base's answer instead of its own, and why."""


def assemble(
    config: VebConfig,
    methods: dict,
    test: Dataset,
    splits: Sequence[BeatSplit],
    predictions: list[BeatPrediction],
    *,
    classes: tuple[str, ...],
    held_out: dict,
    commit: str | None,
) -> dict:
    """Return the content of results.json (docs/veb.md has the schema)."""
    told = tuple(name for name in classes if name != "other")
    table = {
        name: method_figures(
            [p for p in predictions if p.method == name],
            classes=told,
            description=method.description,
        )
        for name, method in methods.items()
        if any(p.method == name for p in predictions)
    }
    tested = sorted({p.subject_id for p in predictions})
    supported = {name for name, method in methods.items() if method.support != "none"}
    eligible = sorted({p.subject_id for p in predictions if p.method in supported})
    return {
        "schema": 1,
        "title": f"Ventricular beats (V) from {config.n_shots} labelled beats per class",
        "data": "demo data" if "demo" in test.databases else "recordings",
        "protocol": PROTOCOL,
        "caveat": _caveat(config),
        "databases": test.databases,
        "n_shots": config.n_shots,
        "n_classes": config.classes,
        "r_peaks": config.r_peaks,
        "seeds": config.seeds,
        "n_subjects": len(tested),
        "eligible": eligible,
        "config_hash": config.hash(),
        "git_commit": commit,
        "versions": versions(),
        "data_manifest_sha256": test.manifest_sha256,
        "splits": [split.split.name for split in splits],
        "held_out_training": held_out,
        "methods": table,
        "differences": differences(table),
        "harm": {name: harm(figures, table) for name, figures in table.items()},
        "ineligible": _not_eligible(config, methods, test, splits, eligible),
    }


def differences(table: dict) -> dict[str, dict]:
    """Return each method's paired differences (`compare_methods`) on the beats that it is judged on.

    ``to`` names the other side: the base as it is on the same beats, or the first method that is
    judged on them. That one has no row, nor has a method whose beats no other is judged on.
    """
    found = {}
    for name in table:
        reference = _reference_of(name, table)
        if reference != name:
            pair = {n: table[n] for n in (reference, name)}
            found[name] = {"to": reference, **compare_methods(pair, reference=reference)[name]}
    return found


def _reference_of(name: str, table: dict) -> str:
    """Return the row that is judged on the same beats as `name` and changes nothing, or the first."""

    def beats(method: str) -> tuple[str, str]:
        return METHODS[method].support, METHODS[method].query

    same = [other for other in table if beats(other) == beats(name)]
    return next((other for other in same if not METHODS[other].is_personal), same[0])


def harm(figures: dict, table: dict) -> dict | None:
    """Return the largest loss of F1 that a subject and seed has against the base on the same beats.

    None for a method without a base to compare with on its test beats.
    """
    for name in ("zero-shot", "active+zero-shot", "active+zero-shot@later"):
        base = table.get(name, {}).get("subjects", {})
        if base and all(
            s in base and base[s]["n_va"] == v["n_va"] and base[s]["n_other"] == v["n_other"]
            for s, v in figures["subjects"].items()
        ):
            return _worst(figures["subjects"], base)
    return None


def _worst(subjects: dict, base: dict) -> dict | None:
    losses = [
        (base[s]["seeds"][seed]["f1"] - values["f1"], s, seed)
        for s, v in subjects.items()
        for seed, values in v["seeds"].items()
        if values["f1"] is not None and base[s]["seeds"].get(seed, {}).get("f1") is not None
    ]
    if not losses:
        return None
    loss, subject_id, seed = max(losses)
    return {"largest_loss_of_f1": loss, "subject_id": subject_id, "seed": int(seed)}


def _caveat(config: VebConfig) -> str:
    found = []
    if config.include_seen:
        found.append("seen subjects included: not held out")
    if config.development:
        found.append("folds of DS1, on which choices were made: not held out")
    return "; ".join(found)


def _not_eligible(
    config: VebConfig, methods: dict, test: Dataset, splits: Sequence[BeatSplit], eligible
) -> dict[str, str]:
    """Return why each of the other test subjects has no row; nothing where no method needs labels."""
    if all(method.support == "none" for method in methods.values()):
        return {}
    return {
        s: why_not_eligible(s, config, test, split) or "support and test are different recordings"
        for split in splits
        for s in sorted(split.split.test)
        if s not in eligible
    }


def summary_table(results: dict) -> str:
    """Return the table of methods as text."""
    notes = [
        text for text in (results["data"], results["caveat"]) if text not in ("", "recordings")
    ]
    lines = [
        f"{results['protocol']}, {results['n_subjects']} test subjects, {len(results['eligible'])} eligible "
        f"for personalization, {len(results['seeds'])} seed(s)" + "".join(f" - {n}" for n in notes),
        f"{'method':26s} {'V sens':>7s} {'PPV':>6s} {'F1':>6s} {'95 % interval':>15s} {'FP/h':>6s} "
        f"{'labels':>6s} {'refused':>7s} {'worst loss':>10s}",
    ]
    for name, figures in results["methods"].items():
        veb, loss = figures["veb"], results["harm"].get(name)
        shown = [
            f"{veb[k]:.3f}" if veb[k] is not None else "-" for k in ("sensitivity", "ppv", "f1")
        ]
        interval = veb["ci95"]["f1"]
        rate = figures["false_alarms_per_hour"]
        lines.append(
            f"{name:26s} {shown[0]:>7s} {shown[1]:>6s} {shown[2]:>6s} "
            f"{'{:.3f}-{:.3f}'.format(*interval) if interval else '-':>15s} "
            f"{'-' if rate is None else f'{rate:.1f}':>6s} {figures['labels_p50']:>6g} "
            f"{figures['n_refused']:>7d} "
            f"{'-' if loss is None else '{:+.3f}'.format(-loss['largest_loss_of_f1']):>10s}"
        )
    return "\n".join(lines)


def start_tracking(config: VebConfig, dataset: Dataset, *, commit: str | None):
    """Open the MLflow run and record what decides it."""
    settings = config.tracking
    tracker = make_tracker(
        enabled=settings.enabled,
        uri=settings.uri,
        experiment=settings.experiment,
        out=config.out,
        name=config.out.name,
    )
    tracker.params(config.model_dump(mode="json"))
    tags = {
        "protocol": PROTOCOL,
        "data": "demo data" if "demo" in dataset.databases else "recordings",
        "config_hash": config.hash(),
        "data_manifest_sha256": dataset.manifest_sha256,
    }
    tracker.tags({**recipe_tags("veb_fewshot", commit=commit, seeds=config.seeds), **tags})
    tracker.datasets(datasets_of(dataset))
    return tracker


def flat_figures(results: dict) -> dict[str, float | None]:
    """Return the figures that MLflow gets, by name."""
    found: dict[str, float | None] = {}
    for name, figures in results["methods"].items():
        row = name.replace("+", ".").replace("@", ".")  # MLflow's names may hold neither
        found |= {f"{row}/veb_{k}": figures["veb"][k] for k in ("sensitivity", "ppv", "f1")}
        for key in ("false_alarms_per_hour", "labels_p50", *COUNTED, "adapt_seconds_p50"):
            found[f"{row}/{key}"] = figures[key]
        found[f"{row}/subject_auc_mean"] = figures["subject_auc"]["mean"]
    return found
