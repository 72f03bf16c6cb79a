"""A small convolutional network for single beats that also sees numbers about the beat."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.models.backbones.compact_cnn import CompactBody

N_HIDDEN_NUMBERS = 16


class BeatBody(nn.Module):
    """What of a `BeatCNN` comes before its head: a `CompactBody`, and a layer for the numbers."""

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        width: int,
        n_numbers: int,
        n_hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        n_signals = n_leads - bool(n_numbers)
        self.signal = CompactBody(n_leads=n_signals, n_samples=n_samples, fs_hz=fs_hz, width=width)
        n_found = 4 * width
        if n_numbers:
            self.numbers = nn.Linear(n_numbers, N_HIDDEN_NUMBERS)
            n_found += N_HIDDEN_NUMBERS
        self.n_signals, self.n_numbers = n_signals, n_numbers
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(n_found, n_hidden)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what a head sees, shape ``(batch, n_hidden)``, of ``(batch, n_leads, n_samples)``."""
        found = self.signal.features(x[:, : self.n_signals])
        if self.n_numbers:
            numbers = F.relu(self.numbers(x[:, -1, : self.n_numbers]))
            found = torch.cat([found, numbers], dim=-1)
        return F.relu(self.mix(self.dropout(found)))


class BeatCNN(nn.Module):
    """`CompactCNN`'s convolutions over the rows of a beat, and a layer for numbers beside them.

    The rows of an input are signals, but for the last one if `n_numbers` is above 0: that one starts
    with so many numbers (`metaecg.data.beat_input` puts intervals and likenesses there), which no
    convolution sees.

    Parameters
    ----------
    n_leads
        Rows of an input, the one with the numbers included.
    n_samples, fs_hz, n_classes
        As of every network.
    width
        Channels of the first two convolutions, a multiple of 4.
    n_numbers
        Numbers at the start of the last row; 0: all rows are signals.
    n_hidden
        Width of the layer before the head.
    dropout
        Part of its inputs that is dropped while training.
    n_members
        Networks whose logits are averaged; see `assemble`.

    Examples
    --------
    >>> network = BeatCNN(n_leads=2, n_samples=112, fs_hz=125.0, n_classes=2, n_numbers=15)
    >>> network(torch.zeros(8, 2, 112)).shape
    torch.Size([8, 2])
    """

    supports_vmap = True

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        n_classes: int,
        width: int = 24,
        n_numbers: int = 0,
        n_hidden: int = 32,
        dropout: float = 0.0,
        n_members: int = 1,
    ) -> None:
        super().__init__()
        if n_members < 1:
            raise ValueError(f"n_members is {n_members!r}; at least 1 was expected.")
        if not 0 <= n_numbers <= n_samples or n_leads < 1 + bool(n_numbers):
            raise ValueError(
                f"n_numbers is {n_numbers!r} for {n_leads} rows of {n_samples} samples; expected 0, or "
                "numbers that fit into a last row behind at least one signal."
            )
        self.members = nn.ModuleList(
            BeatBody(
                n_leads=n_leads,
                n_samples=n_samples,
                fs_hz=fs_hz,
                width=width,
                n_numbers=n_numbers,
                n_hidden=n_hidden,
                dropout=dropout,
            )
            for _ in range(n_members)
        )
        self.head = nn.Linear(n_members * n_hidden, n_classes)

    @staticmethod
    def assemble(members: Sequence["BeatCNN"], into: "BeatCNN") -> "BeatCNN":
        """Fill `into`, built with as many members, so that its logits are the mean of theirs.

        As in `CompactCNNEnsemble` the features are divided by the number of members, and the head
        keeps their weights.
        """
        for body, member in zip(into.members, members, strict=True):
            body.load_state_dict(member.members[0].state_dict())
        with torch.no_grad():
            into.head.weight.copy_(torch.cat([m.head.weight for m in members], dim=1))
            into.head.bias.copy_(torch.stack([m.head.bias for m in members]).mean(dim=0))
        return into.eval()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the members' features side by side, ``(batch, n_members * n_hidden)``."""
        found = [member.features(x) for member in self.members]
        return torch.cat(found, dim=-1) / len(self.members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, n_classes)`` of inputs ``(batch, n_leads, n_samples)``."""
        return self.head(self.features(x))
