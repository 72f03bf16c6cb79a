"""MAML's gradients: against paper, against an explicit loop, on every network that can be stacked."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaecg.data.windows import WindowSet
from metaecg.errors import AdaptationError
from metaecg.meta.algorithms import Algorithm
from metaecg.meta.engine import MetaBatch, stack_tasks
from metaecg.meta.func_engine import FuncEngine
from metaecg.meta.unrolled import descend
from metaecg.models.registry import NETWORKS, build_network
from metaecg.tasks.sampler import Task

LN3 = float(np.log(3.0))
STACKABLE = [
    ("compact-cnn", {"width": 4}),
    ("compact-cnn-ensemble", {"width": 4, "n_members": 2}),
    ("beat-cnn", {"width": 4}),
    ("resnet1d-18", {"norm": "group", "width": 8}),
    ("net1d", {"base_filters": 16, "filters": [16], "n_blocks": 1}),
]
NOT_STACKABLE = ["metava", "cnn-transformer", "resnet1d-18", "gru", "lstm", "bilstm"]


class OneWeight(nn.Module):
    """Logits (0, w x): logistic regression without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        scores = self.w * x[:, 0, 0]
        return torch.stack([torch.zeros_like(scores), scores], dim=1)


class SmoothNet(nn.Module):
    """A convolution, group norm and no corner, so that second derivatives exist everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 5, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).mean(dim=-1))


def one_window_tasks(*tasks):
    """Tasks of one support and one query window, each (s, label, q, label)."""

    def column(place, dtype):
        return torch.tensor([[task[place]] for task in tasks], dtype=dtype)

    return MetaBatch(
        subject_ids=tuple(f"s-{i}" for i in range(len(tasks))),
        support_x=column(0, torch.float64)[..., None, None],
        support_y=column(1, torch.int64),
        query_x=column(2, torch.float64)[..., None, None],
        query_y=column(3, torch.int64),
    )


def random_batch(*, n_tasks=3, n_leads=2, n_samples=16, n_classes=3, seed=7) -> MetaBatch:
    generator = torch.Generator().manual_seed(seed)

    def windows(n):
        shape = (n_tasks, n, n_leads, n_samples)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def labels(n):
        return torch.randint(n_classes, (n_tasks, n), generator=generator)

    return MetaBatch(
        subject_ids=tuple(f"s-{i}" for i in range(n_tasks)),
        support_x=windows(5),
        support_y=labels(5),
        query_x=windows(4),
        query_y=labels(4),
    )


def make_smooth(seed=3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmoothNet().double()


def make_engine(network, *, task_chunk=None, **algorithm) -> FuncEngine:
    return FuncEngine(network, Algorithm(**algorithm), task_chunk=task_chunk)


def run(engine, parameters, batch):
    """Return losses and gradients of one meta-step."""
    step = engine.meta_gradients(parameters, batch)
    return step.losses, step.gradients


def parameters_of(network) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in network.named_parameters()}


def explicit_maml(network, batch, *, inner_lr, inner_steps, first_order):
    """MAML one task after the other, on autograd's tape alone.

    First order here is its definition, the query gradient at the adapted weights, and not a
    detached step: the two must agree.
    """
    theta = {n: p.clone().requires_grad_() for n, p in parameters_of(network).items()}
    losses, total = [], {n: torch.zeros_like(p) for n, p in theta.items()}

    def loss_of(weights, x, y):
        return F.cross_entropy(functional_call(network, weights, (x,)), y)

    for sx, sy, qx, qy in zip(
        batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True
    ):
        phi = theta
        for _ in range(inner_steps):
            loss = loss_of(phi, sx, sy)
            steps = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
            phi = {n: p - inner_lr * g for (n, p), g in zip(phi.items(), steps, strict=True)}
            if first_order:
                phi = {n: p.detach().requires_grad_() for n, p in phi.items()}
        loss = loss_of(phi, qx, qy)
        source = phi if first_order else theta
        gradients = torch.autograd.grad(loss, list(source.values()))
        for name, gradient in zip(theta, gradients, strict=True):
            total[name] += gradient / len(batch)
        losses.append(loss.detach())
    return torch.stack(losses), total


def assert_same(found, expected, *, rtol=1e-9):
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=rtol, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("first_order", "gradient"), [(False, 0.75 * LN3), (True, 1.5 * LN3)], ids=["second", "first"]
)
def test_the_gradient_of_one_step_of_logistic_regression_is_that_worked_out_on_paper(
    first_order, gradient
):
    """Support window s = 2 labelled 1, query window q = 2 ln 3 labelled 0, w = 0, inner_lr = 1/2.

    Inner gradient:  (sigma(w s) - 1) s = (1/2 - 1) 2 = -1, so w' = 0 + 1/2.
    Query loss:      ln(1 + exp(w' q)) = ln(1 + 3) = ln 4.
    Its gradient:    sigma(w' q) q = (3/4) 2 ln 3 = (3/2) ln 3 in w': the first-order answer.
    Through w':      dw'/dw = 1 - (1/2) sigma(ws)(1 - sigma(ws)) s^2 = 1 - (1/2)(1/4) 4 = 1/2,
                     so (3/4) ln 3 in w: the second-order answer.
    """
    network = OneWeight()
    engine = make_engine(network, inner_lr=0.5, inner_steps=1, first_order=first_order)
    batch = one_window_tasks((2.0, 1, 2 * LN3, 0))
    losses, gradients = run(engine, parameters_of(network), batch)
    assert losses.tolist() == pytest.approx([np.log(4.0)], rel=1e-12)
    assert gradients["w"].item() == pytest.approx(gradient, rel=1e-12)


def test_the_gradient_is_the_mean_over_tasks_and_the_losses_stand_in_their_order():
    """The second task's query is 0: its loss is ln 2 whatever w is, its gradient 0."""
    network = OneWeight()
    engine = make_engine(network, inner_lr=0.5, inner_steps=1)
    batch = one_window_tasks((2.0, 1, 2 * LN3, 0), (2.0, 1, 0.0, 0))
    losses, gradients = run(engine, parameters_of(network), batch)
    assert losses.tolist() == pytest.approx([np.log(4.0), np.log(2.0)], rel=1e-12)
    assert gradients["w"].item() == pytest.approx(0.75 * LN3 / 2, rel=1e-12)


@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("inner_steps", [0, 1, 4])
def test_losses_and_gradients_are_those_of_an_explicit_loop(inner_steps, first_order):
    network, batch = make_smooth(), random_batch()
    settings = {"inner_lr": 0.3, "inner_steps": inner_steps, "first_order": first_order}
    found = run(make_engine(network, **settings), parameters_of(network), batch)
    assert_same(found, explicit_maml(network, batch, **settings))


def test_second_order_differs_from_first_order():
    network, batch = make_smooth(), random_batch()
    first, second = (
        run(
            make_engine(network, inner_lr=0.3, inner_steps=2, first_order=first_order),
            parameters_of(network),
            batch,
        )
        for first_order in (True, False)
    )
    assert torch.equal(first[0], second[0])
    change = (first[1]["conv.weight"] - second[1]["conv.weight"]).abs().max()
    assert change > 0.01 * second[1]["conv.weight"].abs().max()


@pytest.mark.parametrize("task_chunk", [1, 2, 5, 9])
def test_tasks_in_chunks_give_the_same_losses_and_gradients(task_chunk):
    network, batch = make_smooth(), random_batch(n_tasks=5)
    whole = make_engine(network, inner_lr=0.3, inner_steps=2)
    parts = make_engine(network, inner_lr=0.3, inner_steps=2, task_chunk=task_chunk)
    expected = run(whole, parameters_of(network), batch)
    assert_same(run(parts, parameters_of(network), batch), expected)


def test_a_chunk_holds_no_more_tasks_than_asked_for(monkeypatch):
    sizes = []
    network, batch = make_smooth(), random_batch(n_tasks=5)
    engine = make_engine(network, inner_lr=0.3, inner_steps=1, task_chunk=2)
    inner = engine._chunk

    def counted(parameters, part, plan):
        sizes.append(len(part))
        return inner(parameters, part, plan)

    monkeypatch.setattr(engine, "_chunk", counted)
    run(engine, parameters_of(network), batch)
    assert sizes == [2, 2, 1]


def test_neither_the_weights_nor_the_network_are_changed():
    network, batch = make_smooth(), random_batch()
    parameters = parameters_of(network)
    before = {name: p.clone() for name, p in parameters.items()}
    run(make_engine(network, inner_lr=0.3, inner_steps=2), parameters, batch)
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert all(p.grad is None for p in network.parameters())


def test_adapting_lowers_the_loss_on_the_support():
    network, batch = make_smooth(), random_batch(n_tasks=1)
    engine = make_engine(network, inner_lr=0.3, inner_steps=20)
    x, y = batch.support_x[0], batch.support_y[0]
    path = descend(engine.model, engine.algorithm, parameters_of(network), x[None], y[None])
    adapted = {name: w[0] for name, w in path.points[-1].items()}
    before = F.cross_entropy(network(x), y)
    assert F.cross_entropy(functional_call(network, dict(adapted), (x,)), y) < 0.8 * before


def test_a_frozen_weight_takes_part_and_gets_no_gradient():
    network, batch = make_smooth(), random_batch()
    trained = {n: p for n, p in parameters_of(network).items() if not n.startswith("conv")}
    engine = make_engine(network, inner_lr=0.3, inner_steps=1, first_order=True)
    losses, gradients = run(engine, trained, batch)
    assert sorted(gradients) == sorted(trained)
    with torch.no_grad():
        network.conv.weight += 0.5
    assert not torch.equal(run(engine, trained, batch)[0], losses)


@pytest.mark.parametrize(("name", "kwargs"), STACKABLE, ids=str)
def test_every_network_that_can_be_stacked_has_the_gradients_of_an_explicit_loop(name, kwargs):
    network = make_registered(name, **kwargs).double()
    batch = random_batch(n_tasks=2, n_leads=1, n_samples=50, n_classes=2)
    settings = {"inner_lr": 0.05, "inner_steps": 2, "first_order": False}
    found = run(make_engine(network, **settings), parameters_of(network), batch)
    assert_same(found, explicit_maml(network, batch, **settings), rtol=1e-7)
    assert any(gradient.abs().max() > 0 for gradient in found[1].values())


@pytest.mark.parametrize("name", NOT_STACKABLE)
def test_a_network_that_cannot_be_stacked_is_refused_with_one_that_can(name):
    with pytest.raises(AdaptationError, match="compact-cnn"):
        make_engine(make_registered(name), inner_lr=0.1, inner_steps=1)


def test_every_network_of_the_registry_is_stacked_or_refused_here():
    assert {name for name, _ in STACKABLE} | set(NOT_STACKABLE) == set(NETWORKS)
    for name, kwargs in STACKABLE:
        assert make_registered(name, **kwargs).supports_vmap


def test_batch_norm_is_refused_with_the_name_of_its_layer_and_the_way_out():
    network = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4))
    expected = r"layer '1' is BatchNorm1d: .*group norm \(compact-cnn, or resnet.*learn2learn"
    with pytest.raises(AdaptationError, match=expected):
        make_engine(network, inner_lr=0.1, inner_steps=1)


def test_instance_norm_is_refused_where_it_keeps_running_statistics():
    layer = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    with pytest.raises(AdaptationError, match="layer '1' is InstanceNorm1d: .*group norm"):
        make_engine(nn.Sequential(nn.Conv1d(1, 4, 3), layer), inner_lr=0.1, inner_steps=1)
    plain = nn.Sequential(nn.Conv1d(1, 4, 3), nn.InstanceNorm1d(4))
    make_engine(plain, inner_lr=0.1, inner_steps=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_lr": 0.0, "inner_steps": 1}, "inner_lr is 0.0"),
        ({"inner_lr": 0.1, "inner_steps": -1}, "inner_steps is -1"),
        ({"inner_lr": 0.1, "inner_steps": 1, "task_chunk": 0}, "task_chunk is 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        make_engine(make_smooth(), **settings)


def test_stacked_tasks_keep_their_order_and_their_sides():
    """Every sample of a window holds 10 * task + place."""

    def windows(task, places):
        n = len(places)
        values = 10.0 * task + np.array(places, dtype=np.float32)
        return WindowSet(
            windows=np.tile(values[:, None, None], (1, 2, 3)).astype(np.float32),
            labels=np.array(places, dtype=np.int64) % 2,
            is_mixed=np.zeros(n, dtype=bool),
            subject_ids=np.full(n, f"s-{task}"),
            record_ids=np.full(n, "r"),
            start_s=2.0 * np.array(places),
            time_s=2.0 * np.array(places),
            fs_hz=1.5,
            window_s=2.0,
        )

    tasks = [
        Task(subject_id=f"s-{i}", support=windows(i, [0, 1]), query=windows(i, [2, 3, 5]))
        for i in (4, 2)
    ]
    batch = stack_tasks(tasks)
    assert batch.subject_ids == ("s-4", "s-2") and len(batch) == 2
    assert batch.support_x.shape == (2, 2, 2, 3) and batch.query_x.shape == (2, 3, 2, 3)
    assert batch.support_x[:, :, 0, 0].tolist() == [[40, 41], [20, 21]]
    assert batch.query_x[:, :, 1, 2].tolist() == [[42, 43, 45], [22, 23, 25]]
    assert batch.support_y.tolist() == [[0, 1], [0, 1]]
    assert batch.query_y.tolist() == [[0, 1, 1], [0, 1, 1]]


def make_registered(name, **kwargs):
    return build_network(
        name,
        n_leads=1,
        n_samples=50,
        fs_hz=50.0,
        n_classes=2,
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    )


class OneNumber(nn.Module):
    """Answers every window with its only weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(x))


def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 0.5 * (output - target).square().mean()


@pytest.mark.parametrize("inner_steps", [0, 1, 3])
def test_the_meta_gradient_on_a_quadratic_is_the_one_found_by_hand(inner_steps):
    """Loss (w - t)^2 / 2, support target a, query target b, rate r, K steps.

    One step: w - a shrinks by (1 - r). After K: w_K = a + (1 - r)^K (w - a). Query loss
    (w_K - b)^2 / 2, so its derivative by w is (w_K - b) (1 - r)^K; the first-order one drops the
    last factor.
    """
    w, rate, a, b = 2.0, 0.1, np.array([1.0, -1.0]), np.array([3.0, 0.5])
    target = torch.from_numpy
    batch = MetaBatch(
        subject_ids=("s-1", "s-2"),
        support_x=torch.zeros(2, 4, 1, 1),
        support_y=target(a)[:, None].expand(2, 4),
        query_x=torch.zeros(2, 5, 1, 1),
        query_y=target(b)[:, None].expand(2, 5),
    )
    shrink = (1 - rate) ** inner_steps
    adapted = a + shrink * (w - a)
    for first_order, factor in ((False, shrink), (True, 1.0)):
        network = OneNumber(w)
        algorithm = Algorithm(inner_lr=rate, inner_steps=inner_steps, first_order=first_order)
        engine = FuncEngine(network, algorithm, loss=half_square)
        losses, gradients = run(engine, dict(network.named_parameters()), batch)
        assert losses.tolist() == pytest.approx((0.5 * (adapted - b) ** 2).tolist(), rel=1e-12)
        expected = float(np.mean((adapted - b) * factor))
        assert gradients["weight"].item() == pytest.approx(expected, rel=1e-12)
