"""What a run was made of: versions, commit, data, configuration; written before training starts."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import metaecg
from metaecg.data.datasets import Dataset
from metaecg.experiments.config import VAConfig

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "wfdb", "peft", "mlflow", "pydantic")


def versions() -> dict[str, str]:
    """Return the versions of Python, metaecg and the packages that decide figures."""
    found = {"python": platform.python_version(), "metaecg": metaecg.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout that metaecg runs from, or None outside of one.

    Uncommitted changes add ``+changes-`` and a checksum of them.
    """
    folder = Path(metaecg.__file__).parent
    try:
        git = ["git", "-C", str(folder)]
        top = _output([*git, "rev-parse", "--show-toplevel"])
        if not (Path(top) / "setup.cfg").exists():  # installed inside somebody else's repository
            return None
        commit = _output([*git, "rev-parse", "HEAD"])
        changed = _output([*git, "diff", "HEAD"])
    except (OSError, subprocess.SubprocessError):
        return None
    digest = hashlib.sha256(changed.encode()).hexdigest()[:8]
    return f"{commit}+changes-{digest}" if changed else commit


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file so that it is never read half."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, bring it to the disk, and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are readable by their owner alone
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


RESULT_FILES = ("results.json", "report.html", "predictions.npz")


def write_provenance(
    out: Path, config: VAConfig, dataset: Dataset, *, splits, commit: str | None, base: str | None
) -> None:
    """Write ``config.yaml`` (can be given to ``--config``) and ``run.json`` into `out`.

    Results of an earlier run in `out` are removed: they would stand beside a configuration that
    isn't theirs. `base` is the fingerprint of the base that was given, if any.
    """
    import yaml

    out.mkdir(parents=True, exist_ok=True)
    for name in RESULT_FILES:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "model", ignore_errors=True)
    values = config.model_dump(mode="json")
    write_text(out / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    write_json(
        out / "run.json",
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "git_commit": commit,
            "base_fingerprint": base,
            "config_hash": config.hash(),
            "data_manifest_sha256": dataset.manifest_sha256,
            "data_sha256": {
                f"{record.database}/{name}": checksum
                for record in dataset.records
                for name, checksum in sorted(record.checksums.items())
            },
            "splits": {s.name: {"train": list(s.train), "test": list(s.test)} for s in splits},
        },
    )


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
