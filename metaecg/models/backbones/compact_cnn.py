"""A small convolutional network for single windows: the default base network."""

import torch
from torch import nn
from torch.nn import functional as F

STEM_S = 0.1
"""Length of the first kernel in seconds: about one QRS complex."""
FRAME_HZ = 50
"""Rate after the first convolution. Ventricular fibrillation lies at 3 to 9 Hz and a QRS complex
below 20 Hz, so 50 Hz keeps both."""
N_GROUPS = 4


class CompactBody(nn.Module):
    """What of a `CompactCNN` comes before its head: four strided convolutions, pooled over time.

    Parameters
    ----------
    n_leads, n_samples
        Shape of one window. The layers are the same for every `n_samples`.
    fs_hz
        Sampling rate in hertz; sets the length of the first kernel (0.1 s) and its stride
        (down to about 50 Hz).
    width
        Channels of the first two layers, a multiple of 4; the others have twice as many.
    """

    supports_vmap = True

    def __init__(self, *, n_leads: int, n_samples: int, fs_hz: float, width: int = 32) -> None:
        super().__init__()
        if width < N_GROUPS or width % N_GROUPS:
            raise ValueError(f"width is {width}; a multiple of {N_GROUPS} was expected.")
        self.n_leads, self.n_samples, self.fs_hz, self.width = n_leads, n_samples, fs_hz, width
        kernel = round(STEM_S * fs_hz) // 2 * 2 + 1
        stride = max(1, round(fs_hz / FRAME_HZ))
        self.blocks = nn.Sequential(
            ConvBlock(n_leads, width, kernel=kernel, stride=stride),
            ConvBlock(width, width, kernel=5, stride=2),
            ConvBlock(width, 2 * width, kernel=5, stride=2),
            ConvBlock(2 * width, 2 * width, kernel=3, stride=1),
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what a head sees, shape ``(batch, 4 * width)``: mean, then maximum over time.

        `x` has shape ``(batch, n_leads, n_samples)``.
        """
        frames = self.blocks(x)  # (batch, 2 * width, n_frames)
        return torch.cat([frames.mean(dim=-1), frames.amax(dim=-1)], dim=-1)


class CompactCNN(CompactBody):
    """Four strided convolutions with group norm, pooled over time.

    Every convolution is plain (no groups, no dilation, zero padding), so a low-rank adapter can
    sit on each of them. Group norm keeps no running statistics: the windows of one patient never
    change how another patient's are scaled, and many patients' weights can run in one
    ``torch.func.vmap``.

    Parameters
    ----------
    n_leads, n_samples
        Shape of one window.
    fs_hz
        Sampling rate in hertz; sets the length of the first kernel (0.1 s) and its stride
        (down to about 50 Hz).
    n_classes
        Number of logits.
    width
        Channels of the first two layers, a multiple of 4; the others have twice as many. 16, 32
        and 64 give about 7, 29 and 112 thousand parameters at one lead and 200 Hz.

    Notes
    -----
    Mean and maximum over time are both kept: a fast rhythm fills the whole window (mean), a
    single beat does not (maximum).

    Examples
    --------
    >>> network = CompactCNN(n_leads=1, n_samples=400, fs_hz=200.0, n_classes=2)
    >>> network(torch.zeros(8, 1, 400)).shape
    torch.Size([8, 2])
    """

    def __init__(
        self, *, n_leads: int, n_samples: int, fs_hz: float, n_classes: int, width: int = 32
    ) -> None:
        super().__init__(n_leads=n_leads, n_samples=n_samples, fs_hz=fs_hz, width=width)
        self.head = nn.Linear(4 * width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, n_classes)`` of windows ``(batch, n_leads, n_samples)``."""
        return self.head(self.features(x))


class ConvBlock(nn.Module):
    """Convolution, group norm, ReLU."""

    def __init__(self, n_in: int, n_out: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            n_in, n_out, kernel, stride=stride, padding=kernel // 2, bias=False
        )  # the norm that follows has the bias
        self.norm = nn.GroupNorm(N_GROUPS, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, n_in, n)`` to ``(batch, n_out, ceil(n / stride))``; the kernel is odd."""
        return F.relu(self.norm(self.conv(x)))
