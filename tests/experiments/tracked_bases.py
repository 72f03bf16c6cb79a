"""Bases for the tests of tracking."""

import torch

from metaecg.data.preprocessing import Preprocessing
from metaecg.models.checkpoints import BaseModel
from metaecg.models.registry import build_network


def make_base(seed):
    """Return an untrained base for windows."""
    network = build_network(
        "compact-cnn",
        n_leads=1,
        n_samples=400,
        fs_hz=200.0,
        n_classes=2,
        generator=torch.Generator().manual_seed(seed),
    )
    return BaseModel(
        network=network,
        architecture="compact-cnn",
        n_leads=1,
        classes=("other", "va"),
        preprocessing=Preprocessing(),
    )
