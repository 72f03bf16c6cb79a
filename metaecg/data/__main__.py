"""``python -m metaecg.data``: list the known databases and download them."""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path

from metaecg.errors import ConfigError, DataError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 2 (configuration), 3 (data), 130 (Ctrl-C)."""
    args = _parser().parse_args(argv)
    try:
        return _list() if args.command == "list" else _download(args)
    except ConfigError as error:
        return _fail(error, 2)
    except DataError as error:
        return _fail(error, 3)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m metaecg.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the databases that can be downloaded")
    fetch = commands.add_parser("download", help="fetch databases; whole files are kept")
    fetch.add_argument("slugs", nargs="+", metavar="DATABASE", help="such as mitdb vfdb cudb")
    fetch.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder for the databases (default: $METAECG_DATA, else a folder in the user's cache)",
    )
    fetch.add_argument("--base-url", metavar="URL", help="a mirror of https://physionet.org/files/")
    return parser


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _list() -> int:
    from metaecg.data.databases import DATABASES

    print(f"{'database':<10}{'version':<9}{'records':>7}{'Hz':>6}  {'licence':<12}title")
    for each in DATABASES.values():
        print(
            f"{each.slug:<10}{each.version:<9}{each.n_records:>7}{each.fs_hz:>6g}  "
            f"{each.licence:<12}{each.title}"
        )
    return 0


def _download(args: argparse.Namespace) -> int:
    from metaecg.data.databases import PHYSIONET_CITATION, default_data_root, get_database

    try:
        databases = [get_database(slug) for slug in args.slugs]
    except DataError as error:  # a name typed wrong, nothing wrong with any data
        raise ConfigError(str(error)) from error

    from metaecg.data.download import PHYSIONET, download

    root = args.root or default_data_root()
    with _progress_bar() as progress:
        folders = download(args.slugs, root, base_url=args.base_url or PHYSIONET, progress=progress)
    for folder in folders:
        print(folder)
    papers = [each.citation for each in databases if each.citation] + [PHYSIONET_CITATION]
    print("Licences ask to name the source:", *dict.fromkeys(papers), sep="\n  ")
    return 0


@contextmanager
def _progress_bar():
    """Give a callback that draws a bar on stderr; it draws nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} files, {task.fields[megabytes]:.1f} MB"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {}

        def show(state) -> None:
            if state.database not in tasks:
                tasks[state.database] = bar.add_task(state.database, megabytes=0.0)
            bar.update(
                tasks[state.database],
                total=state.n_files,
                completed=state.n_done,
                megabytes=state.n_bytes / 1e6,
            )

        yield show


if __name__ == "__main__":
    sys.exit(main())
