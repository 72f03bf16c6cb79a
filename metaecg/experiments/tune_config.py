"""The configuration of `tune`: every field with its meaning."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from metaecg.experiments.config import Positive, Section


class TuneTrackingConfig(Section):
    """The MLflow run of the study; every trial is a child of it."""

    enabled: bool = True
    """Record the study with MLflow."""
    uri: str | None = None
    """Store; default $MLFLOW_TRACKING_URI, else an SQLite file beside the output folder."""
    experiment: str = "tune"
    """Name of the MLflow experiment."""


class TuneConfig(Section):
    """Everything that decides a study."""

    recipe: Literal["va_fewshot"] = "va_fewshot"
    """What is tuned; its search space is declared beside it."""
    data: Path | None = None
    """Folder with one folder per database; default $METAECG_DATA, else the user cache folder."""
    databases: list[str] | None = None
    """Databases, comma-separated; default as for the recipe: those under --data, else generated
    patients (demo)."""
    out: Path = Path("runs/tune")
    """Folder for best.yaml, split.json and study.json."""
    cache: Path | None = None
    """Folder for prepared windows; default the user cache folder."""
    storage: str | None = None
    """Where the study is kept: sqlite:///FILE or journal:FILE on one machine,
    postgresql://USER@HOST/DATABASE for several; default an SQLite file in the output folder."""
    study: str = "study"
    """Name of the study; the same name and storage again take it up, or join it."""
    n_trials: Positive = 50
    """Trials of the study in all, finished ones counted."""
    workers: Positive = 1
    """Processes that run trials, one thread each."""
    method: list[str] | None = None
    """Methods of the recipe, comma-separated: one to tune, or some to choose from; default the
    recipe's own choice."""
    objective: Literal["auc", "f1", "auc,adapt_seconds", "auc,adapter_bytes"] = "auc"
    """Mean over the meta-validation subjects; with two, AUC against what a patient's detector costs."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How the next trial is chosen: tpe learns from those before it."""
    pruner: Literal["hyperband", "median", "none"] = "hyperband"
    """How a trial that does badly is stopped early; with two objectives none is."""
    start_with_defaults: bool = True
    """The first trial is the recipe as it is configured, as far as it lies in the space."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Folds of the recipe's protocol; default as for the recipe."""
    hold_out_folds: Annotated[list[int], Field(min_length=1)] = [0]
    """Folds whose subjects are held out: no trial ever sees them."""
    split: Path | None = None
    """Split manifest (JSON) that replaces these folds: its test subjects are held out."""
    n_inner_folds: Annotated[int, Field(ge=2)] = 3
    """Subject-disjoint folds among the others; a trial is judged on each once."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the sampler and of every training."""
    config: dict[str, Any] = {}
    """Fields of the recipe's configuration that are the same in all trials, such as
    {budget_windows: 60000}."""
    space: dict[str, Any] = {}
    """Field to {choices: [...]} or {low, high, log, step, int}: replaces or adds to the recipe's own
    space; null takes a field out."""
    tracking: TuneTrackingConfig = TuneTrackingConfig()

    @property
    def objectives(self) -> tuple[str, ...]:
        """The figures, the deciding one first."""
        return tuple(self.objective.split(","))

    @property
    def storage_url(self) -> str:
        """Where the study is kept."""
        return self.storage or f"sqlite:///{self.out / 'study.db'}"


LIST_FIELDS = ("databases", "method", "hold_out_folds")

PRESETS: dict[str, dict] = {
    "quick": {"n_trials": 6, "n_inner_folds": 2, "config": {"budget_windows": 3_000}},
    "demo": {"n_trials": 20, "config": {"budget_windows": 6_000}},
}
"""``quick``: a first look. ``demo``: what generated patients need, in a minute or two."""
