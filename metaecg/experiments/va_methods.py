"""The methods that `va_fewshot` puts side by side: a base, and how it becomes personal."""

from dataclasses import dataclass, replace
from typing import Literal

from metaecg.checks import did_you_mean
from metaecg.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table."""

    base: str
    """Key of `BASES`."""
    adapt: str | None
    """Method of `Personalizer`; ``"metava"``: the released fine-tuning; None: no adaptation."""
    prefine: bool = False
    description: str
    by_name: bool = False
    """Run only where it is named: it costs several times as much as the others."""
    n_shots: int | None = None
    """Labelled windows per class; None: those of the run."""
    curve: tuple[int, ...] = ()
    """All shots of the curve that it is a point of: its test part comes after the largest support."""
    context: Literal["causal", "offline"] | None = None
    """How windows before, and after, count for a window: by the base's rhythm model; None: not."""


BASES = {
    "random": "random initialisation",
    "pretrain": "supervised pre-training on all training subjects",
    "ensemble": "several networks, supervised pre-training from other seeds, logits averaged",
    "maml": "meta-learning (MAML), subjects drawn uniformly",
    "maml+curriculum": "meta-learning (MAML), subjects from easy to hard",
    "metava-released": "MetaVA's network, meta-trained as its released code does",
    "metava-random": "MetaVA's network, random initialisation",
    "shuffled": "supervised pre-training on shuffled labels",
}

_FULL, _LORA = "all weights fine-tuned", "low-rank adapters (LoRA) fine-tuned"
_H_TUNING = "low-rank adapters, biases and head by H-Tuning (only where it is named)"


def _meta_methods() -> dict[str, Method]:
    found = {}
    for base, prefine in (("maml", False), ("maml+curriculum", False), ("maml+curriculum", True)):
        for adapt, words in (("full", _FULL), ("lora", _LORA)):
            name = "+".join([base, *(["prefine"] if prefine else []), adapt])
            text = f"{BASES[base]}; {'pre-fine-tuning, then ' if prefine else ''}{words}"
            found[name] = Method(base=base, adapt=adapt, prefine=prefine, description=text)
    return found


def _h_tuning_methods() -> dict[str, Method]:
    return {
        f"{base}+h-tuning": Method(
            base=base, adapt="h-tuning", description=f"{BASES[base]}; {_H_TUNING}", by_name=True
        )
        for base in ("pretrain", "maml", "maml+curriculum")
    }


CONTEXTS = {
    "causal": "windows before count by a rhythm model, no delay",
    "offline": "windows before and after count by a rhythm model, once the recording is whole",
}


def _in_time(methods: dict[str, Method]) -> dict[str, Method]:
    """Return each method as it is, causal and offline."""
    found = {}
    for name, method in methods.items():
        found[name] = method
        for context, words in CONTEXTS.items():
            text = f"{method.description}; {words}"
            found[f"{name}+{context}"] = replace(method, context=context, description=text)
    return found


def _context_methods() -> dict[str, Method]:
    """Return ensembles with and without context, and the plain network with it: each lever alone."""
    full = Method(base="pretrain", adapt="full", description=f"{BASES['pretrain']}; {_FULL}")
    found = {name: m for name, m in _in_time({"pretrain+full": full}).items() if m.context}
    kinds = {"ensemble-zero-shot": (None, "no adaptation"), "ensemble+full": ("full", _FULL)}
    kinds |= {"ensemble+head": ("head", "last layer fine-tuned"), "ensemble+lora": ("lora", _LORA)}
    for name, (adapt, words) in kinds.items():
        text = f"{BASES['ensemble']}; {words}"
        found |= _in_time({name: Method(base="ensemble", adapt=adapt, description=text)})
    return {name: replace(method, by_name=True) for name, method in found.items()}


METHODS = {
    "zero-shot": Method(
        base="pretrain", adapt=None, description=f"{BASES['pretrain']}; no adaptation"
    ),
    "scratch": Method(base="random", adapt="full", description=f"{BASES['random']}; {_FULL}"),
    "head": Method(
        base="pretrain", adapt="head", description=f"{BASES['pretrain']}; last layer fine-tuned"
    ),
    "pretrain+full": Method(
        base="pretrain", adapt="full", description=f"{BASES['pretrain']}; {_FULL}"
    ),
    "pretrain+lora": Method(
        base="pretrain", adapt="lora", description=f"{BASES['pretrain']}; {_LORA}"
    ),
    **_meta_methods(),
    **_context_methods(),
    **_h_tuning_methods(),
    "metava-released": Method(
        base="metava-released",
        adapt="metava",
        prefine=True,
        description=f"{BASES['metava-released']}; its pre-fine-tuning and fine-tuning",
    ),
    "metava-scratch": Method(
        base="metava-random",
        adapt="metava",
        prefine=False,
        description=f"{BASES['metava-random']}; the same fine-tuning (control)",
    ),
    "shuffled-labels": Method(
        base="shuffled",
        adapt="full",
        description=f"{BASES['shuffled']}, and on a shuffled support (control: must be chance)",
    ),
}

BASE_ONLY_METHODS = {
    name: Method(
        base="given", adapt=adapt, prefine=prefine, description=text, by_name=adapt == "h-tuning"
    )
    for name, adapt, prefine, text in (
        ("zero-shot", None, False, "the given base; no adaptation"),
        ("head", "head", False, "the given base; last layer fine-tuned"),
        ("bias", "bias", False, "the given base; biases and last layer fine-tuned"),
        ("full", "full", False, f"the given base; {_FULL}"),
        ("lora", "lora", False, f"the given base; {_LORA}"),
        ("prefine+full", "full", True, f"the given base; pre-fine-tuning, then {_FULL}"),
        ("prefine+lora", "lora", True, f"the given base; pre-fine-tuning, then {_LORA}"),
        ("h-tuning", "h-tuning", False, f"the given base; {_H_TUNING}"),
    )
}
BASE_ONLY_METHODS |= _in_time(
    {name: BASE_ONLY_METHODS[name] for name in ("zero-shot", "head", "full", "lora")}
)
"""What ``--base`` runs: nothing is trained. Those with context need a base with a rhythm model."""

CURVE = "@"
"""Between a method and its number of shots in the name of a point of the curve."""


def points_of_curve(
    name: str, n_shots: list[int], *, table: dict[str, Method]
) -> dict[str, Method]:
    """Return the method `name` once per number of shots, tested after the largest support."""
    points = {}
    for n in sorted(set(n_shots)):
        words = f"{table[name].description}; {n} windows per class" if n else "no labelled window"
        points[f"{name}{CURVE}{n}"] = replace(
            table[name],
            adapt=table[name].adapt if n else None,
            description=words,
            n_shots=n,
            curve=tuple(sorted(set(n_shots))),
        )
    return points


PREFERRED_BASES = ("ensemble", "maml+curriculum", "maml", "pretrain")
"""The first of these that a run trains is the one it writes to OUT/model. The order is fixed in
advance: choosing by the test figures would be choosing on test data."""


def choose_methods(names: list[str] | None, *, table: dict[str, Method]) -> dict[str, Method]:
    """Return the methods of `names` in the table's order; every unknown name is reported.

    A name without its last part (``maml``) stands for all methods that start with it and differ in
    the personalization alone (``maml+full``, ``maml+lora``). No names stand for all methods. Those
    with `by_name` are in neither.
    """
    usual = {name: method for name, method in table.items() if not method.by_name}
    if names is None:
        return usual
    chosen, problems = set(), []
    for name in names:
        adapts = [m for m in usual if m.rpartition("+")[0] == name]
        if name in table:
            chosen.add(name)
        elif adapts:
            chosen.update(adapts)
        else:
            problems.append(f"methods has {name!r}; expected {did_you_mean(name, table)}")
    if problems:
        raise ConfigError(problems)
    return {name: method for name, method in table.items() if name in chosen}
