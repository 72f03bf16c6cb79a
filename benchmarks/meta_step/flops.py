"""Floating-point operations of a meta-step: what the mathematics needs, whichever engine does it.

Counted are the products of convolutions and linear layers, a multiplication and an addition each,
as torch's own counter does (the zeros of the padding included). Norms, activations, pooling and the
update of the weights are left out: under one operation for each weight or value where a
convolution has dozens. So the count is a lower bound of the work, and the same for every engine.

Let F be the operations of one layer's forward, for one window: ``z = W * a``. P is the sum over the
layers, F1 that of the first layer, whose input is data and gets no gradient.

Gradient of the loss: forward, P. Backward, with ``d`` the gradient in z: ``d (x) a`` in W, F for
every layer; ``W' d`` in a, F for every layer but the first. Together 3 P - F1.

Product of the Hessian with V, by the R-operator [1]_, all values of the gradient kept:

- forward, ``R z = V * a + W * R a``: 2 F; in the first layer R a = 0, F1. Together 2 P - F1.
- backward, in W: ``R d (x) a + d (x) R a``: 2 F; in the first layer F1. Together 2 P - F1.
- backward, in a: ``V' d + W' R d``: 2 F; in the first layer nothing. Together 2 P - 2 F1.

Together 6 P - 4 F1. Differentiating the gradient once more in reverse needs the same number.

References
----------
.. [1] B. A. Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation
   6(1):147-160, 1994.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def of_layers(network: nn.Module, window: Tensor) -> list[int]:
    """Return F of every convolution and linear layer, in the order in which they run.

    `window` is one window with its batch dimension, (1, n_leads, n_samples).
    """
    found = []

    def note(module: nn.Module, _, output: Tensor) -> None:
        found.append(2 * output.numel() * module.weight[0].numel())

    counted = [m for m in network.modules() if isinstance(m, nn.Conv1d | nn.Linear)]
    hooks = [module.register_forward_hook(note) for module in counted]
    with torch.no_grad():
        network(window)
    for hook in hooks:
        hook.remove()
    return found


def of_gradient(layers: Sequence[int]) -> int:
    """Return the operations of the loss's gradient at one window."""
    return 3 * sum(layers) - layers[0]


def of_hessian_product(layers: Sequence[int]) -> int:
    """Return the operations of one product with the Hessian, beside those of the gradient."""
    return 6 * sum(layers) - 4 * layers[0]


def of_meta_step(
    layers: Sequence[int],
    *,
    n_tasks: int,
    n_support: int,
    n_query: int,
    inner_steps: int,
    second_order: bool,
) -> int:
    """Return the operations of one meta-step of MAML.

    A gradient on the support in every inner step, one on the query at the end; for the second order
    a product with the Hessian of every inner step on the way back.
    """
    per_step = of_gradient(layers) + (of_hessian_product(layers) if second_order else 0)
    return n_tasks * (inner_steps * n_support * per_step + n_query * of_gradient(layers))
