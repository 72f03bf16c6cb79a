"""MetaVANet: published size, parity with torch's encoder layer, adapters, vmap, refusals."""

import copy

import pytest
import torch
from torch import nn

from metaecg.models.backbones.metava import EncoderLayer, MetaVANet, SelfAttention, _halve


def make_network(**kwargs) -> MetaVANet:
    sizes = {"n_leads": 1, "n_samples": 400, "fs_hz": 200.0, "n_classes": 2}
    return MetaVANet(**(sizes | kwargs)).eval()


def random_windows(n_windows: int, *, n_leads: int = 1, n_samples: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n_windows, n_leads, n_samples, generator=generator)


def n_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def torch_twin(layer: EncoderLayer, d_model: int, n_heads: int) -> nn.TransformerEncoderLayer:
    twin = nn.TransformerEncoderLayer(d_model, n_heads, dim_feedforward=64, batch_first=True)
    renamed = {
        name.replace("attention.qkv.", "self_attn.in_proj_").replace(
            "attention.out.", "self_attn.out_proj."
        ): value
        for name, value in layer.state_dict().items()
    }
    twin.load_state_dict(renamed)
    return twin


def test_the_released_network_has_78034_parameters():
    assert n_parameters(make_network()) == 78_034


def test_the_published_count_of_596354_includes_an_encoder_layer_that_is_never_called():
    network = make_network(d_model=64, unused_duplicate_layer=True)
    assert n_parameters(network) == 596_354
    windows = random_windows(2)
    before = network(windows)
    for parameter in network.unused_encoder.parameters():
        nn.init.constant_(parameter, 100.0)
    assert torch.equal(network(windows), before)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_encoder_layer_equals_the_one_of_torch(mode):
    layer = EncoderLayer(16, 4, 64, dropout=0.0)
    twin = torch_twin(layer, 16, 4)
    twin.dropout.p = twin.dropout1.p = twin.dropout2.p = twin.self_attn.dropout = 0.0
    layer.train(mode == "train"), twin.train(mode == "train")
    tokens = torch.randn(3, 50, 16, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(layer(tokens), twin(tokens), atol=1e-6, rtol=1e-5)


def test_logits_are_the_head_applied_to_the_features():
    network = make_network(n_leads=2, n_samples=256, n_classes=3)
    windows = random_windows(5, n_leads=2, n_samples=256)
    assert network.features(windows).shape == (5, 16)
    assert network(windows).shape == (5, 3)
    assert torch.equal(network(windows), network.head(network.features(windows)))


def test_the_answer_for_a_window_does_not_depend_on_its_batch():
    network, windows = make_network(), random_windows(6)
    alone = torch.cat([network(window[None]) for window in windows])
    torch.testing.assert_close(network(windows), alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["attention.qkv", "attention.out", "linear1", "linear2"])
def test_a_module_wrapped_around_a_linear_of_the_encoder_acts(name):
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    network, windows = make_network(), random_windows(2)
    wrapped = copy.deepcopy(network)
    wrapped.encoder.set_submodule(name, Doubled(wrapped.encoder.get_submodule(name)))
    with torch.inference_mode():
        assert not torch.allclose(network(windows), wrapped(windows), atol=1e-4)


def test_no_convolution_has_a_bias():
    convolutions = [m for m in make_network().modules() if isinstance(m, nn.Conv1d)]
    assert [convolution.bias for convolution in convolutions] == [None, None, None]


def test_every_parameter_gets_a_gradient():
    network = make_network().train()
    network(random_windows(4)).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert silent == []


def test_many_sets_of_weights_run_at_once_under_vmap():
    networks = [make_network() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(networks)
    windows = torch.stack([random_windows(4) + shift for shift in range(3)])

    def one(parameters, buffers, x):
        return torch.func.functional_call(networks[0], (parameters, buffers), (x,))

    together = torch.func.vmap(one)(parameters, buffers, windows)
    alone = torch.stack([network(x) for network, x in zip(networks, windows, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_attention_shares_are_spread_over_the_tokens_of_the_same_window_only():
    attention = SelfAttention(16, 4, dropout=0.0)
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(7))
    changed = tokens.clone()
    changed[1] += 1.0
    assert torch.equal(attention(tokens)[0], attention(changed)[0])


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"d_model is 18; expected a multiple of n_heads \(4\)"):
        make_network(d_model=18)


def test_a_window_shorter_than_the_kernels_is_refused():
    with pytest.raises(ValueError, match="n_samples is 7"):
        make_network(n_samples=7)


def test_halving_is_max_pooling_by_two():
    values = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(7))
    assert torch.equal(_halve(values), nn.functional.max_pool1d(values, 2))
