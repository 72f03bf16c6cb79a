"""Running statistics of batch norm are those of the windows given."""

import pytest
import torch
from torch import nn

from metaecg.meta.batch_norm import gather_running_statistics


def test_running_statistics_are_the_mean_over_the_batches():
    """Batches of mean 1 and 5; unbiased variances 2 and 8."""
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
    network[0].running_mean.fill_(100.0)
    batches = [torch.tensor(values)[:, None, None] for values in ([0.0, 2.0], [3.0, 7.0])]
    before = torch.get_rng_state()
    gather_running_statistics(network, batches)
    assert network[0].running_mean.item() == pytest.approx(3.0)
    assert network[0].running_var.item() == pytest.approx(5.0)
    assert network[0].momentum == 0.1 and not network[0].training and not network.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_without_batch_norm_asks_for_no_batch():
    network = nn.Linear(1, 1)
    gather_running_statistics(network, iter(lambda: pytest.fail("a batch was asked for"), None))
    assert not network.training
