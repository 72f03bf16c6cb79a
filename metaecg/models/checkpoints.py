"""A base model on disk: weights as safetensors, everything else as JSON; nothing is unpickled.

A base is a folder of two files:

    base.json             architecture, labels, preprocessing, facts of the training, checksums
    weights.safetensors   the network's tensors
"""

import copy
import hashlib
import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from metaecg import __version__
from metaecg.checks import check_option, did_you_mean
from metaecg.data.preprocessing import Preprocessing
from metaecg.errors import CheckpointError
from metaecg.models.base_files import (
    CONFIG_NAME,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS_NAME,
    parse_config,
    parse_facts,
    parse_tensors,
    read_file,
)
from metaecg.models.base_windows import base_logits, beat_facts
from metaecg.models.folders import write_folder
from metaecg.models.inference import softmax
from metaecg.models.registry import NETWORKS, build_network
from metaecg.models.registry_uri import base_from_registry, is_registry_uri
from metaecg.models.rhythm import RhythmModel

PUBLISHED = Path(__file__).parent / "published"
REPLACE_PAUSES_S = (0.0, 0.02, 0.1)  # a folder may be in the middle of being replaced


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """A trained network with all that is needed to use it. It never changes.

    The network is copied on construction, so training the caller's own further leaves the base
    as it is; personalization starts from `new_network`.
    """

    network: nn.Module
    """In evaluation mode. Leave it as it is; take `new_network` to train."""
    architecture: str
    """Key of `metaecg.models.registry.NETWORKS`."""
    architecture_kwargs: dict = field(default_factory=dict)
    """The network's own arguments, without the signal's."""
    n_leads: int
    classes: tuple[str, ...]
    """Name of each logit, in order."""
    preprocessing: Preprocessing
    training: dict = field(default_factory=dict)
    """Facts for the record, JSON values only: subject_ids, checksums, recipe. For a base for beats
    also how they are cut and judged (``beat_...``), which is part of the fingerprint."""
    rhythm: RhythmModel | None = None
    """How a window's neighbours count, fitted to held-out subjects of this base's kind; for two
    classes. The base's own logits and probabilities don't use it."""

    def __post_init__(self) -> None:
        check_option("architecture", self.architecture, NETWORKS)
        if self.network.head.out_features != len(self.classes):
            raise ValueError(
                f"the network gives {self.network.head.out_features} logits, but classes has "
                f"{len(self.classes)} names: {tuple(self.classes)}. Give one name per logit."
            )
        if self.rhythm is not None:
            _check_rhythm(self.rhythm, self.classes)
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "network", copy.deepcopy(self.network).eval())

    def new_network(self) -> nn.Module:
        """Return an independent copy of the network, in evaluation mode."""
        return copy.deepcopy(self.network)

    def logits(self, windows: np.ndarray) -> np.ndarray:
        """Return the network's logits, ``(n_windows, n_classes)`` float64.

        Parameters
        ----------
        windows
            Shape ``(n_windows, n_leads, n_samples)``, filtered millivolts at the rate and length
            of `preprocessing`; they are normalised here. No window at all is allowed. For a base
            for beats the rows of `metaecg.data.beat_input.beat_inputs`.

        Raises
        ------
        DataError
            If the shape is another one or a sample is not finite.
        """
        return base_logits(self, self.network, windows)

    def predict_proba(self, windows: np.ndarray) -> np.ndarray:
        """Return probabilities ``(n_windows, n_classes)`` float64, each row summing to 1.

        `windows` as for `logits`.
        """
        return softmax(self.logits(windows))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides the output.

        That is weights, architecture, labels, preprocessing and, if there is one, the rhythm model;
        of the facts in `training` only those on how beats are cut and judged (``beat_...``).
        """
        # A base without such facts has no key for them: its fingerprint is that of earlier days.
        of_beats = beat_facts(self)
        deciding = {**self._deciding_facts(), **({"training": of_beats} if of_beats else {})}
        facts = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(facts.encode())
        for name, tensor in sorted(_contiguous(self.network).items()):
            digest.update(f"\x1f{name} {tensor.dtype} {list(tensor.shape)}\x1f".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the base to `folder`, replacing a base that is there.

        The files are written into a folder beside it, brought to the disk and renamed, so that
        `load_base` gives the old base or the new one, never half of one. Parent folders are made.

        Raises
        ------
        CheckpointError
            If `folder` holds anything but a base, or the base could not be loaded again.
        """
        from safetensors.torch import save as to_bytes

        tensors = _contiguous(self.network)
        _check_tensors(self._skeleton(), tensors, where="the network of this base")
        weights = to_bytes(tensors)
        config = _json_bytes(self._config(weights))
        write_folder(folder, {WEIGHTS_NAME: weights, CONFIG_NAME: config})

    def _deciding_facts(self) -> dict:
        # A base without a rhythm model has no key for it: its fingerprint is that of earlier days.
        rhythm = {} if self.rhythm is None else {"rhythm": self.rhythm.to_dict()}
        return {
            "architecture": self.architecture,
            "architecture_kwargs": self.architecture_kwargs,
            "n_leads": self.n_leads,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            **rhythm,
        }

    def _config(self, weights: bytes) -> dict:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "metaecg_version": __version__,
            **self._deciding_facts(),
            "fingerprint": self.fingerprint,
            "weights": {"n_bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
            "training": self.training,
        }

    def _skeleton(self) -> nn.Module:
        return _skeleton(
            architecture=self.architecture,
            architecture_kwargs=self.architecture_kwargs,
            n_leads=self.n_leads,
            classes=self.classes,
            preprocessing=self.preprocessing,
        )


def published_names() -> tuple[str, ...]:
    """Return the names of the bases that come with the package."""
    return tuple(sorted(path.parent.name for path in PUBLISHED.glob(f"*/{CONFIG_NAME}")))


def load_base(name_or_dir: str | Path) -> BaseModel:
    """Load a base from the package, from a folder or from MLflow.

    Parameters
    ----------
    name_or_dir
        A published name (see `published_names`) as text, or a folder; give a `Path` for a folder
        named like a published one. ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` and
        ``runs:/ID/model`` are downloaded, every time, from the registry that MLflow is set to.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, the format or the architecture is unknown, the tensors
        don't fit the network, or a registry can't give the model. The message says which.
    """
    if is_registry_uri(name_or_dir):
        with base_from_registry(name_or_dir) as folder:
            return _load(folder, asked=name_or_dir)
    folder = Path(name_or_dir)
    if isinstance(name_or_dir, str) and name_or_dir in published_names():
        folder = PUBLISHED / name_or_dir
    return _load(folder, asked=name_or_dir)


def _load(folder: Path, *, asked: str | Path) -> BaseModel:
    """Load the base in a folder, which the user named `asked`."""
    config, weights = _read_folder(folder, asked=asked)
    facts = parse_facts(config, where=folder / CONFIG_NAME)
    tensors = parse_tensors(weights, where=folder / WEIGHTS_NAME)
    base = BaseModel(network=_build(facts, tensors, where=folder), **facts)
    if base.fingerprint != config.get("fingerprint"):
        raise CheckpointError(
            f"{folder / CONFIG_NAME} was changed after it was written: its fingerprint is "
            f"{config.get('fingerprint')!r}, its content gives {base.fingerprint!r}. Restore the "
            "file or save the base again."
        )
    return base


def _read_folder(folder: Path, *, asked: str | Path) -> tuple[dict, bytes]:
    """Return the parsed base.json and the bytes of the weights it belongs to."""
    for pause_s in REPLACE_PAUSES_S:
        time.sleep(pause_s)
        try:
            return _read_once(folder, asked=asked)
        except CheckpointError as error:
            problem = error
    raise problem


def _read_once(folder: Path, *, asked: str | Path) -> tuple[dict, bytes]:
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no base {str(asked)!r}: neither a folder nor a published name. Published: "
            f"{did_you_mean(asked, published_names()) if published_names() else 'none.'}"
        )
    config = parse_config(read_file(folder, CONFIG_NAME), where=folder / CONFIG_NAME)
    weights = read_file(folder, WEIGHTS_NAME)
    expected = config["weights"]
    if len(weights) != expected.get("n_bytes"):
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} has {len(weights)} bytes, {CONFIG_NAME} says "
            f"{expected.get('n_bytes')}: the file was cut short or belongs to another base. "
            "Copy both files again."
        )
    if hashlib.sha256(weights).hexdigest() != expected.get("sha256"):
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} does not have the checksum that {CONFIG_NAME} names: it is "
            "damaged or belongs to another base. Copy both files again."
        )
    return config, weights


def _build(facts: dict, tensors: dict[str, torch.Tensor], *, where: Path) -> nn.Module:
    """Return the network with the weights, after the shapes were compared."""
    facts = {k: value for k, value in facts.items() if k not in ("training", "rhythm")}
    try:
        skeleton = _skeleton(**facts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{where}: the network {facts['architecture']!r} can't be built as the file says: "
            f"{error}"
        ) from error
    _check_tensors(skeleton, tensors, where=where)
    network = _network(**facts)
    network.load_state_dict(tensors)
    return network


def _skeleton(**facts) -> nn.Module:
    """Build the network without memory for its weights: shapes can be compared before any is."""
    with torch.device("meta"):
        return _network(**facts)


def _network(
    *,
    architecture: str,
    architecture_kwargs: dict,
    n_leads: int,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
) -> nn.Module:
    return build_network(
        architecture,
        n_leads=n_leads,
        n_samples=preprocessing.n_samples,
        fs_hz=preprocessing.fs_hz,
        n_classes=len(classes),
        generator=torch.Generator("cpu"),  # its weights are replaced: leave the global stream alone
        **architecture_kwargs,
    )


def _check_rhythm(rhythm: RhythmModel, classes: tuple[str, ...]) -> None:
    if not isinstance(rhythm, RhythmModel):
        raise ValueError(f"rhythm is {rhythm!r}; a RhythmModel or None was expected.")
    if len(classes) != 2:
        raise ValueError(
            f"the base has the classes {tuple(classes)} and a rhythm model, which knows two. Leave "
            "rhythm out."
        )


def _json_bytes(config: dict) -> bytes:
    try:
        return json.dumps(config, indent=2, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the base can't be written as JSON: {error}. Give `training` and "
            "`architecture_kwargs` text, finite numbers, lists and dicts only."
        ) from error


def _contiguous(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }


def _check_tensors(skeleton: nn.Module, tensors: dict, *, where: Path | str) -> None:
    """Raise CheckpointError if names, shapes or types differ from those of `skeleton`."""
    expected = skeleton.state_dict()
    problems = [f"no tensor {name!r}" for name in expected if name not in tensors]
    problems += [f"an unknown tensor {name!r}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        want, have = expected[name], tensors[name]
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            problems.append(
                f"{name!r} as {have.dtype} {list(have.shape)} where the network has "
                f"{want.dtype} {list(want.shape)}"
            )
    if problems:
        more = f" and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the weights of {where} don't fit the architecture: {'; '.join(sorted(problems)[:3])}"
            f"{more}. Use the architecture and the arguments that they were trained with."
        )
