"""The convolutional encoder and causal transformer of H-Tuning, at its five sizes."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from metaecg.checks import check_option, check_positive

SIZES = {
    "tinylight": (64, 1),
    "tiny": (128, 4),
    "base": (256, 8),
    "medium": (512, 12),
    "large": (768, 12),
}
"""Name -> (`width`, `n_blocks`): the student, three steps between, the paper's teacher (medium)."""

KERNEL_SIZE = 9
STRIDE = 4
N_CONV_BLOCKS = 3


class CNNTransformer(nn.Module):
    """Three residual blocks of convolutions, a causal transformer, the maximum over time.

    Followed, after [1]_ (`SIZES` has its widths and depths; 12 leads and 18 classes give its
    parameter counts): every residual block shortens the time fourfold; positions are sinusoidal;
    the transformer is pre-norm, a token sees itself and earlier ones; `neck` and `head` are the
    last two linear layers, with nothing non-linear between them. There is no dropout.

    Not followed: the convolutions are one-dimensional, and every weight has torch's default
    initialisation, drawn anew; released weights can't be loaded.

    Parameters
    ----------
    n_leads, n_samples
        Shape of one window, at least 9 samples (one kernel). 64 samples make a token, and so does
        a rest: 6144 samples pass the blocks as 1536, 384 and 96 tokens, 400 as 100, 25 and 7.
        Shorter windows than `n_samples` can be given, not longer ones. Where a window is a single
        token, batch norm can't be trained on a batch of one.
    fs_hz
        Sampling rate in hertz; kept, not used: the kernels are counted in samples, as published
        for 500 Hz.
    n_classes
        Number of logits.
    width
        Channels everywhere, a multiple of `n_heads` and even.
    n_blocks
        Transformer blocks.
    n_heads
        Attention heads.
    attention
        ``"fused"`` never keeps the table of token pairs in memory; ``"plain"`` gives the same
        numbers from products that torch can differentiate twice (second-order MAML).

    References
    ----------
    .. [1] Zhou et al., "H-Tuning", ICML 2025, PMLR 267:79548-79569.
    """

    supports_vmap = False
    deep_modules = ("neck", "head")
    """The last layers, which H-Tuning trains by first-order gradients of the whole batch."""

    def __init__(
        self,
        *,
        n_leads: int,
        n_samples: int,
        fs_hz: float,
        n_classes: int,
        width: int = 64,
        n_blocks: int = 1,
        n_heads: int = 16,
        attention: str = "fused",
    ) -> None:
        super().__init__()
        self.fs_hz = check_positive("fs_hz", fs_hz)
        _check_shape(n_samples=n_samples, width=width, n_heads=n_heads)
        check_option("attention", attention, ("fused", "plain"))
        widths = [n_leads] + [width] * N_CONV_BLOCKS
        self.conv_blocks = nn.Sequential(*map(ResidualBlock, widths, widths[1:]))
        n_tokens = -(-n_samples // STRIDE**N_CONV_BLOCKS)
        # persistent=False: computed, not learned, so a slimmer or a longer window changes no file
        self.register_buffer("positions", sinusoids(n_tokens, width), persistent=False)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, n_heads, attention) for _ in range(n_blocks))
        )
        self.neck = nn.Linear(width, width)
        self.head = nn.Linear(width, n_classes)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Map windows (batch, n_leads, n_samples) to what `neck` reads, (batch, width)."""
        tokens = self.conv_blocks(x).transpose(1, 2)  # (batch, n_tokens, width)
        n_tokens = tokens.shape[1]
        if n_tokens > len(self.positions):
            raise ValueError(
                f"the windows have {x.shape[-1]} samples, {n_tokens} tokens; the network was built "
                f"for {len(self.positions)} tokens. Build it with n_samples={x.shape[-1]}."
            )
        return self.blocks(tokens + self.positions[:n_tokens]).amax(dim=1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Map windows (batch, n_leads, n_samples) to what `head` reads, (batch, width)."""
        return self.neck(self.encode(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map windows (batch, n_leads, n_samples) to logits (batch, n_classes)."""
        return self.head(self.features(x))


def slim_leads(network: CNNTransformer, leads: Sequence[int]) -> CNNTransformer:
    """Return a copy that reads only `leads`, and answers as `network` does with the others at zero.

    For deployment: a student that was trained with leads masked out needn't carry their weights.

    Parameters
    ----------
    network
        Stays as it is. Low-rank adapters on its first block have to be merged before.
    leads
        Positions of the leads in the windows of `network`, in the order in which the copy is to
        read them, such as ``(1, 6, 10)`` for II, V1 and V5 of the standard twelve.

    Raises
    ------
    ValueError
        If `leads` is empty, names a lead twice, or names one that `network` does not read.
    TypeError
        If the first block is not made of plain convolutions.

    Examples
    --------
    >>> student = CNNTransformer(n_leads=12, n_samples=6144, fs_hz=500.0, n_classes=18)
    >>> slim_leads(student, (1, 6, 10))(torch.zeros(2, 3, 6144)).shape
    torch.Size([2, 18])
    """
    first = network.conv_blocks[0]
    for name in ("conv1", "shortcut"):
        kind = type(getattr(first, name))
        if kind is not nn.Conv1d:
            raise TypeError(
                f"conv_blocks.0.{name} is {kind.__module__}.{kind.__name__}; a plain nn.Conv1d was "
                "expected. Merge the adapters into the network first."
            )
    leads = _check_leads(leads, first.conv1.in_channels)
    slim = copy.deepcopy(network)
    _keep_inputs(slim.conv_blocks[0].conv1, leads)
    _keep_inputs(slim.conv_blocks[0].shortcut, leads)
    return slim


class ResidualBlock(nn.Module):
    """Two convolutions, each with batch norm and leaky ReLU, beside an averaging shortcut.

    Sums and activations overwrite an input that no gradient needs. Of maps as large as its output,
    training keeps four, not six, and at most two are alive at once without gradients.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        half = KERNEL_SIZE // 2
        self.conv1 = nn.Conv1d(n_in, n_out, KERNEL_SIZE, stride=STRIDE, padding=half)
        self.norm1 = nn.BatchNorm1d(n_out)
        self.conv2 = nn.Conv1d(n_out, n_out, KERNEL_SIZE, padding=half)
        self.norm2 = nn.BatchNorm1d(n_out)
        # rounds the length up as the strided convolution does; a rest is the mean of what is there
        self.pool = nn.AvgPool1d(STRIDE, ceil_mode=True)
        self.shortcut = nn.Conv1d(n_in, n_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, n_in, n) to (batch, n_out, ceil(n / 4))."""
        y = self.conv1(x)  # one name for every step: each map is freed by the next but one
        y = F.leaky_relu_(self.norm1(y))
        y = self.conv2(y)
        y = F.leaky_relu_(self.norm2(y))
        return self.shortcut(self.pool(x)).add_(y)


class TransformerBlock(nn.Module):
    """Pre-norm causal attention and a feed-forward of four times the width, each added on."""

    def __init__(self, width: int, n_heads: int, attention: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, n_heads, attention)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, n_tokens, width) to the same shape."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.fc2(F.leaky_relu_(self.fc1(self.norm2(tokens))))


class CausalAttention(nn.Module):
    """Multi-head attention to the token itself and to earlier ones, made of two `nn.Linear`.

    `nn.MultiheadAttention` reads the weights of its projections instead of calling them, so an
    adapter wrapped around them would be skipped without a word.
    """

    def __init__(self, width: int, n_heads: int, attention: str) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attend = _attend if attention == "plain" else F.scaled_dot_product_attention
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (batch, n_tokens, width) to the same shape."""
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (batch, head, token, d_head)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        mixed = self.attend(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def sinusoids(n_tokens: int, width: int) -> torch.Tensor:
    """Return positions (n_tokens, width): sines in the even channels, cosines in the odd ones.

    Wavelengths grow geometrically from 2 pi to 20000 pi tokens (Vaswani et al., 2017, section 3.5).
    """
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(n_tokens).unsqueeze(1) * frequencies  # (n_tokens, width / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def _attend(query, key, value, *, is_causal: bool) -> torch.Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if is_causal:
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(dim=-1) @ value


def _keep_inputs(conv: nn.Conv1d, leads: list[int]) -> None:
    conv.weight = nn.Parameter(conv.weight.detach()[:, leads], conv.weight.requires_grad)
    conv.in_channels = len(leads)


def _check_leads(leads: Sequence[int], n_leads: int) -> list[int]:
    leads = list(leads)
    if not leads or len(set(leads)) < len(leads) or not set(leads) <= set(range(n_leads)):
        raise ValueError(
            f"leads is {leads}; expected one or more different positions from 0 to {n_leads - 1}, "
            "those of the leads to keep."
        )
    return leads


def _check_shape(*, n_samples: int, width: int, n_heads: int) -> None:
    if n_samples < KERNEL_SIZE:
        raise ValueError(
            f"n_samples is {n_samples}; the kernels need a window of at least {KERNEL_SIZE}, and "
            "64 samples make one token. Cut longer windows."
        )
    if width % n_heads or width % 2:
        raise ValueError(f"width is {width}; expected an even multiple of n_heads ({n_heads}).")
