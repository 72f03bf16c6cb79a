import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.adapt.methods import prepare_network, trained_parameters
from metaecg.adapt.prefine import prefine_intended, prefine_released, split_in_time
from metaecg.errors import AdaptationError, DataError, NotEnoughWindowsError


class Point(nn.Module):
    """One number w; with `distance` as loss, every example pulls it towards its label."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return self.w * x


def distance(prediction, target):
    return 0.5 * ((prediction - target) ** 2).mean()


@pytest.fixture
def x(support):
    return torch.from_numpy(support[0])


@pytest.fixture
def y(support):
    return torch.from_numpy(support[1])


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_the_released_code_equals_ten_plain_gradient_steps(base, x, y, method, shuffled):
    def generator():
        return torch.Generator().manual_seed(3) if shuffled else None

    released, plain = (prepare_network(base.new_network(), method) for _ in range(2))
    prefine_released(released, x, y, generator=generator())

    optimizer = torch.optim.SGD(trained_parameters(plain).values(), lr=1e-3)
    draws = generator()
    for _ in range(10):
        order = torch.randperm(20, generator=draws) if shuffled else torch.arange(20)
        optimizer.zero_grad()
        for batch in (order[:8], order[8:16], order[16:]):
            F.cross_entropy(plain(x[batch]), y[batch]).backward()  # gradients add up
        optimizer.step()
    for name, parameter in trained_parameters(plain).items():
        torch.testing.assert_close(
            trained_parameters(released)[name], parameter, rtol=0, atol=1e-7, msg=name
        )


def test_the_two_rates_of_the_released_code_take_turns():
    network = Point(1.0)
    one = torch.ones(1, dtype=torch.float64)
    prefine_released(
        network, one, 0 * one, n_rounds=1, adapt_lr=0.5, update_lr=0.1, loss=distance
    )  # w <- w (1 - lr) at each step
    assert network.w.item() == pytest.approx(1.0 * 0.5 * 0.9)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_later_loss_moves_the_start_through_the_adaptation(first_order):
    # Earlier windows pull w to a, later ones to b. One inner step: w' = w - i (w - a). The later
    # loss is (w' - b)^2 / 2, its slope in w is (w' - b)(1 - i); first order leaves out (1 - i).
    w, a, b, inner, outer = 2.0, 1.0, -1.0, 0.25, 0.5
    network = Point(w)
    targets = torch.tensor([a, a, b, b], dtype=torch.float64)
    losses = prefine_intended(
        network,
        torch.ones(4, dtype=torch.float64),
        _SplitLabels(targets),
        np.arange(4.0),
        n_rounds=1,
        inner_steps=1,
        inner_lr=inner,
        outer_lr=outer,
        first_order=first_order,
        loss=lambda prediction, target: distance(prediction, target.values),
    )
    adapted = w - inner * (w - a)
    slope = (adapted - b) * (1.0 if first_order else 1 - inner)
    assert losses == [pytest.approx(0.5 * (adapted - b) ** 2)]
    assert network.w.item() == pytest.approx(w - outer * slope, abs=1e-12)


class _SplitLabels:
    """One class for the split, so that it goes by time alone; `values` for the loss."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, index):
        return _SplitLabels(self.values[index])

    def cpu(self):
        return torch.zeros(len(self.values), dtype=torch.int64)


def test_the_gradient_agrees_with_finite_differences_for_two_inner_steps():
    def later_loss(w):
        for _ in range(2):  # logistic loss of a two-class linear model, one weight per class
            p = torch.softmax(w * 1.5, 0)
            w = w - 0.3 * 1.5 * (p - torch.tensor([1.0, 0.0], dtype=torch.float64))
        return -torch.log_softmax(w * 0.7, 0)[1]

    start = torch.tensor([0.2, -0.4], dtype=torch.float64)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    slope = torch.stack([(later_loss(start + h) - later_loss(start - h)) / 2e-6 for h in step])

    network = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(start[:, None])
    x = torch.tensor([[1.5], [1.5], [0.7], [0.7]], dtype=torch.float64)
    targets = torch.tensor([0, 0, 1, 1])
    prefine_intended(
        network,
        x,
        _SplitLabels(targets),
        np.arange(4.0),
        n_rounds=1,
        inner_steps=2,
        inner_lr=0.3,
        outer_lr=0.1,
        loss=lambda logits, target: F.cross_entropy(logits, target.values),
    )
    expected = start - 0.1 * slope
    torch.testing.assert_close(network.weight[:, 0].detach(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["head", "bias", "full", "lora"])
def test_the_intended_reading_lowers_the_later_loss(base, support, x, y, method):
    network = prepare_network(base.new_network(), method)
    losses = prefine_intended(network, x, y, support[2], n_rounds=4)
    assert len(losses) == 4 and losses[-1] < losses[0]


def test_attention_recurrence_and_batch_norm_stand_the_second_derivative(odd, odd_x):
    network = prepare_network(odd, "full")
    statistics = odd.norm.running_mean.clone()
    y = torch.arange(6) % 2
    losses = prefine_intended(network, odd_x, y, np.arange(6.0), n_rounds=3)
    assert losses[-1] < losses[0]
    assert torch.equal(odd.norm.running_mean, statistics)


def test_only_the_trained_parameters_move(base, support, x, y):
    network = prepare_network(base.new_network(), "head")
    prefine_intended(network, x, y, support[2])
    prefine_released(network, x, y)
    before, after = base.network.state_dict(), network.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["head.weight", "head.bias"]


def test_every_class_is_split_into_its_earlier_and_its_later_half():
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    early, later = split_in_time(y, [9.0, 1.0, 2.0, 5.0, 4.0, 3.0, 6.0])
    assert early.tolist() == [1, 2, 4, 5]  # class 0 at 2 and 4 s, class 1 at 1 and 3 s
    assert later.tolist() == [0, 3, 6]


def test_a_class_with_one_window_cannot_be_split():
    with pytest.raises(NotEnoughWindowsError, match="1 windows of class '1'.*needs 2"):
        split_in_time(torch.tensor([0, 0, 1]), [0.0, 1.0, 2.0])


def test_times_that_do_not_go_with_the_labels_are_refused():
    with pytest.raises(DataError, match=r"time_s has shape \(2,\); expected \(3,\)"):
        split_in_time(torch.tensor([0, 0, 1]), [0.0, 1.0])


def test_a_rate_that_is_too_high_is_an_error_that_says_where(base, support, x, y):
    network = prepare_network(base.new_network(), "full")
    with pytest.raises(AdaptationError, match="prefine_intended.*Lower lr"):
        prefine_intended(network, x, y, support[2], outer_lr=1e38)
    network = prepare_network(base.new_network(), "full")
    with pytest.raises(AdaptationError, match="prefine_released.*Lower lr"):
        prefine_released(network, x, y, adapt_lr=1e38, update_lr=1e38)
