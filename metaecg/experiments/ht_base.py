"""The base of `h_tuning`: a 12-lead network trained with supervision, and its folder.

    FOLDER/base.json             size, classes, input, who it was trained on, checksum
    FOLDER/weights.safetensors   the network's tensors

Nothing is unpickled.
"""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from metaecg.adapt.cutmix import cutmix
from metaecg.adapt.h_tuning import rate_factor
from metaecg.adapt.training import check_finite, check_parameters, shuffled_batches
from metaecg.checks import check_option
from metaecg.data.twelve_lead_input import TwelveLeadInput
from metaecg.errors import CheckpointError
from metaecg.models.backbones.cnn_transformer import SIZES, CNNTransformer
from metaecg.models.folders import write_folder
from metaecg.models.registry import build_network
from metaecg.seeding import borrowed_torch_stream, numpy_generator, torch_generator

FORMAT = "metaecg-12-lead-base"
FORMAT_VERSION = 1
N_LEADS = 12
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class TwelveLeadBase:
    """A trained network, what it reads, and who it was trained on."""

    network: CNNTransformer
    """In evaluation mode; take `new_network` to train."""
    size: str
    """Key of `metaecg.models.backbones.cnn_transformer.SIZES`."""
    class_names: tuple[str, ...]
    input: TwelveLeadInput
    training: dict
    """Facts for the record, JSON values only: ``subject_ids`` above all."""

    def new_network(self, *, n_classes: int, seed: int) -> nn.Module:
        """Return an independent copy with a new head of `n_classes`, drawn from `seed`."""
        network = copy.deepcopy(self.network)
        with borrowed_torch_stream(seed):
            network.head = nn.Linear(network.head.in_features, n_classes)
        return network

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights and of who they were trained on."""
        return hashlib.sha256(self._document(_tensor_bytes(self.network))).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the two files, whole or not at all."""
        weights = _tensor_bytes(self.network)
        files = {"weights.safetensors": weights, "base.json": self._document(weights)}
        write_folder(folder, files)

    def _document(self, weights: bytes) -> bytes:
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "size": self.size,
            "classes": list(self.class_names),
            "input": self.input.to_dict(),
            "training": self.training,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def load_twelve_lead_base(folder: Path) -> TwelveLeadBase:
    """Read what `TwelveLeadBase.save` wrote.

    Raises
    ------
    CheckpointError
        A file is missing, damaged, of another format, or not the other one's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        document = json.loads((folder / "base.json").read_bytes())
        weights = (folder / "weights.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} can't be read as a base ({error}); expected base.json and "
            "weights.safetensors. Name the folder base/ of a run of h_tuning."
        ) from error
    _check_document(folder, document, weights)
    base = _skeleton(document)
    try:
        base.network.load_state_dict(load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the tensors of {folder} don't fit its own description: {error}. Train it again."
        ) from error
    return base


def train_base(
    signals: np.ndarray,
    labels: np.ndarray,
    *,
    size: str,
    class_names: tuple[str, ...],
    preparation: TwelveLeadInput,
    facts: dict,
    n_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    device: str = "cpu",
    on_step: Callable[[int], None] = lambda step: None,
) -> TwelveLeadBase:
    """Train a network from random weights on recordings with several statements each.

    Binary cross-entropy of every statement, CutMix, AdamW whose rate rises in the first hundredth
    of the steps and then falls to 0. The same seed gives the same base on the CPU.

    Parameters
    ----------
    signals, labels
        Shape ``(n_records, 12, n_samples)`` float32, and ``(n_records, n_classes)`` of 0 and 1.
    preparation
        What `signals` were prepared with.
    facts
        For `TwelveLeadBase.training`; has the ``subject_ids``.
    on_step
        Called with the step, from 1.
    """
    generator = torch_generator(seed, "base")
    network = random_network(size, preparation, len(class_names), generator)
    network.to(device).train()
    rng, generator = numpy_generator(seed, "base", "cutmix"), torch_generator(seed, "base batches")
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
    batches = shuffled_batches(len(labels), min(batch_size, len(labels)), generator)
    targets = torch.as_tensor(labels, dtype=torch.float32)
    for step in range(n_steps):
        chosen = next(batches)
        x, y = cutmix(torch.from_numpy(signals[chosen.numpy()]), targets[chosen], rng=rng)
        optimizer.param_groups[0]["lr"] = lr * rate_factor(step, n_steps)
        loss = F.binary_cross_entropy_with_logits(network(x.to(device)), y.to(device))
        check_finite(loss, f"step {step + 1} of {n_steps} of the base", lr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(step + 1)
    check_parameters(parameters, f"after {n_steps} steps of the base", lr)
    network.zero_grad()
    return TwelveLeadBase(
        network=network.cpu().eval(),
        size=size,
        class_names=tuple(class_names),
        input=preparation,
        training=facts,
    )


def random_network(
    size: str, preparation: TwelveLeadInput, n_classes: int, generator: torch.Generator
) -> CNNTransformer:
    """Return a network of a `size` for 12 leads, its weights drawn from `generator`."""
    width, n_blocks = SIZES[size]
    return build_network(
        "cnn-transformer",
        n_leads=N_LEADS,
        n_samples=preparation.n_samples,
        fs_hz=preparation.fs_hz,
        n_classes=n_classes,
        generator=generator,
        width=width,
        n_blocks=n_blocks,
    )


def _tensor_bytes(network: nn.Module) -> bytes:
    from safetensors.torch import save

    return save({name: t.contiguous() for name, t in network.state_dict().items()})


def _check_document(folder: Path, document: object, weights: bytes) -> None:
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT or document.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / 'base.json'} has the format {found!r}; {FORMAT!r}, version "
            f"{FORMAT_VERSION}, was expected: the folder base/ of a run of h_tuning."
        )
    digest = hashlib.sha256(weights).hexdigest()
    if digest != document.get("weights_sha256"):
        raise CheckpointError(
            f"{folder / 'weights.safetensors'} has the checksum {digest[:12]}; base.json expects "
            f"{str(document.get('weights_sha256'))[:12]}. Copy the folder again."
        )


def _skeleton(document: dict) -> TwelveLeadBase:
    try:
        preparation = TwelveLeadInput(**document["input"])
        names, training = tuple(document["classes"]), dict(document["training"])
        size = check_option("size", document["size"], SIZES)
        if not training["subject_ids"]:
            raise ValueError("training.subject_ids is empty")
        generator = torch.Generator().manual_seed(0)
        network = random_network(size, preparation, len(names), generator)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"base.json is incomplete ({error!r}); size, classes, input and training with its "
            "subject_ids were expected: without them leakage can't be ruled out."
        ) from error
    return TwelveLeadBase(
        network=network.eval(),
        size=size,
        class_names=names,
        input=preparation,
        training=training,
    )
