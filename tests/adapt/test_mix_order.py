"""The mix-order stepper: its gradients, what it leaves alone, what it refuses.

Numbers in docstrings are those of the acceptance tests that the method's specification lists.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.adapt.methods import prepare_network, trained_parameters
from metaecg.adapt.mix_order import MixOrder, mix
from metaecg.errors import AdaptationError
from metaecg.models.registry import NETWORKS, build_network

SCALE = 1e-3


class Net(nn.Module):
    """Batch norm among the shallow layers, two linear layers that are deep."""

    def __init__(self, *, norm=True):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.later = nn.Conv1d(4, 4, 3)
        self.norm2 = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.neck = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm2(self.later(self.norm(self.conv(x)).relu())).relu()
        return self.head(self.neck(x.mean(dim=-1)))


def make_net(*, norm=True, seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(norm=norm).to(dtype)


def split(network, last=("neck", "head")):
    named = list(network.named_parameters())
    return {
        "shallow": [(n, p) for n, p in named if n.split(".")[0] not in last],
        "deep": [(n, p) for n, p in named if n.split(".")[0] in last],
    }


def make_stepper(network, *, loss=F.cross_entropy, seed=3, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return MixOrder(network, loss, **split(network) | kwargs, generator=generator)


def make_batch(n=8, *, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 20, generator=generator, dtype=dtype)
    return x * torch.linspace(0.5, 2, n, dtype=dtype)[:, None, None], torch.arange(n) % 3


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network, before):
    return [name for name, t in network.state_dict().items() if not torch.equal(t, before[name])]


def drawn(generator_seed, shapes, dtype):
    """Draw the seed, the coin and z of one direction, as the specification has it."""
    generator = torch.Generator().manual_seed(generator_seed)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    coin = 2 * int(torch.randint(2, (1,), generator=generator)) - 1
    generator = torch.Generator().manual_seed(seed)
    return coin, {n: torch.randn(s, generator=generator, dtype=dtype) for n, s in shapes.items()}


def loss_at(network, weights, x, y, *, train):
    """Return the loss at other weights; in train mode the network's statistics move."""
    network.train(train)
    return F.cross_entropy(torch.func.functional_call(network, weights, (x,)), y)


def explicit(network, x, y, *, mixing, n_first_order=2, generator_seed=3):
    """Compute the step by formula on detached copies: (gradients, g1, c, z)."""
    parts = split(network)
    dtype = x.dtype
    _, z = drawn(generator_seed, {n: p.shape for n, p in parts["shallow"]}, dtype)
    free = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    plus = {n: free[n] + SCALE * z[n] if n in z else free[n] for n in free}
    minus = {n: free[n] - SCALE * z[n] if n in z else free[n] for n in free}
    up = loss_at(network, plus, x, y, train=True)
    down = loss_at(network, minus, x, y, train=True)
    slope = (up - down).item() / (2 * SCALE)
    deep = [n for n, _ in parts["deep"]]
    found = dict(zip(deep, torch.autograd.grad(down, [free[n] for n in deep]), strict=True))
    n = n_first_order
    first = loss_at(network, free, x[:n], y[:n], train=False)
    g1 = dict(zip(z, torch.autograd.grad(first, [free[n] for n in z]), strict=True))
    for name in z:
        g0 = slope * z[name]
        found[name] = mixing * g1[name] + (1 - mixing) * g1[name].norm() * g0 / (g0.norm() + 1e-6)
    return found, g1, (up + down).item() / 2


def test_the_gradient_is_that_of_the_formula():
    """Acceptance test 1, first half."""
    network, (x, y) = make_net(dtype=torch.float64), make_batch(dtype=torch.float64)
    expected, _, value = explicit(make_net(dtype=torch.float64), x, y, mixing=0.85)
    assert make_stepper(network, scale=SCALE).backward(x, y) == pytest.approx(value, abs=1e-12)
    found = gradients(network)
    assert sorted(found) == sorted(expected) and len(found) == 12
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-6, atol=1e-9), name


def test_the_second_term_has_its_share_of_the_first_orders_norm():
    """Acceptance test 1, second half."""
    network, (x, y) = make_net(norm=False), make_batch()
    make_stepper(network, mixing=1).backward(x, y)
    first = gradients(network)
    make_stepper(network, mixing=0.85).backward(x, y)
    mixed = gradients(network)
    for name, _ in split(network)["shallow"]:
        second = mixed[name] - 0.85 * first[name]
        assert float(second.norm()) == pytest.approx(0.15 * float(first[name].norm()), rel=1e-4)


def test_weights_come_back_bit_by_bit_in_the_same_storage():
    """Acceptance test 2."""
    network, (x, y) = make_net(), make_batch()
    before = state(network)
    places = [p.data_ptr() for p in network.parameters()]
    stepper = make_stepper(network, scale=0.3, n_samples=3)
    for _ in range(5):
        stepper.backward(x, y)
    weights = {name for name, _ in network.named_parameters()}
    assert not weights & set(changed(network, before))
    assert [p.data_ptr() for p in network.parameters()] == places


def test_the_global_random_state_is_left_alone():
    """Acceptance test 3."""
    network, (x, y) = make_net(), make_batch()
    before = torch.get_rng_state()
    make_stepper(network, n_samples=2, direction="random").backward(x, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_norm_moves_in_the_two_zeroth_order_passes_alone():
    """Acceptance test 4: twice per direction, in train mode; the backward pass is in eval mode."""
    network, (x, y) = make_net(), make_batch()
    seen = []

    def note(norm, inputs):
        seen.append((len(inputs[0]), norm.training, int(norm.num_batches_tracked)))

    network.norm.register_forward_pre_hook(note)
    make_stepper(network).backward(x, y)
    assert seen == [(8, True, 0), (8, True, 1), (2, False, 2)]
    assert int(network.norm.num_batches_tracked) == 2


def test_batch_norm_in_eval_mode_stays_and_modes_come_back():
    network, (x, y) = make_net(), make_batch()
    network.train()
    network.norm2.eval()
    modes, before = [m.training for m in network.modules()], state(network)
    make_stepper(network, batch_norm="eval").backward(x, y)
    assert changed(network, before) == []
    assert [m.training for m in network.modules()] == modes


def test_mixing_of_one_is_the_first_order_alone():
    """Acceptance test 5; the deep gradient and batch norm are the same as at any mixing."""
    network, (x, y) = make_net(dtype=torch.float64), make_batch(dtype=torch.float64)
    make_stepper(network, mixing=1).backward(x, y)
    found, statistics = gradients(network), state(network)
    network.eval()
    loss = F.cross_entropy(network(x[:2]), y[:2])  # statistics moved before the backward pass
    shallow = [p for _, p in split(network)["shallow"]]
    names = [n for n, _ in split(network)["shallow"]]
    for name, expected in zip(names, torch.autograd.grad(loss, shallow), strict=True):
        assert torch.equal(found[name], expected), name
    other = make_net(dtype=torch.float64)
    make_stepper(other, mixing=0.85).backward(x, y)
    assert torch.equal(other.head.weight.grad, found["head.weight"])
    assert changed(other, statistics) == []


@pytest.mark.parametrize("chunk", [1, 3, 4, 8, 100])
def test_pieces_give_the_loss_and_gradients_of_the_whole_batch(chunk):
    """Acceptance test 6, with batch norm in eval mode."""
    (x, y), found = make_batch(dtype=torch.float64), []
    for pieces in (None, chunk):
        network = make_net(dtype=torch.float64)
        value = make_stepper(network, chunk=pieces, batch_norm="eval").backward(x, y)
        found.append((value, gradients(network)))
    (value, whole), (value_in_pieces, in_pieces) = found
    assert value_in_pieces == pytest.approx(value, abs=1e-12)
    for name in whole:
        assert torch.allclose(whole[name], in_pieces[name], rtol=1e-9, atol=1e-12), name


def test_pieces_are_as_equal_as_possible_and_not_above_the_chunk():
    network, (x, y) = make_net(), make_batch(9)
    sizes = []
    network.conv.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    make_stepper(network, chunk=8).backward(x, y)
    assert sizes == [5, 4, 5, 4, 2]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_in_pieces_the_first_batch_norm_records_what_the_whole_batch_would(momentum):
    statistics = []
    for chunk in (None, 3):
        network, (x, y) = make_net(), make_batch()
        network.norm.momentum = momentum
        x = x + torch.arange(8)[:, None, None]  # the pieces differ in their means
        make_stepper(network, chunk=chunk).backward(x, y)
        assert network.norm.momentum == momentum
        statistics.append([buffer.clone() for buffer in network.norm.buffers()])
    for whole, in_pieces in zip(*statistics, strict=True):
        assert torch.allclose(whole.float(), in_pieces.float(), rtol=0.03, atol=1e-6)
    assert int(statistics[1][2]) == 2


def test_a_batch_norm_that_the_forward_passes_by_keeps_its_statistics():
    network, (x, y) = make_net(), make_batch()
    network.spare = nn.BatchNorm1d(4)
    network.spare.running_var.fill_(1 / 3)
    before = state(network.spare)
    stepper = make_stepper(network, chunk=3)
    stepper.backward(x, y)
    assert changed(network.spare, before) == []


def test_a_piece_normalised_by_itself_gives_another_loss_with_exact_deep_gradients():
    network, (x, y) = make_net(dtype=torch.float64), make_batch(dtype=torch.float64)
    value = make_stepper(network, chunk=4, scale=1e-9).backward(x, y)
    copy = make_net(dtype=torch.float64).train()
    loss = (F.cross_entropy(copy(x[:4]), y[:4]) + F.cross_entropy(copy(x[4:]), y[4:])) / 2
    (expected,) = torch.autograd.grad(loss, copy.neck.weight)
    assert value == pytest.approx(loss.item(), abs=1e-7)
    assert torch.allclose(network.neck.weight.grad, expected, atol=1e-7)


def test_several_directions_are_averaged():
    (x, y), seeds = make_batch(dtype=torch.float64), torch.Generator().manual_seed(3)
    network = make_net(norm=False, dtype=torch.float64)
    stepper = make_stepper(network, mixing=0, n_samples=3)
    value = stepper.backward(x, y)
    found = gradients(network)
    single = make_net(norm=False, dtype=torch.float64)
    values, deep, slopes, zs = [], [], [], []
    for _ in range(3):
        state_before = seeds.get_state()
        one = MixOrder(single, F.cross_entropy, **split(single), generator=seeds)
        values.append(one.backward(x, y))
        deep.append(single.head.weight.grad)
        replay = torch.Generator()
        replay.set_state(state_before)
        one.generator = replay
        seed, _ = one._draw()
        zs.append(next(one._z(seed)))
        slopes.append(sided(single, one, x, y, seed))
    assert value == pytest.approx(sum(values) / 3, abs=1e-12)
    assert torch.allclose(found["head.weight"], sum(deep) / 3, atol=1e-12)
    mean = sum(c * z for c, z in zip(slopes, zs, strict=True)) / 3
    assert cosine(found["conv.weight"], mean) == pytest.approx(1, abs=1e-9)


def sided(network, stepper, x, y, seed):
    """Return the slope of the loss along the direction of `seed`."""
    z = dict(zip(stepper._shallow_names, stepper._z(seed), strict=True))
    free = {n: p.detach() for n, p in network.named_parameters()}
    losses = []
    for sign in (1, -1):
        weights = {n: p + sign * SCALE * z[n] if n in z else p for n, p in free.items()}
        losses.append(float(loss_at(network, weights, x, y, train=False)))
    return (losses[0] - losses[1]) / (2 * SCALE)


def cosine(a, b):
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def zeroth_cosines(n_draws, *, direction, n_inputs=100):
    """Return the cosines of zeroth-order directions with the gradient of the whole batch."""
    network = nn.Sequential(nn.Linear(n_inputs, 2, bias=False))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        network[0].weight.normal_(generator=generator).mul_(0.1)
    x = torch.randn(16, n_inputs, generator=generator)
    y = (torch.arange(16) % 2).long()
    (true,) = torch.autograd.grad(F.cross_entropy(network(x), y), network[0].weight)
    stepper = MixOrder(
        network,
        F.cross_entropy,
        shallow=list(network.named_parameters()),
        deep=[],
        mixing=0,
        direction=direction,
        generator=generator,
    )
    cosines = []
    for _ in range(n_draws):
        stepper.backward(x, y)
        cosines.append(cosine(network[0].weight.grad, true))
    return torch.tensor(cosines)


def test_a_measured_direction_has_the_cosine_that_theory_expects():
    cosines = zeroth_cosines(600, direction="measured")
    error = float(cosines.std()) / math.sqrt(600)
    assert float(cosines.mean()) == pytest.approx(math.sqrt(2 / (math.pi * 200)), abs=3 * error)
    assert error < 0.002 and float(cosines.min()) > -1e-3  # the sign is right, apart from rounding


def test_a_random_direction_has_no_cosine_on_average_but_the_same_z():
    measured, random = (zeroth_cosines(300, direction=d) for d in ("measured", "random"))
    assert abs(float(random.mean())) < 3 * float(random.std()) / math.sqrt(300)
    assert torch.allclose(measured.abs(), random.abs(), atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_sign_of_a_random_direction_is_the_coins(seed):
    network, (x, y) = make_net(), make_batch()
    stepper = make_stepper(network, seed=seed, mixing=0, direction="random")
    stepper.backward(x, y)
    coin, z = drawn(seed, {n: p.shape for n, p in split(network)["shallow"]}, torch.float32)
    assert cosine(network.conv.weight.grad, z["conv.weight"]) == pytest.approx(coin, abs=1e-4)


def saved_shapes(run):
    """Return the shapes of all that autograd kept while `run` ran."""
    shapes = []

    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return shapes


def test_of_the_whole_batch_only_the_deep_layers_keep_anything_for_the_backward_pass():
    network, (x, y) = make_net(), make_batch(16)
    shapes = saved_shapes(lambda: make_stepper(network).backward(x, y))
    of_batch = {shape for shape in shapes if shape[:1] == (16,)}
    assert of_batch == {(16, 4), (16, 3), (16,)}  # inputs of neck and head, the loss
    assert max(math.prod(shape) for shape in of_batch) == 64
    assert (2, 2, 20) in shapes  # and the first windows everything
    whole = saved_shapes(lambda: F.cross_entropy(network(x), y).backward())
    assert (16, 2, 20) in whole


def test_no_graph_is_recorded_without_deep_parameters():
    network, (x, y) = make_net(), make_batch(16)
    x.requires_grad_()
    deep = split(network)["deep"]
    shapes = saved_shapes(lambda: make_stepper(network, deep=[]).backward(x, y))
    assert all(shape[:1] != (16,) for shape in shapes)
    assert all(parameter.grad is None for _, parameter in deep)


def test_without_shallow_parameters_it_is_one_plain_pass():
    network, (x, y) = make_net(), make_batch()
    everything = list(network.named_parameters())
    value = make_stepper(network, shallow=[], deep=everything).backward(x, y)
    copy = make_net().train()
    loss = F.cross_entropy(copy(x), y)
    loss.backward()
    assert value == pytest.approx(loss.item(), abs=1e-7)
    for one, other in zip(network.parameters(), copy.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-7)
    assert int(network.norm.num_batches_tracked) == 1


def test_several_labels_at_once_can_be_learned():
    network, (x, _) = make_net(), make_batch()
    y = (torch.arange(24).reshape(8, 3) % 5 < 2).float()
    loss = F.binary_cross_entropy_with_logits
    values = trained(network, make_stepper(network, loss=loss), x, y)
    assert values[-1] < 0.6 * values[0]


def test_an_optimizer_goes_on_from_the_gradients_and_the_loss_falls():
    network, (x, y) = make_net(), make_batch()
    values = trained(network, make_stepper(network), x, y)
    assert values[-1] < 0.5 * values[0]


def trained(network, stepper, x, y, n_steps=80):
    """Step on batches whose first windows differ from step to step; return the losses."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    values = []
    for step in range(n_steps):
        values.append(stepper.backward(x.roll(step, 0), y.roll(step, 0)))
        optimizer.step()
    return values


def test_the_same_generator_state_gives_the_same_gradients():
    found = []
    for seed in (1, 1, 2):
        network, (x, y) = make_net(), make_batch()
        make_stepper(network, seed=seed).backward(x, y)
        found.append(network.conv.weight.grad)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_gradients_are_replaced_and_what_is_in_no_list_is_left_alone():
    network, (x, y) = make_net(), make_batch()
    parts = split(network)
    kept = network.norm.weight.grad = torch.ones(4)
    shallow = [(name, p) for name, p in parts["shallow"] if name != "norm.weight"]
    network.norm2.weight.requires_grad_(False)
    for seed in (1, 1):
        make_stepper(network, shallow=shallow, seed=seed, batch_norm="eval").backward(x, y)
        last = network.conv.weight.grad
    once = make_net()
    once_shallow = [(n, p) for n, p in split(once)["shallow"] if n != "norm.weight"]
    make_stepper(once, shallow=once_shallow, seed=1, batch_norm="eval").backward(x, y)
    assert torch.equal(last, once.conv.weight.grad)
    assert network.norm.weight.grad is kept and torch.equal(kept, torch.ones(4))
    needed = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert needed == ["norm2.weight"]


def test_adapters_of_peft_are_stepped_on():
    network = prepare_network(
        build_network("compact-cnn", n_leads=2, n_samples=200, fs_hz=100.0, n_classes=3, width=8),
        "lora",
    )
    base = {n: p.clone() for n, p in network.named_parameters() if not p.requires_grad}
    named = trained_parameters(network)
    deep = [(n, p) for n, p in named.items() if ".head." in n]
    shallow = [(n, p) for n, p in named.items() if ".head." not in n]
    generator = torch.Generator().manual_seed(0)
    stepper = MixOrder(network, F.cross_entropy, shallow=shallow, deep=deep, generator=generator)
    x = torch.randn(9, 2, 200, generator=torch.Generator().manual_seed(4))
    values = trained(network, stepper, x, torch.arange(9) % 3, n_steps=30)
    assert values[-1] < values[0]
    assert all(torch.equal(p, base[n]) for n, p in network.named_parameters() if n in base)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_registry_can_be_stepped_on(name, chunk):
    shape = {"n_leads": 1, "n_samples": 400, "fs_hz": 200.0, "n_classes": 3}
    network = build_network(name, **shape, generator=torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    deep_modules = getattr(network, "deep_modules", ("head",))
    stepper = make_stepper(network, **split(network, deep_modules), chunk=chunk)
    x = torch.randn(6, 1, 400, generator=torch.Generator().manual_seed(2))
    assert math.isfinite(stepper.backward(x, torch.arange(6) % 3))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad.abs().max() > 0, name


def poisoned(network, *, at_call):
    """Let the loss be NaN at one call."""
    calls = []

    def loss(outputs, y):
        calls.append(len(y))
        value = F.cross_entropy(outputs, y)
        return value * float("nan") if len(calls) == at_call else value

    return make_stepper(network, loss=loss)


@pytest.mark.parametrize(
    ("at_call", "words"),
    [
        (1, "nan at step 1, at the weights plus scale"),
        (2, "nan at step 1, at the weights minus scale"),
        (3, "nan at step 1, over the first 2 windows"),
        (5, "nan at step 2, at the weights minus scale"),
    ],
)
def test_a_loss_that_is_not_finite_names_step_and_side_and_changes_nothing(at_call, words):
    network, (x, y) = make_net(), make_batch()
    network.train()
    stepper = poisoned(network, at_call=at_call)
    if at_call > 3:
        stepper.backward(x, y)
    before = state(network)
    grads = [p.grad for p in network.parameters()]
    with pytest.raises(AdaptationError, match=words):
        stepper.backward(x, y)
    assert changed(network, before) == []
    assert all(p.grad is g for p, g in zip(network.parameters(), grads, strict=True))
    assert all(p.requires_grad for p in network.parameters())
    assert all(module.training for module in network.modules())
    assert network.norm.momentum == 0.1


def test_a_gradient_that_is_not_finite_is_named():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))
            self.b = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.w.abs() + x * 0).sqrt() + self.b * x  # finite at 0, its slope is not

    network = Root()
    stepper = make_stepper(network, **split(network, last=("b",)))
    with pytest.raises(AdaptationError, match="gradient of 'w' is not finite at step 1"):
        stepper.backward(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
    assert network.w.tolist() == [0, 0] and network.w.grad is None and network.b.grad is None


def test_more_first_order_windows_than_the_batch_has_are_refused_with_both_numbers():
    network, (x, y) = make_net(), make_batch(3)
    before = state(network)
    with pytest.raises(ValueError, match="n_first_order is 4, and the batch has 3 windows"):
        make_stepper(network, n_first_order=4).backward(x, y)
    assert changed(network, before) == []


def test_a_batch_without_a_target_each_is_refused():
    network, (x, y) = make_net(), make_batch(3)
    with pytest.raises(ValueError, match="3 windows and 2 targets"):
        make_stepper(network).backward(x, y[:2])
    with pytest.raises(ValueError, match="0 windows"):
        make_stepper(network, shallow=[]).backward(x[:0], y[:0])


def test_a_loss_per_window_is_refused():
    network, (x, y) = make_net(), make_batch(3)
    loss = nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(ValueError, match=r"shape \(3,\).*reduction='mean'"):
        make_stepper(network, loss=loss).backward(x, y)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": -1e-3}, "scale is -0.001"),
        ({"mixing": 1.5}, "mixing is 1.5"),
        ({"mixing": -0.1}, "mixing is -0.1"),
        ({"mixing": float("nan")}, "mixing is nan"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"n_first_order": 0}, "n_first_order is 0"),
        ({"n_first_order": True}, "n_first_order is True"),
        ({"chunk": 0}, "chunk is 0"),
        ({"chunk": 2.5}, "chunk is 2.5"),
        ({"direction": "coin"}, "direction is 'coin'.*measured, random"),
        ({"batch_norm": "training"}, "batch_norm is 'training'.*Did you mean 'train'"),
        ({"shallow": [], "deep": []}, "both empty"),
    ],
)
def test_a_value_outside_its_range_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        make_stepper(make_net(), **wrong)


def test_a_parameter_in_both_lists_is_refused_by_name():
    network = make_net()
    everything = list(network.named_parameters())
    with pytest.raises(ValueError, match="'neck.weight' is listed twice"):
        make_stepper(network, shallow=everything)


def test_a_parameter_of_another_copy_is_refused_by_name():
    with pytest.raises(ValueError, match="'conv.weight' is no parameter of the Net"):
        make_stepper(make_net(), shallow=split(make_net())["shallow"])


def test_mixing_is_exact_at_both_ends_and_zero_where_the_first_order_is_zero():
    first, zeroth = torch.tensor([3.0, 4.0]), torch.tensor([0.0, -7.0])
    assert torch.equal(mix(first, zeroth, 1), first)
    assert mix(first, zeroth, 0).tolist() == pytest.approx([0, -5], abs=1e-5)
    assert mix(torch.zeros(2), zeroth, 0.5).tolist() == [0, 0]
