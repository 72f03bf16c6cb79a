"""A network that leaves the finite numbers is an error, never a confident answer."""

import numpy as np
import pytest
import torch
from torch import nn

from metaecg.errors import AdaptationError
from metaecg.models.inference import network_logits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_with_the_window(value):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[1].weight[1, 2] = value
    windows = np.zeros((6, 1, 4), np.float32)
    windows[:, :, 2] = 1
    with pytest.raises(AdaptationError, match=r"(nan|inf).*windows\[0\]; finite logits"):
        network_logits(network, windows, n_classes=2)
