"""One seed, many independent named random streams.

A stream depends on the seed and on its name alone, never on how many numbers other streams
drew: adding a method or running the folds in another order changes nothing elsewhere.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def _entropy(seed: int, names: tuple[str | int, ...]) -> list[int]:
    text = "\x1f".join(str(name) for name in names)
    digest = hashlib.sha256(text.encode()).digest()
    return [int(seed), *np.frombuffer(digest, dtype=np.uint32).tolist()]


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the numpy generator of the stream `names` under `seed`.

    Examples
    --------
    >>> a = numpy_generator(1, "fold", 0).integers(1000)
    >>> b = numpy_generator(1, "fold", 0).integers(1000)
    >>> bool(a == b)
    True
    """
    return np.random.default_rng(np.random.SeedSequence(_entropy(seed, names)))


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit integer seed for the stream `names`, for libraries that want a number."""
    return int(numpy_generator(seed, *names).integers(2**63 - 1))


def torch_generator(seed: int, *names: str | int, device: str = "cpu"):
    """Return the torch generator of the stream `names` under `seed`."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, *names))
    return generator


@contextmanager
def borrowed_torch_stream(seed: int, *, device="cpu") -> Iterator[None]:
    """Seed torch's own generators for what knows no others, and give their state back at the end.

    Initial weights, dropout and PEFT's adapters draw from the global stream of the CPU, and of
    `device` if that is a GPU; the streams of other GPUs are not touched.
    """
    import torch

    device = torch.device(device)
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_cuda else []):
        # torch.manual_seed would seed all GPUs, and leave them so.
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
