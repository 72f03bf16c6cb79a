"""A patient's adapter as the bytes of one safetensors file, for a database or a download.

The tensors are those of `metaecg.adapt.adapters`; the document that stands beside them in a folder
is the file's metadata here, with a checksum over document and tensors:

    {"metaecg_adapter": {"format_version": 1, "sha256": ..., "document": {...}}}

Nothing is unpickled. Whatever is wrong with the bytes is a CheckpointError.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from metaecg.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from metaecg.adapt.personalize import Personalizer
    from metaecg.models.checkpoints import BaseModel

FORMAT_VERSION = 1
KEY = "metaecg_adapter"
MAX_HEAD_BYTES = 8 * 2**20
"""Of the names, shapes and the document; those of an adapter take some thousand."""
LENGTH_BYTES = 8  # at the start of a safetensors file: length of the head, little endian
COUNT = ".num_batches_tracked"
"""Of batch norm: the one tensor of whole numbers; it changes no output."""
AGAIN = "Export the adapter again."


def adapter_bytes(personal: "Personalizer") -> bytes:
    """Return a fitted `Personalizer` as the bytes of one file; the same one gives the same bytes.

    Raises
    ------
    NotFittedError
        If it isn't fitted (scikit-learn's).
    """
    from sklearn.utils.validation import check_is_fitted

    from metaecg.adapt import adapters
    from metaecg.adapt.methods import MOVES_STATISTICS

    check_is_fitted(personal, "network_")
    has_statistics = personal.fitted_params_["method"] in MOVES_STATISTICS
    tensors = adapters.adapter_tensors(personal.network_, with_statistics=has_statistics)
    return packed(tensors, adapters.document_of(personal))


def load_adapter(data: bytes, base: "BaseModel") -> "Personalizer":
    """Return the `Personalizer` that `adapter_bytes` was given; its numbers are bit for bit those.

    Raises
    ------
    CheckpointError
        If the bytes are no adapter, are damaged, or belong to another base.
    """
    from metaecg.adapt.personalize import Personalizer

    tensors, document = unpacked(data)
    strange = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if strange:
        raise CheckpointError(
            f"{strange[0]!r} of the adapter isn't finite everywhere. Fit it again."
        )
    try:
        personal = Personalizer.from_document(tensors, document, base)
    except (KeyError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the adapter's document can't be used ({type(error).__name__}: {error}). {AGAIN}"
        ) from error
    _check_support(document["n_support"], base.classes)
    return personal


def packed(tensors: "Mapping[str, Tensor]", document: dict) -> bytes:
    """Return tensors and the JSON document that describes them as the bytes of one file."""
    from safetensors.torch import save

    tensors = dict(tensors)
    bare = save(tensors)
    table, _ = table_and_metadata(bare)
    content = {
        "format_version": FORMAT_VERSION,
        "sha256": _checksum(document, table, _parts(bare)[1]),
        "document": document,
    }
    return save(tensors, metadata={KEY: json.dumps(content, allow_nan=False)})


def unpacked(data: bytes) -> "tuple[dict[str, Tensor], dict]":
    """Return the tensors and the document of `packed`'s bytes.

    Raises
    ------
    CheckpointError
        If the bytes aren't that, are damaged, hold numbers that aren't finite, or are of another
        version of the format.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    _, document, _ = opened(data)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the adapter is no safetensors file ({error}). {AGAIN}") from error
    for name, tensor in tensors.items():
        expected = torch.int64 if name.endswith(COUNT) else torch.float32
        if tensor.dtype != expected or not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{name!r} of the adapter is {tensor.dtype}, or isn't finite everywhere; finite "
                f"{expected} was expected. Fit it again."
            )
    return tensors, document


def opened(data: bytes) -> tuple[dict[str, dict], dict, int]:
    """Return the table of an adapter's tensors, its document, and where its numbers begin.

    The checksum is compared. The table is what the file says: that types, shapes and offsets fit
    each other is for safetensors to find out.

    Raises
    ------
    CheckpointError
        As `unpacked`.
    """
    content = _content(data)
    document, numbers = content["document"], _parts(data)[1]
    table, _ = table_and_metadata(data)
    if content.get("sha256") != _checksum(document, table, numbers):
        raise CheckpointError(
            f"the adapter ({len(data)} bytes) doesn't have the checksum that it names: it was cut "
            f"short or changed. {AGAIN}"
        )
    return table, document, len(data) - len(numbers)


def table_and_metadata(data: bytes) -> tuple[dict[str, dict], dict[str, str]]:
    """Return what the head of a safetensors file says of its tensors, and its metadata.

    That it fits the tensors isn't checked. A head that isn't there is a CheckpointError.
    """
    try:
        table = json.loads(_parts(data)[0])
        return table, table.pop("__metadata__", {})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the head of the file can't be read ({type(error).__name__}). {AGAIN}"
        ) from error


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """Return the head and the numbers of a safetensors file."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or length > min(len(data) - LENGTH_BYTES, MAX_HEAD_BYTES):
        raise CheckpointError(
            f"the adapter has {len(data)} bytes, which hold no head of a safetensors file: it was "
            f"cut short or is something else. {AGAIN}"
        )
    start = LENGTH_BYTES + length
    return data[LENGTH_BYTES:start], data[start:]


def _content(data: bytes) -> dict:
    """Return what a file says of its adapter, the kind of every part checked."""
    from metaecg.adapt.adapters import REQUIRED_KEYS

    try:
        content = json.loads(table_and_metadata(data)[1][KEY])
        version, document = content["format_version"], content["document"]
        missing = [key for key in REQUIRED_KEYS if key not in document and key != "weights_sha256"]
        params = document.get("params")
        is_usable = isinstance(params, dict) and params.get("method") == document.get("method")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the file says nothing of an adapter ({type(error).__name__}); expected one that "
            f"metaecg exported. {AGAIN}"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"the adapter has the format version {version!r}; this metaecg reads {FORMAT_VERSION}. "
            "Update metaecg or export the adapter again."
        )
    if missing or not is_usable:
        raise CheckpointError(
            f"the adapter's document lacks {missing or 'parameters of its own method'}. {AGAIN}"
        )
    return content


def _check_support(n_support: object, classes: Sequence[str]) -> None:
    """Refuse what isn't class names and how many labels each has; nothing else looks at it."""
    is_counted = isinstance(n_support, dict) and all(
        name in classes and type(n) is int and n >= 0 for name, n in n_support.items()
    )
    if not is_counted:
        raise CheckpointError(
            f"n_support of the adapter's document is {str(n_support)[:100]}; expected whole numbers of "
            f"labels by class, such as {dict.fromkeys(classes, 10)}. {AGAIN}"
        )


def _checksum(document: dict, table: dict, numbers: bytes) -> str:
    text = json.dumps([document, table], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + b"\x1f" + numbers).hexdigest()
