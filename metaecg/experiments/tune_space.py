"""The parts of a search space: choices and ranges, and how a configuration narrows or replaces them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metaecg.errors import ConfigError

Scalar = str | int | float | bool | None
KEYS = ("choices", "low", "high", "log", "step", "int")
"""What an entry of the section ``space`` may hold."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One of a few values."""

    values: tuple[Scalar, ...]

    def ask(self, trial, name: str) -> Scalar:
        """Take the value of an `optuna.Trial`."""
        return trial.suggest_categorical(name, list(self.values))

    def holds(self, value: object) -> bool:
        """Whether `value` is one of them."""
        return value in self.values

    def samples(self) -> list[Scalar]:
        """Return the values that a configuration must accept for all of them to be accepted."""
        return list(self.values)

    def to_dict(self) -> dict:
        """Return what the section ``space`` would hold."""
        return {"choices": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_whole: bool = False

    def ask(self, trial, name: str) -> float:
        """Take the value of an `optuna.Trial`."""
        if self.is_whole:
            step = int(self.step or 1)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value: object) -> bool:
        """Whether `value` is a number in the range and on its grid."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        step = self.step or (1 if self.is_whole else None)
        steps = (value - self.low) / step if step else 0.0
        return self.low <= value <= self.high and math.isclose(steps, round(steps), abs_tol=1e-9)

    def samples(self) -> list[float]:
        """Return the values that a configuration must accept for all of them to be accepted."""
        return [int(self.low), int(self.high)] if self.is_whole else [self.low, self.high]

    def to_dict(self) -> dict:
        """Return what the section ``space`` would hold."""
        values = {"low": self.low, "high": self.high}
        settings = {"log": self.log, "int": self.is_whole, "step": self.step}
        return values | {name: value for name, value in settings.items() if value}


Space = Mapping[str, Choices | Range]
"""Dotted field of a recipe's configuration to the values that a study may give it."""


def flattened(given: Mapping, prefix: str = "") -> dict[str, object]:
    """Return field -> entry, whether the fields are written with dots or as nested mappings.

    Examples
    --------
    >>> flattened({"meta": {"inner_lr": {"low": 0.01, "high": 0.1}}})
    {'meta.inner_lr': {'low': 0.01, 'high': 0.1}}
    """
    found: dict[str, object] = {}
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not set(value) & set(KEYS):
            found |= flattened(value, f"{name}.")
        else:
            found[name] = value
    return found


def _number(value: object) -> object:
    """Return the number in a text such as 1e-3, which YAML takes for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse_entry(name: str, given: object) -> Choices | Range:
    """Return one entry of the section ``space``; what is wrong with it is one ConfigError."""
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"space.{name} is {given!r}; expected {{choices: [...]}} or {{low: ..., high: ...}}, "
            "with log, step and int if needed."
        )
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise ConfigError(f"space.{name} has {unknown[0]!r}; expected some of {', '.join(KEYS)}.")
    if "choices" in given:
        return _choices(name, given)
    return _range(name, given)


def _choices(name: str, given: Mapping) -> Choices:
    values = given["choices"]
    values = [_number(value) for value in values] if isinstance(values, list) else values
    if len(given) > 1:
        others = ", ".join(sorted(set(given) - {"choices"}))
        raise ConfigError(f"space.{name} has choices and {others}; expected one or the other.")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"space.{name}.choices is {values!r}; expected a list of values.")
    odd = [v for v in values if not isinstance(v, Scalar)]
    if odd:
        raise ConfigError(f"space.{name}.choices has {odd[0]!r}; expected numbers, words or flags.")
    if len(set(values)) < len(values):
        raise ConfigError(f"space.{name}.choices is {values}; expected every value once.")
    return Choices(values=tuple(values))


def _range(name: str, given: Mapping) -> Range:
    """Read a range; of several mistakes the first is reported."""
    given = {key: _number(value) for key, value in given.items()}
    for key in ("low", "high", "step"):
        value = given.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value)) and not (key == "step" and value is None):
            raise ConfigError(f"space.{name}.{key} is {value!r}; expected a number.")
    low, high, step = given["low"], given["high"], given.get("step")
    log, is_whole = given.get("log", False), given.get("int", False)
    for key, value in (("log", log), ("int", is_whole)):
        if not isinstance(value, bool):
            raise ConfigError(f"space.{name}.{key} is {value!r}; expected true or false.")
    problem = ""
    if low > high:
        problem = f"low is {low} and high {high}; expected low to be the smaller one"
    elif log and low <= 0:
        problem = f"log is true with low {low}; expected low above 0"
    elif step is not None and step <= 0:
        problem = f"step is {step}; expected a number above 0"
    elif step is not None and log:
        problem = f"step is {step} with log; expected one or the other"
    elif is_whole and any(v is not None and v != int(v) for v in (low, high, step)):
        problem = f"int is true with low {low}, high {high}, step {step}; expected whole numbers"
    if problem:
        raise ConfigError(f"space.{name}: {problem}.")
    return Range(low=low, high=high, log=log, step=step, is_whole=is_whole)


def narrowed(
    declared: Space, given: Mapping, *, fixed: set[str], check: Callable[[str, object], str]
) -> dict[str, Choices | Range]:
    """Return the space of a study: what is declared, with the entries of the section ``space``.

    Parameters
    ----------
    declared
        The recipe's own space. Its order is the order in which a trial asks.
    given
        The section ``space``. An entry replaces the declared one or adds a field; null takes a
        field out, which then stays as it is configured.
    fixed
        Fields that the section ``config`` sets: they are not searched.
    check
        (field, value) -> what is wrong with that value for that field, empty if nothing.

    Raises
    ------
    ConfigError
        Every mistake.
    """
    entries, problems = flattened(given), []
    space = {name: entry for name, entry in declared.items() if name not in fixed}
    for name, raw in entries.items():
        if name in fixed:
            problems.append(f"{name} is in config and in space; expected one or the other.")
        elif raw is None:
            space.pop(name, None)
        else:
            try:
                space[name] = parse_entry(name, raw)
            except ConfigError as error:
                problems += error.problems
                continue
            found = [check(name, value) for value in space[name].samples()]
            problems += list(dict.fromkeys(text for text in found if text))
    if problems:
        raise ConfigError(problems)
    return space
