"""From the command line of `tune` to its resolved configuration, the recipe's and the space."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaecg.errors import ConfigError
from metaecg.experiments.cli import argument_parser
from metaecg.experiments.config import build_config, load_yaml, merge, over, parse_override
from metaecg.experiments.tune_config import LIST_FIELDS, PRESETS, TuneConfig
from metaecg.experiments.tune_recipe import Recipe, get_recipe
from metaecg.experiments.tune_space import Space

PROGRAM = "python -m metaecg.experiments.tune"
OPTIONS = ("recipe", "data", "databases", "out", "cache", "storage", "study", "n-trials", "workers")
OPTIONS += ("method", "objective", "sampler", "pruner", "hold-out-folds", "split", "n-inner-folds")
OPTIONS += ("seed",)
PLACES = ("data", "databases", "cache", "split", "folds", "out")
"""Fields of a study that are the recipe's too."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study as it is asked for, checked."""

    config: TuneConfig
    recipe: Recipe
    shared: Any
    """The recipe's configuration that all trials share."""
    space: Space


def make_parser(description: str):
    """Return the parser of the command line."""
    parser = argument_parser(PROGRAM, description, TuneConfig)
    for name in OPTIONS:
        field = TuneConfig.model_fields[name.replace("-", "_")]
        text = " ".join((field.description or "").split()).replace("%", "%%")
        parser.add_argument(f"--{name}", metavar=name.upper(), help=text)
    parser.add_argument("--quick", action="store_true", help="six trials of small budgets")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="only take a study up: an error if there is none (without it, one is begun)",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="replace the trials that run on other machines and in other containers: those are gone",
    )
    return parser


def resolve(arguments) -> Plan:
    """Merge presets, file, options and overrides, the later ones winning; report every mistake.

    ``--quick`` wins over the file, and options and overrides over ``--quick``.
    """
    file = load_yaml(arguments.config) if arguments.config else {}
    typed, problems = _typed(arguments)
    return make_plan(file, typed, quick=arguments.quick, problems=problems)


def make_plan(
    file: Mapping[str, Any],
    typed: Mapping[str, Any] | None = None,
    *,
    quick: bool = False,
    problems: list[str] | None = None,
) -> Plan:
    """Return the study that a `file`'s values and the `typed` ones over them describe.

    Raises
    ------
    ConfigError
        Every mistake, `problems` found before included.
    """
    problems = list(problems or [])
    values = _with_presets(dict(file), dict(typed or {}), quick=quick)
    try:
        config = build_config(values, TuneConfig, lists=LIST_FIELDS)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    recipe, problems = get_recipe(config.recipe), problems + _semantic_problems(config)
    places = {name: getattr(config, name) for name in PLACES} | {"methods": config.method}
    places = {
        n: str(v) if n in ("data", "cache", "split", "out") and v else v for n, v in places.items()
    }
    fixed = nested(config.config)
    shared, more = _resolved(recipe, fixed, places)
    problems += more
    space: Space = {}
    if shared is not None:
        try:
            space = recipe.space(shared, fixed=set(leaves(fixed)), given=config.space)
        except ConfigError as error:
            problems += error.problems
    if not problems and not space:
        problems.append(
            "space is empty: every field of it is fixed. Leave one in, or run the recipe."
        )
    if problems:
        raise ConfigError(problems)
    # What the recipe found out stands in the study's configuration too: where the data are.
    found = {name: getattr(shared, name) for name in ("data", "databases", "cache")}
    return Plan(config=config.model_copy(update=found), recipe=recipe, shared=shared, space=space)


def _resolved(recipe: Recipe, fixed: dict, places: dict) -> tuple[Any, list[str]]:
    """Return the shared configuration and its mistakes; with some, that without the section."""
    try:
        return recipe.resolve(fixed, places), []
    except ConfigError as error:
        try:
            return recipe.resolve({}, places), error.problems
        except ConfigError:
            return None, error.problems


def nested(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section whose fields may be written with dots as nested values.

    Examples
    --------
    >>> nested({"meta.inner_lr": 0.1, "meta": {"inner_steps": 2}})
    {'meta': {'inner_lr': 0.1, 'inner_steps': 2}}
    """
    values: dict[str, Any] = {}
    for name, value in section.items():
        value = nested(value) if isinstance(value, Mapping) else value
        values = over(values, merge({}, name.split("."), value))
    return values


def leaves(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted field -> value of nested values."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def as_yaml(plan: Plan) -> str:
    """Return the resolved configuration, the whole space in it, as text that `--config` takes."""
    import yaml

    values = plan.config.model_dump(mode="json")
    values["space"] = {name: entry.to_dict() for name, entry in plan.space.items()}
    return yaml.safe_dump(values, sort_keys=False).rstrip()


def _typed(arguments) -> tuple[dict[str, Any], list[str]]:
    """Return what was typed, options and overrides, and the overrides that can't be read."""
    names = [option.replace("-", "_") for option in OPTIONS]
    typed = {name: getattr(arguments, name) for name in names}
    typed = {name: value for name, value in typed.items() if value is not None}
    problems: list[str] = []
    for text in arguments.overrides:
        try:
            typed = merge(typed, *parse_override(text))
        except ConfigError as error:
            problems += error.problems
    return typed, problems


def _with_presets(file: dict, typed: dict, *, quick: bool) -> dict:
    """Put presets under the file, or over it for ``--quick``, and what was typed over all."""
    given = {**file, **typed}
    is_demo = not given.get("data") and not given.get("databases")
    is_demo |= given.get("databases") in ("demo", ["demo"])
    values = over(PRESETS["demo"] if is_demo else {}, file)
    if quick:
        values = over(values, PRESETS["quick"])
    return over(values, typed)


def _semantic_problems(config: TuneConfig) -> list[str]:
    """Return what single fields can't tell."""
    problems = []
    if config.method and "method" in config.space:
        problems.append("method and space.method are both given; expected one of them.")
    if len(set(config.method or ())) < len(config.method or ()):
        problems.append(f"method is {','.join(config.method)}; expected every method once.")
    if min(config.hold_out_folds) < 0:
        problems.append(f"hold_out_folds is {config.hold_out_folds}; expected numbers from 0.")
    if not re.match(r"(sqlite|postgresql(\+\w+)?|journal):", config.storage_url):
        problems.append(
            f"storage is {config.storage!r}; expected sqlite:///FILE, journal:FILE or "
            "postgresql://USER@HOST/DATABASE."
        )
    if config.out.exists() and not config.out.is_dir():
        problems.append(f"out is {str(config.out)!r}, which is a file; expected a folder.")
    return problems
