"""The configuration of `veb_fewshot`: every field with its meaning."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from metaecg.experiments.config import (
    DemoConfig,
    HTuningConfig,
    Positive,
    PositiveFloat,
    Section,
    TrackingConfig,
)

Share = Annotated[float, Field(ge=0, le=1)]


class BeatsConfig(Section):
    """How recordings become beats. With --base those of the base hold."""

    fs_hz: PositiveFloat = 125.0
    """Sampling rate of the windows, hertz."""
    before_s: PositiveFloat = 1.0
    """From the start of a window to its R peak, seconds."""
    after_s: PositiveFloat = 0.75
    """From the R peak to the end of the window, seconds: how long an answer takes at least."""
    lowcut_hz: PositiveFloat = 0.5
    """Lower edge of the band-pass, hertz (at least 0.5)."""
    highcut_hz: PositiveFloat = 40.0
    """Upper edge of the band-pass, hertz."""
    leads: Literal[1, 2] = 2
    """Leads that judge a beat: the preferred one, or it and the next one of the recording, which must
    both speak for V. A base made for one lead judges by one."""
    use_next_rr: bool = True
    """Let a beat know the interval to the next one: an answer then takes until the next beat. False:
    the past alone."""


class BeatNetworkConfig(Section):
    """The networks, beat-cnn; those of all folds together are the base."""

    width: Annotated[int, Field(ge=4)] = 16
    """Channels of the first two convolutions, a multiple of 4."""
    n_hidden: Positive = 32
    """Width of the layer before the head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Part of that layer's inputs that is dropped while training."""


class BeatTrainConfig(Section):
    """Supervised training of each network."""

    n_repeats: Positive = 3
    """Networks per fold, from other initial weights and batches; their logits are averaged."""
    n_steps: Annotated[int, Field(ge=10)] = 200
    """Steps; with more of them subjects who were not trained on are judged worse (docs/results/veb.md)."""
    batch_size: Annotated[int, Field(ge=8)] = 128
    """Beats in a step, the same number of each class."""
    lr: PositiveFloat = 2e-3
    """Highest learning rate of the one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's weight decay."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Keeps the logits from running away, so that they can be compared between patients."""


class ContextConfig(Section):
    """How a patient's other beats count (metaecg.models.beat_context); lists are chosen from on
    training subjects."""

    enabled: bool = True
    """False: every beat by itself."""
    mode: Literal["causal", "offline"] = "offline"
    """offline: the whole recording; causal: the beats before one alone."""
    level_weight: Annotated[list[Share], Field(min_length=1)] = [0.0, 0.5, 1.0]
    """Part of the running median's difference that is taken off."""
    neighbour_weight: Annotated[list[Share], Field(min_length=1)] = [0.0, 0.5, 0.8]
    """Weight of the beats most like one."""
    n_neighbours: Positive = 16
    """How many of them."""
    n_recent: Positive = 1000
    """Beats that the running median is over."""
    n_searched: Positive = 600
    """Beats before one among which those most like it are looked for."""
    label_logit: PositiveFloat = 6.0
    """Log odds that a label stands for, where a labelled beat is like another one."""
    active_vote: Share = 0.25
    """Weight of the nearest labels' vote where the labels were asked for: they stand for every kind of
    beat, which the first ones in time do not."""


class BeatPersonalizeConfig(Section):
    """Fine-tuning on a patient's support."""

    n_steps: Positive | None = None
    """Steps over the whole support; default 30, of h-tuning 200."""
    lr: dict[Literal["head", "full", "lora", "h-tuning"], PositiveFloat] = {
        "head": 3e-3,
        "full": 1e-4,
        "lora": 1e-3,
    }
    """Learning rate by method, gentler than for two-second windows: a base for beats knows more. What
    isn't named has that of Personalizer."""
    rank: Positive | None = None
    """Rank of the low-rank layers; default 4 of lora, 16 of h-tuning."""
    h_tuning: HTuningConfig = HTuningConfig()


class GuardConfig(Section):
    """When a personalization is refused (metaecg.adapt.guard); the base's answer is kept then."""

    enabled: bool = True
    """False: never."""
    n_parts: Annotated[int, Field(ge=2)] = 5
    """Parts of the support, each held out once."""
    max_more_errors: int = -1
    """How many more held-out beats it may get wrong than the base; -1: it must get one fewer wrong, so
    a patient whose labelled beats the base knows already keeps the base."""
    max_loss_rise: float = 0.0
    """How much its mean log loss on held-out beats may be above the base's."""
    max_changed: Share = 0.25
    """Part of the patient's beats so far that it may name otherwise than the base; on folds of DS1 it was
    0.22 at most where fitting helped, but for one record that is noise for the most part (108)."""


NO_FIGURE = {"out", "cache", "workers", "tracking", "data", "keep_jobs"}
"""Fields that change no figure, but for ``data``, whose content has checksums of its own."""


class VebConfig(Section):
    """Everything that decides a run of veb_fewshot."""

    data: Path | None = None
    """Folder with one folder per database; default $METAECG_DATA, else the user cache folder."""
    databases: list[str] | None = None
    """Databases, comma-separated; default mitdb where it lies under --data, else generated patients
    (demo)."""
    out: Path = Path("runs/veb")
    """Folder for results.json, report.html, model/ and the rest; with --base runs/veb_base by
    default."""
    cache: Path | None = None
    """Folder for prepared beats; default the user cache folder."""
    methods: list[str] | None = None
    """Methods, comma-separated; default all but those run by name only. See --list-methods."""
    split: Path | None = None
    """Split manifest (JSON) instead of DS1 and DS2; it may name recordings of a subject for the
    support and others for the test (docs/veb.md)."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Seeds, comma-separated; at least three for figures that are to be quoted."""
    n_shots: Positive = 10
    """Labelled beats per class (V, other) of a test subject."""
    classes: Literal[2, 5] = 2
    """2: V against the rest. 5: N, S, V, F; Q is never called, since DS1 has 8 beats of it."""
    r_peaks: Literal["annotated", "detected"] = "annotated"
    """Beats of the test subjects: where the annotations say, or where they are found."""
    folds: Annotated[int, Field(ge=2)] = 4
    """Folds of the training subjects: networks without each, judged on it for the threshold."""
    base: str | None = None
    """An existing base (veb-base, folder, or models:/NAME/VERSION of MLflow): personalize and
    evaluate it, train nothing."""
    development: bool = False
    """Hold out folds of DS1 instead of DS2: choices are made on these figures, never on DS2's."""
    include_seen: bool = False
    """With --base: also evaluate subjects that the base was trained on (not held out)."""
    workers: Positive = 2
    """Processes, one thread each. The figures don't depend on it."""
    keep_jobs: bool = False
    """Keep OUT/jobs: a later run there with more seeds takes up what is finished."""
    beats: BeatsConfig = BeatsConfig()
    network: BeatNetworkConfig = BeatNetworkConfig()
    train: BeatTrainConfig = BeatTrainConfig()
    context: ContextConfig = ContextConfig()
    personalize: BeatPersonalizeConfig = BeatPersonalizeConfig()
    guard: GuardConfig = GuardConfig()
    demo: DemoConfig = DemoConfig()
    tracking: TrackingConfig = TrackingConfig(experiment="veb_fewshot")

    def values(self, *, without: set[str]) -> dict:
        """Return plain JSON values but for the fields `without`."""
        return self.model_dump(mode="json", exclude=without)

    def hash(self) -> str:
        """Return a short checksum over everything that can change a figure."""
        text = json.dumps(self.values(without=NO_FIGURE), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


QUICK: dict = {"seeds": [0], "folds": 2, "train": {"n_steps": 100, "n_repeats": 1}}
"""What ``--quick`` sets."""
