"""What `Personalizer`'s arguments may be, what they are by method, and how a file holds them."""

import dataclasses
import sys
from collections.abc import Mapping

import numpy as np

from metaecg.adapt import h_tuning
from metaecg.adapt.h_tuning import HTuning
from metaecg.adapt.in_time import check_rhythm, check_threshold
from metaecg.adapt.methods import METHODS
from metaecg.adapt.prefine import PREFINES
from metaecg.checks import check_option, check_positive

N_STEPS = 30
"""Of every method but H-Tuning."""

LEARNING_RATES = {"head": 1e-2, "full": 1e-3, "bias": 1e-2, "lora": 5e-3}
"""For 30 steps of AdamW on twenty windows, found roughly on generated windows; what moves fewer
numbers takes larger steps. H-Tuning has its published ones (`h_tuning.learning_rate`)."""

WEIGHT_DECAY = 1e-4
"""Of every method but H-Tuning."""


def training_arguments(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return what `fine_tune` and `h_tune` both take, the method's default where it is None."""
    method = arguments["method"]
    defaults = {
        "n_steps": N_STEPS,
        "lr": LEARNING_RATES.get(method),
        "weight_decay": WEIGHT_DECAY,
        "batch_size": None,
        "micro_batch": None,
    }
    if method == "h-tuning":
        defaults["n_steps"] = h_tuning.N_STEPS
        defaults["weight_decay"] = h_tuning.WEIGHT_DECAY
        defaults["batch_size"] = h_tuning.BATCH_SIZE
    return {n: d if arguments[n] is None else arguments[n] for n, d in defaults.items()}


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Raise ValueError for the first of `Personalizer`'s arguments that is out of its range."""
    check_option("method", arguments["method"], METHODS)
    if arguments["prefine"] is not None:
        check_option("prefine", arguments["prefine"], PREFINES)
    for name in ("lr", "alpha"):
        if arguments[name] is not None:
            check_positive(name, arguments[name])
    _check_whole("random_state", arguments["random_state"], 0)
    for name, least in (("n_steps", 0), ("rank", 1), ("batch_size", 1), ("micro_batch", 1)):
        if arguments[name] is not None:
            _check_whole(name, arguments[name], least)
    if arguments["weight_decay"] is not None:
        _check_between("weight_decay", arguments["weight_decay"], 0, sys.float_info.max)
    check_threshold(arguments["threshold"])
    check_rhythm(arguments["rhythm"], arguments["base"])
    if isinstance(arguments["freeze"], str):
        raise ValueError(
            f"freeze is {arguments['freeze']!r}; a list of names was expected, such as "
            f"[{arguments['freeze']!r}]."
        )
    _check_h_tuning(arguments)


def _check_h_tuning(arguments: Mapping[str, object]) -> None:
    settings, is_h_tuning = arguments["h_tuning"], arguments["method"] == "h-tuning"
    if settings is not None and not isinstance(settings, HTuning):
        raise ValueError(f"h_tuning is {settings!r}; an HTuning or None was expected.")
    if settings is not None and not is_h_tuning:
        raise ValueError(
            f"h_tuning is {settings!r}, but method is {arguments['method']!r}, which has no use for "
            "it. Set method='h-tuning', or leave h_tuning out."
        )
    if is_h_tuning and arguments["dropout"]:
        raise ValueError(
            "dropout is True with method='h-tuning'; two passes with different masks would differ "
            "by more than the perturbation that they measure. Leave dropout out."
        )


def to_json(value: object) -> object:
    """Return an argument as JSON can hold it."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, HTuning):
        return {name: to_json(item) for name, item in dataclasses.asdict(value).items()}
    return list(value) if isinstance(value, tuple) else value


def from_json(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments that `to_json` was given, but for tuples, which are lists now."""
    arguments = {**arguments}
    if arguments.get("h_tuning") is not None:
        arguments["h_tuning"] = HTuning(**arguments["h_tuning"])
    return arguments


def _check_whole(name: str, value: object, least: int) -> None:
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ValueError(f"{name} is {value!r}; a whole number of {least} or more was expected.")


def _check_between(name: str, value: object, least: float, most: float) -> None:
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    if not is_number or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; a number from {least} to {most:g} was expected.")
