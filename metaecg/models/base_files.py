"""The two files of a base: their names, and what is refused while they are read."""

import json
from pathlib import Path

import torch

from metaecg.checks import did_you_mean
from metaecg.data.preprocessing import Preprocessing
from metaecg.errors import CheckpointError
from metaecg.models.registry import NETWORKS
from metaecg.models.rhythm import RhythmModel

FORMAT = "metaecg-base"
FORMAT_VERSION = 1
CONFIG_NAME = "base.json"
WEIGHTS_NAME = "weights.safetensors"


def read_file(folder: Path, name: str) -> bytes:
    """Return the content of one of the two files; a missing one is a CheckpointError."""
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder / name} can't be read ({error.strerror}); a base is a folder with "
            f"{CONFIG_NAME} and {WEIGHTS_NAME}. Give such a folder or a published name."
        ) from error


def parse_config(text: bytes, *, where: Path) -> dict:
    """Return the content of base.json, its keys and their types checked."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{where} is not JSON: {error}. Save the base again.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{where} is not a base of metaecg: its format is not {FORMAT!r}.")
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format version {config.get('format_version')!r}; this metaecg reads "
            f"{FORMAT_VERSION}. Load it with metaecg {config.get('metaecg_version')} or later."
        )
    for key, kind in _CONFIG_KINDS.items():
        if not isinstance(config.get(key), kind):
            raise CheckpointError(
                f"{where} has {config.get(key)!r} as {key!r}; a {kind.__name__} was expected. "
                "Save the base again."
            )
    return config


_CONFIG_KINDS = {
    "architecture": str,
    "architecture_kwargs": dict,
    "n_leads": int,
    "classes": list,
    "preprocessing": dict,
    "weights": dict,
    "training": dict,
}


def parse_facts(config: dict, *, where: Path) -> dict:
    """Return the arguments of `BaseModel` without the network."""
    if config["architecture"] not in NETWORKS:
        raise CheckpointError(
            f"{where} names the architecture {config['architecture']!r}; this metaecg knows "
            f"{did_you_mean(config['architecture'], NETWORKS)}"
        )
    try:
        preprocessing = Preprocessing.from_dict(config["preprocessing"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} has a preprocessing that can't be used: {error}") from error
    return {
        "architecture": config["architecture"],
        "architecture_kwargs": config["architecture_kwargs"],
        "n_leads": config["n_leads"],
        "classes": tuple(config["classes"]),
        "preprocessing": preprocessing,
        "training": config["training"],
        "rhythm": _parse_rhythm(config, where=where),
    }


def _parse_rhythm(config: dict, *, where: Path) -> RhythmModel | None:
    if "rhythm" not in config:
        return None
    if len(config["classes"]) != 2:
        raise CheckpointError(
            f"{where} has a rhythm model and the classes {config['classes']}; a rhythm model knows "
            "two. Restore the file or save the base again."
        )
    try:
        return RhythmModel.from_dict(config["rhythm"])
    except ValueError as error:
        raise CheckpointError(f"{where} has a rhythm that can't be used: {error}") from error


def parse_tensors(weights: bytes, *, where: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name; any other file is a CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{where} is not a safetensors file ({error}); other formats are never opened. Save "
            "the base again."
        ) from error
