"""Low-rank layers through the sum of their weights: the same answers in less memory."""

import copy

import pytest
import torch
from torch import nn

from metaecg.adapt.methods import prepare_network
from metaecg.adapt.summed_weights import summed_weights
from metaecg.evaluate.memory import peak_memory


class Layers(nn.Module):
    """One strided convolution and two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 9, stride=4, padding=4)
        self.linear = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.linear(self.conv(x).relu().amax(dim=2)))


def prepared(method="h-tuning", **kwargs):
    """Return a network whose adapters are not zero any more."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = prepare_network(Layers(), method, rank=4, **kwargs)
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    return network.double()


X = torch.randn(16, 4, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def calls_of_peft(network):
    """Return the list to which every low-rank matrix adds its name when PEFT calls it."""
    called = []
    for name, module in network.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    return called


@pytest.mark.parametrize("kwargs", [{}, {"alpha": 12}])
def test_the_answers_are_those_of_peft_and_the_low_rank_layers_are_not_called(kwargs):
    network = prepared(**kwargs)
    called = calls_of_peft(network)
    with torch.no_grad():
        expected = network(X)
        assert len(called) == 2
        with summed_weights(network):
            found = network(X)
    assert len(called) == 2
    assert torch.allclose(found, expected, rtol=1e-12)
    with network.disable_adapter(), torch.no_grad():
        assert not torch.allclose(network(X), expected, atol=1e-2)  # the adapters do something


def test_weights_and_layers_are_afterwards_as_they_were_also_after_an_error():
    network = prepared()
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad(), summed_weights(network):
        network(X)
    with pytest.raises(RuntimeError, match="by hand"), summed_weights(network):
        raise RuntimeError("by hand")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any("forward" in vars(module) for module in network.modules())


def test_where_a_gradient_is_wanted_peft_computes_it():
    network, plain = prepared(), prepared()
    with summed_weights(network):
        network(X).sum().backward()
    plain(X).sum().backward()
    for (name, found), expected in zip(network.named_parameters(), plain.parameters(), strict=True):
        if expected.requires_grad:
            assert torch.equal(found.grad, expected.grad), name


def gradients_of(network, **options):
    """Return the gradients of what is trained, computed through the sums if they may be."""
    network.zero_grad()
    with summed_weights(network, **options):
        nn.functional.cross_entropy(network(X), torch.arange(16) % 2).backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["lora", "h-tuning"])
def test_gradients_through_the_sum_are_those_of_peft(method):
    network = prepared(method)
    called = calls_of_peft(network)
    expected = gradients_of(network)
    assert len(called) == 2
    found = gradients_of(network, with_gradient=True)
    assert len(called) == 2
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(found[name], gradient, rtol=1e-10, atol=1e-14), name


def test_a_large_layer_is_left_to_peft_where_a_gradient_is_wanted(monkeypatch):
    monkeypatch.setattr("metaecg.adapt.summed_weights.MAX_WITH_GRADIENT", 8 * 8)
    network = prepared()
    called = calls_of_peft(network)
    gradients_of(network, with_gradient=True)
    assert [name for name in called if "conv" in name] == called and len(called) == 1


def test_the_layers_before_the_first_gradient_are_summed():
    network = prepared()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("head" in name)
    called = calls_of_peft(network)
    with summed_weights(network):
        network(X).sum().backward()
    assert called == []
    assert network.base_model.model.head.weight.grad is not None


def test_merged_and_switched_off_layers_stay_so():
    network = prepared()
    with torch.no_grad(), summed_weights(network):
        expected = network(X)
        with network.disable_adapter():
            switched_off = network(X)
        network.merge_adapter()
        merged = network(X)
        network.unmerge_adapter()
    assert torch.allclose(merged, expected, rtol=1e-12)
    assert not torch.allclose(switched_off, expected, atol=1e-2)


def test_other_kinds_of_adapters_are_left_to_peft():
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["conv", "linear"], use_dora=True)
        network = get_peft_model(Layers(), config).eval().double()
    called = calls_of_peft(network)
    with torch.no_grad():
        expected = network(X)
        n_before = len(called)
        with summed_weights(network):
            assert torch.equal(network(X), expected)
    assert len(called) == 2 * n_before


def test_a_network_without_low_rank_layers_is_left_alone():
    network = Layers()
    with summed_weights(network):
        assert not any("forward" in vars(module) for module in network.modules())


def test_a_convolution_holds_its_input_its_output_and_its_weights_alone():
    network = prepared()
    conv = network.base_model.model.conv

    def answer():
        with torch.no_grad():
            conv(X)

    base = 8 * (8 * 4 * 9 + 8)
    adapters = 8 * 4 * (4 * 9 + 8)
    maps = X.nbytes + 8 * 16 * 8 * 50
    with summed_weights(network):
        assert peak_memory(answer, conv, X) == maps + 2 * base + adapters - 8 * 8
    assert peak_memory(answer, conv, X) > 1.3 * maps
