"""CNNTransformer: published sizes, lengths, order in time, adapters, fewer leads, refusals."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.evaluate.memory import LiveTensors
from metaecg.models.backbones.cnn_transformer import (
    SIZES,
    CNNTransformer,
    sinusoids,
    slim_leads,
)
from metaecg.models.registry import build_network

# At 12 leads and 18 classes; published in millions as .257, 1.600, 9.505, 50.493 and 113.489.
N_PARAMETERS = {
    "tinylight": 256_850,
    "tiny": 1_600_018,
    "base": 9_504_786,
    "medium": 50_493_458,
    "large": 113_488_914,
}
# Trained by H-Tuning at rank 16, in thousands: adapters, all biases, the head.
N_TRAINED_K = {"tinylight": 81, "tiny": 262, "base": 795, "medium": 2_135, "large": 3_201}
every_size = pytest.mark.parametrize("size", SIZES)


def make(*, n_leads: int = 2, n_samples: int = 512, seed: int = 0, **kwargs) -> CNNTransformer:
    sizes = {"n_leads": n_leads, "n_samples": n_samples, "fs_hz": 500.0, "n_classes": 3}
    generator = torch.Generator().manual_seed(seed)
    kwargs = {"width": 16, "n_heads": 4} | kwargs
    return build_network("cnn-transformer", **sizes, generator=generator, **kwargs).eval()


def published(size: str, *, n_leads: int = 12) -> CNNTransformer:
    """A network of the paper, without the memory of its weights."""
    width, n_blocks = SIZES[size]
    with torch.device("meta"):
        return CNNTransformer(
            n_leads=n_leads,
            n_samples=6144,
            fs_hz=500.0,
            n_classes=18,
            width=width,
            n_blocks=n_blocks,
        )


def n_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def varied(network: CNNTransformer) -> CNNTransformer:
    """Give batch norm running statistics that differ between channels, as training does."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


@every_size
def test_every_published_size_has_the_published_number_of_parameters(size):
    assert n_parameters(published(size)) == N_PARAMETERS[size]


def adapter_size(name: str, layer: nn.Module, rank: int) -> int:
    """Weights of the released adapters; query, key and value have one each."""
    n_out, n_in = layer.weight.flatten(1).shape
    return rank * (n_in * (3 if name.endswith("qkv") else 1) + n_out)


@every_size
def test_the_layers_that_h_tuning_adapts_at_rank_16_add_up_to_the_published_numbers(size):
    network = published(size)
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv1d | nn.Linear) and not name.endswith(("attention.out", "head"))
    }
    biases = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bias"))
    adapters = sum(adapter_size(name, layer, 16) for name, layer in layers.items())
    assert len(layers) == 9 + 3 * SIZES[size][1] + 1
    assert round((adapters + biases + network.head.weight.numel()) / 1000) == N_TRAINED_K[size]


@pytest.mark.parametrize(("leads", "n"), [((1, 6, 10), 251_090), ((0,), 249_810)])
def test_a_student_of_three_leads_or_one_is_slimmer_by_the_inputs_of_its_first_block(leads, n):
    assert n_parameters(slim_leads(published("tinylight"), leads)) == n


@pytest.mark.parametrize(
    ("n_samples", "lengths"),
    [(6144, [1536, 384, 96]), (400, [100, 25, 7]), (250, [63, 16, 4]), (9, [3, 1, 1])],
)
def test_each_residual_block_shortens_the_time_fourfold_rounding_up(n_samples, lengths):
    network, x = make(n_samples=n_samples), random(1, 2, n_samples)
    found = []
    for block in network.conv_blocks:
        x = block(x)
        found.append(x.shape[-1])
    assert found == lengths and len(network.positions) == lengths[-1]


@pytest.mark.parametrize("length", [32, 30, 29, 1])
def test_the_shortcut_averages_four_samples_and_at_the_end_what_is_left(length):
    block = make(n_leads=1).conv_blocks[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.shortcut.weight.fill_(1.0)
        x = random(1, 1, length)
        means = torch.stack([part.mean() for part in x[0, 0].split(4)])
        torch.testing.assert_close(block(x)[0], means.expand(16, -1))


def test_a_residual_block_is_what_its_layers_say_and_has_no_activation_after_the_sum():
    block, x = make().conv_blocks[0].train(), random(3, 2, 40)
    twin = copy.deepcopy(block)
    y = F.leaky_relu(twin.norm1(twin.conv1(x)))
    y = F.leaky_relu(twin.norm2(twin.conv2(y)))
    expected = y + twin.shortcut(F.avg_pool1d(x, 4))
    found = block(x)
    torch.testing.assert_close(found, expected)
    assert (found < -0.1).any()
    found.square().sum().backward(), expected.square().sum().backward()
    for parameter, same in zip(block.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [True, False])
def test_a_residual_block_keeps_four_maps_for_the_gradient_and_without_it_has_two_at_once(train):
    block, x = make(n_leads=1).conv_blocks[0].train(train), random(2, 1, 4000)
    one_map = 2 * 16 * 1000 * 4
    with LiveTensors() as live, torch.no_grad():
        block(x)
    assert 2 * one_map <= live.peak_bytes < 2.5 * one_map
    with LiveTensors() as live:
        y = block(x)
        assert 4 * one_map + y.nbytes <= live.bytes < 4.5 * one_map + y.nbytes


def test_a_transformer_block_is_the_pre_norm_layer_of_torch_under_a_causal_mask():
    block = make().blocks[0]
    twin = nn.TransformerEncoderLayer(
        16, 4, 64, activation=F.leaky_relu, norm_first=True, batch_first=True
    ).eval()
    names = {
        "attention.qkv.": "self_attn.in_proj_",
        "attention.out.": "self_attn.out_proj.",
        "fc1.": "linear1.",
        "fc2.": "linear2.",
    }
    renamed = {}
    for name, value in block.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    twin.load_state_dict(renamed)
    tokens = random(3, 9, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    torch.testing.assert_close(block(tokens), twin(tokens, mask), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_a_token_does_not_see_later_ones_and_later_ones_see_it(attention):
    block = make(attention=attention).blocks[0]
    tokens = random(2, 9, 16)
    changed = tokens.clone()
    changed[0, 5] *= -1.0
    moved = (block(changed) - block(tokens)).abs().amax(dim=-1) > 1e-6
    assert moved.tolist() == [[False] * 5 + [True] * 4, [False] * 9]


def test_plain_attention_gives_the_numbers_of_the_fused_one():
    fused, plain = make(n_blocks=2), make(n_blocks=2, attention="plain")
    torch.testing.assert_close(fused(random(3, 2, 512)), plain(random(3, 2, 512)))


def test_plain_attention_can_be_differentiated_twice():
    layer = make(attention="plain").blocks[0].attention
    tokens = random(1, 5, 16).requires_grad_()
    (first,) = torch.autograd.grad(layer(tokens).square().sum(), tokens, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), tokens)
    assert torch.isfinite(second).all() and second.abs().sum() > 0


def test_the_positions_are_sines_and_cosines_in_turn():
    expected = [[0.0, 1.0, 0.0, 1.0], [0.841471, 0.540302, 0.0099998, 0.99995]]
    torch.testing.assert_close(sinusoids(2, 4), torch.tensor(expected), rtol=0, atol=1e-6)
    assert not torch.allclose(sinusoids(96, 64)[94], sinusoids(96, 64)[95], atol=1e-3)


def test_the_answer_depends_on_where_in_the_window_something_happens():
    network = make(n_samples=2048)
    beat = torch.zeros(1, 2, 2048)
    beat[..., 900:910] = 5.0  # away from both ends, whose zeros the convolutions see
    later = beat.roll(256, dims=-1)
    still = copy.deepcopy(network)
    still.positions.zero_()
    network.blocks = still.blocks = nn.Identity()  # attention sees the order too, by its mask
    assert (network(beat) - network(later)).abs().max() > 1e-3
    torch.testing.assert_close(still(beat), still(later), atol=1e-5, rtol=0)


def test_the_positions_are_on_no_disk_and_go_where_the_network_goes():
    network = make()
    assert "positions" not in network.state_dict()
    assert network.double().positions.dtype == torch.float64


def test_what_neck_and_head_read_is_what_the_network_says():
    network, x = make(), random(5, 2, 512)
    assert network.encode(x).shape == network.features(x).shape == (5, 16)
    assert torch.equal(network.features(x), network.neck(network.encode(x)))
    assert torch.equal(network(x), network.head(network.features(x)))
    assert list(dict(network.named_children()))[-2:] == list(network.deep_modules)


def test_a_shorter_window_is_read_as_by_a_network_built_for_it():
    x = random(2, 2, 300)
    torch.testing.assert_close(make(n_samples=512)(x), make(n_samples=300)(x))


@pytest.mark.parametrize(
    "name", ["attention.qkv", "attention.out", "fc1", "fc2", "conv1", "conv2", "shortcut", "neck"]
)
def test_a_module_wrapped_around_a_layer_acts(name):
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    network, x = make(), random(2, 2, 512)
    wrapped = copy.deepcopy(network)
    path = next(path for path, _ in network.named_modules() if path.endswith(name))
    wrapped.set_submodule(path, Doubled(wrapped.get_submodule(path)))
    assert (network(x) - wrapped(x)).abs().max() > 1e-4


def test_training_moves_the_running_statistics_and_reaches_every_weight():
    network, x = make().train(), random(4, 2, 512)
    network(x).square().sum().backward()
    assert all(int(m.num_batches_tracked) == 1 for m in network.modules() if hasattr(m, "momentum"))
    silent = [n for n, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("leads", [(1, 6, 10), (0,), (5, 2), tuple(range(12))])
def test_a_slimmed_network_answers_as_the_full_one_with_the_other_leads_at_zero(leads):
    network = varied(make(n_leads=12))
    x = random(3, 12, 512)
    masked = torch.zeros_like(x)
    masked[:, leads] = x[:, leads]
    found = slim_leads(network, leads)(x[:, leads])
    torch.testing.assert_close(found, network(masked), atol=1e-6, rtol=0)
    assert (network(x) - network(masked)).abs().max() > 1e-3 or len(leads) == 12


def test_a_slimmed_network_is_one_that_can_be_built_for_its_leads():
    slim = slim_leads(varied(make(n_leads=12)), (1, 6, 10))
    rebuilt = make(n_leads=3, seed=5)
    rebuilt.load_state_dict(slim.state_dict())
    x = random(2, 3, 512)
    assert torch.equal(slim(x), rebuilt(x))


def test_slimming_leaves_the_network_as_it_was():
    network = make(n_leads=12)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    slim = slim_leads(network, (3,))
    with torch.no_grad():
        for parameter in slim.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.conv_blocks[0].conv1.in_channels == 12


def test_a_frozen_first_block_stays_frozen_when_slimmed():
    network = make(n_leads=12).requires_grad_(False)
    assert not any(p.requires_grad for p in slim_leads(network, (3,)).parameters())


@pytest.mark.parametrize("leads", [(), (0, 0), (12,), (-1,)])
def test_leads_that_are_not_there_are_refused_with_those_that_are(leads):
    with pytest.raises(ValueError, match=r"leads is \[.*positions from 0 to 11"):
        slim_leads(make(n_leads=12), leads)


def test_slimming_a_wrapped_convolution_is_refused_with_what_to_do():
    network = make(n_leads=12)
    network.conv_blocks[0].shortcut = nn.Sequential(network.conv_blocks[0].shortcut)
    with pytest.raises(TypeError, match=r"0.shortcut is torch.*Sequential; a plain.*Merge"):
        slim_leads(network, (0,))


def test_a_slimmed_convolution_knows_how_many_leads_it_reads():
    first = slim_leads(make(n_leads=12), (1, 6, 10)).conv_blocks[0]
    assert (first.conv1.in_channels, first.shortcut.in_channels) == (3, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_samples": 8}, "n_samples is 8; .* at least 9"),
        ({"width": 24, "n_heads": 16}, r"width is 24; expected an even multiple of n_heads \(16\)"),
        ({"width": 15, "n_heads": 5}, "width is 15; expected an even multiple"),
        ({"attention": "flash"}, "attention is 'flash'; expected one of fused, plain"),
    ],
)
def test_a_size_that_cannot_be_built_is_refused_with_its_value(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_longer_window_than_the_network_was_built_for_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match="600 samples, 10 tokens; .* 8 tokens. .*n_samples=600"):
        make(n_samples=512)(random(1, 2, 600))
