"""From the command line of `veb_fewshot` to its resolved configuration."""

import os
from pathlib import Path

from metaecg.data.databases import DATABASES
from metaecg.errors import ConfigError
from metaecg.experiments.cli import argument_parser
from metaecg.experiments.config import (
    build_config,
    load_yaml,
    merge,
    over,
    parse_override,
    split_list,
)
from metaecg.experiments.veb_config import QUICK, VebConfig
from metaecg.experiments.veb_methods import choose_methods

PROGRAM = "python -m metaecg.experiments.veb_fewshot"
OPTIONS = ("data", "databases", "out", "cache", "methods", "split", "seeds", "n-shots", "classes")
OPTIONS += ("r-peaks", "base", "workers")
FLAGS = ("include-seen", "development")
DEMO_METHODS = ["global", "zero-shot", "labels", "head", "active+labels"]


def make_parser(description: str):
    """Return the parser of the command line."""
    parser = argument_parser(PROGRAM, description, VebConfig)
    for name in (*OPTIONS, *FLAGS):
        text = " ".join((VebConfig.model_fields[name.replace("-", "_")].description or "").split())
        more = {"action": "store_true", "default": None} if name in FLAGS else {}
        more = more or {"metavar": name.upper()}
        parser.add_argument(f"--{name}", help=text.replace("%", "%%"), **more)
    parser.add_argument("--quick", action="store_true", help="one seed, two folds, few steps")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument("--list-methods", action="store_true", help="print the methods and stop")
    return parser


def resolve(arguments) -> VebConfig:
    """Merge presets, file, options and overrides, the later ones winning; report every mistake."""
    values = load_yaml(arguments.config) if arguments.config else {}
    if arguments.quick:
        values = over(values, QUICK)
    typed, problems = _typed(arguments)
    values = over(values, typed)
    try:
        values = _with_places(values)
    except ConfigError as error:
        problems += error.problems
    problems += _method_problems(values)
    try:
        config = build_config(values, VebConfig)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += _semantic_problems(config)
    if problems:
        raise ConfigError(problems)
    return config


def _typed(arguments) -> tuple[dict, list[str]]:
    typed, problems = {}, []
    for option in (*OPTIONS, *FLAGS):
        name = option.replace("-", "_")
        if getattr(arguments, name) is not None:
            typed[name] = getattr(arguments, name)
    if str(typed.get("classes", "")).isdigit():
        typed["classes"] = int(typed["classes"])
    for text in arguments.overrides:
        try:
            typed = merge(typed, *parse_override(text))
        except ConfigError as error:
            problems += error.problems
    return typed, problems


def _with_places(values: dict) -> dict:
    """Fill in where the data is: mitdb where it lies, generated patients where nothing is named."""
    from metaecg.data.cache import default_cache_root
    from metaecg.data.databases import default_data_root

    cache = str(values.get("cache") or default_cache_root())
    data, databases = values.get("data"), values.get("databases")
    if not databases:
        databases = _databases_in(Path(str(data)), values) if data else ["demo"]
    if databases in ("demo", ["demo"]):
        data = data or os.path.join(cache, "demo-data")
        values = {"methods": DEMO_METHODS, **values}
    if values.get("base") and not values.get("out"):
        values = {**values, "out": "runs/veb_base"}
    data = str(data or default_data_root())
    return {**values, "cache": cache, "databases": databases, "data": data}


def _databases_in(root: Path, values: dict) -> list[str]:
    """Return mitdb if it lies there, with a base every folder of annotated recordings otherwise."""
    if (root / "mitdb").is_dir():
        return ["mitdb"]
    folders = sorted(root.iterdir()) if root.is_dir() else []
    own = [p.name for p in folders if any(p.glob("*.hea")) and any(p.glob("*.atr"))]
    own = [name for name in own if name not in DATABASES]
    if values.get("base") and own:
        return own
    if (root / "demo").is_dir():
        return ["demo"]
    raise ConfigError(
        f"data is {str(root)!r}, which doesn't hold mitdb; name the folder above it, or the databases "
        "with --databases."
    )


def _method_problems(values: dict) -> list[str]:
    methods = split_list(values, "methods").get("methods")
    if not isinstance(methods, list):
        return []
    try:
        choose_methods(methods)
    except ConfigError as error:
        return error.problems
    return []


def _semantic_problems(config: VebConfig) -> list[str]:
    """Return what single fields can't tell: settings that don't go together."""
    problems = []
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        problems.append(f"seeds is {config.seeds}; expected different numbers of 0 or more.")
    for slug in config.databases or ():
        if slug in DATABASES and "aami" not in DATABASES[slug].vocabularies:
            problems.append(
                f"databases has {slug!r}, whose annotations don't say which beats are ventricular; "
                "expected mitdb or a folder of yours."
            )
    if config.include_seen and not config.base:
        problems.append("include_seen only goes with --base: without it nobody seen is evaluated.")
    if config.development and (config.base or config.split or config.databases != ["mitdb"]):
        problems.append(
            "development holds out folds of DS1: it goes with mitdb alone, no base, no split."
        )
    if config.network.width % 4:
        problems.append(f"network.width is {config.network.width}; a multiple of 4 was expected.")
    if config.base and config.out.resolve() in (
        Path(config.base).resolve(),
        *Path(config.base).resolve().parents[:1],
    ):
        problems.append(
            f"out is {str(config.out)!r}, the run that the base {config.base} belongs to; its files "
            "would be replaced. Name another folder with --out."
        )
    return problems
