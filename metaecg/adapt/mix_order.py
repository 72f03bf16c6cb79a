"""Mix-order gradients: two forward passes over a batch, a backward pass over a few of its windows.

Backpropagation through a whole batch keeps every activation alive. A mix-order step does so for
`n_first_order` windows only. The rest of the batch gives the exact gradient of the last layers,
fresh statistics of batch norm, and an estimate along one random direction for the layers below:

    shallow   g = mixing g1 + (1 - mixing) ||g1|| g0 / (||g0|| + 1e-6)     per tensor
    deep      g = d L(theta - scale z; batch) / d deep
    g0 = (L(theta + scale z; batch) - L(theta - scale z; batch)) / (2 scale) z,   z ~ N(0, I)
    g1 = d L(theta; the first n_first_order windows) / d shallow
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from metaecg.adapt.batch_norm_modes import (
    batch_norms,
    batch_statistics,
    gradients_for,
    left_as_found,
)
from metaecg.adapt.summed_weights import summed_weights
from metaecg.adapt.training import training_mode
from metaecg.checks import check_option, check_positive
from metaecg.errors import AdaptationError

DIRECTIONS = ("measured", "random")
BATCH_NORMS = ("train", "eval")
NORM_FLOOR = 1e-6  # added to ||g0||, as in the released code of H-Tuning

NamedParameters = Sequence[tuple[str, nn.Parameter]]


class MixOrder:
    """Compute mix-order gradients, for any optimizer to step on.

    Both directions of the loss are evaluated at weights perturbed in place; the weights are bit by
    bit the same after `backward`, whatever happens in it. Only random numbers of `generator` are
    used. The modes of the network are put back too.

    Parameters
    ----------
    network
        Its shallow weights are perturbed in place for the time of a forward pass.
    loss
        Of outputs and targets: one number, the plain mean over the windows.
    shallow, deep
        ``(name, parameter)`` pairs of the network; either may be empty. Without `shallow` there
        is one forward pass, without perturbation. The less of the network lies behind the first
        deep parameter, the less memory a step takes.
    mixing
        Weight of the first order in the shallow gradient, 0 to 1 (lambda). 1 is the control
        without the zeroth order: the same passes, so batch norm and the deep gradient are the
        same as otherwise, and the shallow gradient is g1 exactly.
    scale
        Length of the perturbation in units of the standard normal z (mu).
    n_samples
        Directions z per step; their estimates, and the deep gradients, are averaged.
    n_first_order
        Windows of the backward pass (N1): the first ones of the batch.
    chunk
        Windows in one forward pass of the zeroth order at most; ``None``: the whole batch. The
        batch is cut into pieces as equal as possible. Loss and deep gradient are exact sums over
        the pieces.
    direction
        ``"measured"``, or ``"random"``: the control whose sign of g0 is a coin's, at the same z.
    batch_norm
        Of the zeroth-order passes. ``"train"``: fresh statistics, the running ones move, at every
        pass once. ``"eval"``: they stay. In the backward pass they always stay.
    generator
        On the CPU. Draws one seed and one coin per direction.

    Raises
    ------
    ValueError
        If an argument is outside its range, a parameter is not one of the network's, or one is
        listed twice.

    Notes
    -----
    With batch norm in train mode, `chunk` changes the loss: each piece is normalised by its own
    statistics. Statistics of the whole batch would need another pass per batch-norm layer. It is
    a function of the weights as good as the other one, its estimate and its deep gradient are
    exact. With ``batch_norm="eval"``, or without batch norm, the loss is the same up to rounding.

    z is drawn again from its seed each time it is needed, one tensor at a time, on the device of
    its parameter. The weights before the step are kept as a copy: subtracting what was added
    would leave rounding errors that add up. The copy is as large as the shallow part, which for
    low-rank adapters is small.

    Only the sign of the measured difference reaches the step, for g0 is scaled to the norm of g1;
    one z has an expected cosine of ``sqrt(2 / (pi d))`` with the true gradient over d parameters.

    References
    ----------
    .. [1] R. Zhou et al., "H-Tuning: Toward Low-Cost and Efficient ECG-based Cardiovascular
       Disease Detection with Pre-Trained Models", ICML 2025, PMLR 267:79548-79569.
    .. [2] S. Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> stepper = MixOrder(
    ...     network,
    ...     nn.functional.cross_entropy,
    ...     shallow=list(network[0].named_parameters()),
    ...     deep=list(network[1].named_parameters()),
    ...     generator=torch.Generator().manual_seed(0),
    ... )
    >>> optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    >>> loss = stepper.backward(torch.ones(8, 3), torch.zeros(8, dtype=torch.int64))
    >>> optimizer.step()
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        shallow: NamedParameters,
        deep: NamedParameters,
        mixing: float = 0.85,
        scale: float = 1e-3,
        n_samples: int = 1,
        n_first_order: int = 2,
        chunk: int | None = None,
        direction: str = "measured",
        batch_norm: str = "train",
        generator: torch.Generator,
    ) -> None:
        _check_parameters(network, shallow, deep)
        if not 0 <= mixing <= 1:
            raise ValueError(f"mixing is {mixing!r}; a number from 0 to 1 was expected.")
        self.network, self.loss, self.generator = network, loss, generator
        self.mixing, self.scale = mixing, check_positive("scale", scale)
        self.n_samples = _check_count("n_samples", n_samples)
        self.n_first_order = _check_count("n_first_order", n_first_order)
        self.chunk = None if chunk is None else _check_count("chunk", chunk)
        self.direction = check_option("direction", direction, DIRECTIONS)
        self.batch_norm = check_option("batch_norm", batch_norm, BATCH_NORMS)
        self.n_steps = 0
        """Calls of `backward` that came to their end."""
        self._shallow_names, self._shallow = _unzipped(shallow)
        self._deep_names, self._deep = _unzipped(deep)

    def backward(self, x: Tensor, y: Tensor) -> float:
        """Put the gradients of one step into ``.grad``, replacing what was there.

        Parameters
        ----------
        x
            Batch, shape ``(n_windows, n_leads, n_samples)``; the first axis is the batch.
        y
            Targets, shape ``(n_windows, ...)``, as the loss takes them.

        Returns
        -------
        float
            The loss over the batch: the mean of both sides, which is the loss at the weights
            themselves up to the square of `scale`.

        Raises
        ------
        ValueError
            If the batch has fewer than `n_first_order` windows or other than one target each.
        AdaptationError
            If a loss or a gradient is not finite, with the step and the side. Weights, statistics
            and gradients are as before.
        """
        self._check_batch(x, y)
        x, y = x.detach(), y.detach()  # a graph behind them would run through the whole network
        with left_as_found(self.network), training_mode(self.network):
            value, probes, deep = self._zeroth_order(x, y)
            n = self.n_first_order
            shallow = self._shallow_gradients(x[:n], y[:n], probes) if self._shallow else []
            self._check_gradients([*self._shallow_names, *self._deep_names], [*shallow, *deep])
        for parameter, gradient in zip(
            [*self._shallow, *self._deep], [*shallow, *deep], strict=True
        ):
            parameter.grad = gradient
        self.n_steps += 1
        return value

    def _zeroth_order(self, x: Tensor, y: Tensor) -> tuple[float, list, list[Tensor]]:
        """Return the loss, a (seed, coefficient) per direction, and the deep gradient."""
        deep = [torch.zeros_like(parameter) for parameter in self._deep]
        if not self._shallow:
            return self._pass(x, y, deep, "at the weights themselves"), [], deep
        weights = [parameter.detach().clone() for parameter in self._shallow]
        value, probes = 0.0, []
        try:
            for _ in range(self.n_samples):
                seed, coin = self._draw()
                self._perturb(weights, seed, self.scale)
                plus = self._pass(x, y, [], "at the weights plus scale * z")
                self._perturb(weights, seed, -self.scale)
                minus = self._pass(x, y, deep, "at the weights minus scale * z")
                value += (plus + minus) / (2 * self.n_samples)
                slope = (plus - minus) / (2 * self.scale)
                probes.append((seed, slope if self.direction == "measured" else coin * abs(slope)))
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self._shallow, weights, strict=True):
                    parameter.copy_(weight)
        return value, probes, [gradient / self.n_samples for gradient in deep]

    def _draw(self) -> tuple[int, int]:
        """Return a seed and a coin; both are drawn always, so that the control has the same z."""
        seed = int(torch.randint(2**62, (1,), generator=self.generator))
        return seed, 2 * int(torch.randint(2, (1,), generator=self.generator)) - 1

    def _perturb(self, weights: list[Tensor], seed: int, length: float) -> None:
        """Set the shallow weights to `weights` plus `length` times z, in place."""
        with torch.no_grad():
            for parameter, weight, z in zip(self._shallow, weights, self._z(seed), strict=True):
                parameter.copy_(weight).add_(z, alpha=length)

    def _z(self, seed: int) -> Iterator[Tensor]:
        """Draw the direction of a seed, tensor by tensor."""
        generators = {}
        for parameter in self._shallow:
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device=device).manual_seed(seed)
            yield torch.randn(
                parameter.shape, generator=generators[device], device=device, dtype=parameter.dtype
            )

    def _pass(self, x: Tensor, y: Tensor, gradients: list[Tensor], side: str) -> float:
        """Return the loss over the batch, piece by piece; add the deep gradient to `gradients`.

        Without `gradients` nothing is differentiated.
        """
        n_pieces = 1 if self.chunk is None else math.ceil(len(x) / self.chunk)
        deep = self._deep if gradients else []
        value = 0.0
        norms = batch_norms(self.network) if self.batch_norm == "train" else []
        pieces = zip(x.tensor_split(n_pieces), y.tensor_split(n_pieces), strict=True)
        with batch_statistics(norms, n_pieces) as record, summed_weights(self.network):
            for x_piece, y_piece in pieces:
                share = len(x_piece) / len(x)
                part, found = self._differentiate(x_piece, y_piece, deep, side)
                for gradient, g in zip(gradients, found, strict=True):
                    gradient.add_(g, alpha=share)
                value += share * part
                record(share)
        return value

    def _shallow_gradients(self, x: Tensor, y: Tensor, probes: list) -> list[Tensor]:
        """Return the mixed gradient of every shallow tensor, at the weights themselves."""
        _, gradients = self._differentiate(
            x, y, self._shallow, f"over the first {len(x)} windows at the weights themselves"
        )
        directions = zip(*(self._z(seed) for seed, _ in probes), strict=True)
        for i, samples in enumerate(directions):  # one tensor's z at a time
            zeroth = sum(c * z for (_, c), z in zip(probes, samples, strict=True)) / len(probes)
            gradients[i] = mix(gradients[i], zeroth, self.mixing)
        return gradients

    def _differentiate(
        self, x: Tensor, y: Tensor, parameters: list[nn.Parameter], side: str
    ) -> tuple[float, list[Tensor]]:
        """Return a finite loss and its gradients, zeros for what it doesn't depend on."""
        with gradients_for(self.network, parameters):
            loss = self.loss(self.network(x), y)
            value = self._finite(loss, side)
            if not loss.requires_grad:
                return value, [torch.zeros_like(parameter) for parameter in parameters]
            gradients = torch.autograd.grad(
                loss, parameters, allow_unused=True, materialize_grads=True
            )
        return value, list(gradients)

    def _finite(self, loss: Tensor, side: str) -> float:
        if loss.numel() != 1:
            raise ValueError(
                f"the loss has the shape {tuple(loss.shape)}; one number, the mean over the batch, "
                "was expected. Use reduction='mean'."
            )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AdaptationError(
                f"the loss is {value} at step {self.n_steps + 1}, {side} (scale={self.scale:g}); "
                "a finite loss was expected. Lower lr or scale, and look for NaN in the windows."
            )
        return value

    def _check_gradients(self, names: list[str], gradients: list[Tensor]) -> None:
        device = gradients[0].device
        finite = torch.stack([gradient.isfinite().all().to(device) for gradient in gradients])
        if not finite.all():  # one wait for the device, not one per tensor
            name = names[int(finite.int().argmin())]
            raise AdaptationError(
                f"the gradient of {name!r} is not finite at step {self.n_steps + 1}; finite "
                "numbers were expected. Lower lr."
            )

    def _check_batch(self, x: Tensor, y: Tensor) -> None:
        if len(x) != len(y):
            raise ValueError(f"there are {len(x)} windows and {len(y)} targets; expected as many.")
        if self._shallow and self.n_first_order > len(x):
            raise ValueError(
                f"n_first_order is {self.n_first_order}, and the batch has {len(x)} windows; at "
                "most the whole batch can go through the backward pass. Lower n_first_order or "
                "give more windows."
            )
        if not len(x):
            raise ValueError("the batch has 0 windows; at least one was expected.")


def mix(first: Tensor, zeroth: Tensor, mixing: float) -> Tensor:
    """Return ``mixing * first + (1 - mixing) * ||first|| * zeroth / (||zeroth|| + 1e-6)``.

    The zeroth-order term is scaled to the norm of the first-order gradient: its own norm is about
    the square root of the number of parameters too large.

    Parameters
    ----------
    first, zeroth
        The two gradients of one tensor, of any one shape.
    mixing
        0 to 1; at 1 the result is `first` exactly.

    Examples
    --------
    >>> mix(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 100.0]), 0.8)
    tensor([2.4000, 4.2000])
    """
    norm = torch.linalg.vector_norm
    return mixing * first + (1 - mixing) * norm(first) / (norm(zeroth) + NORM_FLOOR) * zeroth


def _unzipped(pairs: NamedParameters) -> tuple[list[str], list[nn.Parameter]]:
    return [name for name, _ in pairs], [parameter for _, parameter in pairs]


def _check_parameters(network: nn.Module, shallow: NamedParameters, deep: NamedParameters) -> None:
    known, seen = {id(p) for p in network.parameters()}, {}
    for name, parameter in [*shallow, *deep]:
        if id(parameter) not in known:
            raise ValueError(
                f"{name!r} is no parameter of the {type(network).__name__}; pairs of its "
                "named_parameters() were expected. Take them from the same copy of the network."
            )
        if id(parameter) in seen:
            raise ValueError(
                f"{name!r} is listed twice in shallow and deep (first as {seen[id(parameter)]!r}); "
                "every parameter belongs to one of them. Leave it out of one list."
            )
        seen[id(parameter)] = name
    if not seen:
        raise ValueError("shallow and deep are both empty; at least one parameter was expected.")


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; a whole number above 0 was expected.")
    return value
