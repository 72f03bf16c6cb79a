"""A signal as compressed chunks, and the overview beside it.

A chunk holds one lead and about a minute, so that what a page shows is read without the rest. The
chunk's length is a multiple of `OVERVIEW_SAMPLES`: the overviews of the chunks, one after another,
are the overview of the recording.
"""

import math
import zlib
from collections.abc import Iterator

import numpy as np

CHUNK_S = 60.0
OVERVIEW_SAMPLES = 64
"""Samples that one pair of minimum and maximum stands for."""
LEVEL = 1
"""Of zlib: the next levels cost twice the time and save a few per cent of ECG."""


def chunk_length(fs_hz: float) -> int:
    """Return the samples of a chunk: `CHUNK_S`, rounded up to whole pairs of the overview.

    Examples
    --------
    >>> chunk_length(250.0)
    15040
    """
    return max(1, math.ceil(CHUNK_S * fs_hz / OVERVIEW_SAMPLES)) * OVERVIEW_SAMPLES


def packed(values: np.ndarray, kind: str) -> bytes:
    """Return compressed little-endian numbers of a `kind` of numpy's, such as ``"<f4"``."""
    return zlib.compress(np.ascontiguousarray(values, dtype=kind).tobytes(), LEVEL)


def unpacked(data: bytes, kind: str) -> np.ndarray:
    """Return what `packed` took, flat."""
    return np.frombuffer(zlib.decompress(data), dtype=kind)


def overview_of(samples: np.ndarray) -> np.ndarray:
    """Return minimum and maximum of each `OVERVIEW_SAMPLES` samples.

    Parameters
    ----------
    samples
        One lead, shape ``(n_samples,)``; NaN where nothing was measured.

    Returns
    -------
    overview
        Shape ``(2, ceil(n_samples / OVERVIEW_SAMPLES))``, float32; NaN where all samples are.
    """
    n_pairs = -(-len(samples) // OVERVIEW_SAMPLES)
    whole = np.full(n_pairs * OVERVIEW_SAMPLES, np.nan, dtype=np.float32)
    whole[: len(samples)] = samples
    whole = whole.reshape(n_pairs, OVERVIEW_SAMPLES)
    return np.stack([np.fmin.reduce(whole, axis=1), np.fmax.reduce(whole, axis=1)])


def chunks_of(signal: np.ndarray, *, chunk_samples: int) -> Iterator[dict]:
    """Yield the rows of `signal_chunks` for a signal ``(n_leads, n_samples)``, packed."""
    for lead, samples in enumerate(signal):
        for number, start in enumerate(range(0, len(samples), chunk_samples)):
            piece = samples[start : start + chunk_samples]
            yield {
                "lead": lead,
                "number": number,
                "overview": packed(overview_of(piece), "<f4"),
                "samples": packed(piece, "<f4"),
            }


def joined_overview(parts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return minimum and maximum of chunks that follow one another, float32."""
    pairs = [unpacked(part, "<f4").reshape(2, -1) for part in parts]
    whole = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), dtype="<f4")
    return whole[0], whole[1]
