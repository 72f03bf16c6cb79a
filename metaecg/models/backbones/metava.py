"""The light CNN and Transformer of MetaVA, with attention written out so that adapters act on it."""

import torch
from torch import nn

from metaecg.checks import check_positive

N_TOKENS = 50
"""Time steps that the encoder sees, whatever the length of the window."""

ENCODER_DROPOUT = 0.1


class SelfAttention(nn.Module):
    """Multi-head self-attention made of two ordinary `nn.Linear` layers.

    `nn.MultiheadAttention` reads the weights of its projections instead of calling them, so an
    adapter wrapped around them would be skipped without a word.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, n_tokens, d_model) to the same shape."""
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(-2, -3)  # (batch, head, token, d_head)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        weights = self.dropout(scores.softmax(dim=-1))
        return self.out((weights @ value).transpose(-2, -3).flatten(-2))


class EncoderLayer(nn.Module):
    """The default `nn.TransformerEncoderLayer` (post-norm, ReLU), without its fused fast path."""

    def __init__(self, d_model: int, n_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(d_model, n_heads, dropout)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, feedforward)
        self.linear2 = nn.Linear(feedforward, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, n_tokens, d_model) to the same shape."""
        tokens = self.norm1(tokens + self.dropout1(self.attention(tokens)))
        return self.norm2(tokens + self.dropout2(self.feed_forward(tokens)))

    def feed_forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map every token by itself: the bulk of the work, at 128 times the encoder's width."""
        return self.linear2(self.dropout(self.linear1(tokens).relu()))


def _halve(x: torch.Tensor) -> torch.Tensor:
    """Max-pool by 2 over the last axis; unlike `nn.MaxPool1d`, cheap under vmap."""
    even = x.shape[-1] // 2 * 2
    return torch.maximum(x[..., 0:even:2], x[..., 1:even:2])


class MetaVANet(nn.Module):
    """Two parallel convolutions, a third one, one encoder layer, mean over time, linear head.

    Parameters
    ----------
    n_leads, n_samples, fs_hz, n_classes
        What goes in and comes out. The kernels are counted in samples, as published for 200 Hz;
        `fs_hz` is kept, not used.
    mid
        Channels of the first, two-branch convolution.
    d_model
        Channels of the encoder; `n_heads` must divide it.
    feedforward
        Hidden units of the encoder layer.
    dropout
        Share of dropped values after the first block. The encoder always drops 0.1.
    unused_duplicate_layer
        Register a second encoder layer that is never called. With ``d_model=64`` the parameter
        count is then the published one (596,354); the outputs don't change.

    References
    ----------
    .. [1] Sun et al., PLOS Digital Health 4(10):e0001037, 2025 (first as arXiv:2202.12450).
    """

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        n_classes: int,
        mid: int = 64,
        d_model: int = 16,
        n_heads: int = 4,
        feedforward: int = 2048,
        dropout: float = 0.5,
        unused_duplicate_layer: bool = False,
    ) -> None:
        super().__init__()
        self.fs_hz = check_positive("fs_hz", fs_hz)
        if n_samples < 8:
            raise ValueError(f"n_samples is {n_samples}; the kernels need a window of at least 8.")
        if d_model % n_heads:
            raise ValueError(f"d_model is {d_model}; expected a multiple of n_heads ({n_heads}).")
        self.short = nn.Conv1d(n_leads, mid, 5, stride=2, padding=2, bias=False)
        self.long = nn.Conv1d(n_leads, mid, 9, stride=2, padding=4, bias=False)
        self.norm1 = nn.BatchNorm1d(mid)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv1d(mid, d_model, 8, padding=4, bias=False)
        self.norm2 = nn.BatchNorm1d(d_model)
        self.pool2 = nn.AdaptiveAvgPool1d(N_TOKENS)
        self.encoder = EncoderLayer(d_model, n_heads, feedforward, ENCODER_DROPOUT)
        if unused_duplicate_layer:
            self.unused_encoder = EncoderLayer(d_model, n_heads, feedforward, ENCODER_DROPOUT)
        self.head = nn.Linear(d_model, n_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Map windows (batch, n_leads, n_samples) to what `head` sees, (batch, d_model)."""
        x = (self.short(x) + self.long(x)) / 2  # (batch, mid, n_samples / 2)
        x = self.dropout(_halve(self.norm1(x)).relu())
        x = self.pool2(self.norm2(self.conv2(x)).relu())  # (batch, d_model, N_TOKENS)
        return self.encoder(x.transpose(1, 2)).mean(dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map windows (batch, n_leads, n_samples) to logits (batch, n_classes)."""
        return self.head(self.features(x))
