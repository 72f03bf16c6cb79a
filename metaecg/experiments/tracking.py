"""The MLflow run beside the files: parameters, stepwise metrics, artifacts, data and the model.

    python -m metaecg.experiments.tracking replay OUT [OUT ...] [--uri URI]

Tracking never decides over a run. What a run records goes into a journal in its output folder, and
a process beside it sends the journal on; if the store can't be reached, the run says so once, goes
on, and ``replay`` sends later what is missing (docs/tracking.md).
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

from metaecg.experiments import tracking_process
from metaecg.experiments.cli import run_main
from metaecg.experiments.tracking_journal import (
    CALLS,
    KEY_PREFIX,
    WRITER_LOCK,
    JournalFile,
    file_entry,
    folder_entries,
    journal_folder,
    keep_files,
    lock_of,
    now_ms,
    remove,
)
from metaecg.models.registry_uri import without_password

PARAM_LENGTH, TAG_LENGTH = 5000, 5000  # MLflow takes 6000 and 8000 characters


def make_tracker(
    *,
    enabled: bool,
    uri: str | None,
    experiment: str,
    out: Path,
    name: str,
    parent_run_id: str | None = None,
    tags: Mapping[str, object] | None = None,
):
    """Return a tracker: MLflow's, or one that does nothing.

    It returns at once; whether the store can be reached turns out while the run goes on.

    Parameters
    ----------
    enabled
        False: record nothing.
    uri
        Store; None: ``$MLFLOW_TRACKING_URI``, else an SQLite file ``mlflow.db`` beside `out`.
    experiment, name
        Names of the experiment and of the run.
    out
        The run's output folder; the journal lies in it until everything has arrived.
    parent_run_id
        The run that this one is a part of (``run_id`` of its tracker), if any.
    tags
        Tags to record at once.
    """
    if not enabled:
        return NoTracker()
    uri = _uri(uri, out)
    try:
        return Tracker(
            uri,
            experiment=experiment,
            out=out,
            name=name,
            parent_run_id=parent_run_id,
            tags=tags or {},
        )
    except OSError as error:
        _warn(f"the run can't be recorded ({error}); it goes on without.")
        return NoTracker()


def warm_up(*, enabled: bool, uri: str | None, out: Path) -> None:
    """Let the process that sends start while the run prepares itself; arguments as of `make_tracker`.

    Nothing is written yet: neither into `out` nor into a store.
    """
    if not enabled:
        return
    try:
        tracking_process.take(None).tell(warm=_uri(uri, out))
    except OSError:
        return  # `make_tracker` will say so


def default_uri(out: Path) -> str:
    """Return the SQLite store beside the output folder."""
    return f"sqlite:///{out.resolve().parent / 'mlflow.db'}"


class NoTracker:
    """Records nothing."""

    uri = None
    run_id = None

    def params(self, values: Mapping[str, object]) -> None: ...

    def tags(self, values: Mapping[str, object]) -> None: ...

    def history(self, name: str, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None: ...

    def metrics(self, values: Mapping[str, float | None]) -> None: ...

    def artifacts(self, paths: Iterable[Path]) -> None: ...

    def datasets(self, found: Iterable[Mapping[str, str]]) -> None: ...

    def model(self, facts: Mapping[str, object], *, folder: Path, **options: object) -> None: ...

    def end(self, status: str = "FINISHED") -> None: ...


class Tracker:
    """One MLflow run. Every method writes a line into the journal and returns.

    Nothing here raises for want of a store or of space on the disk.
    """

    def __init__(
        self,
        uri: str,
        *,
        experiment: str,
        out: Path,
        name: str,
        parent_run_id: str | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        self.uri, self.key = uri, KEY_PREFIX + uuid4().hex
        self._out, self._is_child = out, parent_run_id is not None
        self._parent_is_away = (parent_run_id or "").startswith(KEY_PREFIX)
        self._run_id: str | None = None
        self._has_warned = False
        self._folder = journal_folder(out, self.key)
        self._folder.mkdir(parents=True)
        self._lock = lock_of(self._folder, WRITER_LOCK)
        self._file = JournalFile(self._folder / CALLS)
        self._sender = None
        self._add(
            "run",
            key=self.key,
            uri=without_password(uri),
            experiment=experiment,
            name=name,
            parent=parent_run_id,
            tags=_texts(tags or {}, TAG_LENGTH),
        )
        try:
            self._sender = tracking_process.take(self.key)
        except OSError:
            remove(self._folder)
            raise
        self._sender.tell(watch=str(self._folder), uri=uri, system=not self._is_child)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; waits until the store has answered.

        Of a store that can't be reached, the run's key in the journal: as `parent_run_id` it
        does as well, and `replay` puts the id in its place.
        """
        if self._run_id is None:
            with tracking_process.lock:
                said = self._sender.wait_for(self.key, {"created", "failed"})
            self._warn_of(said)
            self._run_id = said.get("created", self.key)
        return self._run_id

    def params(self, values: Mapping[str, object]) -> None:
        """Record parameters; nested mappings are flattened with dots."""
        self._add("params", values=_texts(_flatten(values), PARAM_LENGTH))

    def tags(self, values: Mapping[str, object]) -> None:
        """Record tags; one whose value is None is left out."""
        known = {name: value for name, value in values.items() if value is not None}
        self._add("tags", values=_texts(known, TAG_LENGTH))

    def history(self, name: str, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Record the course of a training, ``(step, values)``, as stepwise metrics ``name/...``."""
        self._points(
            (f"{name}/{key}", value, step)
            for step, values in steps
            for key, value in values.items()
        )

    def metrics(self, values: Mapping[str, float | None]) -> None:
        """Record final figures; undefined ones are left out."""
        self._points((key, value, 0) for key, value in values.items())

    def artifacts(self, paths: Iterable[Path]) -> None:
        """Record files, and folders with what is in them; what isn't there is left out."""
        files = []
        for path in paths:
            if path.is_dir():
                files += folder_entries(path, self._out, to=path.name)
            elif path.exists():
                files.append(file_entry(path, self._out))
        self._add("files", files=files)

    def datasets(self, found: Iterable[Mapping[str, str]]) -> None:
        """Record the data that went in.

        Parameters
        ----------
        found
            For each data set ``name``, ``digest`` (a SHA-256, hex), ``source_type`` and ``source``
            as MLflow has them, and ``profile`` (JSON).
        """
        self._add("datasets", values=[dict(each) for each in found])

    def model(
        self,
        facts: Mapping[str, object],
        *,
        folder: Path,
        name: str = "model",
        register_as: str | None = None,
    ) -> None:
        """Record a base as an MLflow model of the pyfunc flavour.

        Parameters
        ----------
        facts
            What `metaecg.models.mlflow_model.pyfunc_facts` says of it.
        folder
            Where the base was saved, within the output folder.
        name
            ``runs:/ID/NAME`` is the model.
        register_as
            Name in MLflow's registry; a new version is made there. None: not registered.
        """
        files = folder_entries(folder, self._out, to="")
        self._add("model", facts=dict(facts), files=files, name=name, register_as=register_as)

    def end(self, status: str = "FINISHED") -> None:
        """Close the run: ``FINISHED``, ``FAILED`` or ``KILLED``; wait until it has arrived.

        If it can't arrive now, the files that it recorded are copied beside the journal.
        """
        self._add("end", sync=True, status=status)
        self._file.close()
        try:
            said = self._hear_the_end()
        finally:
            if self._lock is not None:
                self._lock.release()
            tracking_process.give_back(self._sender, self.key, may_idle=self._is_child)
        if "told" in said:
            print(said["told"], file=sys.stderr)

    def _hear_the_end(self) -> dict[str, str]:
        with tracking_process.lock:
            self._sender.tell(end=self.key)
            said = self._sender.wait_for(self.key, {"done", "failed"})
        self._warn_of(said)
        if "failed" in said:
            try:
                keep_files(self._folder)
            except OSError as error:
                self._warn(f"files of the run can't be kept for a replay ({error}).")
        return said

    def _points(self, found: Iterable[tuple[str, float | None, int]]) -> None:
        values = [[_name(k), float(v), int(step)] for k, v, step in found if v is not None]
        self._add("metrics", values=values)

    def _add(self, call: str, *, sync: bool = False, **content: object) -> None:
        """Write a line, and tell the user what has become of earlier ones."""
        try:
            self._file.add({"call": call, "time_ms": now_ms(), **content}, sync=sync)
        except OSError as error:
            self._warn(f"the run's record is not whole ({error}); the run goes on.")
        if self._sender is not None:
            with tracking_process.lock:
                self._sender.hear()
            self._warn_of(self._sender.said.get(self.key, {}))

    def _warn_of(self, said: Mapping[str, str]) -> None:
        if "failed" in said and self.uri not in self._sender.warned:
            self._sender.warned.add(self.uri)
            if self._parent_is_away:  # whoever runs the parent has said it
                return
            print(
                f"warning: the MLflow store {without_password(self.uri)} can't be used "
                f"({said['failed']}); the run goes on, and what the store misses is kept: python -m "
                f"metaecg.experiments.tracking replay {self._out}",
                file=sys.stderr,
            )
        if "rejected" in said:
            self._warn(f"the MLflow store doesn't take everything ({said['rejected']}).")

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _warn(what)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    from metaecg.experiments.tracking_replay import replay

    arguments = make_parser().parse_args(argv)
    return run_main(lambda: replay(arguments.out, uri=arguments.uri, tell=print))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m metaecg.experiments.tracking",
        description="What MLflow has not got of a run. See docs/tracking.md.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sending = commands.add_parser(
        "replay",
        help="send what is missing",
        description="Send to MLflow what runs could not send while they went on. It can be stopped "
        "and given again: nothing is lost, and nothing arrives twice. What has arrived is removed "
        "from OUT/tracking-missing. Exit code 3: something is still missing.",
        allow_abbrev=False,
    )
    sending.add_argument(
        "out",
        nargs="+",
        type=Path,
        metavar="OUT",
        help="output folders of runs, or folders above them; those of a study before its trials'",
    )
    sending.add_argument(
        "--uri", help="the store; default: the one that each run was meant to go to"
    )
    return parser


def _uri(uri: str | None, out: Path) -> str:
    """Return the store to use; an SQLite file with its whole path: others don't run in this folder."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(out)
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).resolve()}"


def _flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _texts(values: Mapping[str, object], length: int) -> dict[str, str]:
    return {_name(k): without_password(str(v))[:length] for k, v in values.items()}


def _name(text: str) -> str:
    """Return a name that MLflow takes: what it forbids, such as a plus sign, becomes a dot."""
    return re.sub(r"[^\w. /-]", ".", text)


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
