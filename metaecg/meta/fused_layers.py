"""Convolutions on rows of channels, buffers that are used again, and weights as one vector."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Buffers:
    """Tensors that are used again: fresh memory costs more than the arithmetic done in it.

    A buffer starts as zeros. Whoever uses one for the same purpose writes the same places, so that
    padding stays zero.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._free: dict[tuple, list[Tensor]] = defaultdict(list)

    def take(self, purpose: str, *shape: int) -> Tensor:
        """Return a free buffer of this purpose and shape, or a new one."""
        free = self._free[purpose, shape]
        return free.pop() if free else torch.zeros(shape, dtype=self.dtype)

    def give(self, purpose: str, buffer: Tensor) -> None:
        """Take a buffer back."""
        self._free[purpose, tuple(buffer.shape)].append(buffer)


WIDE = 4096
"""Weights from which a convolution per task is faster than a batch of matrix products, which costs
fewer calls; measured with benchmarks/meta_engine.py."""


@dataclass(frozen=True)
class ConvShape:
    """Geometry of a strided, zero-padded convolution on rows of channels.

    The zeros behind one window are those before the next. A window takes ``n_rows * stride`` rows of
    the input, so that the patches of all windows together are the rows of one matrix.
    """

    n_in: int
    n_out: int
    kernel: int
    stride: int
    length_in: int

    @property
    def is_wide(self) -> bool:
        """Whether a task has work enough for convolutions of its own."""
        return self.kernel > 1 and self.kernel * self.n_in * self.n_out >= WIDE

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def length(self) -> int:
        """Rows of the output that count, per window."""
        return (self.length_in + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def n_rows(self) -> int:
        """Rows of the output per window."""
        return math.ceil((self.length_in + self.padding) / self.stride)

    @property
    def stride_in(self) -> int:
        """Rows of the input per window."""
        return self.n_rows * self.stride

    def weight_like(self, weight: Tensor) -> Tensor:
        """Return (T, n_out, kernel, n_in), for patches as input with another kernel, in this shape."""
        return weight.reshape(len(weight), self.n_out, self.kernel, self.n_in)

    def rows_in(self, n_windows: int) -> int:
        """Rows of the input of `n_windows`, with those that the last patch reaches into."""
        return (n_windows * self.n_rows - 1) * self.stride + self.kernel

    def rows_out(self, rows_in: int) -> int:
        """Rows of the output of an input of `rows_in`."""
        return (rows_in - self.kernel) // self.stride + 1

    def pieces(self) -> list[tuple[int, int]]:
        """Return (first row, rows) of the kernel's pieces, each at most one stride long."""
        return [
            (start, min(self.stride, self.kernel - start))
            for start in range(0, self.kernel, self.stride)
        ]

    def patches(self, x: Tensor, start: int, n: int) -> Tensor:
        """Return a view of `x` (T, rows, n_in) whose rows are one piece of every patch."""
        n_tasks, rows, channels = x.shape
        return x.as_strided(
            (n_tasks, self.rows_out(rows), n * channels),
            (rows * channels, self.stride * channels, 1),
            x.storage_offset() + start * channels,
        )


def conv_forward(shape: ConvShape, x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of `x` (T, rows, n_in) with `weight` (T, n_out, kernel, n_in).

    Shape (T, n_windows * n_rows, n_out).
    """
    if shape.is_wide:
        return _stack([_forward_picture(shape, *task) for task in zip(x, weight, strict=True)])
    y = x.new_empty(len(x), shape.rows_out(x.shape[1]), shape.n_out)
    for start, n in shape.pieces():
        patch, piece = shape.patches(x, start, n), weight[:, :, start : start + n].flatten(2).mT
        if start == 0:
            torch.bmm(patch, piece, out=y)
        else:
            y.baddbmm_(patch, piece)
    return y


def conv_backward(
    shape: ConvShape, g_y: Tensor, x: Tensor, weight: Tensor, *, of_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of `x`, if asked for, and of `weight`, each in its shape."""
    if shape.is_wide:
        tasks = zip(g_y, x, weight, strict=True)
        pairs = [_backward_picture(shape, *task, of_x=of_x) for task in tasks]
        of_xs, of_weights = zip(*pairs, strict=True)
        return _stack(of_xs) if of_x else None, _stack(of_weights)
    g_x, g_weight = torch.zeros_like(x) if of_x else None, torch.empty_like(weight)
    for start, n in shape.pieces():
        part = slice(start, start + n)
        of_weight = torch.bmm(shape.patches(x, start, n).mT, g_y).mT
        g_weight[:, :, part] = of_weight.unflatten(2, (n, shape.n_in))
        if of_x:
            shape.patches(g_x, start, n).baddbmm_(g_y, weight[:, :, part].flatten(2))
    return g_x, g_weight


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _forward_picture(shape: ConvShape, x: Tensor, weight: Tensor) -> Tensor:
    """Convolve all windows of one task as one long picture."""
    y = torch.conv2d(_picture(x), _kernel(weight), stride=(1, shape.stride))
    return y[0, :, 0].T


def _backward_picture(
    shape: ConvShape, g_y: Tensor, x: Tensor, weight: Tensor, *, of_x: bool
) -> tuple[Tensor | None, Tensor]:
    g_x, g_weight, _ = torch.ops.aten.convolution_backward(
        *(_picture(g_y), _picture(x), _kernel(weight)),
        *(None, (1, shape.stride), (0, 0), (1, 1), False, (0, 0), 1),
        (of_x, True, False),
    )
    return g_x[0, :, 0].T if of_x else None, g_weight[:, :, 0].mT


def _picture(rows: Tensor) -> Tensor:
    """Return rows of channels (rows, C) as (1, C, 1, rows), which is channels-last memory."""
    return rows.T[None, :, None]


def _kernel(weight: Tensor) -> Tensor:
    """Return (n_out, kernel, n_in) as (n_out, n_in, 1, kernel)."""
    return weight.mT[:, :, None]


class FlatWeights:
    """Many weights as one vector, those of a convolution in the order that its patches have.

    Parameters
    ----------
    shapes
        Shape of each weight in the network, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]

    def pack(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the vector, shape ``(size,)``."""
        return torch.cat([in_patch_order(weights[name]).flatten() for name in self.shapes])

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a vector in the network's shapes."""
        return {name: in_patch_order(view) for name, view in self.views(flat).items()}

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views (..., *shape) of vectors (..., size), (..., n_out, kernel, n_in) of a conv."""
        parts = flat.split(self.sizes, dim=-1)
        return {
            name: part.unflatten(-1, (shape[0], *shape[:0:-1]))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def in_patch_order(weight: Tensor) -> Tensor:
    """Return a convolution's weight (n_out, n_in, kernel) as (n_out, kernel, n_in), or back.

    Other weights stay as they are.
    """
    return weight.transpose(1, 2) if weight.ndim == 3 else weight
