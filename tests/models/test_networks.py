"""Every network of the registry, under the same questions."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from metaecg.data.preprocessing import Preprocessing
from metaecg.models.backbones.beat_cnn import BeatCNN
from metaecg.models.backbones.net1d import Bottleneck, pad_same
from metaecg.models.checkpoints import BaseModel, load_base
from metaecg.models.registry import NETWORKS, architecture_arguments, build_network

# Parameters at one lead, 400 samples, 200 Hz and two classes, counted by hand.
N_PARAMETERS = {
    # 32*21 + 32*32*5 + 32*64*5 + 64*64*3 weights, 2*(32+32+64+64) norms, 128*2+2 head
    "compact-cnn": 28_962,
    # three bodies of 28_704, head 3*128*2+2
    "compact-cnn-ensemble": 86_882,
    # as in the released code: mid 64, d_model 16 (its published total is tested in test_metava)
    "metava": 78_034,
    # stem 448+128, stages 49_664 + 181_504 + 723_456 + 2_888_704, head 1_026; of the first stage
    # 4*64*64*3 weights and 4*128 norms, of a later one n/2*n*3 + 3*n*n*3 + n/2*n and 5*2*n
    "resnet1d-18": 3_844_930,
    # front 32*9 + 64, cell 3*(64*32 + 64*64 + 2*64), head 128*2+2; an LSTM has 4 gates, not 3
    "gru": 19_426,
    "lstm": 25_698,
    "bilstm": 51_042,
    # stem 128*16+128; a block (m, n) has m*n + 2*n*n + 260.5*n; head 16*2+2
    "net1d": 353_794,
    # at width w=64: convolutions 47*w*w + 10*w + 9*w, norms 12*w, transformer 12*w*w + 13*w,
    # neck w*w + w, head 2*w + 2 (its published sizes are tested in test_cnn_transformer)
    "cnn-transformer": 248_770,
    # convolutions 24*21 + 24*24*5 + 24*48*5 + 48*48*3, norms 2*(24+24+48+48), hidden 96*32+32,
    # head 32*2+2
    "beat-cnn": 19_514,
}
VARIANTS = [(name, {}) for name in N_PARAMETERS] + [
    ("compact-cnn", {"width": 16}),
    ("compact-cnn-ensemble", {"width": 16, "n_members": 2}),
    ("resnet1d-18", {"norm": "group", "width": 16}),
    ("beat-cnn", {"width": 8, "n_members": 2}),
    ("net1d", {"use_bn": True, "base_filters": 32, "filters": [32, 16], "n_blocks": 1}),
]
VMAP_VARIANTS = [
    ("compact-cnn", {}),
    ("compact-cnn-ensemble", {}),
    ("resnet1d-18", {"norm": "group", "width": 16}),
    ("net1d", {}),
    ("beat-cnn", {}),
]
every_network = pytest.mark.parametrize("name", N_PARAMETERS)
every_variant = pytest.mark.parametrize(("name", "kwargs"), VARIANTS, ids=str)


def make(
    name: str, *, n_leads: int = 1, n_samples: int = 400, n_classes: int = 2, seed=0, **kwargs
):
    return build_network(
        name,
        n_leads=n_leads,
        n_samples=n_samples,
        fs_hz=200.0,
        n_classes=n_classes,
        generator=torch.Generator().manual_seed(seed),
        **kwargs,
    )


def random_windows(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_network_of_the_registry_is_tested_here():
    assert sorted(NETWORKS) == sorted(N_PARAMETERS)


@every_network
def test_only_the_signal_has_to_be_described_and_the_size_is_the_one_counted_by_hand(name):
    network = NETWORKS[name](n_leads=1, n_samples=400, fs_hz=200.0, n_classes=2)
    assert sum(parameter.numel() for parameter in network.parameters()) == N_PARAMETERS[name]


@every_variant
@pytest.mark.parametrize("shape", [(3, 1, 250), (2, 12, 400), (2, 2, 1250)], ids=str)
def test_windows_become_logits_of_the_features_through_the_head(name, kwargs, shape):
    _, n_leads, n_samples = shape
    network = make(name, n_leads=n_leads, n_samples=n_samples, n_classes=5, **kwargs).eval()
    x = random_windows(*shape)
    logits = network(x)
    assert logits.shape == (shape[0], 5)
    assert type(network.head) is nn.Linear and "head" in dict(network.named_children())
    assert torch.equal(network.head(network.features(x)), logits)
    assert logits.std() > 0  # the windows differ, so do the answers


@every_variant
def test_a_gradient_reaches_every_parameter(name, kwargs):
    network = make(name, **kwargs)
    network(random_windows(4, 1, 400)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@every_variant
@pytest.mark.parametrize("train", [True, False])
def test_a_batch_of_one_window_is_enough(name, kwargs, train):
    network = make(name, **kwargs).train(train)
    assert torch.isfinite(network(random_windows(1, 1, 400))).all()


@every_variant
def test_in_evaluation_a_window_gives_the_same_whatever_stands_beside_it(name, kwargs):
    network = make(name, **kwargs).eval()
    x = random_windows(4, 1, 400)
    alone = torch.cat([network(window[None]) for window in x])
    torch.testing.assert_close(network(x), alone, rtol=1e-4, atol=1e-5)


@every_variant
def test_a_saved_base_gives_bit_equal_logits_after_loading(name, kwargs, tmp_path):
    base = BaseModel(
        network=make(name, **kwargs),
        architecture=name,
        architecture_kwargs=kwargs,
        n_leads=1,
        classes=("other", "va"),
        preprocessing=Preprocessing(),
    )
    base.save(tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    windows = random_windows(3, 1, 400).numpy()
    assert (loaded.logits(windows) == base.logits(windows)).all()
    assert loaded.fingerprint == base.fingerprint


@pytest.mark.parametrize(("name", "kwargs"), VMAP_VARIANTS, ids=str)
def test_gradients_of_stacked_weights_in_one_vmap_are_those_of_a_loop(name, kwargs):
    networks = [make(name, seed=seed, **kwargs) for seed in range(3)]
    weights, buffers = stack_module_state(networks)
    assert buffers == {}
    x = random_windows(3, 4, 1, 400)
    labels = torch.tensor([0, 1, 1, 0])

    def loss(weights, x):
        return F.cross_entropy(functional_call(networks[0], weights, (x,)), labels)

    together = vmap(grad(loss))(weights, x)
    for index, network in enumerate(networks):
        F.cross_entropy(network(x[index]), labels).backward()
        for key, parameter in network.named_parameters():
            torch.testing.assert_close(together[key][index], parameter.grad, rtol=1e-3, atol=1e-5)


@every_variant
def test_a_network_says_whether_many_weights_can_run_in_one_vmap(name, kwargs):
    expected = (name, kwargs) in VMAP_VARIANTS or name.startswith(("compact-cnn", "beat-cnn"))
    assert getattr(make(name, **kwargs), "supports_vmap", False) is expected


@every_network
def test_the_generator_decides_the_weights_and_the_global_stream_stays(name):
    before = torch.get_rng_state()
    first, again, other = make(name), make(name), make(name, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="'compact_cnn'.*Did you mean 'compact-cnn'"):
        make("compact_cnn")


def test_an_unknown_argument_is_answered_with_those_that_exist():
    with pytest.raises(TypeError, match="'compact-cnn' has no argument 'depth'; it has 'width'"):
        make("compact-cnn", depth=3)


@pytest.mark.parametrize("sizes", [{"n_leads": 0}, {"n_samples": 1.5}, {"n_classes": -1}])
def test_a_size_that_is_no_positive_whole_number_is_refused_by_name(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))} is "):
        make("compact-cnn", **sizes)


def test_the_own_arguments_come_with_their_defaults():
    assert architecture_arguments("resnet1d-18") == {"width": 64, "norm": "batch"}


@pytest.mark.parametrize(("width", "n"), [(16, 7_570), (32, 28_962), (64, 113_218)])
def test_the_width_of_the_compact_cnn_scales_its_size(width, n):
    assert sum(p.numel() for p in make("compact-cnn", width=width).parameters()) == n


def test_every_convolution_of_the_compact_cnn_can_take_a_low_rank_adapter():
    convolutions = [m for m in make("compact-cnn").modules() if isinstance(m, nn.Conv1d)]
    assert len(convolutions) == 4
    for conv in convolutions:
        assert (conv.groups, conv.dilation, conv.padding_mode) == (1, (1,), "zeros")


@every_variant
def test_every_convolution_is_a_plain_one_that_an_adapter_reproduces(name, kwargs):
    convolutions = [m for m in make(name, **kwargs).modules() if isinstance(m, nn.Conv1d)]
    assert {type(conv) for conv in convolutions} == {nn.Conv1d}


def test_the_first_kernel_of_the_compact_cnn_follows_the_sampling_rate():
    sizes = {}
    for fs_hz in (100.0, 200.0, 500.0):
        network = NETWORKS["compact-cnn"](n_leads=1, n_samples=800, fs_hz=fs_hz, n_classes=2)
        conv = network.blocks[0].conv
        sizes[fs_hz] = (conv.kernel_size[0], conv.stride[0])
    assert sizes == {100.0: (11, 2), 200.0: (21, 4), 500.0: (51, 10)}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("compact-cnn", {"width": 30}),
        ("resnet1d-18", {"width": 30}),
        ("resnet1d-18", {"norm": "layer"}),
        ("gru", {"n_channels": 30}),
        ("net1d", {"filters": [24]}),
    ],
)
def test_a_size_that_does_not_divide_into_groups_is_refused_with_its_value(name, kwargs):
    value = next(iter(kwargs.values()))
    shown = value[0] if isinstance(value, list) else value
    with pytest.raises(ValueError, match=str(shown)):
        make(name, **kwargs)


@pytest.mark.parametrize(("n_samples", "n_frames"), [(400, 100), (250, 84), (1250, 97)])
def test_a_recurrent_network_reads_at_most_a_hundred_frames(n_samples, n_frames):
    network = make("gru", n_samples=n_samples)
    assert network.frames(torch.zeros(2, 1, n_samples)).shape == (2, n_frames, 32)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("n_samples", [1, 2, 7, 400])
def test_same_padding_gives_the_length_over_the_stride_rounded_up(n_samples, stride):
    kernel = torch.ones(1, 1, 16)
    out = F.conv1d(pad_same(torch.ones(1, 1, n_samples), 16, stride), kernel, stride=stride)
    assert out.shape[-1] == math.ceil(n_samples / stride)


def test_the_shortcut_of_net1d_crops_or_fills_channels_at_both_ends():
    x = torch.arange(8.0).reshape(1, 4, 2)

    def shortcut(n_out: int, stride: int) -> list:
        block = Bottleneck(
            4, n_out, kernel_size=3, stride=stride, groups=1, use_bn=False, activate_input=True
        )
        return block._shortcut(x)[0].tolist()

    assert shortcut(2, stride=1) == [[2.0, 3.0], [4.0, 5.0]]
    assert shortcut(6, stride=2) == [[0.0], [1.0], [3.0], [5.0], [7.0], [0.0]]


def test_the_maximum_of_the_shortcut_never_sees_the_fill():
    block = Bottleneck(4, 4, kernel_size=3, stride=2, groups=1, use_bn=False, activate_input=True)
    assert block._shortcut(torch.full((1, 4, 3), -5.0))[0, 0].tolist() == [-5.0, -5.0]


def test_the_numbers_of_a_beat_count_and_what_stands_behind_them_does_not():
    network = make("beat-cnn", n_leads=2, n_samples=100, width=4, n_numbers=5).eval()
    x = random_windows(3, 2, 100)
    other_number, other_rest = x.clone(), x.clone()
    other_number[:, 1, 4] += 1
    other_rest[:, 1, 5:] += 1
    assert not torch.equal(network(other_number), network(x))
    assert torch.equal(network(other_rest), network(x))


def test_beat_networks_put_together_answer_with_the_mean_of_their_logits():
    arguments = {"n_leads": 2, "n_samples": 100, "width": 4, "n_numbers": 5}
    members = [make("beat-cnn", seed=seed, **arguments).eval() for seed in range(3)]
    whole = BeatCNN.assemble(members, make("beat-cnn", n_members=3, **arguments))
    x = random_windows(4, 2, 100)
    mean = torch.stack([member(x) for member in members]).mean(dim=0)
    torch.testing.assert_close(whole(x), mean, rtol=1e-5, atol=1e-6)


def test_numbers_need_a_row_of_their_own():
    with pytest.raises(ValueError, match="n_numbers is 5 for 1 rows"):
        make("beat-cnn", n_samples=100, n_numbers=5)
