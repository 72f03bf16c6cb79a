"""What every recipe's command line shares: options, overrides, help from the fields, exit codes."""

import argparse
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from metaecg.errors import CheckpointError, ConfigError, LeakageError, MetaECGError

EXIT_CONFIG, EXIT_DATA, EXIT_BUG, EXIT_INTERRUPTED = 2, 3, 1, 130


def run_main(body: Callable[[], None], *, resume_hint: str = "") -> int:
    """Call `body` and turn what it raises into one message and an exit code.

    2: configuration. 3: data, checkpoints, leakage. 130: interrupted (Ctrl-C, or SIGTERM as a
    service manager sends it). 1: a bug, with traceback.
    """
    try:
        with _terminable():
            body()
    except ConfigError as error:
        return _say(f"error: {error}", EXIT_CONFIG)
    except (MetaECGError, OSError) as error:
        return _say(f"error: {_with_kind(error)}", EXIT_DATA)
    except KeyboardInterrupt:
        return _say(f"interrupted. {resume_hint}".strip(), EXIT_INTERRUPTED)
    except Exception:  # a bug: the traceback is what its report needs
        traceback.print_exc()
        return EXIT_BUG
    return 0


def print_fields(section: type[BaseModel], *, prefix: str = "") -> str:
    """Return a line per field: dotted name, default, meaning."""
    lines = []
    for name, info in section.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            lines += ["", f"  {prefix}{name}: {inner.__doc__}"]
            lines.append(print_fields(inner, prefix=f"{prefix}{name}."))
        else:
            text = " ".join((info.description or "").split())
            lines.append(f"  {prefix}{name}={_shown(info.default)}\n      {text}")
    return "\n".join(lines)


def as_yaml(config: BaseModel) -> str:
    """Return a resolved configuration as text that `--config` takes back."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip()


def argument_parser(program: str, description: str, fields: type[BaseModel]):
    """Return a parser with the overrides and a help that documents every field."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="fields, with their defaults (write key.subkey=value to set one, or put them into "
        "the file that --config names):\n\n" + print_fields(fields),
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.subkey=value", help="set any field; see the list below"
    )
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="read fields from a file")
    return parser


class Progress:
    """A bar on standard error while something takes long; silent when that is no terminal."""

    def __init__(self, title: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total)

    def advance(self, n_units: int = 1) -> None:
        """Move on by so many units."""
        self._bar.advance(self._task, n_units)

    def set(self, n_done: int, total: int) -> None:
        """Say how far it is."""
        self._bar.update(self._task, completed=n_done, total=total)

    def describe(self, title: str) -> None:
        """Say what is going on."""
        self._bar.update(self._task, description=title)


@contextmanager
def progress(title: str, total: int = 1) -> Iterator[Progress]:
    """Show a progress bar for the time of the block."""
    shown = Progress(title, total)
    with shown._bar:
        yield shown


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C for the time of the block: stop in order, keep what is finished."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _with_kind(error: Exception) -> str:
    if isinstance(error, LeakageError):
        return f"leakage: {error}"
    if isinstance(error, CheckpointError):
        return f"checkpoint: {error}"
    return str(error)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
