"""GRU, LSTM and bidirectional LSTM over frames of a strided convolution."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.checks import check_positive

MAX_FRAMES = 100
"""A recurrent cell runs frame by frame: the cost grows with their number, and gradients fade."""
N_GROUPS = 4


class Recurrent(nn.Module):
    """A convolution that makes at most 100 frames, a recurrent layer, mean and maximum over time.

    Not to be built itself: `GRUNet`, `LSTMNet` and `BiLSTMNet` choose the cell. The convolution is
    two strides long, so that neighbouring frames overlap; group norm and ReLU follow it.

    Parameters
    ----------
    n_leads, n_samples
        Shape of one window. The stride is ``ceil(n_samples / 100)``: 400 samples give 100 frames,
        250 give 84, 1250 give 97.
    fs_hz
        Sampling rate in hertz; kept, not used.
    n_classes
        Number of logits.
    n_channels
        Channels of a frame, a multiple of 4.
    n_hidden
        Size of the cell's state, per direction.
    n_layers
        Recurrent layers on top of each other.
    """

    supports_vmap = False  # torch's fused recurrent cells have no batching rule
    cell: type[nn.RNNBase]
    bidirectional = False

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        n_classes: int,
        n_channels: int = 32,
        n_hidden: int = 64,
        n_layers: int = 1,
    ) -> None:
        super().__init__()
        self.fs_hz = check_positive("fs_hz", fs_hz)
        if n_channels < N_GROUPS or n_channels % N_GROUPS:
            raise ValueError(f"n_channels is {n_channels}; a multiple of {N_GROUPS} was expected.")
        stride = math.ceil(n_samples / MAX_FRAMES)
        self.front = nn.Conv1d(
            n_leads, n_channels, 2 * stride + 1, stride=stride, padding=stride, bias=False
        )
        self.front_norm = nn.GroupNorm(N_GROUPS, n_channels)
        self.recurrent = self.cell(
            n_channels,
            n_hidden,
            num_layers=n_layers,
            batch_first=True,
            bidirectional=self.bidirectional,
        )
        n_outputs = n_hidden * (2 if self.bidirectional else 1)
        self.head = nn.Linear(2 * n_outputs, n_classes)

    def frames(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the cell reads, ``(batch, n_frames, n_channels)``."""
        return F.relu(self.front_norm(self.front(x))).transpose(1, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return mean, then maximum over time of the cell's outputs, ``(batch, 2 * n_outputs)``.

        `x` has shape ``(batch, n_leads, n_samples)``; `n_outputs` is the size of the state, twice
        that for two directions.
        """
        outputs, _ = self.recurrent(self.frames(x))  # (batch, n_frames, n_outputs)
        return torch.cat([outputs.mean(dim=1), outputs.amax(dim=1)], dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, n_classes)`` of windows ``(batch, n_leads, n_samples)``."""
        return self.head(self.features(x))


class GRUNet(Recurrent):
    """Gated recurrent units, forward in time."""

    cell = nn.GRU


class LSTMNet(Recurrent):
    """Long short-term memory, forward in time."""

    cell = nn.LSTM


class BiLSTMNet(Recurrent):
    """Long short-term memory, forward and backward in time."""

    cell = nn.LSTM
    bidirectional = True
