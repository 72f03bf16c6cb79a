"""The configuration of `va_fewshot`: every field with its meaning; all mistakes reported at once."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metaecg.checks import did_you_mean
from metaecg.data.augment import Augmentation
from metaecg.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Config = TypeVar("Config", bound=BaseModel)


class Section(BaseModel):
    """A part of a configuration: what it doesn't know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PreprocessingConfig(Section):
    """How signals become windows."""

    fs_hz: PositiveFloat = 200.0
    """Sampling rate of the windows, hertz."""
    window_s: PositiveFloat = 2.0
    """Window length, seconds."""
    lowcut_hz: PositiveFloat = 0.5
    """Lower edge of the band-pass, hertz (at least 0.5)."""
    highcut_hz: PositiveFloat = 40.0
    """Upper edge of the band-pass, hertz."""
    normalize: Literal["window", "none"] = "window"
    """Scale each window by its own mean and spread, or leave millivolts."""


class NetworkConfig(Section):
    """The network of the base."""

    name: Literal[
        "compact-cnn",
        "compact-cnn-ensemble",
        "metava",
        "resnet1d-18",
        "gru",
        "lstm",
        "bilstm",
        "net1d",
        "cnn-transformer",
    ] = "compact-cnn"
    """A name of metaecg.models.registry.NETWORKS; meta-learning by the engine func needs one without
    batch norm and recurrent cells."""
    arguments: dict[str, int | float | str | bool] = {}
    """The network's own arguments, such as {width: 16}."""


class PretrainConfig(Section):
    """Supervised pre-training."""

    batch_size: Annotated[int, Field(ge=2)] = 64
    """Windows in a batch, half of each class."""
    lr: PositiveFloat = 3e-3
    """Highest learning rate of the one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """AdamW's weight decay."""


class MetaConfig(Section):
    """Meta-learning, of the bases maml and maml+curriculum."""

    algorithm: Literal["maml", "fomaml", "anil", "meta-sgd", "maml++", "reptile"] = "maml"
    """What the inner loop adapts and what is learned; see docs/methods.md."""
    engine: Literal["func", "learn2learn"] = "func"
    """How tasks are adapted: func adapts a whole meta-batch together (torch.func), learn2learn one
    task after the other (scripts/install_learn2learn); the gradients are the same."""
    meta_batch_size: Positive = 8
    """Subjects in a meta-batch."""
    n_query: Positive = 10
    """Query windows per class of a training task."""
    inner_lr: PositiveFloat = 0.05
    """Step size of the inner loop; its start where it is learned (meta-sgd, maml++)."""
    inner_steps: Positive = 5
    """Steps of the inner loop."""
    first_order: bool = False
    """Drop second derivatives; fomaml always does, reptile has none."""
    outer_lr: PositiveFloat = 2e-3
    """Highest learning rate of the outer loop (AdamW, cosine)."""
    warm_start: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Part of the budget spent on supervised pre-training before meta-learning starts."""
    chronological: bool = True
    """Training tasks have the support before the query, as in use."""
    task_chunk: Positive | None = None
    """Adapt at most so many tasks at once: same gradients, less memory."""


class AugmentConfig(Section):
    """Random changes to the windows that a base is trained on, by supervised and by meta-learning;
    all zero: none. What is tested and what a patient's detector is fitted to stays as it was measured
    (docs/methods.md)."""

    gain: Annotated[float, Field(ge=0, le=4)] = 0.0
    """Amplitude times a factor between 1 / (1 + gain) and 1 + gain."""
    polarity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the training tasks turned upside down; supervised training turns half of its windows
    in any case."""
    baseline: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Largest baseline wander, as a part of the window's spread."""
    noise: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Largest noise of electrodes and muscles, as a part of the window's spread."""
    time_warp: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Rate times a factor between 1 / (1 + time_warp) and 1 + time_warp."""
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Part of the windows (in meta-learning: of the tasks) that is changed at all."""

    @property
    def is_off(self) -> bool:
        """Whether nothing is ever changed, whatever the fields say."""
        return Augmentation(**self.model_dump()).is_off


class EnsembleConfig(Section):
    """Several networks in one (methods with the base ensemble); network.name is compact-cnn then."""

    n_members: Annotated[int, Field(ge=2, le=16)] = 3
    """Networks, each pre-trained on the whole budget from a seed of its own."""


class ShotsConfig(Section):
    """How the figures grow with the number of labelled windows; all on the same test windows."""

    method: str = "ensemble+full+offline"
    """The method; with 0 windows its base as it is, in time as the method does."""
    n_shots: list[Annotated[int, Field(ge=0)]] = []
    """Labelled windows per class, such as [0,1,3,5,10,20]. The test part comes after the largest
    support, for all of them; who has too few windows for that is left out. Default: no curve."""


class CurriculumConfig(Section):
    """Which subjects are trained on when (methods with +curriculum)."""

    difficulty: Literal["initial-loss", "running-loss", "separability"] = "initial-loss"
    """How hard a subject is: initial-loss (MetaVA), running-loss or separability."""
    pacing: Literal["metava", "linear", "exponential", "self-paced", "none"] = "linear"
    """From easy to hard: metava, linear, exponential, self-paced or none."""


class HTuningConfig(Section):
    """Gradients of the methods with +h-tuning; the defaults are the paper's."""

    mixing: Annotated[float, Field(ge=0, le=1)] = 0.85
    """Weight of the first-order gradient; 1 is the control without the zeroth order."""
    scale: PositiveFloat = 1e-3
    """Length of the perturbation."""
    n_samples: Positive = 1
    """Directions that a step measures."""
    n_first_order: Positive = 2
    """Windows of a step whose gradient goes through all layers."""
    direction: Literal["measured", "random"] = "measured"
    """random: the control whose zeroth-order step has a random sign."""
    batch_norm: Literal["train", "eval"] = "train"
    """train: the patient gets running statistics of its own; eval: those of the base stay."""


class PersonalizeConfig(Section):
    """Fine-tuning on a patient's support."""

    n_steps: Positive | None = None
    """Steps over the whole support; default 30, of h-tuning 200."""
    lr: PositiveFloat | None = None
    """Learning rate; the default depends on the method."""
    rank: Positive | None = None
    """Rank of the low-rank layers; default 4 of lora, 16 of h-tuning."""
    micro_batch: Positive | None = None
    """Take at most so many windows at once: the gradients add up, less memory."""
    freeze: list[str] = []
    """Modules of the network that are not trained, such as [blocks.0]."""
    h_tuning: HTuningConfig = HTuningConfig()
    prefine: Literal["intended", "released"] = "intended"
    """Reading of MetaVA's pre-fine-tuning that methods with +prefine use."""


class DemoConfig(Section):
    """The generated patients of the embedded default."""

    n_subjects: Annotated[int, Field(ge=8)] = 16
    """How many patients."""
    duration_s: Annotated[float, Field(ge=180)] = 300.0
    """Length of each recording, seconds."""


class TrackingConfig(Section):
    """The MLflow run."""

    enabled: bool = True
    """Record the run with MLflow."""
    uri: str | None = None
    """Store; default $MLFLOW_TRACKING_URI, else an SQLite file beside the output folder. Where it
    can't be reached, OUT/tracking-missing keeps what python -m metaecg.experiments.tracking sends."""
    experiment: str = "va_fewshot"
    """Name of the MLflow experiment."""
    register_as: Annotated[str, Field(pattern=r"^[^/:@]+$")] | None = None
    """Name in MLflow's registry; the run's base becomes a new version there. Default: none."""


NO_FIGURE = {"out", "cache", "workers", "tracking", "data", "keep_jobs"}
"""Fields that change no figure, but for ``data``, whose content has checksums of its own."""


class VAConfig(Section):
    """Everything that decides a run of va_fewshot."""

    data: Path | None = None
    """Folder with one folder per database; default $METAECG_DATA, else the user cache folder."""
    databases: list[str] | None = None
    """Databases, comma-separated; default: those with VA labels under --data, else generated patients
    (demo)."""
    out: Path = Path("runs/va")
    """Folder for results.json, report.html, model/ and the rest; with --base runs/va_base by default."""
    cache: Path | None = None
    """Folder for prepared windows; default the user cache folder."""
    protocol: Literal["deploy", "as_published"] = "deploy"
    """Rules of the evaluation; see docs/protocol.md. as_published is optimistic."""
    methods: list[str] | None = None
    """Methods, comma-separated; default all. See --list-methods."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Subject-disjoint folds; every eligible subject is held out once."""
    max_folds: Positive | None = None
    """Run only the first so many folds (the others' subjects are not evaluated)."""
    split: Path | None = None
    """Split manifest (JSON) that replaces the folds."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Seeds, comma-separated; at least three for figures that are to be quoted."""
    n_shots: Positive = 10
    """Labelled windows per class of a held-out subject."""
    budget_windows: Annotated[int, Field(ge=64)] = 240_000
    """Training windows that every base sees, supervised or meta-learned: the same budget."""
    base: str | None = None
    """An existing base (published name, folder, or models:/NAME/VERSION of MLflow): personalize and
    evaluate it, train nothing."""
    include_seen: bool = False
    """With --base: also evaluate subjects that the base was trained on (not held out)."""
    workers: Positive = 2
    """Processes, one thread each. The figures don't depend on it."""
    keep_jobs: bool = False
    """Keep OUT/jobs: a later run there with more seeds or methods takes up what is finished."""
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    network: NetworkConfig = NetworkConfig()
    pretrain: PretrainConfig = PretrainConfig()
    meta: MetaConfig = MetaConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    shots: ShotsConfig = ShotsConfig()
    augment: AugmentConfig = AugmentConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    personalize: PersonalizeConfig = PersonalizeConfig()
    demo: DemoConfig = DemoConfig()
    tracking: TrackingConfig = TrackingConfig()

    def values(self, *, without: set[str]) -> dict:
        """Return plain JSON values but for the fields `without`, and for sections that say nothing.

        Those are an augmentation that is off, an ensemble of the default size and no curve over shots.
        Runs from before there were such sections stay comparable in this way: they hold the same
        values.
        """
        silent = {"augment"} if self.augment.is_off else set()
        silent |= {"ensemble"} if self.ensemble == EnsembleConfig() else set()
        silent |= set() if self.shots.n_shots else {"shots"}
        return self.model_dump(mode="json", exclude=without | silent)

    def hash(self) -> str:
        """Return a short checksum over everything that can change a figure."""
        text = json.dumps(self.values(without=NO_FIGURE), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


PRESETS: dict[str, dict] = {
    "quick": {"max_folds": 1, "seeds": [0], "budget_windows": 24_000},
    "demo": {
        "folds": 3,
        "budget_windows": 24_000,
        "meta": {"meta_batch_size": 4},
        "methods": ["zero-shot", "scratch", "head", "pretrain", "maml", "maml+curriculum"]
        + ["maml+curriculum+prefine"],
    },
}
"""``quick``: one fold, one seed, small budgets. ``demo``: what generated patients need, in a minute;
MetaVA as released and the control with shuffled labels take longer (name them with --methods)."""

LIST_FIELDS = ("databases", "methods", "seeds")


def build_config(
    values: dict, section: type[Config] = VAConfig, *, lists: Sequence[str] = LIST_FIELDS
) -> Config:
    """Validate nested values; raise one ConfigError that lists every mistake."""
    for name in lists:
        values = split_list(values, name)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_problem(item, section) for item in error.errors()]) from error


def load_yaml(path: Path) -> dict:
    """Return the mapping in a YAML file; an unreadable file or another content is a ConfigError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"the configuration {path} can't be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration {path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"the configuration {path} holds {content!r}; expected keys and values.")
    return content


def parse_override(text: str) -> tuple[list[str], object]:
    """Return path and value of ``key.subkey=value``; the value is read as YAML."""
    import yaml

    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ConfigError(f"{text!r} is no override; expected key.subkey=value, such as folds=3.")
    try:
        return name.split("."), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {name!r} is {value!r}, which can't be read.") from error


def merge(values: dict, path: list[str], value: object) -> dict:
    """Return `values` with `value` set at `path`, leaving the argument as it is."""
    head, rest = path[0], path[1:]
    if not rest:
        return {**values, head: value}
    inner = values.get(head)
    return {**values, head: merge(inner if isinstance(inner, dict) else {}, rest, value)}


def over(values: dict, winning: dict) -> dict:
    """Return `values` with `winning` over them, section by section, however deep."""
    merged = {**values, **winning}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(winning.get(name), dict):
            merged[name] = over(value, winning[name])
    return merged


def field_names(section: type[BaseModel] = VAConfig, prefix: str = "") -> list[str]:
    """Return every dotted field name."""
    names = []
    for name, info in section.model_fields.items():
        names.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            names += field_names(info.annotation, f"{prefix}{name}.")
    return names


def split_list(values: dict, name: str) -> dict:
    """Return `values` with the comma-separated text or single number at `name` as a list."""
    value = values.get(name)
    if isinstance(value, str):
        return {**values, name: [part.strip() for part in value.split(",") if part.strip()]}
    if isinstance(value, int):
        return {**values, name: [value]}
    return values


def _problem(item: dict, section: type[BaseModel]) -> str:
    """Say what is wrong with one field, with its value and what was expected."""
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{name} is no setting; expected {_nearest(name, section)}"
    expected = item["msg"][0].lower() + item["msg"][1:]
    return f"{name} is {item['input']!r}: {expected}."


def _nearest(name: str, section: type[BaseModel]) -> str:
    *parents, _ = name.split(".")
    prefix = ".".join(parents)
    known = [n for n in field_names(section) if n.rpartition(".")[0] == prefix]
    return did_you_mean(name, known)
