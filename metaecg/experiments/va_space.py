"""`va_fewshot` as `tune` sees it: the search space, and what a trial is worth.

The space is declared here, beside the recipe. A trial asks for what matters in the branch it took:
the rate of the inner loop only if it meta-learns, the rank only if it adapts by low-rank layers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from metaecg.checks import did_you_mean
from metaecg.experiments.config import VAConfig, field_names, merge
from metaecg.experiments.tune_recipe import Recipe
from metaecg.experiments.tune_space import Choices, Range, Space, flattened, narrowed
from metaecg.experiments.va_methods import METHODS
from metaecg.experiments.va_trials import (
    TUNED_METHODS,
    UNTUNABLE,
    decisive,
    develop,
    evaluate,
    final,
    hold_out,
    inner_folds,
    resolve,
    with_values,
)

SPACE: dict[str, Choices | Range] = {
    "method": Choices(values=TUNED_METHODS),
    "network.arguments.width": Choices(values=(16, 32, 64)),
    "meta.warm_start": Range(low=0.0, high=0.75, step=0.25),
    "meta.algorithm": Choices(values=("maml", "fomaml", "anil", "meta-sgd", "reptile")),
    "meta.inner_lr": Range(low=0.005, high=0.2, log=True),
    "meta.inner_steps": Range(low=1, high=7, is_whole=True),
    "meta.outer_lr": Range(low=3e-4, high=1e-2, log=True),
    "pretrain.lr": Range(low=5e-4, high=1e-2, log=True),
    "pretrain.batch_size": Choices(values=(32, 64, 128)),
    "pretrain.weight_decay": Range(low=1e-4, high=1e-1, log=True),
    "curriculum.pacing": Choices(values=("linear", "exponential", "self-paced", "metava")),
    "curriculum.difficulty": Choices(values=("initial-loss", "running-loss", "separability")),
    "augment.gain": Range(low=0.0, high=0.5, step=0.1),
    "augment.baseline": Range(low=0.0, high=0.5, step=0.1),
    "augment.noise": Range(low=0.0, high=0.5, step=0.1),
    "augment.time_warp": Range(low=0.0, high=0.2, step=0.05),
    "augment.polarity": Choices(values=(0.0, 0.5)),
    "augment.probability": Choices(values=(1.0, 0.5)),
    "personalize.lr": Range(low=2e-4, high=3e-2, log=True),
    "personalize.n_steps": Range(low=10, high=60, step=10, is_whole=True),
    "personalize.rank": Choices(values=(2, 4, 8)),
    "personalize.prefine": Choices(values=("intended", "released")),
}
"""Field to the values that a study may give it. 0 of an augmentation is off."""

SECTIONS = ("network", "pretrain", "meta", "augment", "curriculum", "personalize")
"""Sections of the configuration that a space may name; the others change what is measured."""
ASKED_FIRST = ("method", "network.name", "meta.warm_start")
ASKED_LAST = ("augment.probability",)
STRENGTHS = tuple(f"augment.{n}" for n in ("gain", "polarity", "baseline", "noise", "time_warp"))


def make_space(config: VAConfig, *, fixed: set[str], given: Mapping[str, Any]) -> Space:
    """Return the space of a study in the order in which a trial asks.

    Parameters
    ----------
    config
        What all trials share. Its methods are those to choose from.
    fixed
        Fields that are not searched.
    given
        The section ``space``.
    """
    declared = SPACE | {"method": Choices(values=tuple(config.methods))}
    taken = fixed | ({"method"} if len(config.methods) == 1 else set())
    space = narrowed(declared, given, fixed=taken, check=_checker(config, given))
    first = [name for name in ASKED_FIRST if name in space]
    last = [name for name in ASKED_LAST if name in space]
    rest = [name for name in space if name not in (*ASKED_FIRST, *ASKED_LAST)]
    return {name: space[name] for name in (*first, *rest, *last)}


def _checker(config: VAConfig, given: Mapping) -> Callable[[str, object], str]:
    """Return a function that says what is wrong with a value for a field."""
    known = [n for n in field_names() if n.split(".")[0] in SECTIONS and n not in SECTIONS]

    def check(name: str, value: object) -> str:
        if name == "method":
            usable = [m for m in METHODS if m not in UNTUNABLE]
            expected = did_you_mean(value, usable)
            return "" if value in usable else f"space.method has {value!r}; expected {expected}"
        if name.startswith("network.arguments."):
            return _problem_of_argument(name, config, given)
        if name not in known:
            return f"space has {name!r}; expected {did_you_mean(name, ['method', *known])}"
        try:
            VAConfig.model_validate(merge({}, name.split("."), value))
        except ValueError:  # pydantic's
            return (
                f"space.{name} has {value!r}, which {name} can't be; see --help for what it may be."
            )
        return ""

    return check


def _problem_of_argument(name: str, config: VAConfig, given: Mapping) -> str:
    """Say that none of the networks at hand has an argument of that name."""
    from metaecg.models.registry import NETWORKS, architecture_arguments

    entry = flattened(given).get("network.name")
    chosen = entry.get("choices", []) if isinstance(entry, Mapping) else []
    networks = [n for n in (config.network.name, *chosen) if n in NETWORKS]
    known = {argument for network in networks for argument in architecture_arguments(network)}
    argument = name.removeprefix("network.arguments.")
    if argument in known:
        return ""
    return f"space has {name!r}; {', '.join(networks)} takes {did_you_mean(argument, known)}"


def value_of(name: str, chosen: Mapping[str, Any], config: VAConfig) -> Any:
    """Return what a field is in a trial: what was chosen so far, else what is configured."""
    if name in chosen:
        return chosen[name]
    if name == "method":
        return config.methods[0]
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


def asks(name: str, chosen: Mapping[str, Any], config: VAConfig) -> bool:
    """Return whether a field matters in the branch that a trial took."""
    method = METHODS[value_of("method", chosen, config)]
    is_meta = method.base.startswith("maml")
    section, _, field = name.partition(".")
    if section == "network" and field.startswith("arguments."):
        from metaecg.models.registry import architecture_arguments

        network = value_of("network.name", chosen, config)
        return field.removeprefix("arguments.") in architecture_arguments(network)
    if section == "pretrain":
        has_warm_start = is_meta and value_of("meta.warm_start", chosen, config) > 0
        return method.base == "pretrain" or has_warm_start
    if section == "meta":
        return is_meta
    if section == "curriculum":
        return method.base == "maml+curriculum"
    if section == "augment":
        return _asks_augment(field, chosen, config, is_meta=is_meta, base=method.base)
    if section == "personalize":
        return _asks_personalize(field, method)
    return True


def _asks_augment(field: str, chosen, config: VAConfig, *, is_meta: bool, base: str) -> bool:
    if field == "polarity":
        return is_meta
    if field == "probability" and not any(value_of(n, chosen, config) for n in STRENGTHS):
        return False
    return is_meta or base == "pretrain"


def _asks_personalize(field: str, method) -> bool:
    if field == "rank":
        return method.adapt in ("lora", "h-tuning")
    if field == "prefine":
        return method.prefine
    if field.startswith("h_tuning."):
        return method.adapt == "h-tuning"
    return method.adapt is not None


def defaults(space: Space, config: VAConfig) -> dict[str, Any]:
    """Return the recipe's own settings as a trial; what lies outside the space is left out."""
    from metaecg.adapt.arguments import LEARNING_RATES, N_STEPS
    from metaecg.adapt.methods import RANKS
    from metaecg.models.registry import architecture_arguments

    chosen: dict[str, Any] = {}
    for name, entry in space.items():
        if not asks(name, chosen, config):
            continue
        value = value_of(name, chosen, config)
        if value is None and name.startswith("network.arguments."):
            known = architecture_arguments(value_of("network.name", chosen, config))
            value = known[name.removeprefix("network.arguments.")]
        adapt = METHODS[value_of("method", chosen, config)].adapt
        usual = {"lr": LEARNING_RATES.get(adapt), "n_steps": N_STEPS, "rank": RANKS.get(adapt)}
        if value is None and name.startswith("personalize."):
            value = usual.get(name.removeprefix("personalize."))
        if name == "method" and not entry.holds(value):
            value = entry.samples()[0]
        if entry.holds(value):
            chosen[name] = value
    return chosen


RECIPE = Recipe(
    name="va_fewshot",
    resolve=resolve,
    space=make_space,
    asks=asks,
    defaults=defaults,
    with_values=with_values,
    decisive=decisive,
    final=final,
    hold_out=hold_out,
    develop=develop,
    inner_folds=inner_folds,
    evaluate=evaluate,
)
