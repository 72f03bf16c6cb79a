"""What is compared: rows, each a method of a run, and what sets them apart."""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaecg.checks import did_you_mean
from metaecg.errors import ConfigError, DataError
from metaecg.experiments.compare_agree import disagreements, tested_beats, tested_otherwise
from metaecg.experiments.compare_runs import Run, flatten
from metaecg.experiments.config import NO_FIGURE
from metaecg.experiments.va_methods import BASE_ONLY_METHODS, METHODS, PREFERRED_BASES
from metaecg.experiments.veb_methods import METHODS as BEAT_METHODS

PREFERRED_METHODS = tuple(
    dict.fromkeys(
        [f"{base}+{adapt}" for base in PREFERRED_BASES for adapt in ("full", "lora")]
        + ["full", "lora", *METHODS, *BASE_ONLY_METHODS]
    )
)
"""The first of these that all runs have is compared when none is named. The order is fixed in
advance, that of the base which a run leaves in OUT/model: the best on test would be chosen on test
data."""

PREFERRED_BEAT_METHODS = ("head", "full", "lora", "labels", "zero-shot", *BEAT_METHODS)
"""The same for `veb_fewshot`."""

NOT_AT_HAND = "not at hand"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of one run."""

    run: Run
    method: str
    label: str
    """Unlike any other row's."""

    @property
    def figures(self) -> dict:
        """What ``results.json`` has of the method."""
        return self.run.results["methods"][self.method]

    def of_subjects(self, metric: str) -> dict[str, float | None]:
        """Return subject -> figure, the mean over seeds; None where it is undefined."""
        return {s: values[metric] for s, values in self.figures["subjects"].items()}


def choose_rows(runs: Sequence[Run], methods: Sequence[str] | None) -> list[Row]:
    """Return the rows to compare, the first of them the reference.

    Parameters
    ----------
    runs
        In the order in which they were named.
    methods
        Names; None: the first of `PREFERRED_METHODS` (of beats, `PREFERRED_BEAT_METHODS`) that all
        runs have.

    Raises
    ------
    ConfigError
        A run lacks a method, or only one row is left; every problem is named.
    DataError
        Runs have no method in common.
    """
    if methods is None:
        if len(runs) == 1:
            raise ConfigError(_nothing_to_compare(runs[0]))
        methods = [_common_method(runs)]
    problems = [
        f"{run.source} has no method {method!r}; expected "
        f"{did_you_mean(method, run.results['methods'])}"
        for method in methods
        for run in runs
        if method not in run.results["methods"]
    ]
    problems += [f"method {m!r} is named twice." for m in dict.fromkeys(methods) if methods.count(m) > 1]  # fmt: skip
    if len(runs) * len(methods) == 1:
        problems.append(_nothing_to_compare(runs[0]))
    if problems:
        raise ConfigError(problems)
    return [
        Row(run=run, method=method, label=_label(run, method, len(runs), len(methods)))
        for run in runs
        for method in methods
    ]


def check_runs(runs: Sequence[Run]) -> None:
    """Refuse runs that were not judged alike, and one run given twice, with every difference.

    Raises
    ------
    DataError
        With a line for each.
    """
    first: dict[str, Run] = {}
    lines, different = [], []
    for run in runs:
        digest = _digest(run)
        if digest in first:
            lines.append(
                f"{run.source} and {first[digest].source} are the same run: their figures, times "
                "and settings are equal. Name it once."
            )
        first.setdefault(digest, run)
    for run in runs[1:]:
        found = disagreements(runs[0], run)
        lines += found
        different += [run] if found else []
    if lines:
        raise DataError(_refusal(runs, lines, different))


def check_rows(rows: Sequence[Row]) -> None:
    """Refuse methods of `veb_fewshot` that were judged on other beats than the reference.

    There each way to choose the labelled beats leaves others to test; `va_fewshot` tests all
    methods on the same windows, and `check_runs` has compared them.

    Raises
    ------
    DataError
        With a line for each.
    """
    if not rows[0].run.is_of_beats:
        return
    reference, *others = (tested_beats(row.run, row.method, name=row.label) for row in rows)
    lines = [f"\n  - {line}" for other in others for line in tested_otherwise(reference, other)]
    if lines:
        raise DataError(
            "these rows can't be compared; figures count against each other only on the same test "
            f"beats.{''.join(lines)}\n{_rows_on_the_same_beats(rows[0])}"
        )


def parameters_that_differ(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return parameter -> run -> value, for what is not the same in all runs.

    Besides the configuration these are the commit, the versions, the base that was given and the
    number of training subjects of each split. Fields that change no figure are left out. A run
    whose configuration or ``run.json`` is not at hand is `NOT_AT_HAND` in those rows and makes none.
    """
    found: dict[str, dict[str, Any]] = {}
    for group in (_configuration, _of_results, _of_facts):
        values = {run.name: group(run) for run in runs}
        known = [each for each in values.values() if each is not None]
        for name in sorted({name for each in known for name in each}):
            if len({str(each.get(name)) for each in known}) > 1:
                found[name] = {
                    run: NOT_AT_HAND if each is None else each.get(name)
                    for run, each in values.items()
                }
    return found


def with_unique_names(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, those that share a name called by their source."""
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else Run(**{**run.__dict__, "name": run.source})
        for run in runs
    ]


def without_copies(runs: Sequence[Run], *, n_named: int) -> list[Run]:
    """Return the runs but for those of an experiment that were also named themselves."""
    named = [_digest(run) for run in runs[:n_named]]
    return [*runs[:n_named], *(run for run in runs[n_named:] if _digest(run) not in named)]


def _configuration(run: Run) -> dict[str, Any] | None:
    if run.parameters is None:
        return None
    return {n: v for n, v in run.parameters.items() if n.split(".")[0] not in NO_FIGURE}


def _of_results(run: Run) -> dict[str, Any]:
    versions = flatten({"versions": run.results.get("versions") or {}})
    return {"git_commit": run.results.get("git_commit"), **versions}


def _of_facts(run: Run) -> dict[str, Any] | None:
    if not run.facts:
        return None
    splits = run.facts.get("splits") or {}
    trained = {f"splits.{name}": _trained_on(split["train"]) for name, split in splits.items()}
    return {"base_fingerprint": run.facts.get("base_fingerprint"), **trained}


def _trained_on(subjects: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(sorted(subjects)).encode()).hexdigest()[:8]
    return f"{len(subjects)} training subjects ({digest})"


def _common_method(runs: Sequence[Run]) -> str:
    common = set.intersection(*(set(run.results["methods"]) for run in runs))
    if not common:
        lines = [f"\n  - {run.source}: {', '.join(run.results['methods'])}" for run in runs]
        raise DataError(
            "the runs have no method in common, so no row of one stands against the same row of "
            f"another.{''.join(lines)}\nRun one of them again with a method of the other."
        )
    preferred = PREFERRED_BEAT_METHODS if runs[0].is_of_beats else PREFERRED_METHODS
    return next((name for name in preferred if name in common), min(common))


def _rows_on_the_same_beats(row: Row) -> str:
    mine = tested_beats(row.run, row.method, name=row.label)
    found = [
        name
        for name in row.run.results["methods"]
        if not tested_otherwise(mine, tested_beats(row.run, name, name=name))
    ]
    return f"On the beats of {row.label} were judged: {', '.join(found)}."


def _nothing_to_compare(run: Run) -> str:
    return (
        f"{run.source} with one method leaves nothing to compare it with. Name a second run, or "
        f"two methods of this one with --methods: it has {', '.join(run.results['methods'])}."
    )


def _label(run: Run, method: str, n_runs: int, n_methods: int) -> str:
    if n_runs == 1:
        return method
    return run.name if n_methods == 1 else f"{run.name} · {method}"


def _digest(run: Run) -> str:
    """Return what tells a copy: two runs of the same settings differ in the times they took."""
    text = repr(sorted(flatten({"results": run.results}).items(), key=lambda item: item[0]))
    return hashlib.sha256(text.encode()).hexdigest()


def _refusal(runs: Sequence[Run], lines: Sequence[str], different: Sequence[Run]) -> str:
    agree = [run for run in runs[1:] if run not in different]
    hint = ""
    if different and agree:
        named = shlex.join(run.argument for run in (runs[0], *agree))
        hint = f"\nThese can be compared: {named}"
    if len(lines) == 1 and not different:
        return lines[0]
    return (
        "these runs can't be compared; figures count against each other only under one protocol, "
        f"on the same test windows.{''.join(f'{chr(10)}  - {line}' for line in lines)}{hint}"
    )
