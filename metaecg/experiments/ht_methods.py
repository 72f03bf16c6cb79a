"""What `h_tuning` compares: which parameters learn, and how their gradient is found.

All low-rank methods train the same parameters: low-rank layers, every bias, and the head. They
differ in the gradient alone.
"""

from dataclasses import dataclass
from typing import Literal

from metaecg.checks import did_you_mean
from metaecg.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """One method of the comparison."""

    description: str
    trained: Literal["full", "h-tuning", "head"]
    """What of the network learns; a name of `metaecg.adapt.methods.METHODS`."""
    gradient: Literal["first-order", "mix-order"] = "first-order"
    micro_batch: int | None = None
    """First order: recordings that pass through at once; the pieces' gradients are added."""
    batch_norm: Literal["train", "eval"] = "train"
    """First order: statistics of the step's recordings, or those of the base."""
    freeze: tuple[str, ...] = ()
    """Modules that don't learn."""
    is_chunked: bool = False
    """Mix order: the forward passes in pieces of ``h_tuning.chunk`` recordings."""
    first_order_alone: bool = False
    """Mix order: the weight of the first order is 1."""
    direction: Literal["measured", "random"] = "measured"

    @property
    def has_grid(self) -> bool:
        """Whether `mixing` and `scale` mean something."""
        return self.gradient == "mix-order" and not self.first_order_alone


REFERENCE = "full"
"""What the others are compared with."""

METHODS = {
    "full": FineTuning(
        description="Every parameter, backpropagation through the whole batch.",
        trained="full",
    ),
    "lora": FineTuning(
        description="Low-rank layers, biases, head; backpropagation through the whole batch.",
        trained="h-tuning",
    ),
    "lora-micro-16": FineTuning(
        description="lora, gradients added up over pieces of 16; batch norm stays as in the base.",
        trained="h-tuning",
        micro_batch=16,
        batch_norm="eval",
    ),
    "lora-micro-2": FineTuning(
        description="lora, gradients added up over pieces of 2; batch norm stays as in the base.",
        trained="h-tuning",
        micro_batch=2,
        batch_norm="eval",
    ),
    "lora-frozen-early": FineTuning(
        description="lora with the first two convolution blocks frozen.",
        trained="h-tuning",
        freeze=("conv_blocks.0", "conv_blocks.1"),
    ),
    "h-tuning": FineTuning(
        description="The parameters of lora by mix-order gradients, as published.",
        trained="h-tuning",
        gradient="mix-order",
    ),
    "h-tuning-chunked": FineTuning(
        description="h-tuning, its forward passes in pieces.",
        trained="h-tuning",
        gradient="mix-order",
        is_chunked=True,
    ),
    "h-tuning-first-order": FineTuning(
        description="Control: h-tuning without the zeroth order (mixing=1), all else the same.",
        trained="h-tuning",
        gradient="mix-order",
        first_order_alone=True,
    ),
    "h-tuning-random-sign": FineTuning(
        description="Control: h-tuning with a coin's sign in place of the measured difference.",
        trained="h-tuning",
        gradient="mix-order",
        direction="random",
    ),
    "head": FineTuning(
        description="The last linear layer alone.",
        trained="head",
        batch_norm="eval",
    ),
}


def choose_methods(names: list[str] | None) -> dict[str, FineTuning]:
    """Return the methods by name, in the table's order; unknown names are one ConfigError."""
    if names is None:
        return dict(METHODS)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        problems = [
            f"methods has {name!r}; expected {did_you_mean(name, METHODS)}" for name in unknown
        ]
        raise ConfigError(problems or "methods is empty; expected at least one name.")
    return {name: method for name, method in METHODS.items() if name in names}
