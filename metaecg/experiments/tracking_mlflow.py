"""Write journal entries to an MLflow store. Writing one a second time changes nothing.

Parameters, tags and datasets replace themselves; a metric point is the same row; a run, a model and
a registered version carry the run's key and are looked for before one is made.
"""

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from metaecg.experiments.tracking_journal import KEY_PREFIX, find_file, output_folder
from metaecg.models.registry_uri import without_password

METRICS_PER_BATCH = 900  # MLflow takes at most 1000 in one call
PARAMS_PER_BATCH = 100
DIGEST_LENGTH = 32  # MLflow takes at most 36 characters
KEY_TAG = "metaecg.key"
PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""MLflow's codes for what it will never take."""
LOCKED_TRIES, LOCKED_PAUSE_S = 5, 0.5


class Rejected(Exception):
    """An entry can't be written, now or later; others can."""


class FilesMissing(Exception):
    """The run's files can't be stored now; everything else of it has arrived."""


class ParentMissing(Exception):
    """The run that this one belongs to has not arrived yet."""


class Store:
    """An MLflow tracking store, written through its client.

    Parameters
    ----------
    uri
        Any that MLflow knows. The folder of an SQLite file is made.
    template
        An SQLite file with MLflow's tables and nothing in them, to begin a new one with: making the
        tables takes more than a second.
    """

    def __init__(self, uri: str, *, template: Path | None = None) -> None:
        from mlflow.tracking import MlflowClient

        self.uri = uri
        if not uri.startswith("sqlite:///"):
            self._client = MlflowClient(tracking_uri=uri)
            return
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(Path(tempfile.gettempdir()) / f"metaecg-mlflow-{os.getuid()}.lock"):
            if template is not None and not path.exists():
                shutil.copyfile(template, path)
            self._client = MlflowClient(tracking_uri=uri)  # two would both make the tables
            self._client.search_experiments(max_results=1)

    def begin(self, entry: dict, folder: Path) -> str:
        """Return the MLflow run of a ``run`` entry; it is made if it isn't there."""
        experiment = self._experiment(entry["experiment"], output_folder(folder))
        found = self._with_key(entry["key"], [experiment])
        if found is not None:
            return found
        tags = {KEY_TAG: entry["key"], **entry["tags"]}
        if entry["parent"]:
            tags["mlflow.parentRunId"] = self._parent(entry["parent"])
        run = self._client.create_run(
            experiment, start_time=entry["time_ms"], tags=tags, run_name=entry["name"]
        )
        return run.info.run_id

    def write(self, run_id: str, entry: dict, folder: Path) -> str | None:
        """Write an entry to a run; return what is worth telling, if anything.

        Raises
        ------
        Rejected
            The store will never take this entry.
        Exception
            Whatever a store, a network or a database raises: try it again later.
        """
        from mlflow.exceptions import MlflowException

        for left in reversed(range(LOCKED_TRIES)):
            try:
                return getattr(self, f"_write_{entry['call']}")(run_id, entry, folder)
            except MlflowException as error:
                if error.error_code in PERMANENT:
                    raise Rejected(f"{entry['call']}: {first_line(error)}") from error
                if not left or "database is locked" not in str(error):
                    raise
            time.sleep(LOCKED_PAUSE_S)
        raise AssertionError("unreachable")

    # --- what entries say ------------------------------------------------------------------------

    def _write_params(self, run_id: str, entry: dict, folder: Path) -> None:
        from mlflow.entities import Param

        for part in _batches(list(entry["values"].items()), PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=[Param(k, v) for k, v in part])

    def _write_tags(self, run_id: str, entry: dict, folder: Path) -> None:
        from mlflow.entities import RunTag

        for part in _batches(list(entry["values"].items()), PARAMS_PER_BATCH):
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in part])

    def _write_metrics(self, run_id: str, entry: dict, folder: Path) -> None:
        from mlflow.entities import Metric

        for part in _batches(entry["values"], METRICS_PER_BATCH):
            points = [Metric(key, value, entry["time_ms"], step) for key, value, step in part]
            self._client.log_batch(run_id, metrics=points)

    def _write_datasets(self, run_id: str, entry: dict, folder: Path) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for facts in entry["values"]:
            digest = facts["digest"][:DIGEST_LENGTH]
            dataset = Dataset(**{**facts, "digest": digest})
            inputs.append(DatasetInput(dataset, [InputTag("sha256", facts["digest"])]))
        self._client.log_inputs(run_id, datasets=inputs)

    def _write_files(self, run_id: str, entry: dict, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as staging:
            for file in entry["files"]:
                _stage(folder, file, Path(staging))
            self._client.log_artifacts(run_id, staging)

    def _write_end(self, run_id: str, entry: dict, folder: Path) -> None:
        self._client.set_terminated(run_id, status=entry["status"], end_time=entry["time_ms"])

    def _write_model(self, run_id: str, entry: dict, folder: Path) -> str | None:
        experiment = self._client.get_run(run_id).info.experiment_id
        model_id = self._finished_model(run_id, experiment, entry["name"])
        if model_id is None:
            model_id = self._log_model(run_id, experiment, entry, folder)
        if not entry["register_as"]:
            return None
        version = self._register(entry["register_as"], model_id, run_id)
        return f"registered as models:/{entry['register_as']}/{version}"

    # --- models ----------------------------------------------------------------------------------

    def _finished_model(self, run_id: str, experiment: str, name: str) -> str | None:
        found = self._client.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{run_id}'"
        )
        ready = [m.model_id for m in found if m.name == name and m.status.value == "READY"]
        return ready[0] if ready else None

    def _log_model(self, run_id: str, experiment: str, entry: dict, folder: Path) -> str:
        from mlflow.entities import LoggedModelOutput

        logged = self._client.create_logged_model(
            experiment, name=entry["name"], source_run_id=run_id, model_type="classifier"
        )
        with tempfile.TemporaryDirectory() as place:
            source, target = Path(place) / "base", Path(place) / "model"
            for file in entry["files"]:
                _stage(folder, file, source)
            _save_pyfunc(target, source, entry["facts"], logged, run_id)
            self._client.log_model_artifacts(logged.model_id, str(target))
        self._client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self._client.finalize_logged_model(logged.model_id, "READY")
        return logged.model_id

    def _register(self, name: str, model_id: str, run_id: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self._client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run_id:
                return version.version
        with _default_store(self.uri):
            made = self._client.create_model_version(
                name, f"models:/{model_id}", run_id=run_id, model_id=model_id
            )
        return made.version

    # --- runs ------------------------------------------------------------------------------------

    def _experiment(self, name: str, out: Path) -> str:
        from mlflow.exceptions import MlflowException

        local = self.uri.startswith("sqlite:")
        place = (out.parent / "mlartifacts").as_uri() if local else None
        for _ in range(2):
            found = self._client.get_experiment_by_name(name)
            if found is not None:
                return found.experiment_id
            try:
                return self._client.create_experiment(name, artifact_location=place)
            except MlflowException as error:  # somebody else made it in between
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise ConnectionError(f"the experiment {name!r} can neither be found nor made")

    def _with_key(self, key: str, experiments: list[str]) -> str | None:
        found = self._client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0].info.run_id if found else None

    def _parent(self, run_id: str) -> str:
        if not run_id.startswith(KEY_PREFIX):
            return run_id
        everywhere = [each.experiment_id for each in self._client.search_experiments()]
        found = self._with_key(run_id, everywhere)
        if found is None:
            raise ParentMissing(
                f"its parent, the run {run_id}, has not arrived; replay the folder of that run first"
            )
        return found


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Make a store MLflow's default for a moment: an SQL registry looks there for ``models:/ID``.

    MLflow's setter writes the environment too, which is put back; what was set by either is then
    found there.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def import_pyfunc():
    """Return ``mlflow.pyfunc``, which warns of its own type hints when it is first imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
    return mlflow.pyfunc


def first_line(error: BaseException) -> str:
    """Return what went wrong in a line; no password is in it.

    Of a connection that fails MLflow tells the whole request; what lies beneath says it shortly.
    """
    beneath = error
    while beneath.__cause__ or beneath.__context__:
        beneath = beneath.__cause__ or beneath.__context__
    said = str(beneath if isinstance(beneath, OSError) else error)
    return without_password((said.splitlines() or [type(error).__name__])[0][:300])


def _batches(found: list, size: int) -> list[list]:
    return [found[start : start + size] for start in range(0, len(found), size)]


def _stage(folder: Path, file: dict, target: Path) -> None:
    """Put a file of the journal where it is to lie in the store, below `target`."""
    source = find_file(folder, file)
    if source is None:
        raise Rejected(
            f"{file['path']} was changed or removed since the run recorded it, and no copy was kept"
        )
    place = target / file["to"] / Path(file["path"]).name
    place.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(source, place)


def _save_pyfunc(target: Path, source: Path, facts: dict, logged, run_id: str) -> None:
    """Write the folder of an MLflow model: MLmodel, signature, input example, requirements, data."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from metaecg.models.mlflow_model import example_windows

    pyfunc = import_pyfunc()
    shape = (-1, facts["n_leads"], facts["n_samples"])
    inputs = Schema([TensorSpec(np.dtype("float32"), shape)])
    outputs = Schema([TensorSpec(np.dtype("float64"), (-1, len(facts["classes"])))])
    example = example_windows(
        n_leads=facts["n_leads"], n_samples=facts["n_samples"], fs_hz=facts["fs_hz"]
    )
    model = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        run_id=run_id,
        metadata=facts["metadata"],
        model_id=logged.model_id,
    )
    pyfunc.save_model(
        str(target),
        mlflow_model=model,
        loader_module=facts["loader_module"],
        data_path=str(source),
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        input_example=example,
        pip_requirements=[f"{name}=={_version(name)}" for name in facts["requirements"]],
    )


def _version(package: str) -> str:
    """Return a package's version; what a build adds to it (``+cpu``) is on no index."""
    return metadata.version(package).partition("+")[0]
