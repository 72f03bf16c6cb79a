"""One seed, many independent named random streams.

A stream depends on the seed and on its name alone, never on how many numbers other streams
drew: adding a method or running the folds in another order changes nothing elsewhere.
"""

import hashlib

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
