"""What every recipe tells MLflow beside its figures: whence the code, whence the data."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from metaecg.data.databases import DATABASES, Database
from metaecg.data.datasets import Dataset


def recipe_tags(recipe: str, *, commit: str | None, seeds: Iterable[int]) -> dict[str, object]:
    """Return the tags of a recipe's run; ``mlflow.*`` are those that MLflow's pages show.

    `commit` may end with ``+changes-...`` (see `provenance.git_commit`); MLflow's own tag has the
    commit alone.
    """
    return {
        "mlflow.source.name": f"metaecg.experiments.{recipe}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit.partition("+")[0] if commit else None,
        "recipe": recipe,
        "git_commit": commit,
        "seeds": list(seeds),
    }


def dataset_facts(
    name: str, *, database: Database | None, digest: str, **profile: object
) -> dict[str, str]:
    """Return what MLflow is told of a data set: where it is from, never where it lies.

    Parameters
    ----------
    name
        Name of its folder.
    database
        The published database that it is, or is a part of; None for generated patients and for
        recordings of the user's own.
    digest
        SHA-256 over its content, hex.
    profile
        Numbers about it.
    """
    if database is not None:
        profile = {"database": f"{database.slug} {database.version}", **profile}
    return {
        "name": name,
        "digest": digest,
        "source_type": "http" if database else "folder",
        "source": json.dumps({"url": database.page} if database else {"name": name}),
        "profile": json.dumps(profile),
    }


def datasets_of(dataset: Dataset) -> list[dict[str, str]]:
    """Return the facts of each database among prepared windows."""
    found = []
    for name in dataset.databases:
        records = [record for record in dataset.records if record.database == name]
        lines = [f"{c}  {name}/{file}" for r in records for file, c in sorted(r.checksums.items())]
        found.append(
            dataset_facts(
                name,
                database=DATABASES.get(name),
                digest=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
                n_records=len(records),
                n_subjects=len({record.subject_id for record in records}),
            )
        )
    return found


def record_base(tracker, out: Path, *, register_as: str | None = None) -> None:
    """Record the base in ``out/model``, if there is one; with `register_as` register it too.

    Recording it again only registers it. So it can be recorded as soon as it is written, to be sent
    while the figures are made, and registered when the run is whole.
    """
    from metaecg.models.checkpoints import load_base
    from metaecg.models.mlflow_model import pyfunc_facts

    folder = out / "model"
    if folder.is_dir():  # with --base there is none
        tracker.model(pyfunc_facts(load_base(folder)), folder=folder, register_as=register_as)


def record_run(
    tracker, out: Path, figures: dict[str, float | None], *, register_as: str | None
) -> None:
    """Record the figures and the files of a finished run of detectors; register its base if asked."""
    tracker.metrics(figures)
    files = ("results.json", "report.html", "config.yaml", "run.json", "predictions.npz")
    tracker.artifacts(out / name for name in files)
    if register_as:
        record_base(tracker, out, register_as=register_as)
