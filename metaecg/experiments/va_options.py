"""From the command line of `va_fewshot` to its resolved configuration."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from metaecg.checks import did_you_mean
from metaecg.data.databases import DATABASES
from metaecg.errors import ConfigError
from metaecg.experiments.cli import argument_parser
from metaecg.experiments.config import (
    PRESETS,
    VAConfig,
    build_config,
    load_yaml,
    merge,
    over,
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
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from within the meta-trainings of an interrupted run in OUT",
    )
    parser.add_argument("--list-methods", action="store_true", help="print the methods and stop")
    return parser


def resolve(arguments) -> VAConfig:
    """Merge presets, file, options and overrides, the later ones winning; report every mistake.

    ``--quick`` wins over the file, and options and overrides over ``--quick``.
    """
    file = load_yaml(arguments.config) if arguments.config else {}
    typed, problems = _typed(arguments)
    return resolve_values(file, typed, quick=arguments.quick, problems=problems)


def resolve_values(
    file: dict, typed: dict, *, quick: bool = False, problems: Sequence[str] = ()
) -> VAConfig:
    """Merge presets, the `file`'s values and the `typed` ones, the later ones winning.

    `problems` are mistakes found before; they are reported with all others in one ConfigError.
    """
    problems = list(problems)
    try:
        values = _with_defaults(file, typed, quick=quick)
    except ConfigError as error:
        problems += error.problems
        values = over(file, typed)
    problems += _method_problems(values)
    try:
        config = build_config(values)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    problems += _semantic_problems(config)
    if problems:
        raise ConfigError(problems)
    return config


def _typed(arguments) -> tuple[dict, list[str]]:
    """Return what was typed, options and overrides, and the overrides that can't be read."""
    typed, problems = {}, []
    for option in (*OPTIONS, *FLAGS):
        name = option.replace("-", "_")
        if getattr(arguments, name) is not None:
            typed[name] = getattr(arguments, name)
    for text in arguments.overrides:
        try:
            typed = merge(typed, *parse_override(text))
        except ConfigError as error:
            problems += error.problems
    return typed, problems


def _with_defaults(file: dict, typed: dict, *, quick: bool) -> dict:
    """Fill in where the data is; generated patients and ``--quick`` bring their own budgets."""
    from metaecg.data.cache import default_cache_root
    from metaecg.data.databases import default_data_root

    given = over(file, typed)
    cache = given.get("cache") or str(default_cache_root())
    data, databases = given.get("data"), given.get("databases")
    if not databases:
        databases = _databases_in(data, any_name=bool(given.get("base"))) if data else ["demo"]
    presets: dict = {}
    if databases in ("demo", ["demo"]):
        data = data or os.path.join(str(cache), "demo-data")
        presets = {} if given.get("base") else PRESETS["demo"]
    values = over(presets, file)
    if quick:
        values = over(values, PRESETS["quick"])
    values = over(values, typed)
    if values.get("base") and not values.get("out"):
        values["out"] = "runs/va_base"
    return {
        **values,
        "cache": cache,
        "databases": databases,
        "data": data or str(default_data_root()),
    }


def _databases_in(folder, *, any_name: bool) -> list[str]:
    """Return the databases that lie under a folder; none is a mistake to report.

    Those known to have marks of VA; where there is none of them, with `any_name` (a given base) every
    folder of annotated recordings; generated patients only where there is nothing else.
    """
    root = Path(str(folder))
    found = [slug for slug in VA_DATABASES if (root / slug).is_dir()]
    if not found and any_name and root.is_dir():
        others = sorted(
            p.name for p in root.iterdir() if any(p.glob("*.hea")) and any(p.glob("*.atr"))
        )
        found = [name for name in others if name not in DATABASES and name != "demo"]
    if not found and (root / "demo").is_dir():
        found = ["demo"]
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
    table = BASE_ONLY_METHODS if config.base else METHODS
    if config.shots.n_shots and config.shots.method not in table:
        problems.append(
            f"shots.method is {config.shots.method!r}; expected "
            f"{did_you_mean(config.shots.method, table)}"
        )
    if config.shots.n_shots and (config.protocol != "deploy" or not any(config.shots.n_shots)):
        problems.append(
            f"shots.n_shots is {config.shots.n_shots} under {config.protocol}; a curve needs "
            "protocol=deploy and a number above 0."
        )
    in_time = [name for name, method in _chosen(config).items() if method.context]
    is_asked_for = bool(config.methods) or not config.base  # the others are left out with a base
    if in_time and config.protocol != "deploy" and is_asked_for:
        problems.append(
            f"methods has {in_time[0]!r}, but under {config.protocol} windows overlap and the support "
            "is drawn from all over the recording: there is no order to count on. Leave it out, or "
            "take protocol=deploy."
        )
    prefined = [name for name in _chosen(config) if "prefine" in name]
    if prefined and config.n_shots < 2 and config.personalize.prefine == "intended":
        problems.append(
            f"n_shots is {config.n_shots}, but {prefined[0]} splits the support in time and needs at "
            "least 2 per class; raise n_shots or leave it out with --methods."
        )
    if config.include_seen and not config.base:
        problems.append("include_seen only goes with --base: without it nobody seen is evaluated.")
    if config.base and config.out.resolve() in (
        Path(config.base).resolve(),
        *Path(config.base).resolve().parents[:1],
    ):
        problems.append(
            f"out is {str(config.out)!r}, the run that the base {config.base} belongs to; its files "
            "would be replaced. Name another folder with --out."
        )
    if config.base and config.split:
        problems.append("split and base exclude each other: a base is not trained again.")
    return problems


def _network_problems(config: VAConfig) -> list[str]:
    """Return which methods the chosen network can't run, before hours are spent on the others."""
    if config.base:
        return []
    name, arguments = config.network.name, config.network.arguments
    methods = _chosen(config)
    has_batch_norm = name == "resnet1d-18" and arguments.get("norm", "batch") == "batch"
    has_batch_norm |= name in ("metava", "cnn-transformer")
    has_batch_norm |= name == "net1d" and bool(arguments.get("use_bn", False))
    problems = []
    meta = [m for m, method in methods.items() if method.base.startswith("maml")]
    # anil's body is one for all tasks, so a recurrent cell may stand there
    has_cell = name in RECURRENT and config.meta.algorithm != "anil"
    if meta and config.meta.engine == "learn2learn":
        problems += _problems_of_learn2learn(config)
    elif meta and (has_cell or has_batch_norm):
        why = "a recurrent cell" if has_cell else "batch norm"
        problems.append(
            f"network.name is {name!r}, whose {why} can't be meta-learned by the engine "
            f"{config.meta.engine!r}; expected compact-cnn, net1d, or resnet1d-18 with "
            f"network.arguments={{norm: group}} for {', '.join(meta[:2])}, or meta.engine=learn2learn."
        )
    ensembles = [m for m, method in methods.items() if method.base == "ensemble"]
    if ensembles and name != "compact-cnn":
        problems.append(
            f"network.name is {name!r}, but {ensembles[0]} puts several compact-cnn together; expected "
            "network.name=compact-cnn, or leave it out with --methods."
        )
    lora = [m for m, method in methods.items() if method.adapt == "lora"]
    if lora and name in RECURRENT:
        problems.append(
            f"network.name is {name!r}, in which LoRA finds no layer to adapt; leave out "
            f"{', '.join(lora[:2])}... with --methods, or choose another network."
        )
    return problems


def _problems_of_learn2learn(config: VAConfig) -> list[str]:
    """Return what keeps learn2learn from running, before the warm start is trained."""
    problems = []
    if config.meta.algorithm == "maml++":
        problems.append(
            "meta.algorithm is 'maml++', which learn2learn doesn't have; expected meta.engine=func, "
            "or another algorithm, such as meta-sgd for learned rates."
        )
    second_order = config.meta.algorithm in ("maml", "meta-sgd") and not config.meta.first_order
    fused = config.network.arguments.get("attention", "fused") == "fused"
    if second_order and fused and config.network.name == "cnn-transformer":
        problems.append(
            "network.name is 'cnn-transformer', whose fused attention has no second derivatives; "
            f"expected network.arguments={{attention: plain}} for {config.meta.algorithm}, or "
            "meta.first_order=true."
        )
    if find_spec("learn2learn") is None:
        from metaecg.meta.learn2learn_engine import how_to_install

        problems.append(how_to_install("it is not installed"))
    return problems


def _chosen(config: VAConfig) -> dict:
    """Return the chosen methods; none where a name is unknown, which is reported elsewhere."""
    table = BASE_ONLY_METHODS if config.base else METHODS
    try:
        return choose_methods(config.methods, table=table)
    except ConfigError:
        return {}
