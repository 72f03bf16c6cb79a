"""Several compact networks as one."""

import pytest
import torch
from torch.nn import functional as F

from metaecg.adapt.methods import lora_targets, merged, prepare_network
from metaecg.models.backbones.compact_cnn import CompactCNN
from metaecg.models.backbones.ensemble import CompactCNNEnsemble
from metaecg.models.registry import build_network

SIGNAL = {"n_leads": 1, "n_samples": 400, "fs_hz": 200.0, "n_classes": 2}


def make_members(n: int = 3, **changes) -> list[CompactCNN]:
    arguments = {**SIGNAL, "width": 8, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [CompactCNN(**arguments) for _ in range(n)]


def mean_logit(members, x):
    return torch.stack([member(x) for member in members]).mean(dim=0)


@pytest.fixture
def x():
    return torch.randn(6, 1, 400, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_assembled_ensemble_gives_the_mean_of_its_members_logits(x, n):
    members = make_members(n)
    ensemble = CompactCNNEnsemble.assemble(members)
    torch.testing.assert_close(ensemble(x), mean_logit(members, x), rtol=0, atol=1e-6)
    assert ensemble.features(x).shape == (6, n * 32) and not ensemble.training


def test_the_members_are_copied(x):
    members = make_members()
    ensemble = CompactCNNEnsemble.assemble(members)
    before = ensemble(x)
    for member in members:
        torch.nn.init.zeros_(member.head.weight)
        torch.nn.init.zeros_(member.blocks[0].conv.weight)
    assert torch.equal(ensemble(x), before)


def test_the_type_of_numbers_is_that_of_the_members(x):
    members = [member.double() for member in make_members()]
    ensemble = CompactCNNEnsemble.assemble(members)
    expected = mean_logit(members, x.double())
    torch.testing.assert_close(ensemble(x.double()), expected, rtol=0, atol=1e-14)


def test_a_step_of_adamw_moves_the_mean_logit_as_it_does_through_the_members(x):
    y, members = torch.tensor([0, 1, 1, 0, 1, 0]), make_members()
    ensemble = CompactCNNEnsemble.assemble(members)
    of_members = [p for member in members for p in member.parameters()]
    for parameters, logits in (
        (of_members, lambda: mean_logit(members, x)),
        (list(ensemble.parameters()), lambda: ensemble(x)),
    ):
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(logits(), y).backward()
            optimizer.step()
    torch.testing.assert_close(ensemble(x), mean_logit(members, x), rtol=0, atol=1e-4)
    assert (ensemble(x) - CompactCNNEnsemble.assemble(make_members())(x)).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, r"members\[2\] has width=16, members\[0\] 8"),
        ({"n_leads": 2}, "n_leads=2"),
        ({"fs_hz": 250.0}, "fs_hz=250"),
        ({"n_samples": 500}, "n_samples=500"),
        ({"n_classes": 3}, "n_classes=3"),
    ],
)
def test_members_that_do_not_fit_together_are_refused_with_what_differs(change, message):
    members = [*make_members(2), *make_members(1, **change)]
    with pytest.raises(ValueError, match=message):
        CompactCNNEnsemble.assemble(members)


def test_no_member_is_refused():
    with pytest.raises(ValueError, match="members is empty"):
        CompactCNNEnsemble.assemble([])


@pytest.mark.parametrize("n_members", [0, 1.5, -1])
def test_a_number_of_members_that_is_none_is_refused(n_members):
    with pytest.raises(ValueError, match="n_members is "):
        CompactCNNEnsemble(**SIGNAL, n_members=n_members)


@pytest.mark.parametrize(("n_members", "n"), [(1, 28_962), (2, 57_922), (5, 144_802)])
def test_each_member_adds_a_body_and_its_share_of_the_head(n_members, n):
    network = CompactCNNEnsemble(**SIGNAL, n_members=n_members)
    assert sum(p.numel() for p in network.parameters()) == n  # 28_704 + 256 each, and 2 biases


def test_members_built_from_one_generator_differ_from_each_other():
    network = build_network(
        "compact-cnn-ensemble", **SIGNAL, generator=torch.Generator().manual_seed(0)
    )
    first, second, third = (member.blocks[0].conv.weight for member in network.members)
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_a_low_rank_adapter_fits_on_every_convolution_of_every_member(x):
    ensemble = CompactCNNEnsemble.assemble(make_members())
    expected = [f"members.{m}.blocks.{b}.conv" for m in range(3) for b in range(4)]
    assert lora_targets(ensemble, 4) == expected
    before = ensemble(x)
    network = prepare_network(ensemble, "lora")
    assert torch.equal(network(x), before)  # B is 0
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    assert not torch.allclose(network(x), before, atol=1e-2)
    torch.testing.assert_close(merged(network)(x), network(x), rtol=1e-4, atol=1e-4)


def test_a_frozen_member_stays_as_it_is():
    network = prepare_network(
        CompactCNNEnsemble.assemble(make_members()), "full", freeze=["members.1"]
    )
    frozen = {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"1"}
