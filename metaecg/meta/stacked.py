"""A network that runs the weights of many tasks at once: losses, gradients, Hessian products."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vjp, vmap

Loss = Callable[[Tensor, Tensor], Tensor]
"""From the network's output (n, n_classes) and the labels (n,) of one task to a number."""
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Loss and gradient of every task at one point of the inner loop."""

    losses: Tensor
    """Shape (T,)."""
    gradients: dict[str, Tensor]
    """One per task, (T, *shape), in the model's own form."""
    hessian_product: Callable[[Weights], dict[str, Tensor]] | None
    """From one vector per task to the product of each task's Hessian with its vector. At shared
    weights the sum over the tasks, without their dimension. Called once at most."""


class StackedModel(Protocol):
    """What the inner loop asks of a network.

    Between `pack` and `unpack`, weights and all that is added to them are in the model's own form: a
    mapping of tensors on which sums and elementwise products mean the same.
    """

    def pack(self, weights: Weights) -> Weights:
        """Return weights by name, one copy for all tasks, in the model's own form."""
        ...

    def unpack(self, packed: Weights) -> Weights:
        """Return one copy of the weights by name."""
        ...

    def slope(self, weights: Weights, x: Tensor, y: Tensor, *, shared: bool, curved: bool) -> Slope:
        """Differentiate the loss of each task at its own weights.

        Parameters
        ----------
        weights
            One copy per task, (T, *shape); if `shared`, one for all of them, (*shape).
        x, y
            Windows (T, n, n_leads, n_samples) and labels (T, n).
        curved
            Prepare the products with the Hessian, which takes memory until the slope is dropped.
        """
        ...


class VmapModel:
    """Any network that `torch.func.vmap` can stack."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        self.network = network
        self.loss = loss

    def pack(self, weights: Weights) -> Weights:
        """Return the weights as they are."""
        return weights

    unpack = pack

    def slope(self, weights: Weights, x: Tensor, y: Tensor, *, shared: bool, curved: bool) -> Slope:
        """See `StackedModel`. Shared weights stay unstacked, so that one convolution serves all."""

        def gradients_and_losses(weights):
            one_task = grad_and_value(self._loss)
            dims = (None if shared else 0, 0, 0)
            return vmap(one_task, in_dims=dims, randomness="different")(weights, x, y)

        if not curved:
            gradients, losses = gradients_and_losses(dict(weights))
            return Slope(losses=losses, gradients=gradients, hessian_product=None)
        gradients, pullback, losses = vjp(gradients_and_losses, dict(weights), has_aux=True)
        # The Hessian is symmetric: the pullback of the gradient is the product with it.
        return Slope(
            losses=losses,
            gradients=gradients,
            hessian_product=lambda vectors: pullback(dict(vectors))[0],
        )

    def _loss(self, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(functional_call(self.network, dict(weights), (x,)), y)
