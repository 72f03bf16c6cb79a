"""Which of these runs is better, and is it real?

    python -m metaecg.experiments.compare runs/a runs/b
    python -m metaecg.experiments.compare 3f2a91c0 runs/b --html compare.html
    python -m metaecg.experiments.compare --experiment va_fewshot
    python -m metaecg.experiments.compare runs/a --methods pretrain+full,maml+full

A RUN is an output folder of va_fewshot or veb_fewshot, a results file, or the id of an MLflow run
(or how it begins). The first is the reference: the others stand against it, paired over the same
subjects. Runs that were not judged alike (protocol, data, held-out subjects, test windows or beats)
are refused with what differs. Nothing is trained, and nothing is written but the page. See
docs/compare.md.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from metaecg.errors import ConfigError, DataError
from metaecg.evaluate.metrics import N_RESAMPLES
from metaecg.experiments.cli import progress, run_main
from metaecg.experiments.compare_runs import FIGURES, Run, read_path

PAGE = "compare.html"
MAX_RUNS = 10


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    arguments = make_parser().parse_args(argv)
    return run_main(lambda: _main(arguments))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m metaecg.experiments.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="output folder, results file or MLflow run id")
    add("--experiment", metavar="NAME", help="also the finished runs of an MLflow experiment, the newest first")  # fmt: skip
    add("--max-runs", type=int, default=MAX_RUNS, metavar="N", help=f"at most so many runs of --experiment (default {MAX_RUNS})")  # fmt: skip
    add("--tracking-uri", metavar="URI", help="MLflow store; default $MLFLOW_TRACKING_URI, else the mlflow.db beside a RUN's folder or in runs/")  # fmt: skip
    add("--methods", "--method", metavar="A,B", help="which rows of each run, comma-separated; default: the first in a fixed order that all have, never the best on test")  # fmt: skip
    add("--metric", metavar="NAME", help=f"what decides (default auc; f1 of beats): {', '.join(FIGURES)}")  # fmt: skip
    add("--study", action="append", default=[], metavar="URL:NAME", help="also show this Optuna study (or a folder with study.json); can be repeated")  # fmt: skip
    add("--html", type=Path, metavar="FILE", help=f"the page; default {PAGE} beside the first folder, no page with --json")  # fmt: skip
    add("--json", action="store_true", help="print the comparison as JSON in place of the table")
    add("--json-file", type=Path, metavar="FILE", help="write that JSON to a file")
    add("--n-resamples", type=int, default=N_RESAMPLES, metavar="N", help=f"of the bootstrap over subjects, which gives the intervals (default {N_RESAMPLES})")  # fmt: skip
    add("--seed", type=int, default=0, help="of the bootstrap and the sign flips (default 0)")
    return parser


def compare(
    runs: Sequence[str],
    *,
    methods: Sequence[str] | None = None,
    metric: str | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    experiment: str | None = None,
    max_runs: int = MAX_RUNS,
    tracking_uri: str | None = None,
    studies: Sequence[str] = (),
) -> dict:
    """Compare runs as the command line does; return what ``--json`` prints.

    Parameters
    ----------
    runs
        Output folders, results files and MLflow run ids; the first is the reference.
    methods
        Rows of each run; None: the first of `compare_rows.PREFERRED_METHODS` (of beats,
        `compare_rows.PREFERRED_BEAT_METHODS`) that all have.
    metric
        One of `compare_runs.FIGURES` (of beats, `compare_runs.BEAT_FIGURES`); None: the first.
    n_resamples, seed
        Of the bootstrap over subjects; the seed is also that of the sign flips.
    experiment, max_runs
        The newest runs of an MLflow experiment come after `runs`.
    tracking_uri
        Store of the MLflow runs.
    studies
        Optuna studies to describe beside them, as `--study`.

    Returns
    -------
    dict
        The schema is in docs/compare.md.

    Raises
    ------
    ConfigError
        An option, or a method that a run lacks.
    DataError
        A run that can't be read, or runs that were not judged alike; with every problem.
    """
    from metaecg.experiments.compare_result import compare_rows
    from metaecg.experiments.compare_rows import (
        check_rows,
        check_runs,
        choose_rows,
        with_unique_names,
    )
    from metaecg.experiments.compare_study import describe_studies

    _check_options(runs, experiment, metric, n_resamples, max_runs)
    with tempfile.TemporaryDirectory() as copies:
        read, notes = _read(runs, experiment, max_runs, tracking_uri, Path(copies))
    read = with_unique_names(read)
    check_runs(read)
    rows = choose_rows(read, methods)
    check_rows(rows)
    metric = _metric_of(read[0], metric)
    with progress("resampling subjects"):
        comparison = compare_rows(rows, metric=metric, n_resamples=n_resamples, seed=seed)
    comparison["notes"] = [*notes, *comparison["notes"]]
    comparison["studies"] = describe_studies(studies, read)
    return comparison


def _main(arguments: argparse.Namespace) -> None:
    comparison = compare(
        arguments.runs,
        methods=_split(arguments.methods),
        metric=arguments.metric,
        n_resamples=arguments.n_resamples,
        seed=arguments.seed,
        experiment=arguments.experiment,
        max_runs=arguments.max_runs,
        tracking_uri=arguments.tracking_uri,
        studies=arguments.study,
    )
    _write(comparison, arguments)


def _write(comparison: dict, arguments: argparse.Namespace) -> None:
    """Write the files, then say what was found: a closed pipe then loses nothing."""
    from metaecg.experiments.compare_page import write_page
    from metaecg.experiments.compare_tables import print_comparison
    from metaecg.experiments.provenance import write_text

    text = json.dumps(comparison, indent=1, allow_nan=False)
    page = arguments.html or (None if arguments.json else _default_page(comparison))
    if page:
        write_page(page, comparison)
    if arguments.json_file:
        write_text(arguments.json_file, text + "\n")
    if arguments.json:
        print(text)
    else:
        print_comparison(comparison)
    written = [str(file) for file in (page, arguments.json_file) if file]
    if written:
        print(f"\nwritten: {', '.join(written)}", file=sys.stderr if arguments.json else sys.stdout)


def _default_page(comparison: dict) -> Path:
    """Return `PAGE` beside the first folder; in this folder where there is none."""
    folders = [Path(row["source"]) for row in comparison["rows"]]
    found = [folder for folder in folders if folder.is_dir()]
    return Path(os.path.relpath(found[0].resolve().parent)) / PAGE if found else Path(PAGE)


def _read(
    named: Sequence[str], experiment: str | None, max_runs: int, uri: str | None, copies: Path
) -> tuple[list[Run], list[str]]:
    """Read all runs; what is wrong with any of them is reported together."""
    from metaecg.experiments.compare_mlflow import RUN_ID, Store, store_uri
    from metaecg.experiments.compare_rows import without_copies

    folders = [Path(name) for name in named if Path(name).exists()]
    store = functools.cache(lambda: Store(store_uri(uri, folders)))
    names, notes, problems, read = list(named), [], [], []
    if experiment is not None:
        chosen = store().select(experiment, at_most=max_runs)
        names += chosen.run_ids
        notes += chosen.notes
    with progress("reading", total=len(names)) as bar:
        for name in names:
            try:
                is_id = RUN_ID.fullmatch(name) and not Path(name).exists()
                read.append(store().fetch(name, copies) if is_id else _read_path(name))
            except DataError as error:
                problems.append(str(error))
            bar.advance()
    problems = list(dict.fromkeys(problems))  # a store that is down is down once
    if len(problems) > 1:
        lines = "".join(f"\n  - {each}" for each in problems)
        raise DataError(f"{len(problems)} things keep these runs from being read:{lines}")
    if problems:
        raise DataError(problems[0])
    return without_copies(read, n_named=len(named)), notes


def _read_path(name: str) -> Run:
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"{name!r} doesn't exist. Expected an output folder of va_fewshot or veb_fewshot, a "
            "results file, or the id of an MLflow run (hexadecimal)."
        )
    return read_path(path)


def _split(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--methods names none; expected names such as pretrain+full,maml+full.")
    return names


def _metric_of(run: Run, metric: str | None) -> str:
    """Return what decides: the named figure, else the first that the recipe has."""
    from metaecg.checks import did_you_mean

    if metric is None:
        return run.metrics[0]
    if metric not in run.metrics:
        raise ConfigError(
            f"--metric is {metric!r}, which the subjects of {run.source} don't have; expected "
            f"{did_you_mean(metric, run.metrics)}"
        )
    return metric


def _check_options(
    runs: Sequence[str], experiment: str | None, metric: str | None, n_resamples: int, max_runs: int
) -> None:
    from metaecg.checks import did_you_mean

    problems = []
    if not runs and experiment is None:
        problems.append("no RUN and no --experiment is named; expected at least one of them.")
    if metric is not None and metric not in FIGURES:
        problems.append(f"--metric is {metric!r}; expected {did_you_mean(metric, FIGURES)}")
    if n_resamples < 100:
        problems.append(f"--n-resamples is {n_resamples}; at least 100 are needed for 95 %.")
    if max_runs < 1:
        problems.append(f"--max-runs is {max_runs}; a number above 0 was expected.")
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    sys.exit(main())
