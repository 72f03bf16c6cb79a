"""What of a network is trained for one patient: head, all, the biases, LoRA, or H-Tuning's share.

    head        the last linear layer
    full        every parameter
    bias        every bias, and the head
    lora        the head, and a low-rank change B A of every usable Conv1d and Linear:
                    W x  ->  W x + (alpha / rank) B A x,   A: in -> rank,  B: rank -> out,  first 0
    h-tuning    the head, every bias, and that low-rank change wherever the rank allows one

Running statistics of batch norm stay those of the base, so that the patient's file holds all that
differs. H-Tuning alone moves them (`MOVES_STATISTICS`), and there they are in the patient's file.
"""

import copy
import difflib
import fnmatch
import re
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import nn

from metaecg.checks import check_option
from metaecg.errors import AdaptationError
from metaecg.seeding import borrowed_torch_stream

METHODS = ("head", "full", "bias", "lora", "h-tuning")

RANKS = {"lora": 4, "h-tuning": 16}
"""Inner width where none is given; H-Tuning's is the published one."""

H_TUNING_STD = 0.02
"""Spread of the initial A in H-Tuning, as published; PEFT's own start has another scale."""

MOVES_STATISTICS = ("h-tuning",)
"""Methods that leave batch norm with the patient's own running statistics."""

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
    rank: int | None = None,
    alpha: float | None = None,
    target_modules: Sequence[str] | None = None,
    freeze: Sequence[str] = (),
    seed: int = 0,
) -> nn.Module:
    """Mark in `network` what `method` trains, and add the low-rank layers if it has any.

    The network is changed in place: hand over a copy. Its output is the same as before, exactly.

    Parameters
    ----------
    network
        A network with a last layer ``head`` (`torch.nn.Linear`).
    method
        One of `METHODS`.
    rank, alpha
        LoRA and H-Tuning: inner width (``None``: `RANKS`), and the scale ``alpha / rank``
        (``alpha=None``: twice the rank for LoRA, the rank for H-Tuning, whose scale is so 1).
    target_modules
        LoRA and H-Tuning: layers to adapt, by full name or pattern; ``None``: all that
        `lora_targets` finds.
    freeze
        Names of modules or parameters that are not trained, with all that is inside them, whatever
        the method.
    seed
        LoRA and H-Tuning: of the random A. The global random state is left as it was.

    Returns
    -------
    torch.nn.Module
        In eval mode; exactly the trained parameters have ``requires_grad``. With low-rank layers a
        ``peft.PeftModel`` around `network`. H-Tuning on a network without a layer of that rank
        (a recurrent one, say) has biases and head alone; LoRA refuses it.

    Raises
    ------
    AdaptationError
        If the network has no linear head, or LoRA fits no layer or not the named ones, or `freeze`
        names what isn't there or leaves nothing to train.
    ValueError
        If `method` is not a method.
    """
    check_option("method", method, METHODS)
    frozen = _frozen_parameters(network, freeze)
    if not isinstance(getattr(network, "head", None), nn.Linear):
        found = type(getattr(network, "head", None)).__name__
        raise AdaptationError(
            f"{type(network).__name__}.head is {found}; expected a torch.nn.Linear. Name the "
            "network's last linear layer `head`."
        )
    if method in RANKS:
        rank = RANKS[method] if rank is None else rank
        network = _with_low_rank(network, method, rank, alpha, target_modules, freeze, seed)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(_is_trained(name, method) and plain_name(name) not in frozen)
    if not trained_parameters(network):
        raise AdaptationError(
            f"freeze={list(freeze)} leaves nothing that method={method!r} trains. Freeze less, or "
            "choose another method."
        )
    return network.eval()


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def plain_name(name: str) -> str:
    """Return the name that a parameter had before PEFT wrapped its network.

    Examples
    --------
    >>> plain_name("base_model.model.norm.bias"), plain_name("head.bias")
    ('norm.bias', 'head.bias')
    >>> plain_name("base_model.model.wide.base_layer.bias")
    'wide.bias'
    """
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def running_statistics(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of every running statistic of batch norm, its count of batches too."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.named_buffers(name, recurse=False)


def lora_targets(
    network: nn.Module,
    rank: int,
    target_modules: Sequence[str] | None = None,
    freeze: Sequence[str] = (),
) -> list[str]:
    """Return the names of the layers that LoRA adapts.

    Without `target_modules`: every Conv1d and Linear that can be adapted at this rank and isn't in
    `freeze`; the others are passed over. A layer that was named and can't be adapted is an error. A
    name with ``*``, ``?`` or ``[`` is a pattern (`fnmatch`) for the layers that can be adapted; one
    that matches none is an error.

    Raises
    ------
    AdaptationError
        If no layer is left, or a named one is unusable or doesn't exist.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank is {rank!r}; a whole number above 0 was expected.")
    reasons = {name: _why_not(network, name, rank) for name, _ in network.named_modules() if name}
    for name in reasons:
        if _is_inside(f"{name}.weight", freeze):
            reasons[name] = "freeze names it"
    usable = [name for name, why in reasons.items() if why is None]
    chosen = usable if target_modules is None else _named_targets(target_modules, reasons, rank)
    if not chosen:
        largest = max((_largest_rank(m) for m in _plain_layers(network)), default=0)
        raise AdaptationError(
            f"LoRA of rank {rank} matches no layer of {type(network).__name__}: the largest rank "
            f"that a Conv1d or Linear of it, other than the head, allows is {largest}. Lower rank, "
            "or use method='head', 'bias' or 'full'."
        )
    return chosen


def import_peft() -> ModuleType:
    """Return PEFT; it takes seconds to import, and its first import may warn in vain.

    It imports torchvision where that is installed. The old one that learn2learn needs then says
    that it can't load its image extension, which nobody here uses.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to load image Python extension", UserWarning)
        import peft
    return peft


def merged(network: nn.Module) -> nn.Module:
    """Return a plain copy of the network, the LoRA change added to its weights."""
    network = copy.deepcopy(network)
    if not hasattr(network, "merge_and_unload"):
        return network
    return network.merge_and_unload(safe_merge=True).eval()


def _is_trained(name: str, method: str) -> bool:
    if ".original_module." in name:
        return False  # PEFT keeps the head of the base beside the one that is trained
    name = plain_name(name)
    last = name.rsplit(".", 1)[-1]
    is_bias = last.startswith("bias") or last.endswith("_bias")
    is_low_rank = ".lora_A." in name or ".lora_B." in name
    trains_biases = method in ("bias", "h-tuning")
    return (
        method == "full" or name.startswith("head.") or is_low_rank or (trains_biases and is_bias)
    )


def _is_inside(name: str, outer: Sequence[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in outer)


def _frozen_parameters(network: nn.Module, freeze: Sequence[str]) -> set[str]:
    """Return the full names of the parameters that `freeze` means; what isn't there is an error."""
    parameters = [name for name, _ in network.named_parameters()]
    for name in freeze:
        if not any(_is_inside(parameter, [name]) for parameter in parameters):
            known = [*parameters, *(n for n, _ in network.named_modules() if n)]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0) or ["head"]
            raise AdaptationError(
                f"freeze has {name!r}, in which {type(network).__name__} has no parameter; expected "
                f"the name of a module or a parameter, such as {near[0]!r}."
            )
    return {name for name in parameters if _is_inside(name, freeze)}


def _named_targets(
    target_modules: Sequence[str], reasons: dict[str, str | None], rank: int
) -> list[str]:
    """Return the layers that names and patterns mean, each once; an unusable one is an error."""
    chosen: dict[str, None] = {}
    for target in target_modules:
        found = [target]
        if any(sign in target for sign in "*?["):
            matched = fnmatch.filter(reasons, target)
            found = [name for name in matched if reasons[name] is None]
            if not found:
                raise AdaptationError(_matches_nothing(target, matched, reasons, rank))
        for name in found:
            why = reasons.get(name, "there is no such layer in the network")
            if why is not None:
                raise AdaptationError(
                    f"LoRA can't adapt {name!r}: {why}. Leave it out of target_modules."
                )
            chosen[name] = None
    return list(chosen)


def _matches_nothing(
    pattern: str, matched: list[str], reasons: dict[str, str | None], rank: int
) -> str:
    if matched:
        what = f"only layers that can't be adapted, such as {matched[0]!r}: {reasons[matched[0]]}"
        return f"the pattern {pattern!r} of target_modules matches {what}. Name others."
    usable = [name for name, why in reasons.items() if why is None]
    return (
        f"the pattern {pattern!r} of target_modules matches no layer; those that can be adapted at "
        f"rank {rank} are {', '.join(usable) or 'none'}. Name some of them."
    )


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


def _with_low_rank(network, method, rank, alpha, target_modules, freeze, seed) -> nn.Module:
    """Return the network with the low-rank layers of `method`; H-Tuning can do without any."""
    if alpha is None:
        alpha = 2 * rank if method == "lora" else rank
    try:
        targets = lora_targets(network, rank, target_modules, freeze)
    except AdaptationError:
        if method == "lora" or target_modules is not None:
            raise
        return network
    network = _add_lora(network, rank, alpha, targets, seed)
    if method == "h-tuning":
        _draw_a(network, seed)
    return network


def _add_lora(network, rank, alpha, targets, seed) -> nn.Module:
    peft = import_peft()

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        # A regular expression, for a list of names would also match the ends of longer names.
        target_modules="|".join(re.escape(name) for name in targets),
        modules_to_save=["head"],
        lora_dropout=0.0,
        bias="none",
    )
    with borrowed_torch_stream(seed):
        network = peft.get_peft_model(network, config)
    strange = [n for n in trained_parameters(network) if not _is_lora_or_head(n)]
    if strange:
        raise AdaptationError(
            f"LoRA would also train {strange}: only one module may have a name that ends in "
            "'head'. Rename the other one."
        )
    return network


def _draw_a(network: nn.Module, seed: int) -> None:
    """Draw every A anew, as H-Tuning does; B stays 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_A." in name:
                parameter.copy_(H_TUNING_STD * torch.randn(parameter.shape, generator=generator))


def _is_lora_or_head(name: str) -> bool:
    head = "base_model.model.head.modules_to_save."
    return name.startswith(head) or ".lora_A." in name or ".lora_B." in name
