"""From the command line of `va_fewshot` to its resolved configuration."""

import os
from pathlib import Path

from metaecg.data.databases import DATABASES
from metaecg.errors import ConfigError
from metaecg.experiments.cli import argument_parser
from metaecg.experiments.config import (
    PRESETS,
    VAConfig,
    build_config,
    load_yaml,
    merge,
    parse_override,
    split_list,
)
from metaecg.experiments.va_methods import BASE_ONLY_METHODS, METHODS, choose_methods

PROGRAM = "python -m metaecg.experiments.va_fewshot"
VA_DATABASES = tuple(slug for slug, known in DATABASES.items() if "va" in known.vocabularies)
OPTIONS = ("data", "databases", "out", "cache", "protocol", "methods", "folds", "split", "seeds")
OPTIONS += ("n-shots", "base", "workers")
FLAGS = ("include-seen",)
RECURRENT = ("gru", "lstm", "bilstm")


def make_parser(description: str):
    """Return the parser of the command line."""
    parser = argument_parser(PROGRAM, description, VAConfig)
    for name in OPTIONS:
        field = VAConfig.model_fields[name.replace("-", "_")]
        text = " ".join((field.description or "").split()).replace("%", "%%")
        parser.add_argument(f"--{name}", metavar=name.upper(), help=text)
    for name in FLAGS:
        field = VAConfig.model_fields[name.replace("-", "_")]
        parser.add_argument(f"--{name}", action="store_true", default=None, help=field.description)
    parser.add_argument("--quick", action="store_true", help="one fold, one seed, small budgets")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument("--list-methods", action="store_true", help="print the methods and stop")
    return parser


def resolve(arguments) -> VAConfig:
    """Merge presets, file, options and overrides, the later ones winning; report every mistake."""
    given: dict = load_yaml(arguments.config) if arguments.config else {}
    for name in (*OPTIONS, *FLAGS):
        value = getattr(arguments, name.replace("-", "_"))
        if value is not None:
            given[name.replace("-", "_")] = value
    problems = []
    for text in arguments.overrides:
        try:
            given = merge(given, *parse_override(text))
        except ConfigError as error:
            problems += error.problems
    try:
        values = _with_defaults(given, quick=arguments.quick)
    except ConfigError as error:
        problems += error.problems
        values = given
    problems += _method_problems(values)
    try:
        config = build_config(values)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += _semantic_problems(config)
    if problems:
        raise ConfigError(problems)
    return config


def _with_defaults(given: dict, *, quick: bool) -> dict:
    """Fill in where the data is; generated patients and ``--quick`` bring their own budgets."""
    from metaecg.data.cache import default_cache_root
    from metaecg.data.databases import default_data_root

    values = dict(given)
    values["cache"] = values.get("cache") or str(default_cache_root())
    if not values.get("databases"):
        found = _databases_in(values["data"]) if values.get("data") else []
        values["databases"] = found or ["demo"]
    if values["databases"] in ("demo", ["demo"]):
        values["data"] = values.get("data") or os.path.join(str(values["cache"]), "demo-data")
        values = values if values.get("base") else _deep_merge(PRESETS["demo"], values)
    if quick:
        values = {**values, **{k: v for k, v in PRESETS["quick"].items() if k not in given}}
    values["data"] = values.get("data") or str(default_data_root())
    return values


def _deep_merge(defaults: dict, values: dict) -> dict:
    """Return `defaults` with `values` over them, section by section."""
    merged = {**defaults, **values}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(values.get(name), dict):
            merged[name] = {**default, **values[name]}
    return merged


def _databases_in(folder) -> list[str]:
    """Return the databases with VA labels that lie under a folder; none is a mistake to report."""
    found = [slug for slug in (*VA_DATABASES, "demo") if (Path(str(folder)) / slug).is_dir()]
    if not found:
        raise ConfigError(
            f"data is {str(folder)!r}, which holds none of the folders {', '.join(VA_DATABASES)}. "
            "Name the folder above them, or the databases with --databases."
        )
    return found


def _method_problems(values: dict) -> list[str]:
    """Return the unknown names among the methods, whatever else is wrong."""
    methods = split_list(values, "methods").get("methods")
    if not isinstance(methods, list):
        return []  # the validation says what it should be
    try:
        choose_methods(methods, table=BASE_ONLY_METHODS if values.get("base") else METHODS)
    except ConfigError as error:
        return error.problems
    return []


def _semantic_problems(config: VAConfig) -> list[str]:
    """Return what single fields can't tell: unknown names, settings that don't go together."""
    from metaecg.data.preprocessing import Preprocessing

    problems = []
    try:
        Preprocessing(**config.preprocessing.model_dump())
    except ValueError as error:
        problems.append(f"preprocessing: {error}")
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        problems.append(f"seeds is {config.seeds}; expected different numbers of 0 or more.")
    for slug in config.databases or ():
        if slug in DATABASES and slug not in VA_DATABASES:
            problems.append(
                f"databases has {slug!r}, whose annotations mark no ventricular rhythm: its windows "
                f"would all count as 'other'; expected {', '.join(VA_DATABASES)} or a folder of yours."
            )
    problems += _network_problems(config)
    if config.base and config.split:
        problems.append("split and base exclude each other: a base is not trained again.")
    return problems


def _network_problems(config: VAConfig) -> list[str]:
    """Return which methods the chosen network can't run, before hours are spent on the others."""
    if config.base:
        return []
    name, arguments = config.network.name, config.network.arguments
    methods = choose_methods(config.methods, table=METHODS) if not _unknown(config) else {}
    has_batch_norm = name == "resnet1d-18" and arguments.get("norm", "batch") == "batch"
    has_batch_norm |= name == "metava" or (name == "net1d" and bool(arguments.get("use_bn", False)))
    problems = []
    meta = [m for m, method in methods.items() if method.base.startswith("maml")]
    if meta and (name in RECURRENT or has_batch_norm):
        why = "a recurrent cell" if name in RECURRENT else "batch norm"
        problems.append(
            f"network.name is {name!r}, whose {why} can't be meta-learned by the engine "
            f"{config.meta.engine!r}; expected compact-cnn, net1d, or resnet1d-18 with "
            f"network.arguments={{norm: group}} for {', '.join(meta[:2])}."
        )
    lora = [m for m, method in methods.items() if method.adapt == "lora"]
    if lora and name in RECURRENT:
        problems.append(
            f"network.name is {name!r}, in which LoRA finds no layer to adapt; leave out "
            f"{', '.join(lora[:2])}... with --methods, or choose another network."
        )
    return problems


def _unknown(config: VAConfig) -> bool:
    return bool(_method_problems({"methods": config.methods}))


def as_yaml(config: VAConfig) -> str:
    """Return the resolved configuration as text that `--config` takes back."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()
