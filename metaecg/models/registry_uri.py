"""Take a base from an MLflow registry or run: ``models:/va/3``, ``runs:/ID/model``."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaecg.errors import CheckpointError
from metaecg.models.mlflow_model import LOADER

SCHEMES = ("models:/", "runs:/")
LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Seconds and tries of a request; MLflow's own (120 s, 7 tries) say after a quarter of an hour that
nobody is there. And no bar for a file that is there in a moment."""


def is_registry_uri(name: object) -> bool:
    """Say whether a base's name is one of MLflow's addresses."""
    return isinstance(name, str) and name.startswith(SCHEMES)


@contextmanager
def base_from_registry(uri: str) -> Iterator[Path]:
    """Download the model `uri` and give the folder of its base; it is removed at the end.

    The registry is the one that MLflow is set to: ``mlflow.set_registry_uri``,
    ``$MLFLOW_REGISTRY_URI``, else that of tracking, ``$MLFLOW_TRACKING_URI``. Nothing of the model
    is executed: its description is read, and its data are a base's two files.

    Raises
    ------
    CheckpointError
        mlflow isn't installed; there is no such model, version or run; the registry can't be
        reached; or the model isn't a base of metaecg.
    """
    with tempfile.TemporaryDirectory(prefix="metaecg-base-") as place:
        yield _base_folder(_download(uri, place), uri)


@contextmanager
def http_limits(limits: dict[str, str] = LIMITS) -> Iterator[None]:
    """Keep MLflow's requests short for the time of the block; what the user set stays."""
    new = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def without_password(text: str) -> str:
    """Return `text` with what could be a password in the addresses in it replaced by stars.

    Of an address with a user or a port before its first slash all is hidden up to its last @, the
    user too: a password may hold slashes and @, and nobody can tell it then from a path. And all
    that follows ``password=`` up to the next ``&``.

    Examples
    --------
    >>> without_password("https://me:secret@tracking.example/mlflow")
    'https://***@tracking.example/mlflow'
    >>> without_password("postgresql://me:pa/s@s@host/db?sslmode=require&password=secret is away")
    'postgresql://***@host/db?sslmode=require&password=*** is away'
    >>> without_password("sqlite:////home/me@work/mlflow.db")
    'sqlite:////home/me@work/mlflow.db'
    """
    text = re.sub(r"://(?=[^\s/?#]*[@:])\S*@", "://***@", text)
    return re.sub(r"(password=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)


def _download(uri: str, place: str) -> Path:
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise CheckpointError(
            f"the base {uri!r} lies with MLflow, and mlflow can't be imported ({error}). Install "
            "it: pip install mlflow"
        ) from error
    try:
        with http_limits():
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=place))
    except MlflowException as error:
        raise CheckpointError(_problem(uri, error)) from error
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise CheckpointError(
            f"the base {uri!r} can't be downloaded from {_registry()} ({_first_line(error)}). Check "
            "that it runs and can be reached."
        ) from error


def _problem(uri: str, error: Exception) -> str:
    """Say what MLflow's error means, and what can be done about it."""
    where, said = _registry(), _first_line(error)
    if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
        return (
            f"there is no base {uri!r} at {where} ({said}). {_known(uri)}Expected models:/NAME/VERSION, "
            "models:/NAME@ALIAS, models:/NAME/latest or runs:/ID/model; MLFLOW_TRACKING_URI or "
            "MLFLOW_REGISTRY_URI names the registry."
        )
    return (
        f"the registry {where} can't be used for {uri!r} ({said}). Check that it runs and that "
        "MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI is its address."
    )


def _known(uri: str) -> str:
    """Return a sentence with the versions that the model of `uri` has, or the names there are."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name = re.split(r"[/@]", uri.removeprefix("models:/"))[0]
    if not uri.startswith("models:/") or "'" in name:
        return ""
    try:
        with http_limits():
            client = MlflowClient()
            versions = [v.version for v in client.search_model_versions(f"name = '{name}'")]
            names = [model.name for model in client.search_registered_models(max_results=20)]
    except (MlflowException, OSError):
        return ""
    if versions:
        return f"{name!r} has the versions {', '.join(sorted(map(str, versions), key=int))}. "
    return f"It has the models {', '.join(names)}. " if names else "It has no model at all. "


def _registry() -> str:
    import mlflow

    return without_password(str(mlflow.get_registry_uri()))


def _first_line(error: Exception) -> str:
    return without_password((str(error).splitlines() or [type(error).__name__])[0][:300])


def _base_folder(model: Path, uri: str) -> Path:
    """Return the folder of the base in a downloaded model, after a look at its description."""
    import yaml

    try:
        flavor = yaml.safe_load((model / "MLmodel").read_text())["flavors"]["python_function"]
        loader, data = flavor["loader_module"], flavor["data"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{uri!r} is no MLflow model of the pyfunc flavour with a base in it ({error!r}). Give a "
            "model that a run of metaecg logged."
        ) from error
    if loader != LOADER:
        raise CheckpointError(
            f"{uri!r} is a model of {loader!r}, not a base of metaecg ({LOADER}). Give a model that a "
            "run of va_fewshot logged."
        )
    folder = (model / str(data)).resolve()
    if not folder.is_relative_to(model.resolve()):
        raise CheckpointError(f"{uri!r} names data outside of itself ({data!r}); it is not opened.")
    return folder
