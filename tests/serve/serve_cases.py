"""A small base and patients' detectors that several tests of the server need."""

import numpy as np
import torch

from metaecg.adapt.personalize import Personalizer
from metaecg.data.preprocessing import Preprocessing
from metaecg.models.checkpoints import BaseModel
from metaecg.models.registry import build_network
from metaecg.models.rhythm import RhythmModel

RHYTHM = RhythmModel(
    p_onset=0.03,
    p_end=0.2,
    strength_onset=100,
    strength_end=10,
    temperature=3,
    bias=0.1,
    threshold=0.4,
    step_s=1,
)


def make_base(architecture="compact-cnn", *, rhythm=None, seed=0, **kwargs) -> BaseModel:
    """Return a base for windows of one second at 100 Hz, with random weights."""
    network = build_network(
        architecture,
        n_leads=1,
        n_samples=100,
        fs_hz=100.0,
        n_classes=2,
        generator=torch.Generator().manual_seed(seed),
        **kwargs,
    )
    return BaseModel(
        network=network,
        architecture=architecture,
        architecture_kwargs=kwargs,
        n_leads=1,
        classes=("other", "va"),
        preprocessing=Preprocessing(fs_hz=100.0, window_s=1.0),
        rhythm=rhythm,
    )


def windows_like(base, n, *, seed=0) -> np.ndarray:
    """Return noise of the shape that a base takes, ``(n, n_leads, n_samples)``."""
    shape = (n, base.n_leads, base.preprocessing.n_samples)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def personal_of(base, method="lora", *, seed=0, **arguments) -> Personalizer:
    """Return a patient's detector whose numbers differ from those of another seed."""
    personal = Personalizer(base, method=method, random_state=seed, **{"n_steps": 2, **arguments})
    windows = windows_like(base, 6, seed=100 + seed)
    return personal.fit(windows, [0, 1] * 3, time_s=np.arange(6.0))
