"""The MLflow run beside the files: parameters, stepwise metrics, artifacts.

Tracking never decides over a run: what it records is in the output folder as well. If the store
can't be reached, the run says so once and goes on.
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

METRICS_PER_BATCH = 900  # MLflow takes at most 1000 in one call
PARAMS_PER_BATCH = 100


def make_tracker(
    *,
    enabled: bool,
    uri: str | None,
    experiment: str,
    out: Path,
    name: str,
    parent_run_id: str | None = None,
    tags: Mapping[str, object] | None = None,
):
    """Return a tracker: MLflow's, or one that does nothing.

    Parameters
    ----------
    enabled
        False: record nothing.
    uri
        Store; None: ``$MLFLOW_TRACKING_URI``, else an SQLite file ``mlflow.db`` beside `out`.
    experiment, name
        Names of the experiment and of the run.
    out
        The run's output folder.
    parent_run_id
        The run that this one is a part of (``run_id`` of its tracker), if any.
    tags
        Tags to record at once.
    """
    if not enabled:
        return NoTracker()
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(out)
    try:
        tracker = MLflowTracker(
            uri, experiment=experiment, out=out, name=name, parent_run_id=parent_run_id
        )
    except Exception as error:  # whatever a store, a network or a database raises
        _warn_once(f"the MLflow store {uri} can't be used ({_first_line(error)})")
        return NoTracker()
    tracker.tags(tags or {})
    return tracker


def default_uri(out: Path) -> str:
    """Return the SQLite store beside the output folder."""
    return f"sqlite:///{out.resolve().parent / 'mlflow.db'}"


class NoTracker:
    """Records nothing."""

    uri = None
    run_id = None

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, object]) -> None: ...

    def history(self, name: str, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None: ...

    def metrics(self, values: Mapping[str, float | None]) -> None: ...

    def artifacts(self, paths: Iterable[Path]) -> None: ...

    def end(self, status: str = "FINISHED") -> None: ...


class MLflowTracker:
    """One MLflow run, written through the client in batches."""

    def __init__(
        self,
        uri: str,
        *,
        experiment: str,
        out: Path,
        name: str,
        parent_run_id: str | None = None,
    ) -> None:
        from mlflow.tracking import MlflowClient

        _quiet()

        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri)
        self.run_id = self._client.create_run(
            self._experiment(experiment, uri, out),
            run_name=name,
            tags={"mlflow.parentRunId": parent_run_id} if parent_run_id else None,
        ).info.run_id
        self._failed = False

    def params(self, values: Mapping[str, object]) -> None:
        """Record parameters; nested mappings are flattened with dots."""
        from mlflow.entities import Param

        flat = [Param(k, str(v)[:5000]) for k, v in _flatten(values).items()]
        for start in range(0, len(flat), PARAMS_PER_BATCH):
            self._try(self._client.log_batch, params=flat[start : start + PARAMS_PER_BATCH])

    def tags(self, values: Mapping[str, object]) -> None:
        """Record tags."""
        from mlflow.entities import RunTag

        tags = [RunTag(name, str(value)) for name, value in values.items()]
        self._try(self._client.log_batch, tags=tags)

    def history(self, name: str, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Record the course of a training, ``(step, values)``, as stepwise metrics ``name/...``."""
        from time import time

        from mlflow.entities import Metric

        now = int(time() * 1000)
        found = [
            Metric(f"{name}/{key}", float(value), now, step)
            for step, values in steps
            for key, value in values.items()
        ]
        for start in range(0, len(found), METRICS_PER_BATCH):
            self._try(self._client.log_batch, metrics=found[start : start + METRICS_PER_BATCH])

    def metrics(self, values: Mapping[str, float | None]) -> None:
        """Record final figures; undefined ones are left out."""
        from time import time

        from mlflow.entities import Metric

        now = int(time() * 1000)
        found = [Metric(k, float(v), now, 0) for k, v in values.items() if v is not None]
        for start in range(0, len(found), METRICS_PER_BATCH):
            self._try(self._client.log_batch, metrics=found[start : start + METRICS_PER_BATCH])

    def artifacts(self, paths: Iterable[Path]) -> None:
        """Record files, and folders with what is in them."""
        for path in paths:
            if path.is_dir():
                self._try(self._client.log_artifacts, str(path), path.name)
            elif path.exists():
                self._try(self._client.log_artifact, str(path))

    def end(self, status: str = "FINISHED") -> None:
        """Close the run: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._failed = False  # one more try: a run must not stay open for want of one answer
        self._try(self._client.set_terminated, status=status)

    def _experiment(self, name: str, uri: str, out: Path) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        local = uri.startswith("sqlite:")
        place = (out.resolve().parent / "mlartifacts").as_uri() if local else None
        return self._client.create_experiment(name, artifact_location=place)

    def _try(self, call, *args, **kwargs) -> None:
        """Call the client; after a first failure say so once, and record nothing more."""
        if self._failed:
            return
        try:
            call(self.run_id, *args, **kwargs)
        except Exception as error:  # whatever a store, a network or a database raises
            self._failed = True
            _warn_once(f"the MLflow store {self.uri} stopped answering ({_first_line(error)})")


def _flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _quiet() -> None:
    """Keep the store's own housekeeping (a hundred lines of migrations) off the terminal."""
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _warn_once(what: str) -> None:
    print(f"warning: {what}; the run goes on, its files are complete.", file=sys.stderr)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
