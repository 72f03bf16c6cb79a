"""A patient's part on disk: what was trained, in safetensors, and a JSON document beside it.

    FOLDER/adapter.safetensors      the trained tensors only
    FOLDER/adapter.json             format, versions, method, parameters, the base it belongs to

Nothing is unpickled. A folder appears whole or not at all.
"""

import hashlib
import json
import os
import time
from pathlib import Path

import torch
from torch import nn

from metaecg.adapt.methods import trained_parameters
from metaecg.errors import CheckpointError
from metaecg.models.folders import write_folder

FORMAT_VERSION = 1
WEIGHTS_NAME = "adapter.safetensors"
DOCUMENT_NAME = "adapter.json"
REPLACE_PAUSES_S = (0.0, 0.02, 0.1)  # a folder may be in the middle of being replaced
REQUIRED_KEYS = ("method", "params", "base_fingerprint", "classes", "n_support", "weights_sha256")


def adapter_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return what was trained, by name, on the CPU."""
    if hasattr(network, "peft_config"):
        from peft import get_peft_model_state_dict

        # "auto" would look for an embedding layer in a hub configuration.
        tensors = get_peft_model_state_dict(network, save_embedding_layers=False)
    else:
        tensors = trained_parameters(network)
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def put_tensors(network: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Set what is trained in `network`; other names or shapes are a CheckpointError."""
    expected = {name: tuple(t.shape) for name, t in adapter_tensors(network).items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        wrong = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors of the adapter don't fit its own description; the first is "
            f"{name!r}: its shape is {found.get(name, 'missing')}, expected "
            f"{expected.get(name, 'no such tensor')}. Save the adapter again."
        )
    if hasattr(network, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(network, tensors)
        return
    with torch.no_grad():
        for name, parameter in trained_parameters(network).items():
            parameter.copy_(tensors[name])


def write_adapter(folder: str | os.PathLike, tensors: dict, document: dict) -> None:
    """Write both files as the folder `folder`; an adapter that is there is replaced.

    Raises
    ------
    CheckpointError
        If `folder` is there and holds anything but an adapter.
    """
    from safetensors.torch import save

    weights = save(tensors)
    document = {
        "format_version": FORMAT_VERSION,
        **document,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    write_folder(folder, {WEIGHTS_NAME: weights, DOCUMENT_NAME: text.encode()})


def read_adapter(folder: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors and the document of an adapter.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, of another format version, or not the other one's.
    """
    for pause_s in REPLACE_PAUSES_S:
        time.sleep(pause_s)
        try:
            return _read_once(Path(folder))
        except CheckpointError as error:
            problem = error
    raise problem


def _read_once(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    document = _read_document(folder)
    weights = _read(folder / WEIGHTS_NAME)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != document["weights_sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} ({len(weights)} bytes) has the checksum {digest[:12]}; "
            f"{DOCUMENT_NAME} expects {str(document['weights_sha256'])[:12]}. The file is cut "
            "short or belongs to another adapter; copy or save it again."
        )
    try:
        return load(weights), document
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME} is no safetensors file ({error}). Save the adapter again."
        ) from error


def _read_document(folder: Path) -> dict:
    path = folder / DOCUMENT_NAME
    try:
        document = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error}). Save the adapter again.") from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has the format version {version!r}; this metaecg reads {FORMAT_VERSION}. "
            "Update metaecg or save the adapter again."
        )
    missing = [key for key in REQUIRED_KEYS if key not in document]
    if missing:
        raise CheckpointError(f"{path} lacks {missing}. Save the adapter again.")
    return document


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); expected an adapter's {path.name}. Name "
            "the folder that Personalizer.save wrote."
        ) from error
