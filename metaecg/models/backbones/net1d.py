"""Net1D: a deep residual network of grouped convolutions with squeeze-and-excitation."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.checks import check_positive


class Net1D(nn.Module):
    """Stages of pre-activation bottleneck blocks; each stage halves the time.

    Followed, after [1]_ and the released settings of the networks built on it: a strided
    convolution; stages whose first block has the stride; a block of 1x1, grouped and 1x1
    convolutions, each after its activation (Swish), closed by squeeze-and-excitation to half the
    channels; a shortcut without weights (maximum over the stride in time; channels cropped or
    filled up with zeros at both ends where their number changes); the mean over time; one linear
    layer. The default sizes are those of MetaVA's earlier network [2]_: no batch norm.

    Not followed: dropout is left out (with batch norm off the released settings leave it out
    too), the bottleneck keeps the block's width (ratio 1, the only one in use), and the weights
    are this file's own initialisation, torch's default: released weights can't be loaded.

    Parameters
    ----------
    n_leads, n_samples
        Shape of one window. Time shrinks ``stride ** (1 + number of stages)`` times, 256 times by
        default, rounded up at each step: never below one sample.
    fs_hz
        Sampling rate in hertz; kept, not used: the kernels are counted in samples.
    n_classes
        Number of logits.
    base_filters
        Channels of the first convolution.
    filters
        Channels of each stage, multiples of `group_width`.
    n_blocks
        Blocks per stage.
    kernel_size, stride
        Of the first convolution and of each stage's grouped ones, in samples.
    group_width
        Channels per group of the grouped convolutions.
    use_bn
        Batch norm before every activation, and after the first convolution. A batch of one window
        can then not be trained on where time has shrunk to a single sample.

    References
    ----------
    .. [1] S. Hong et al., "HOLMES: Health OnLine Model Ensemble Serving for Deep Learning Models
       in Intensive Care Units", KDD 2020, arXiv:2008.04063.
    .. [2] Sun et al., arXiv:2202.12450, 2022 (PLOS Digital Health 4(10):e0001037, 2025).
    """

    supports_vmap = True  # with use_bn=True the object says False

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        n_classes: int,
        base_filters: int = 128,
        filters: Sequence[int] = (128, 64, 64, 32, 32, 16, 16),
        n_blocks: int = 2,
        kernel_size: int = 16,
        stride: int = 2,
        group_width: int = 16,
        use_bn: bool = False,
    ) -> None:
        super().__init__()
        self.fs_hz = check_positive("fs_hz", fs_hz)
        for n_filters in filters:
            if n_filters % group_width:
                raise ValueError(
                    f"filters holds {n_filters}; multiples of group_width ({group_width}) were "
                    "expected."
                )
        self.supports_vmap = not use_bn
        self.kernel_size = kernel_size
        self.stride = stride
        self.stem = nn.Conv1d(n_leads, base_filters, kernel_size, stride=stride, bias=not use_bn)
        self.stem_norm = make_norm(base_filters, use_bn)
        blocks = []
        n_in = base_filters
        for n_filters in filters:
            for index in range(n_blocks):
                block = Bottleneck(
                    n_in,
                    n_filters,
                    kernel_size=kernel_size,
                    stride=stride if index == 0 else 1,
                    groups=n_filters // group_width,
                    use_bn=use_bn,
                    activate_input=bool(blocks),  # the stem has just activated the first one's
                )
                blocks.append(block)
                n_in = n_filters
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(n_in, n_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean over time of the last block, ``(batch, filters[-1])``.

        `x` has shape ``(batch, n_leads, n_samples)``.
        """
        x = self.stem(pad_same(x, self.kernel_size, self.stride))
        frames = F.silu(self.stem_norm(x))  # (batch, base_filters, n_samples / stride)
        return self.blocks(frames).mean(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, n_classes)`` of windows ``(batch, n_leads, n_samples)``."""
        return self.head(self.features(x))


class Bottleneck(nn.Module):
    """1x1, grouped and 1x1 convolution, each after its activation, beside a weightless shortcut."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        kernel_size: int,
        stride: int,
        groups: int,
        use_bn: bool,
        activate_input: bool,
    ) -> None:
        super().__init__()
        self.n_out = n_out
        self.kernel_size = kernel_size
        self.stride = stride
        self.activate_input = activate_input
        self.norm1 = make_norm(n_in, use_bn and activate_input)
        self.conv1 = nn.Conv1d(n_in, n_out, 1, bias=not use_bn)
        self.norm2 = make_norm(n_out, use_bn)
        self.conv2 = nn.Conv1d(
            n_out, n_out, kernel_size, stride=stride, groups=groups, bias=not use_bn
        )
        self.norm3 = make_norm(n_out, use_bn)
        self.conv3 = nn.Conv1d(n_out, n_out, 1)
        self.squeeze = nn.Linear(n_out, n_out // 2)
        self.excite = nn.Linear(n_out // 2, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, n_in, n)`` to ``(batch, n_out, ceil(n / stride))``."""
        y = F.silu(self.norm1(x)) if self.activate_input else x
        y = self.conv1(y)
        y = self.conv2(pad_same(F.silu(self.norm2(y)), self.kernel_size, self.stride))
        y = self.conv3(F.silu(self.norm3(y)))
        gate = self.excite(F.silu(self.squeeze(y.mean(dim=-1)))).sigmoid()  # (batch, n_out)
        return y * gate.unsqueeze(-1) + self._shortcut(x)

    def _shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            x = pad_same(x, self.stride, self.stride, value=float("-inf"))
            x = F.max_pool1d(x, self.stride)
        missing = self.n_out - x.shape[1]  # below 0: channels too many, and pad crops them
        if missing == 0:
            return x
        return F.pad(x, (0, 0, missing // 2, missing - missing // 2))


def pad_same(x: torch.Tensor, kernel_size: int, stride: int, *, value: float = 0.0) -> torch.Tensor:
    """Fill `x` up at both ends in time, so that an unpadded kernel gives ``ceil(n / stride)``.

    This stands outside the convolution, which stays a plain one that an adapter can sit beside;
    its own `padding` can't be uneven, as an even kernel needs.
    """
    n_samples = x.shape[-1]
    n_out = -(-n_samples // stride)
    total = max(0, (n_out - 1) * stride + kernel_size - n_samples)
    return F.pad(x, (total // 2, total - total // 2), value=value)


def make_norm(n_channels: int, use_bn: bool) -> nn.Module:
    """Return batch norm, or nothing."""
    return nn.BatchNorm1d(n_channels) if use_bn else nn.Identity()
