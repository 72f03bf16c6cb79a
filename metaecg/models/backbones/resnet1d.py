"""ResNet-18 in one dimension."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.checks import check_option, check_positive

N_GROUPS = 8


class ResNet1d18(nn.Module):
    """ResNet-18 with every two-dimensional part replaced by its one-dimensional counterpart.

    As in [1]_: a convolution of 7 with stride 2, a maximum of 3 with stride 2, four stages of two
    basic blocks (two convolutions of 3, the sum, then ReLU), a 1x1 convolution on the shortcut
    where the shape changes, the mean over time, one linear layer, He initialisation.

    Parameters
    ----------
    n_leads, n_samples
        Shape of one window. Time shrinks 32 times.
    fs_hz
        Sampling rate in hertz; kept, not used: the kernels are counted in samples.
    n_classes
        Number of logits.
    width
        Channels of the first stage, a multiple of 8; each later stage has twice as many. 64 as
        published.
    norm
        ``"batch"`` as published, or ``"group"`` (8 groups): no running statistics, and the
        weights of many patients can run in one ``torch.func.vmap``.

    References
    ----------
    .. [1] K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.
    """

    supports_vmap = False  # with norm="group" the object says True

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        n_classes: int,
        width: int = 64,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.fs_hz = check_positive("fs_hz", fs_hz)
        check_option("norm", norm, ("batch", "group"))
        if width < N_GROUPS or width % N_GROUPS:
            raise ValueError(f"width is {width}; a multiple of {N_GROUPS} was expected.")
        self.supports_vmap = norm == "group"
        self.stem = nn.Conv1d(n_leads, width, 7, stride=2, padding=3, bias=False)
        self.stem_norm = make_norm(norm, width)
        self.pool = nn.MaxPool1d(3, stride=2, padding=1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    BasicBlock(n_in, n_out, stride=1 if n_in == n_out else 2, norm=norm),
                    BasicBlock(n_out, n_out, stride=1, norm=norm),
                )
                for n_in, n_out in pairwise(widths)
            )
        )
        self.head = nn.Linear(8 * width, n_classes)
        self._initialise()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean over time of the last stage, ``(batch, 8 * width)``.

        `x` has shape ``(batch, n_leads, n_samples)``.
        """
        frames = self.pool(F.relu(self.stem_norm(self.stem(x))))  # (batch, width, n_samples / 4)
        return self.stages(frames).mean(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, n_classes)`` of windows ``(batch, n_leads, n_samples)``."""
        return self.head(self.features(x))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two convolutions of 3 samples beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, n_out)
        self.conv2 = nn.Conv1d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, n_out)
        self.shortcut = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv1d(n_in, n_out, 1, stride=stride, bias=False), make_norm(norm, n_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, n_in, n)`` to ``(batch, n_out, ceil(n / stride))``."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def make_norm(norm: str, n_channels: int) -> nn.Module:
    """Return batch norm or group norm over `n_channels`."""
    return nn.BatchNorm1d(n_channels) if norm == "batch" else nn.GroupNorm(N_GROUPS, n_channels)
