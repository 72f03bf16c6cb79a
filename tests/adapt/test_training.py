import pytest
import torch
from torch import nn

from metaecg.adapt.methods import prepare_network
from metaecg.adapt.training import fine_tune
from metaecg.errors import AdaptationError


def tune(network, x, y, *, seed=0, **kwargs):
    arguments = {"n_steps": 5, "lr": 1e-2, "weight_decay": 0.0} | kwargs
    return fine_tune(network, x, y, generator=torch.Generator().manual_seed(seed), **arguments)


@pytest.fixture
def x(support):
    return torch.from_numpy(support[0])


@pytest.fixture
def y(support):
    return torch.from_numpy(support[1])


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.values(), b.values(), strict=True))


def test_the_loss_falls(base, x, y):
    losses = tune(prepare_network(base.new_network(), "full"), x, y, n_steps=30)
    assert len(losses) == 30 and losses[-1] < 0.2 * losses[0]


def test_the_same_generator_state_gives_the_same_weights(base, x, y):
    networks = [prepare_network(base.new_network(), "full") for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        tune(network, x, y, batch_size=4, seed=seed)
    one, two, other = (network.state_dict() for network in networks)
    assert same(one, two) and not same(one, other)


def test_only_what_is_free_changes(base, x, y):
    network = prepare_network(base.new_network(), "head")
    tune(network, x, y)
    before, after = base.network.state_dict(), network.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["head.weight", "head.bias"]


@pytest.mark.parametrize("dropout", [False, True])
def test_batch_norm_statistics_stay_those_of_the_base(metava_base, x, y, dropout):
    network = prepare_network(metava_base.new_network(), "full")
    tune(network, x, y, dropout=dropout)
    before, after = metava_base.network.state_dict(), network.state_dict()
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert len(statistics) == 6
    assert all(torch.equal(before[name], after[name]) for name in statistics)


def test_dropout_is_off_unless_asked_for(metava_base, x, y):
    def first_loss(**kwargs):
        return tune(prepare_network(metava_base.new_network(), "full"), x, y, **kwargs)[0]

    with torch.inference_mode():
        plain = nn.functional.cross_entropy(metava_base.network(x), y).item()
    assert first_loss() == pytest.approx(plain, abs=1e-6)
    assert first_loss(dropout=True) != pytest.approx(plain, abs=1e-6)


def test_dropout_is_seeded_leaves_the_global_state_and_ends_with_training(metava_base, x, y):
    before = torch.get_rng_state()
    networks = [prepare_network(metava_base.new_network(), "full") for _ in range(2)]
    one, two = (tune(network, x, y, dropout=True) for network in networks)
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in networks[0].modules())


def test_every_window_is_used_before_one_is_used_again(x, y):
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, x):
            seen.append(x[:, 0].tolist())
            return self.head(x)

    tune(Watch(), torch.arange(10.0)[:, None], torch.arange(10) % 2, n_steps=6, batch_size=4)
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    assert sorted(sum(seen[:3], [])) == list(range(10))


def test_a_loss_that_is_not_finite_names_the_step(base, x, y):
    network = prepare_network(base.new_network(), "full")
    with pytest.raises(AdaptationError, match=r"loss is (nan|inf) at step 2 of 5.*Lower lr"):
        tune(network, x, y, lr=1e36)


def test_weights_that_are_not_finite_after_the_last_step_are_refused():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.w.sqrt() * x  # finite at 0, its slope is not

    with pytest.raises(AdaptationError, match="no longer finite after 1 steps"):
        tune(Root(), torch.ones(2, 1), torch.tensor([0, 1]), n_steps=1)


def test_no_step_changes_nothing(base, x, y):
    network = prepare_network(base.new_network(), "full")
    assert tune(network, x, y, n_steps=0) == []
    assert same(network.state_dict(), base.network.state_dict())
