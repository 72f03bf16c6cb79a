"""The networks by name; all take the same signal arguments and give logits."""

import inspect

import torch
from torch import nn

from metaecg.checks import check_option, check_positive
from metaecg.models.backbones.beat_cnn import BeatCNN
from metaecg.models.backbones.cnn_transformer import CNNTransformer
from metaecg.models.backbones.compact_cnn import CompactCNN
from metaecg.models.backbones.ensemble import CompactCNNEnsemble
from metaecg.models.backbones.metava import MetaVANet
from metaecg.models.backbones.net1d import Net1D
from metaecg.models.backbones.recurrent import BiLSTMNet, GRUNet, LSTMNet
from metaecg.models.backbones.resnet1d import ResNet1d18
from metaecg.seeding import borrowed_torch_stream

NETWORKS: dict[str, type[nn.Module]] = {
    "compact-cnn": CompactCNN,
    "compact-cnn-ensemble": CompactCNNEnsemble,
    "metava": MetaVANet,
    "resnet1d-18": ResNet1d18,
    "gru": GRUNet,
    "lstm": LSTMNet,
    "bilstm": BiLSTMNet,
    "net1d": Net1D,
    "cnn-transformer": CNNTransformer,
    "beat-cnn": BeatCNN,
}
"""Every class takes ``n_leads, n_samples, fs_hz, n_classes`` and its own arguments with defaults;
has `head` (the last linear layer), `features` (what goes into it) and `supports_vmap` (False where
batch norm or a recurrent cell keeps ``torch.func.vmap`` over stacked weights from working)."""

SIGNAL_ARGUMENTS = ("n_leads", "n_samples", "fs_hz", "n_classes")


def build_network(
    name: str,
    *,
    n_leads: int,
    n_samples: int,
    fs_hz: float,
    n_classes: int,
    generator: torch.Generator | None = None,
    **architecture_kwargs,
) -> nn.Module:
    """Build a network with random initial weights, in train mode.

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    n_leads, n_samples
        Shape of one window.
    fs_hz
        Sampling rate in hertz.
    n_classes
        Number of logits.
    generator
        Source of the initial weights: the same state gives the same weights, and torch's global
        stream is left as it was. Without it the weights come from torch's global stream.
    **architecture_kwargs
        The network's own arguments; all have defaults.

    Returns
    -------
    torch.nn.Module
        Maps ``(batch, n_leads, n_samples)`` to logits ``(batch, n_classes)``.

    Raises
    ------
    ValueError
        If the name is unknown or a size is not a positive whole number.
    TypeError
        If the network has no argument of that name.

    Examples
    --------
    >>> network = build_network("compact-cnn", n_leads=1, n_samples=400, fs_hz=200.0, n_classes=2)
    >>> sum(parameter.numel() for parameter in network.parameters())
    28962
    """
    check_option("name", name, NETWORKS)
    check_positive("fs_hz", fs_hz)
    sizes = {"n_leads": n_leads, "n_samples": n_samples, "n_classes": n_classes}
    for argument, value in sizes.items():
        if check_positive(argument, value) != int(value):
            raise ValueError(f"{argument} is {value!r}; a whole number was expected.")
    _check_kwargs(name, architecture_kwargs)
    if generator is None:
        return NETWORKS[name](**sizes, fs_hz=fs_hz, **architecture_kwargs)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with borrowed_torch_stream(seed):
        return NETWORKS[name](**sizes, fs_hz=fs_hz, **architecture_kwargs)


def architecture_arguments(name: str) -> dict[str, object]:
    """Return the own arguments of the network `name` with their defaults."""
    check_option("name", name, NETWORKS)
    parameters = inspect.signature(NETWORKS[name]).parameters
    return {key: p.default for key, p in parameters.items() if key not in SIGNAL_ARGUMENTS}


def _check_kwargs(name: str, architecture_kwargs: dict) -> None:
    known = architecture_arguments(name)
    unknown = sorted(set(architecture_kwargs) - set(known))
    if unknown:
        raise TypeError(
            f"network {name!r} has no argument {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, known)) or 'none of its own'}."
        )
