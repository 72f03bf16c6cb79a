"""From the command line of `h_tuning` to its resolved configuration."""

from metaecg.checks import did_you_mean
from metaecg.errors import ConfigError
from metaecg.experiments.cli import argument_parser
from metaecg.experiments.config import build_config, load_yaml, merge, over, parse_override
from metaecg.experiments.ht_config import LIST_FIELDS, QUICK, HTConfig
from metaecg.experiments.ht_methods import METHODS, choose_methods

PROGRAM = "python -m metaecg.experiments.h_tuning"
OPTIONS = ("data", "databases", "splits", "methods", "seeds", "out", "cache", "base", "workers")
OPTIONS += ("device",)
PTBXL_FILES = ("ptbxl_database.csv", "scp_statements.csv")


def make_parser(description: str):
    """Return the parser of the command line."""
    parser = argument_parser(PROGRAM, description, HTConfig)
    for name in OPTIONS:
        text = " ".join((HTConfig.model_fields[name].description or "").split())
        parser.add_argument(f"--{name}", metavar=name.upper(), help=text.replace("%", "%%"))
    parser.add_argument(
        "--distill", action="store_true", help="train small students of a fine-tuned network too"
    )
    parser.add_argument("--quick", action="store_true", help="one split, one seed, few steps")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument("--list-methods", action="store_true", help="print the methods and stop")
    return parser


def resolve(arguments) -> HTConfig:
    """Merge presets, file, options and overrides, the later ones winning; report every mistake.

    ``--quick`` wins over the file, and options and overrides over ``--quick``.
    """
    values = load_yaml(arguments.config) if arguments.config else {}
    if arguments.quick:
        values = over(values, QUICK)
    typed, problems = _typed(arguments)
    values = _with_places(over(values, typed))
    config, more = _built(values)
    problems += more + _semantic_problems(config)
    if not {"data", "databases", "splits", "base"} & {*values} - _sound(values):
        problems += _data_problems(config)
    if problems:
        raise ConfigError(problems)
    return config


def _built(values: dict) -> tuple[HTConfig, list[str]]:
    """Return the configuration and its mistakes; with some, that of the fields without."""
    try:
        return build_config(values, HTConfig, lists=LIST_FIELDS), []
    except ConfigError as error:
        sound = {name: values[name] for name in _sound(values)}
        return build_config(sound, HTConfig, lists=LIST_FIELDS), error.problems


def _sound(values: dict) -> set[str]:
    """Return the top-level fields that are valid by themselves."""
    found = set()
    for name, value in values.items():
        try:
            build_config({name: value}, HTConfig, lists=LIST_FIELDS)
        except ConfigError:
            continue
        found.add(name)
    return found


def _typed(arguments) -> tuple[dict, list[str]]:
    """Return what was typed, options and overrides, and the overrides that can't be read."""
    typed = {name: getattr(arguments, name) for name in OPTIONS}
    typed = {name: value for name, value in typed.items() if value is not None}
    if arguments.distill:
        typed["distill"] = {"enabled": True}
    problems = []
    for text in arguments.overrides:
        try:
            typed = merge(typed, *parse_override(text))
        except ConfigError as error:
            problems += error.problems
    return typed, problems


def _with_places(values: dict) -> dict:
    """Fill in where the data and the cache are."""
    from metaecg.data.cache import default_cache_root
    from metaecg.data.databases import default_data_root

    places = {"data": str(default_data_root()), "cache": str(default_cache_root())}
    return {**values, **{name: values.get(name) or place for name, place in places.items()}}


def _semantic_problems(config: HTConfig) -> list[str]:
    """Return what single fields can't tell: unknown names, settings that don't go together."""
    problems = _input_problems(config)
    try:
        choose_methods(config.methods)
    except ConfigError as error:
        problems += error.problems
    for name in ("seeds", "databases", "splits"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            problems.append(f"{name} is {values}; every value was expected once.")
    for name in ("ptbxl", "cinc2021"):
        shares = getattr(config, name).shares
        if abs(sum(shares) - 1) > 1e-6:
            problems.append(
                f"{name}.shares is {shares}, which add up to {sum(shares):g}; expected 1."
            )
    problems += _distill_problems(config)
    mix = config.h_tuning
    if mix.n_first_order > config.train.batch_size:
        problems.append(
            f"h_tuning.n_first_order is {mix.n_first_order}, above train.batch_size "
            f"({config.train.batch_size}); lower it, or raise the other."
        )
    if mix.grid and not all(0 <= value <= 1 for value in mix.mixing_grid):
        problems.append(f"h_tuning.mixing_grid is {mix.mixing_grid}; numbers from 0 to 1 expected.")
    if mix.grid and not (mix.scale_grid and all(value > 0 for value in mix.scale_grid)):
        problems.append(f"h_tuning.scale_grid is {mix.scale_grid}; numbers above 0 were expected.")
    return problems + _place_problems(config)


def _distill_problems(config: HTConfig) -> list[str]:
    problems, distill = [], config.distill
    if distill.teacher not in METHODS:
        expected = did_you_mean(distill.teacher, METHODS)
        problems.append(f"distill.teacher is {distill.teacher!r}; expected {expected}")
    if len(set(distill.leads)) < len(distill.leads):
        problems.append(f"distill.leads is {distill.leads}; every value was expected once.")
    return problems


def _input_problems(config: HTConfig) -> list[str]:
    from metaecg.data.twelve_lead_input import TwelveLeadInput

    try:
        TwelveLeadInput(**config.input.model_dump())
    except ValueError as error:
        return [f"input: {error}"]
    return []


def _data_problems(config: HTConfig) -> list[str]:
    """Return which databases aren't there, before anything is read."""
    problems = []
    if config.splits == ["strat_fold"] and "ptbxl_subset" not in config.databases:
        problems.append(
            "splits is strat_fold, which cinc2021_sample doesn't have; add patients or ptbxl_subset."
        )
    needed = set(config.databases) | (set() if config.base else {"ptbxl_subset"})
    for name in sorted(needed):
        folder = config.data / name
        looked_for = PTBXL_FILES if name == "ptbxl_subset" else ()
        missing = [file for file in looked_for if not (folder / file).is_file()]
        if missing or not folder.is_dir():
            what = f"lacks {', '.join(missing)}" if folder.is_dir() else "is no folder"
            problems.append(
                f"data is {str(config.data)!r}, and {name} in it {what}; expected the database "
                "there. Name the folder above it with --data."
            )
    return problems


def _place_problems(config: HTConfig) -> list[str]:
    if config.base and config.base.resolve() == (config.out / "base").resolve():
        return [
            f"base is {str(config.base)!r}, the base of this very --out; leave --base out to take "
            "it up, or name another --out."
        ]
    return []
