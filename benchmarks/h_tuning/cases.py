"""What is measured: one training step of every method, and networks that answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaecg.adapt.h_tuning import shallow_and_deep
from metaecg.adapt.methods import prepare_network, trained_parameters
from metaecg.adapt.mix_order import MixOrder
from metaecg.models.backbones.cnn_transformer import SIZES, CNNTransformer
from metaecg.seeding import borrowed_torch_stream

from .fake import without_arithmetic

FS_HZ = 500.0
N_CLASSES = 18
RANK = 16
LR = 2e-3

TRAINS = {
    "full": "full",
    "lora": "h-tuning",
    "lora-frozen": "h-tuning",
    "h-tuning": "h-tuning",
    "head": "head",
}
"""How the gradient is computed -> which weights are trained (`metaecg.adapt.methods`). LoRA here
trains what H-Tuning trains, biases and last layers included, so that only the gradient differs."""

FROZEN = {"lora-frozen": ("conv_blocks.0",)}
"""The first block: its maps are four times as long as those of the second."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step."""

    method: str
    """A key of `TRAINS`."""
    size: str
    batch: int
    piece: int | None = None
    """At most so many windows at once: the chunk of H-Tuning, the micro-batch of the others."""
    n_leads: int = 12
    n_samples: int = 6144
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Return the method, with the size of its pieces."""
        return self.method if self.piece is None else f"{self.method}, {self.piece} at once"


@dataclass(frozen=True)
class Prepared:
    """A network before its second step, and the step."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    step: Callable[[], None]

    @property
    def n_trained(self) -> int:
        """Return how many numbers are trained."""
        return sum(p.numel() for p in trained_parameters(self.network).values())


def build(size: str, *, n_leads: int, n_samples: int) -> CNNTransformer:
    """Return a network of a published size with weights drawn from a seed."""
    width, n_blocks = SIZES[size]
    with borrowed_torch_stream(0):
        return CNNTransformer(
            n_leads=n_leads,
            n_samples=n_samples,
            fs_hz=FS_HZ,
            n_classes=N_CLASSES,
            width=width,
            n_blocks=n_blocks,
        )


def windows(n: int, *, n_leads: int, n_samples: int, device: str = "cpu") -> Tensor:
    """Return noise in the shape of windows."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, n_leads, n_samples, generator=generator).to(device)


@contextmanager
def prepare(case: Case, *, fake: bool = False) -> Iterator[Prepared]:
    """Yield everything that a step of the case needs, the optimizer's state included.

    With `fake` no tensor has numbers, and the step is one without arithmetic.
    """
    network = build(case.size, n_leads=case.n_leads, n_samples=case.n_samples)
    freeze = FROZEN.get(case.method, ())
    network = prepare_network(network, TRAINS[case.method], rank=RANK, freeze=freeze)
    with without_arithmetic(network, wanted=fake):
        if case.device != "cpu":  # a fake network can't be moved
            network.to(case.device)
        x = windows(case.batch, n_leads=case.n_leads, n_samples=case.n_samples, device=case.device)
        y = torch.zeros(case.batch, N_CLASSES, device=case.device)
        optimizer = torch.optim.AdamW(trained_parameters(network).values(), lr=LR)
        _give_state(optimizer)
        gradient = (_mix_order if case.method == "h-tuning" else _first_order)(network, x, y, case)

        def step() -> None:
            gradient()
            optimizer.step()
            optimizer.zero_grad()

        yield Prepared(network, optimizer, x, y, step)


def _give_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make its moments, as the first step would."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _mix_order(network: nn.Module, x: Tensor, y: Tensor, case: Case) -> Callable[[], None]:
    shallow, deep = shallow_and_deep(network)
    stepper = MixOrder(
        network,
        F.binary_cross_entropy_with_logits,
        shallow=shallow,
        deep=deep,
        chunk=case.piece,
        generator=torch.Generator().manual_seed(0),
    )
    return lambda: stepper.backward(x, y)


def _first_order(network: nn.Module, x: Tensor, y: Tensor, case: Case) -> Callable[[], None]:
    """Return backpropagation, piece by piece; batch norm is in train mode for full fine-tuning.

    Elsewhere it is in eval mode, where the pieces' gradients add up to that of the batch.
    """

    def gradient() -> None:
        network.train(case.method == "full")
        for x_piece, y_piece in zip(
            x.split(case.piece or len(x)), y.split(case.piece or len(y)), strict=True
        ):
            share = len(x_piece) / len(x)
            (share * F.binary_cross_entropy_with_logits(network(x_piece), y_piece)).backward()

    return gradient
