"""A meta-training on disk: all that decides what comes next, so that it goes on as if never stopped.

A checkpoint is one safetensors file; what is no tensor stands in its header as JSON. Nothing is
unpickled.
"""

import hashlib
import json
import reprlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metaecg.checks import check_positive
from metaecg.errors import CheckpointError, DataError, MetaECGWarning
from metaecg.models.folders import write_file

FORMAT = "metaecg-meta-training"
FORMAT_VERSION = 1

SAVE_EVERY = 25
"""Iterations between two writes. A write takes about 16 ms, most of it until the disk has it, and
the copy after each iteration 0.2 ms: 0.9 ms per iteration, less than 2 % of a meta-step of 45 ms.
Ctrl-C, SIGTERM and errors lose no iteration anyway; a killed process loses at most so many."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A meta-training between two iterations."""

    n_done: int
    """Iterations done; the next one has this number."""
    tensors: dict[str, Tensor] = field(repr=False)
    """Copies of weights, buffers, learned rates, optimizer state and torch's random state."""
    random: dict = field(repr=False)
    """State of the numpy generator that draws the tasks."""
    curriculum: dict = field(repr=False)
    history: list[dict[str, float]] = field(repr=False)
    """What `on_step` was told at each iteration done."""
    settings: dict = field(repr=False)
    """What the loop was called with; only the same may go on."""
    notes: dict = field(default_factory=dict, repr=False)
    """The caller's, as in `Checkpoint`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where and how often the state of one meta-training is written.

    Examples
    --------
    >>> checkpoint = Checkpoint(path=Path("no/such.safetensors"), made_with={"seed": 0})
    >>> checkpoint.load() is None
    True
    """

    path: Path
    made_with: Mapping = field(default_factory=dict, repr=False)
    """JSON values of everything that decides the training and that `meta_train` doesn't see, such as
    data checksums and versions. A checkpoint made with others is refused."""
    notes: Mapping = field(default_factory=dict, repr=False)
    """JSON values to keep beside the state, such as the course of what came before."""
    every: int = SAVE_EVERY
    """Iterations between two writes."""

    def __post_init__(self) -> None:
        check_positive("every", self.every)

    def save(self, state: TrainingState) -> None:
        """Write `state` whole or not at all, in place of an earlier one.

        Raises
        ------
        DataError
            The file can't be written; an earlier one stays as it was.
        """
        from safetensors.torch import save as to_bytes

        facts = {name: getattr(state, name) for name in _FACTS}
        facts |= {"notes": dict(self.notes), "made_with": _as_json(self.made_with)}
        text = json.dumps(facts, default=_as_list)
        header = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "facts": text,
            "sha256": _digest(text, state.tensors),
        }
        try:
            write_file(self.path, to_bytes(state.tensors, metadata=header))
        except OSError as error:
            raise DataError(
                f"the state of the training can't be written to {self.path}: {error}. Free some "
                "space there, or name another place."
            ) from error

    def load(self) -> TrainingState | None:
        """Return the state to go on from; None if there is none.

        A damaged file counts as none, with a `MetaECGWarning`: the training is then done again.

        Raises
        ------
        CheckpointError
            The file belongs to something else; the message says what differs.
        """
        if not self.path.exists():
            return None
        try:
            facts, tensors = _read(self.path)
        except (SafetensorError, ValueError, KeyError) as error:
            warnings.warn(
                MetaECGWarning(
                    f"{self.path} is damaged ({error}); there is nothing to go on from, and the "
                    "training starts afresh."
                ),
                stacklevel=2,
            )
            return None
        refuse_other(facts.pop("made_with"), self.made_with, where=str(self.path))
        return TrainingState(tensors=tensors, **facts)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)


_FACTS = ("n_done", "random", "curriculum", "history", "settings")


class Keeper:
    """Hold the state after the last whole iteration; write it now and then, and when all ends.

    A context manager: whatever ends its block, an error or Ctrl-C too, the last state that was held
    is on the disk afterwards.

    Parameters
    ----------
    checkpoint
        None: nothing is held or written.
    take
        Return the present state, as copies.
    is_written
        The state at the start is on the disk already.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        take: Callable[[], TrainingState],
        *,
        is_written: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._take = take
        self._state: TrainingState | None = None
        self._is_written = is_written

    def __enter__(self) -> "Keeper":
        if self._checkpoint:
            self._state = self._take()
            self._write()
        return self

    def __exit__(self, *error) -> None:
        if self._checkpoint:
            self._write()

    def hold(self) -> None:
        """Take the state between two iterations."""
        if self._checkpoint:
            self._state, self._is_written = self._take(), False
            if self._state.n_done % self._checkpoint.every == 0:
                self._write()

    def advice(self) -> str:
        """Say where the last good state is; empty without a checkpoint."""
        if not self._checkpoint:
            return ""
        return (
            f" The state after {self._state.n_done} iterations is kept in {self._checkpoint.path}: "
            "--resume goes on from there with the same settings; with others the training starts "
            "afresh."
        )

    def _write(self) -> None:
        if not self._is_written:
            self._checkpoint.save(self._state)
            self._is_written = True


def refuse_other(found: Mapping, expected: Mapping, *, where: str) -> None:
    """Raise CheckpointError, saying what differs, unless both hold the same JSON values."""
    then, now = _flat(_as_json(found)), _flat(_as_json(expected))
    names = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    if names:
        said = [f"{n} was {_shown(then.get(n))}, is now {_shown(now.get(n))}" for n in names[:3]]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(
            f"{where} is of another training: {'; '.join(said)}{more}. Going on would mix the two: "
            "restore these settings, or start afresh without --resume."
        )


def pack(
    network, rates: Mapping[str, Tensor], optimizer, generators: Mapping[str, torch.Generator]
) -> dict[str, Tensor]:
    """Return copies, on the CPU, of all tensors that a training changes, and its generators' states.

    The generators' names are those of their tensors.
    """
    found = {f"network.{name}": value for name, value in network.state_dict().items()}
    found |= {f"rates.{name}": value for name, value in rates.items()}
    for name, p in _learned(network, rates).items():
        moments = optimizer.state.get(p, {})
        found |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    found |= {name: generator.get_state() for name, generator in generators.items()}
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in found.items()}


def unpack(tensors: Mapping[str, Tensor], network, rates, optimizer, generators) -> None:
    """Put what `pack` returned back into its places."""
    network.load_state_dict(_below("network.", tensors))
    with torch.no_grad():
        for name, value in _below("rates.", tensors).items():
            rates[name].copy_(value)
    for name, p in _learned(network, rates).items():
        moments = _below(f"optimizer.{name}.", tensors)
        # The count of steps stays on the CPU, as AdamW itself keeps it.
        optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in moments.items()}
    for name, generator in generators.items():
        generator.set_state(tensors[name])


def _learned(network, rates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**{n: p for n, p in network.named_parameters() if p.requires_grad}, **rates}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v.clone() for n, v in tensors.items() if n.startswith(prefix)}


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    kind = (header.get("format"), header.get("format_version"))
    if kind != (FORMAT, str(FORMAT_VERSION)):
        raise CheckpointError(
            f"{path} holds format {kind[0]!r}, version {kind[1]}; {FORMAT!r}, version "
            f"{FORMAT_VERSION} was expected. Start afresh without --resume."
        )
    if _digest(header["facts"], tensors) != header["sha256"]:
        raise ValueError("its checksum is another one")
    return json.loads(header["facts"]), tensors


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\x1f{name}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _as_json(values: Mapping) -> dict:
    return json.loads(json.dumps(values, default=_as_list))


def _as_list(array):
    return array.tolist()  # some of numpy's generators keep arrays


def _flat(values, prefix: str = "") -> dict:
    """Return dotted name -> value of nested mappings."""
    if not isinstance(values, dict):
        return {prefix: values}
    found = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return found


def _shown(value: object) -> str:
    return "absent" if value is None else reprlib.repr(value)
