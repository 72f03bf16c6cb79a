"""Take runs from an MLflow store: one by its id, or the finished ones of an experiment."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metaecg.checks import did_you_mean
from metaecg.errors import DataError
from metaecg.experiments.compare_runs import Run, read_folder, reason_of
from metaecg.models.registry_uri import without_password

FILES = ("results.json", "config.yaml", "run.json", "predictions.npz")
DEFAULT_STORE = Path("runs/mlflow.db")
"""Beside the output folders that the recipes have by default."""
RUN_ID = re.compile(r"[0-9a-f]{4,32}")
"""A run id, or the beginning of one."""
_FULL_ID = 32
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""A server that is down is reported in seconds; MLflow's own patience is minutes."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Runs of an experiment, the newest first."""

    run_ids: tuple[str, ...]
    notes: tuple[str, ...]
    """What was left out, and how much of it."""


def store_uri(named: str | None, folders: Sequence[Path]) -> str:
    """Return the store to ask: the named one, the environment's, or one beside a folder.

    Raises
    ------
    DataError
        None is named and there is no ``mlflow.db`` beside the folders or in ``runs``.
    """
    uri = named or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    places = [folder.resolve().parent / "mlflow.db" for folder in folders] + [DEFAULT_STORE]
    found = [place for place in places if place.is_file()]
    if found:
        return f"sqlite:///{found[0].resolve()}"
    raise DataError(
        f"there is no MLflow store: no {' and no '.join(str(p) for p in dict.fromkeys(places))}. "
        "Name one with --tracking-uri or $MLFLOW_TRACKING_URI."
    )


class Store:
    """An MLflow store that is read, never written.

    Parameters
    ----------
    uri
        ``sqlite:///FILE``, a folder, or the address of a tracking server.

    Raises
    ------
    DataError
        The file of an SQLite store doesn't exist.
    """

    def __init__(self, uri: str) -> None:
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            raise DataError(  # opening it would make an empty one
                f"the MLflow store {uri} doesn't exist. Name one with --tracking-uri or "
                "$MLFLOW_TRACKING_URI."
            )
        self.uri = uri
        self.shown = without_password(uri)

    def fetch(self, run_id: str, into: Path) -> Run:
        """Read one run; its files are copied below `into`.

        Parameters
        ----------
        run_id
            The id, or at least four characters from its beginning.
        into
            An empty folder that outlives the call only as long as the caller likes.

        Raises
        ------
        DataError
            The store can't be reached; the run is unknown, not finished or has no results.
        """
        with self._asking() as client:
            run = client.get_run(self._whole_id(client, run_id))
            run_id, status = run.info.run_id, run.info.status
            source = f"MLflow run {run_id}"
            if status != "FINISHED":
                raise DataError(
                    f"{source} ({run.info.run_name}) is {status.lower()}, not finished. Start the "
                    "same command again, or name another run."
                )
            folder = into / run_id
            folder.mkdir()
            held = {each.path for each in client.list_artifacts(run_id)}
            for name in FILES:
                if name in held:
                    client.download_artifacts(run_id, name, str(folder))
            if "results.json" not in held:
                raise DataError(
                    f"{source} ({run.info.run_name}) holds no results.json: it is no run of "
                    "va_fewshot or veb_fewshot, or its files were never sent to the store. A "
                    "study's trials have none: they never saw test subjects."
                )
        name = f"{run.info.run_name} ({run_id[:8]})"
        parameters = dict(run.data.params)
        return read_folder(folder, name=name, source=source, parameters=parameters, run_id=run_id)

    def select(self, experiment: str, *, at_most: int) -> Selection:
        """Choose the newest finished runs of an experiment that hold results.

        Raises
        ------
        DataError
            The store can't be reached, or there is no such experiment or no such run in it.
        """
        with self._asking() as client:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                names = [each.name for each in client.search_experiments()]
                raise DataError(
                    f"{self.shown} has no experiment {experiment!r}; expected "
                    f"{did_you_mean(experiment, names)}"
                )
            runs = _all_runs(client, found.experiment_id)
            finished = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
            chosen, n_empty, n_seen = [], 0, 0
            for run_id in finished:
                if len(chosen) == at_most:
                    break
                n_seen += 1
                if any(each.path == "results.json" for each in client.list_artifacts(run_id)):
                    chosen.append(run_id)
                else:
                    n_empty += 1
        if not chosen:
            raise DataError(
                f"experiment {experiment!r} of {self.shown} has {len(finished)} finished runs, none "
                "with a results.json. Run the recipe with tracking.enabled, or name folders."
            )
        counts = {
            "not looked at, being older (--max-runs)": len(finished) - n_seen,
            "not finished": len(runs) - len(finished),
            "without results.json": n_empty,
        }
        left_out = ", ".join(f"{n} {why}" for why, n in counts.items() if n)
        text = f"experiment {experiment!r}: the {len(chosen)} newest finished runs"
        notes = (f"{text}; left out: {left_out}.",) if left_out else ()
        return Selection(run_ids=tuple(chosen), notes=notes)

    @contextmanager
    def _asking(self) -> Iterator:
        """Open a client that gives up soon; whatever the store raises becomes one message."""
        with _environment(_PATIENCE):
            try:
                for name in ("alembic", "mlflow"):
                    logging.getLogger(name).setLevel(logging.ERROR)
                from mlflow.tracking import MlflowClient

                yield MlflowClient(tracking_uri=self.uri)
            except DataError:
                raise
            except Exception as error:  # whatever a store, a network or a database raises
                raise DataError(
                    f"the MLflow store {self.shown} can't be read ({reason_of(error)}). Start the "
                    "server, name another store with --tracking-uri, or name the runs' folders."
                ) from error

    def _whole_id(self, client, run_id: str) -> str:
        if len(run_id) == _FULL_ID:
            where = f"attributes.run_id = '{run_id}'"
        else:
            where = f"attributes.run_id LIKE '{run_id}%'"
        experiments = [each.experiment_id for each in client.search_experiments()]
        found = [r.info.run_id for r in client.search_runs(experiments, where, max_results=5)]
        if not found:
            raise DataError(
                f"{run_id!r} is no folder here, and no run of {self.shown}. Expected an output folder, "
                "a results file, or the id of an MLflow run; --tracking-uri names another store."
            )
        if len(found) > 1:
            raise DataError(
                f"{run_id!r} begins {len(found)} or more run ids of {self.shown}: "
                f"{', '.join(found)}. Write more of it."
            )
        return found[0]


def _all_runs(client, experiment_id: str) -> list:
    """Return the runs of an experiment, the newest first."""
    runs, token = [], None
    while True:
        page = client.search_runs(
            [experiment_id], order_by=["attributes.start_time DESC"], page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return runs


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the user has not set, for the time of the block."""
    missing = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
