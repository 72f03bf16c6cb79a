"""What of a network is trained for one patient: head, all, the biases, or LoRA.

    head    the last linear layer
    full    every parameter
    bias    every bias, and the head
    lora    the head, and a low-rank change B A of every usable Conv1d and Linear:
                W x  ->  W x + (alpha / rank) B A x,   A: in -> rank,  B: rank -> out,  first 0

Running statistics of batch norm are no part of any method: they stay those of the base, so the
patient's file holds all that differs.
"""

import copy
import re
from collections.abc import Sequence

import torch
from torch import nn

from metaecg.checks import check_option
from metaecg.errors import AdaptationError

METHODS = ("head", "full", "bias", "lora")

# Their forward reads the weights of their children directly and never calls them, so a wrapped
# child would be left out without a word.
READS_CHILD_WEIGHTS = (
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def prepare_network(
    network: nn.Module,
    method: str,
    *,
    rank: int = 4,
    alpha: float | None = None,
    target_modules: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Mark in `network` what `method` trains, and add the LoRA layers if that is the method.

    The network is changed in place: hand over a copy. Its output is the same as before, exactly.

    Parameters
    ----------
    network
        A network with a last layer ``head`` (`torch.nn.Linear`).
    method
        One of `METHODS`.
    rank, alpha
        LoRA only: inner width, and the scale ``alpha / rank`` (``alpha=None``: twice the rank).
    target_modules
        LoRA only: full names of the layers to adapt; ``None``: all that `lora_targets` finds.
    seed
        LoRA only: of the random A. The global random state is left as it was.

    Returns
    -------
    torch.nn.Module
        In eval mode; exactly the trained parameters have ``requires_grad``. For LoRA a
        ``peft.PeftModel`` around `network`.

    Raises
    ------
    AdaptationError
        If the network has no linear head, or LoRA fits no layer or not the named ones.
    ValueError
        If `method` is not a method.
    """
    check_option("method", method, METHODS)
    if not isinstance(getattr(network, "head", None), nn.Linear):
        found = type(getattr(network, "head", None)).__name__
        raise AdaptationError(
            f"{type(network).__name__}.head is {found}; expected a torch.nn.Linear. Name the "
            "network's last linear layer `head`."
        )
    if method == "lora":
        network = _add_lora(network, rank, alpha, lora_targets(network, rank, target_modules), seed)
    else:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(_is_trained(name, method))
    return network.eval()


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def lora_targets(
    network: nn.Module, rank: int, target_modules: Sequence[str] | None = None
) -> list[str]:
    """Return the names of the layers that LoRA adapts.

    Without `target_modules`: every Conv1d and Linear that can be adapted at this rank; the others
    are passed over. A layer that was named and can't be adapted is an error.

    Raises
    ------
    AdaptationError
        If no layer is left, or a named one is unusable or doesn't exist.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank is {rank!r}; a whole number above 0 was expected.")
    reasons = {name: _why_not(network, name, rank) for name, _ in network.named_modules() if name}
    if target_modules is not None:
        for name in target_modules:
            if reasons.get(name, "there is no such layer in the network") is not None:
                why = reasons.get(name, "there is no such layer in the network")
                raise AdaptationError(
                    f"LoRA can't adapt {name!r}: {why}. Leave it out of target_modules."
                )
    usable = [name for name, why in reasons.items() if why is None]
    chosen = usable if target_modules is None else list(target_modules)
    if not chosen:
        largest = max((_largest_rank(m) for m in _plain_layers(network)), default=0)
        raise AdaptationError(
            f"LoRA of rank {rank} matches no layer of {type(network).__name__}: the largest rank "
            f"that a Conv1d or Linear of it, other than the head, allows is {largest}. Lower rank, "
            "or use method='head', 'bias' or 'full'."
        )
    return chosen


def merged(network: nn.Module) -> nn.Module:
    """Return a plain copy of the network, the LoRA change added to its weights."""
    network = copy.deepcopy(network)
    if not hasattr(network, "merge_and_unload"):
        return network
    return network.merge_and_unload(safe_merge=True).eval()


def _is_trained(name: str, method: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    is_bias = last.startswith("bias") or last.endswith("_bias")
    return method == "full" or name.startswith("head.") or (method == "bias" and is_bias)


def _plain_layers(network: nn.Module) -> list[nn.Module]:
    """Return what could be a target at some rank; a subclass may compute something else."""
    return [m for name, m in network.named_modules() if name and not _why_not(network, name, 0)]


def _largest_rank(layer: nn.Module) -> int:
    """Return the rank of the largest change that the layer's weight matrix can hold."""
    return min(layer.weight.shape[0], layer.weight[0].numel())


def _why_not(network: nn.Module, name: str, rank: int) -> str | None:
    """Return why LoRA can't adapt the layer `name`, None if it can."""
    layer = network.get_submodule(name)
    if name == "head":
        return "the head is trained whole"
    owner = _reader_of_weights(network, name)
    if owner is not None:
        return f"its weights are read by {owner}, which never calls it"
    if type(layer) not in (nn.Conv1d, nn.Linear):
        return f"it is a {type(layer).__name__}; only plain Conv1d and Linear layers can be adapted"
    if isinstance(layer, nn.Conv1d):
        why = _why_not_conv(layer)
        if why is not None:
            return why
    if rank > _largest_rank(layer):
        return f"rank {rank} is above its size, {_largest_rank(layer)}"
    return None


def _why_not_conv(layer: nn.Conv1d) -> str | None:
    # peft (0.21) builds its own small convolution without these three settings.
    if layer.groups != 1:
        return f"it has groups={layer.groups}, which can't be merged"
    if layer.dilation != (1,):
        return f"it has dilation={layer.dilation[0]}, which the adapter would not follow"
    if layer.padding_mode != "zeros":
        return f"it has padding_mode={layer.padding_mode!r}, which the adapter would not follow"
    return None


def _reader_of_weights(network: nn.Module, name: str) -> str | None:
    parts = name.split(".")
    for end in range(1, len(parts)):
        parent = network.get_submodule(".".join(parts[:end]))
        if isinstance(parent, READS_CHILD_WEIGHTS):
            return type(parent).__name__
    return None


def _add_lora(network, rank, alpha, targets, seed) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        # A regular expression, for a list of names would also match the ends of longer names.
        target_modules="|".join(re.escape(name) for name in targets),
        modules_to_save=["head"],
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = get_peft_model(network, config)
    strange = [n for n in trained_parameters(network) if not _is_lora_or_head(n)]
    if strange:
        raise AdaptationError(
            f"LoRA would also train {strange}: only one module may have a name that ends in "
            "'head'. Rename the other one."
        )
    return network


def _is_lora_or_head(name: str) -> bool:
    head = "base_model.model.head.modules_to_save."
    return name.startswith(head) or ".lora_A." in name or ".lora_B." in name
