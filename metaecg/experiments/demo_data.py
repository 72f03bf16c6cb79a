"""The generated patients of a run: written where they are wanted, left alone where they lie already."""

import json
from pathlib import Path

from metaecg.data.demo import SLUG, write_demo_database
from metaecg.errors import ConfigError
from metaecg.experiments.config import DemoConfig


def provide_demo(
    settings: DemoConfig, *, data: Path, databases: list[str], cache: Path | None
) -> None:
    """Generate the patients that a run on generated patients reads, if they aren't there.

    Those in a folder of the user's are never written again.

    Raises
    ------
    ConfigError
        Settings other than the defaults ask for other patients than those.
    """
    if databases != [SLUG]:
        return
    is_ours = cache is not None and data.parent == cache
    if is_ours or not (data / SLUG).is_dir():
        data.mkdir(parents=True, exist_ok=True)
        write_demo_database(data, **settings.model_dump())  # keeps them if they are there
        return
    _refuse_others(settings, data / SLUG)


def _refuse_others(settings: DemoConfig, folder: Path) -> None:
    """Refuse what was asked for and isn't there; recordings that metaecg hasn't written are as they are.

    A setting at its default can't be told from one that nobody gave.
    """
    try:
        there = json.loads((folder / "demo.json").read_text())
        asked = settings.model_dump(exclude_defaults=True)
        wrong = {name: there[name] for name in asked if there[name] != asked[name]}
    except (OSError, ValueError, LookupError, TypeError):
        return
    if wrong:
        raise ConfigError(
            [
                f"demo.{name} is {asked[name]!r}, but {folder} was generated with {value!r}, and what lies "
                "there is kept; expected the same, or a folder without it. Name another folder with "
                f"--data, or leave demo.{name} out."
                for name, value in wrong.items()
            ]
        )
