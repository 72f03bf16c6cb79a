"""Compact CNNs and batches for the tests of the fused passes, and the comparison with vmap."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metaecg.meta.engine import MetaBatch
from metaecg.meta.fused import FLAT, FusedCompactCNN
from metaecg.meta.stacked import VmapModel
from metaecg.models.backbones.compact_cnn import CompactCNN


def make_cnn(*, width=8, n_leads=1, fs_hz=50.0, n_samples=50, n_classes=2, seed=3) -> CompactCNN:
    """Return a float64 network whose norms and biases are not at their round initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CompactCNN(
            n_leads=n_leads, n_samples=n_samples, fs_hz=fs_hz, n_classes=n_classes, width=width
        ).double()
        for block in network.blocks:
            torch.nn.init.normal_(block.norm.weight, 1.0, 0.3)
            torch.nn.init.normal_(block.norm.bias, 0.0, 0.3)
    return network


@dataclass(frozen=True, kw_only=True)
class Point:
    """Weights of T tasks (or shared ones), a vector for each task, windows and labels."""

    weights: dict[str, Tensor]
    vectors: dict[str, Tensor]
    x: Tensor
    y: Tensor
    shared: bool

    def to(self, dtype: torch.dtype) -> "Point":
        return Point(
            weights={k: w.to(dtype) for k, w in self.weights.items()},
            vectors={k: v.to(dtype) for k, v in self.vectors.items()},
            x=self.x.to(dtype),
            y=self.y,
            shared=self.shared,
        )


def make_point(network, *, n_tasks=3, n_windows=4, n_samples=50, shared=False, seed=7, kept=None):
    """Return a `Point` with random windows; `kept` are the weights that aren't frozen."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    named = {k: p.detach() for k, p in network.named_parameters() if kept is None or k in kept}
    vectors = {k: noise(n_tasks, *w.shape) for k, w in named.items()}
    if not shared:
        named = {k: w + 0.1 * noise(n_tasks, *w.shape) for k, w in named.items()}
    return Point(
        weights=named,
        vectors=vectors,
        x=noise(n_tasks, n_windows, network.blocks[0].conv.in_channels, n_samples),
        y=torch.randint(network.head.out_features, (n_tasks, n_windows), generator=generator),
        shared=shared,
    )


def pack(model: FusedCompactCNN, weights: dict[str, Tensor], *, stacked: bool) -> dict[str, Tensor]:
    """Return weights in the model's own form; `stacked`: (T, *shape) each."""
    if not stacked:
        return model.pack(weights)
    tasks = zip(*weights.values(), strict=True)
    packed = [model.pack(dict(zip(weights, task, strict=True)))[FLAT] for task in tasks]
    return {FLAT: torch.stack(packed)}


def unpack(model: FusedCompactCNN, packed: dict[str, Tensor], *, stacked: bool):
    """Undo `pack`."""
    if not stacked:
        return dict(model.unpack(packed))
    tasks = [model.unpack({FLAT: task}) for task in packed[FLAT]]
    return {name: torch.stack([task[name] for task in tasks]) for name in tasks[0]}


def fused_slope(model: FusedCompactCNN, point: Point):
    """Return losses, gradients and Hessian products by the fused passes."""
    with torch.no_grad():
        packed = pack(model, point.weights, stacked=not point.shared)
        slope = model.slope(packed, point.x, point.y, shared=point.shared, curved=True)
        vectors = pack(model, point.vectors, stacked=True)
        products = slope.hessian_product(vectors)
    gradients = unpack(model, slope.gradients, stacked=True)
    return slope.losses, gradients, unpack(model, products, stacked=not point.shared)


def vmap_slope(network: CompactCNN, point: Point):
    """Return the same by `VmapModel`."""
    with torch.no_grad():
        model = VmapModel(network, F.cross_entropy)
        slope = model.slope(point.weights, point.x, point.y, shared=point.shared, curved=True)
        return slope.losses, slope.gradients, slope.hessian_product(point.vectors)


def assert_near(found, expected, *, rtol=1e-9) -> None:
    """Losses, gradients and products agree, up to `rtol` of the greatest value in a tensor."""
    torch.testing.assert_close(found[0].double(), expected[0].double(), rtol=rtol, atol=rtol)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert sorted(mine) == sorted(other)
        for name, value in other.items():
            atol = rtol * max(value.abs().max().item(), 1e-3)
            torch.testing.assert_close(
                *(mine[name].double(), value.double()), rtol=0, atol=atol, msg=name_it(name)
            )


def name_it(name: str):
    return lambda text: f"{name}: {text}"


def assert_as_vmap(network, point, *, model=None, rtol=1e-9) -> None:
    """The fused passes give what `VmapModel` gives."""
    found = fused_slope(model or FusedCompactCNN(network), point)
    assert_near(found, vmap_slope(network, point), rtol=rtol)


def make_meta_batch(*, n_tasks=3, n_leads=1, n_samples=50, n_classes=2, seed=7) -> MetaBatch:
    """Return float64 tasks with five support and four query windows."""
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
