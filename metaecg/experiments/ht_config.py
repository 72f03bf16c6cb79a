"""The configuration of `h_tuning`: every field with its meaning."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from metaecg.experiments.config import Positive, PositiveFloat, Section, TrackingConfig

Share = Annotated[float, Field(gt=0, lt=1)]
Shares = Annotated[list[Share], Field(min_length=3, max_length=3)]


class InputConfig(Section):
    """How recordings become the network's input."""

    fs_hz: PositiveFloat = 100.0
    """Sampling rate of the input, hertz; the paper takes 500."""
    n_samples: Positive = 1024
    """Length of the input; the paper takes 6144 at 500 Hz. What is missing is zeros."""
    lowcut_hz: PositiveFloat = 1.0
    """Lower edge of the band-pass, hertz."""
    highcut_hz: PositiveFloat = 47.0
    """Upper edge of the band-pass, hertz."""


class SizeConfig(Section):
    """The network, cnn-transformer."""

    size: Literal["tinylight", "tiny", "base", "medium", "large"] = "tinylight"
    """0.26, 1.6, 9.5, 50.5 or 113.5 million parameters; the paper's teacher is medium."""


class PTBXLConfig(Section):
    """The database ptbxl_subset, in PTB-XL's own layout."""

    records_fs_hz: Literal[100, 500] = 100
    """Which of PTB-XL's two copies to read, hertz."""
    classes: Literal["superclass", "subclass", "diagnostic", "form", "rhythm", "all"] = "subclass"
    """What the fine-tuned networks tell apart; the base learns superclasses."""
    min_positives: Positive = 20
    """Fewest records that a class needs among the patients that are left to fine-tuning."""
    shares: Shares = [0.08, 0.02, 0.90]
    """Shares of the patients that train, validate and test; as published."""
    pretrain_share: Share = 0.5
    """Share of the patients that the base is trained on. They are in no split."""


class CincConfig(Section):
    """The database cinc2021_sample, in the layout of the PhysioNet Challenge 2021."""

    min_positives: Positive = 5
    """Fewest records that a class needs."""
    shares: Shares = [0.40, 0.20, 0.40]
    """Shares of the patients that train, validate and test: 8/2/90 of 50 records would leave one
    record to choose thresholds by."""


class BaseConfig(Section):
    """Supervised training of the base."""

    n_steps: Positive = 600
    """Steps."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Recordings in a step."""
    lr: PositiveFloat = 1e-3
    """Highest learning rate of AdamW."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the choice of its patients, its first weights and its batches; one base for all seeds."""


class TrainConfig(Section):
    """Fine-tuning, the same for every method."""

    n_steps: Positive = 200
    """Most steps; of full fine-tuning where `budget` is compute."""
    budget: Literal["steps", "compute"] = "steps"
    """Equal among methods: steps, or recordings passed forwards (a backward pass counts as two)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Recordings in a step (N), all of them if there are fewer."""
    lr: PositiveFloat | None = None
    """Of low-rank methods; default 2e-3 for steps of more than 64 recordings, else 1e-3."""
    lr_full: PositiveFloat = 1e-3
    """Of full fine-tuning."""
    lr_head: PositiveFloat = 1e-2
    """Of the head alone."""
    rank: Positive = 16
    """Inner width of the low-rank layers."""
    check_every: Positive = 10
    """Steps between two looks at the validation's mean average precision."""
    patience: Positive = 10
    """Looks without a better value, after which training ends. The best weights are kept."""


class MixOrderConfig(Section):
    """H-Tuning's gradient, and the grid to choose it from."""

    mixing: Annotated[float, Field(ge=0, le=1)] = 0.85
    """Weight of the first order in the shallow gradient (lambda)."""
    scale: PositiveFloat = 1e-3
    """Length of the perturbation (mu)."""
    n_samples: Positive = 1
    """Directions in a step (n)."""
    n_first_order: Positive = 2
    """Recordings of the backward pass through all layers (N1)."""
    chunk: Positive = 16
    """Recordings that h-tuning-chunked passes forwards at once."""
    grid: bool = False
    """Choose mixing and scale per seed by the validation, never by the test, from the two lists."""
    mixing_grid: list[float] = [0.85, 0.90, 0.95, 0.99]
    """Values of mixing, as published."""
    scale_grid: list[float] = [1e-3, 1e-4]
    """Values of scale, as published."""


class DistillConfig(Section):
    """Small students of a fine-tuned network, for fewer leads."""

    enabled: bool = False
    """Train them, for every database, split and seed; the same as --distill."""
    teacher: str = "full"
    """The method that fine-tunes the teacher, a network of network.size. See --list-methods."""
    student: Literal["tinylight", "tiny", "base", "medium", "large"] = "tinylight"
    """Size of the students. One as large as the base starts from it, any other from random
    weights."""
    leads: Annotated[list[Literal[1, 3, 12]], Field(min_length=1)] = [12, 3, 1]
    """How many leads: all, II with V1 and V5, or I; each with the teacher and without. To choose:
    distill.leads=[3,1]."""
    n_steps: Positive = 400
    """Most steps of a student, of train.batch_size recordings."""
    lr: PositiveFloat = 1e-3
    """Highest learning rate of AdamW."""
    check_every: Positive = 25
    """Steps between two looks at the validation's mean average precision."""
    patience: Positive = 10
    """Looks without a better value, after which training ends. The best weights are kept."""


class HTTrackingConfig(TrackingConfig):
    """The MLflow run."""

    experiment: str = "h_tuning"
    """Name of the MLflow experiment."""


NO_FIGURE = {"out", "cache", "workers", "tracking", "data", "device", "keep_jobs"}
"""Fields that change no figure, but for ``data``, whose content has checksums of its own, and
``device``, whose figures are stamped with it."""


class HTConfig(Section):
    """Everything that decides a run of h_tuning."""

    data: Path | None = None
    """Folder with one folder per database; default $METAECG_DATA, else the user cache folder."""
    databases: Annotated[
        list[Literal["ptbxl_subset", "cinc2021_sample"]], Field(min_length=1)
    ] = ["ptbxl_subset", "cinc2021_sample"]  # fmt: skip
    """Databases, comma-separated. The base learns from ptbxl_subset in any case, unless one is given."""
    splits: Annotated[list[Literal["patients", "strat_fold"]], Field(min_length=1)] = [
        "patients",
        "strat_fold",
    ]
    """Splits, comma-separated: patients draws anew for every seed; strat_fold is PTB-XL's own."""
    methods: list[str] | None = None
    """Methods, comma-separated; default all. See --list-methods."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    """Seeds, comma-separated."""
    out: Path = Path("runs/h_tuning")
    """Folder for results.json, results.md, base/ and the rest."""
    cache: Path | None = None
    """Folder for prepared signals; default the user cache folder."""
    base: Path | None = None
    """A folder base/ of an earlier run: fine-tune that one, train none."""
    workers: Positive = 2
    """Processes, one thread each. Take no more than there are free cores: times would mean little."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train, and whose memory is measured."""
    keep_jobs: bool = True
    """Keep OUT/jobs at the end: a later run there with more seeds or methods takes up what is
    finished."""
    n_resamples: Annotated[int, Field(ge=100)] = 1000
    """Resamples of the bootstrap over seeds and patients."""
    input: InputConfig = InputConfig()
    network: SizeConfig = SizeConfig()
    ptbxl: PTBXLConfig = PTBXLConfig()
    cinc2021: CincConfig = CincConfig()
    pretrain: BaseConfig = BaseConfig()
    train: TrainConfig = TrainConfig()
    h_tuning: MixOrderConfig = MixOrderConfig()
    distill: DistillConfig = DistillConfig()
    tracking: HTTrackingConfig = HTTrackingConfig()

    def decisive(self, *, without: set[str] = frozenset()) -> dict:
        """Return what can change a figure, as plain JSON values, but for the fields `without`."""
        return self.model_dump(mode="json", exclude=NO_FIGURE | set(without))

    def hash(self) -> str:
        """Return a short checksum over everything that can change a figure."""
        text = json.dumps(self.decisive(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


LIST_FIELDS = ("databases", "splits", "methods", "seeds")

QUICK = {
    "databases": ["ptbxl_subset"],
    "splits": ["patients"],
    "seeds": [0],
    "pretrain": {"n_steps": 60},
    "train": {"n_steps": 30},
    "distill": {"n_steps": 60},
    "n_resamples": 200,
}
"""What ``--quick`` sets: one split, one seed, few steps."""
