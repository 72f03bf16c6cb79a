"""Layers of a compact CNN with the weights of many tasks: forward, backward, and their tangents."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

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

    def rows_in(self, n_windows: int) -> int:
        """Rows of the input of `n_windows`, with those that the last patches reach into."""
        return n_windows * self.stride_in + self.pieces()[-1][0]

    def pieces(self) -> list[tuple[int, int]]:
        """Return (first row, rows) of the kernel's pieces, each at most one stride long."""
        return [
            (start, min(self.stride, self.kernel - start))
            for start in range(0, self.kernel, self.stride)
        ]

    def patches(self, x: Tensor, start: int, n: int, n_windows: int) -> Tensor:
        """Return a view of `x` (T, rows, n_in) whose rows are one piece of every patch."""
        n_tasks, rows, channels = x.shape
        return x.as_strided(
            (n_tasks, n_windows * self.n_rows, n * channels),
            (rows * channels, self.stride * channels, 1),
            x.storage_offset() + start * channels,
        )


def conv_forward(
    shape: ConvShape, x: Tensor, weight: Tensor, y: Tensor, *, add: bool = False
) -> None:
    """Write, or add, the convolution of `x` with `weight` (T, kernel * n_in, n_out) to `y`."""
    n_windows = y.shape[1] // shape.n_rows
    for start, n in shape.pieces():
        patch = shape.patches(x, start, n, n_windows)
        piece = weight[:, start * shape.n_in : (start + n) * shape.n_in]
        if start == 0 and not add:
            torch.bmm(patch, piece, out=y)
        else:
            y.baddbmm_(patch, piece)


def conv_backward_weight(
    shape: ConvShape, x: Tensor, g_y: Tensor, g_weight: Tensor, *, add: bool = False
) -> None:
    """Write, or add, the gradient of the weight (T, kernel * n_in, n_out)."""
    n_windows = g_y.shape[1] // shape.n_rows
    for start, n in shape.pieces():
        patch = shape.patches(x, start, n, n_windows).transpose(1, 2)
        piece = g_weight[:, start * shape.n_in : (start + n) * shape.n_in]
        if add:
            piece.baddbmm_(patch, g_y)
        else:
            torch.bmm(patch, g_y, out=piece)


def conv_backward_input(
    shape: ConvShape, weight: Tensor, g_y: Tensor, g_x: Tensor, *, add: bool = False
) -> None:
    """Write, or add, the gradient of the input (T, rows, n_in)."""
    n_windows = g_y.shape[1] // shape.n_rows
    if not add:
        g_x[:, n_windows * shape.stride_in :] = 0
    for start, n in shape.pieces():
        patch = shape.patches(g_x, start, n, n_windows)
        piece = weight[:, start * shape.n_in : (start + n) * shape.n_in].transpose(1, 2)
        if start == 0 and n == shape.stride and not add:
            torch.bmm(g_y, piece, out=patch)
        else:
            patch.baddbmm_(g_y, piece)


class FlatWeights:
    """Many weights as one vector, that of a convolution as the matrix that its patches multiply.

    Parameters
    ----------
    shapes
        Shape of each weight in the network, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.starts = dict(zip(self.shapes, [0, *accumulate(sizes)], strict=False))
        self.size = sum(sizes)

    def pack(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the vector, shape ``(size,)``."""
        return torch.cat([as_matrix(weights[name]).flatten() for name in self.shapes])

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of a vector in the network's shapes."""
        found = {}
        for name, view in self.views(flat[None]).items():
            shape = self.shapes[name]
            is_conv = len(shape) == 3
            found[name] = view[0].view(shape[::-1]).permute(2, 1, 0) if is_conv else view[0]
        return found

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return views of T vectors (T, size): (T, kernel * n_in, n_out), else (T, *shape)."""
        found = {}
        for name, shape in self.shapes.items():
            part = flat[:, self.starts[name] : self.starts[name] + math.prod(shape)]
            found[name] = part.unflatten(1, matrix_shape(shape))
        return found


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which a weight is used: (kernel * n_in, n_out) for (n_out, n_in, kernel)."""
    return (shape[2] * shape[1], shape[0]) if len(shape) == 3 else tuple(shape)


def as_matrix(weight: Tensor) -> Tensor:
    """Return a convolution's weight (n_out, n_in, kernel) as (kernel * n_in, n_out), others as is."""
    return weight.permute(2, 1, 0).flatten(0, 1) if weight.ndim == 3 else weight
