import subprocess
import sys

import pytest
import torch
from torch import nn

from metaecg.adapt.methods import lora_targets, merged, prepare_network, trained_parameters
from metaecg.errors import AdaptationError


def disturb(network, *, seed=0):
    """Change every trained parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_parameters(network).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def test_head_trains_the_last_layer_only(base):
    network = prepare_network(base.new_network(), "head")
    assert sorted(trained_parameters(network)) == ["head.bias", "head.weight"]


def test_full_trains_everything(base):
    network = prepare_network(base.new_network(), "full")
    assert len(trained_parameters(network)) == len(list(network.parameters()))


def test_bias_trains_every_bias_and_the_head(odd):
    names = sorted(trained_parameters(prepare_network(odd, "bias")))
    assert "norm.bias" in names and "gru.bias_ih_l0" in names and "head.weight" in names
    assert "attention.in_proj_bias" in names
    assert not [n for n in names if "weight" in n and n != "head.weight"]


def test_lora_trains_its_own_layers_and_the_head_only(base):
    names = sorted(trained_parameters(prepare_network(base.new_network(), "lora")))
    strange = [n for n in names if "lora_" not in n and "head" not in n]
    assert strange == [] and len(names) == 2 * 4 + 2


@pytest.mark.parametrize("method", ["head", "full", "bias", "lora"])
def test_an_untrained_method_equals_the_base_exactly(base, metava_base, method, support):
    for model in (base, metava_base):
        x = torch.from_numpy(support[0])
        with torch.inference_mode():
            expected = model.new_network()(x)
            assert torch.equal(prepare_network(model.new_network(), method)(x), expected)


def test_lora_adapts_what_it_can_and_passes_over_the_rest(odd):
    assert lora_targets(odd, 2) == ["plain", "wide"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dilated", "dilation=2"),
        ("grouped", "groups=2"),
        ("circular", "padding_mode='circular'"),
        ("attention.out_proj", "MultiheadAttention, which never calls it"),
        ("encoder.linear1", "TransformerEncoderLayer, which never calls it"),
        ("gru", "it is a GRU"),
        ("head", "trained whole"),
        ("wdie", "no such layer"),
    ],
)
def test_a_named_layer_that_lora_cannot_adapt_is_refused(odd, name, why):
    with pytest.raises(AdaptationError, match=f"can't adapt '{name}'.*{why}"):
        lora_targets(odd, 2, [name])


def test_a_layer_that_computes_something_of_its_own_is_passed_over(odd):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    odd.wide = Doubled(8, 16)
    assert lora_targets(odd, 2) == ["plain"]


def test_named_layers_are_the_only_ones_adapted(base):
    wanted = "blocks.1.conv"
    network = prepare_network(base.new_network(), "lora", target_modules=[wanted])
    lora = [n for n in trained_parameters(network) if "lora_" in n]
    assert len(lora) == 2 and all(f".{wanted}." in n for n in lora)


def test_a_rank_above_the_size_of_a_named_layer_is_refused(odd):
    with pytest.raises(AdaptationError, match="'plain': rank 4 is above its size, 3"):
        lora_targets(odd, 4, ["plain"])


def test_a_rank_above_the_size_of_every_layer_is_refused_with_the_largest(odd):
    with pytest.raises(AdaptationError, match="rank 64 matches no layer of Odd.* is 8"):
        prepare_network(odd, "lora", rank=64)


def test_a_network_without_a_usable_layer_is_refused():
    network = nn.Module()
    network.gru, network.head = nn.GRU(1, 4), nn.Linear(4, 2)
    with pytest.raises(AdaptationError, match="matches no layer.*'head', 'bias' or 'full'"):
        prepare_network(network, "lora")


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(AdaptationError, match="head is NoneType.*torch.nn.Linear"):
        prepare_network(nn.Sequential(nn.Linear(2, 2)), "head")


def test_a_second_module_that_ends_in_head_is_refused(odd):
    odd.overhead = nn.Linear(4, 4)
    with pytest.raises(AdaptationError, match="overhead"):
        prepare_network(odd, "lora", rank=2, target_modules=["plain"])


def test_an_unknown_method_is_answered_with_the_nearest(base):
    with pytest.raises(ValueError, match="Did you mean 'lora'"):
        prepare_network(base.new_network(), "lra")


@pytest.mark.parametrize("which", ["odd", "base", "metava"])
def test_merged_lora_equals_unmerged(which, odd, odd_x, base, metava_base, support):
    networks = {"odd": odd, "base": base.new_network(), "metava": metava_base.new_network()}
    windows = odd_x if which == "odd" else torch.from_numpy(support[0])
    plain_keys = set(networks[which].state_dict())
    before = networks[which](windows).detach()
    network = disturb(prepare_network(networks[which], "lora", rank=2))
    plain = merged(network)
    with torch.inference_mode():
        adapted = network(windows)
        assert not torch.allclose(adapted, before, atol=1e-2)
        # atol 1e-6 of the scale of these numbers
        torch.testing.assert_close(plain(windows), adapted, rtol=1e-5, atol=1e-6)
    assert set(plain.state_dict()) == plain_keys


def test_lora_gradient_and_inference_mode_give_the_same_output(odd, odd_x):
    network = disturb(prepare_network(odd, "lora", rank=2))
    with torch.inference_mode():
        expected = network(odd_x)
    torch.testing.assert_close(network(odd_x).detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_lora_and_another_seed_another(base):
    def first_a(seed):
        network = prepare_network(base.new_network(), "lora", seed=seed)
        return next(p for n, p in trained_parameters(network).items() if "lora_A" in n)

    assert torch.equal(first_a(1), first_a(1))
    assert not torch.equal(first_a(1), first_a(2))


def test_adding_lora_leaves_the_global_random_state(base):
    before = torch.get_rng_state()
    prepare_network(base.new_network(), "lora", seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_peft_comes_without_a_word_about_pictures():
    """In a fresh process: torchvision, where it is, is imported once only."""
    command = "from metaecg.adapt.methods import import_peft; import_peft()"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert "image" not in done.stderr
