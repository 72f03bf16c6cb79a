"""A patient's part on disk: what was trained, in safetensors, and a JSON document beside it.

    FOLDER/adapter.safetensors      the trained tensors, and the statistics if the method moved them
    FOLDER/adapter.json             format, versions, method, parameters, the base it belongs to

Nothing is unpickled. A folder appears whole or not at all.
"""

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import metaecg
from metaecg.adapt.arguments import to_json
from metaecg.adapt.in_time import check_threshold
from metaecg.adapt.methods import running_statistics, trained_parameters
from metaecg.errors import CheckpointError
from metaecg.models.folders import write_folder

if TYPE_CHECKING:
    from metaecg.adapt.personalize import Personalizer

FORMAT_VERSION = 1
WEIGHTS_NAME = "adapter.safetensors"
DOCUMENT_NAME = "adapter.json"
REPLACE_PAUSES_S = (0.0, 0.02, 0.1)  # a folder may be in the middle of being replaced
REQUIRED_KEYS = ("method", "params", "base_fingerprint", "classes", "n_support", "weights_sha256")


def adapter_tensors(
    network: nn.Module, *, with_statistics: bool = False
) -> dict[str, torch.Tensor]:
    """Return a copy of what was trained, by name, on the CPU.

    With `with_statistics` also the running statistics of batch norm, which PEFT would leave out, as
    it would the trained biases.
    """
    tensors = _live_tensors(network, with_statistics)
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def adapter_bytes(network: nn.Module, *, with_statistics: bool = False) -> int:
    """Return the size of a patient's numbers, without the few hundred bytes of the file's head."""
    tensors = _live_tensors(network, with_statistics).values()
    return sum(t.numel() * t.element_size() for t in tensors)


def adapter_digest(network: nn.Module, *, with_statistics: bool = False) -> str:
    """Return the SHA-256 (hex) of a patient's numbers: `weights_sha256` of the document beside them."""
    from safetensors.torch import save

    tensors = adapter_tensors(network, with_statistics=with_statistics)
    return hashlib.sha256(save(tensors)).hexdigest()


def put_tensors(
    network: nn.Module, tensors: dict[str, torch.Tensor], *, with_statistics: bool = False
) -> None:
    """Set what `adapter_tensors` returned; other names or shapes are a CheckpointError."""
    live = _live_tensors(network, with_statistics)
    expected = {name: tuple(t.shape) for name, t in live.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        wrong = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors of the adapter don't fit its own description; the first is "
            f"{name!r}: its shape is {found.get(name, 'missing')}, expected "
            f"{expected.get(name, 'no such tensor')}. Save the adapter again."
        )
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])


def _live_tensors(network: nn.Module, with_statistics: bool) -> dict[str, torch.Tensor]:
    """Return the network's own tensors that make a patient's file, by their name in it."""
    tensors: dict[str, torch.Tensor] = dict(trained_parameters(network))
    if with_statistics:
        tensors.update(running_statistics(network))
    return {_file_name(name): tensor for name, tensor in tensors.items()}


def _file_name(name: str) -> str:
    """Return the name that PEFT's own files would have: without that of the one adapter."""
    name = name.replace(".modules_to_save.default.", ".")
    return re.sub(r"(\.lora_[AB])\.default\.", r"\1.", name)


def adapted_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers with a low-rank change, as before PEFT wrapped the network."""
    prefix, mark = "base_model.model.", ".lora_A."
    names = (name.split(mark)[0] for name in trained_parameters(network) if mark in name)
    return [name.removeprefix(prefix) for name in names]


def document_of(personal: "Personalizer") -> dict:
    """Return the JSON values that describe a fitted `Personalizer`."""
    # What fit used; set_params may have changed it since. The threshold is free to move, and one that
    # wasn't given stays so.
    check_threshold(personal.threshold)
    params = {**personal.fitted_params_, "threshold": personal.given_threshold}
    chain = personal.chain_
    return {
        "metaecg_version": metaecg.__version__,
        "method": params["method"],
        "params": {name: to_json(value) for name, value in params.items()},
        "adapted_layers": personal.adapted_layers_,
        "base_fingerprint": personal.fitted_base_.fingerprint,
        "classes": list(personal.fitted_base_.classes),
        "n_support": personal.n_support_,
        "n_trainable": personal.n_trainable_,
        "n_bytes": personal.adapter_bytes_,
        "loss_curve": personal.loss_curve_,
        "prefine_curve": personal.prefine_curve_,
        "fit_seconds": personal.fit_seconds_,
        **({} if chain is None else {"rhythm_chain": chain.to_dict()}),
    }


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
