"""Annotation symbols and rhythm marks become classes; every row names its source.

Sources: [wfdb] PhysioNet, "Annotations", WFDB symbol table. [mitdb] Moody and Mark 2001, directory
of the MIT-BIH Arrhythmia Database. [vfdb] Greenwald 1986. [cudb] Nolle et al. 1986. [aami] ANSI/AAMI
EC57:2012, table 3, in the mapping of de Chazal et al. 2004, table I.
"""

from dataclasses import dataclass

import numpy as np

from metaecg.data.records import Annotations, Record
from metaecg.errors import DataError

VA_CLASSES = ("other", "va")
"""Class 1 is a sustained ventricular arrhythmia: VF, VFL or VT."""

VA_RHYTHMS = {
    "(VT": "ventricular tachycardia [mitdb, vfdb]",
    "(VFL": "ventricular flutter [mitdb, vfdb]",
    "(VF": "ventricular fibrillation [vfdb]",
    "(VFIB": "ventricular fibrillation, the other spelling [vfdb]",
}
EXCLUDED_RHYTHMS = {
    "(NOISE": "no rhythm can be read [vfdb]",
    "(ASYS": "asystole: neither a rhythm nor an alarm of this kind [vfdb]",
}
VA_START, VA_STOP = "[", "]"
"""Start and end of ventricular flutter or fibrillation [wfdb]; an unpaired start lasts to the end
of the recording [cudb]."""

AAMI_CLASSES = ("N", "S", "V", "F", "Q")
AAMI_OF_SYMBOL = {  # every beat of [wfdb]; B n r ? are not in [aami], they are kinds of what is
    **dict.fromkeys("NLRBejn", "N"),  # [aami] normal, bundle-branch block, escape; n is e or j
    **dict.fromkeys("AaJS", "S"),  # [aami] supraventricular ectopic
    **dict.fromkeys("VEr", "V"),  # [aami] ventricular ectopic; r is V on a T wave
    "F": "F",  # [aami] fusion of ventricular and normal
    **dict.fromkeys("/fQ?", "Q"),  # [aami] paced, fusion of paced and normal, not classified
}

PACED = ("102", "104", "107", "217")  # [aami] left out: records of mitdb with paced beats
DS1 = tuple(
    "101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230".split()
)
DS2 = tuple(
    "100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233 234".split()
)


@dataclass(frozen=True)
class VAIntervals:
    """Where a recording holds VA and where nothing may be said, in seconds, half open."""

    va: tuple[tuple[float, float], ...]
    excluded: tuple[tuple[float, float], ...]


def va_intervals(record: Record) -> VAIntervals:
    """Return the stretches of ventricular arrhythmia and of excluded rhythm.

    A rhythm mark holds until the next rhythm mark or the end. ``[`` starts VF or VFL, ``]`` ends
    it; an unpaired ``[`` lasts to the end of the recording. Beat symbols play no part.
    """
    marks = record.annotations
    if marks is None:
        raise DataError(
            f"record {record.record_id!r} was read without annotations; read it with "
            "annotations=True to label it."
        )
    end = record.n_samples
    rhythms = _rhythm_stretches(marks, end)
    va = [s[:2] for s in rhythms if s[2] in VA_RHYTHMS] + _bracketed(marks, end)
    excluded = [s[:2] for s in rhythms if s[2] in EXCLUDED_RHYTHMS]
    return VAIntervals(_merge(va, record.fs_hz), _merge(excluded, record.fs_hz))


def beat_labels(annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample and the AAMI class of every beat; other marks are left out.

    Returns
    -------
    sample
        Shape ``(n_beats,)``, int64.
    label
        Shape ``(n_beats,)``, one of `AAMI_CLASSES`.
    """
    found = [i for i, symbol in enumerate(annotations.symbol) if symbol in AAMI_OF_SYMBOL]
    labels = [AAMI_OF_SYMBOL[annotations.symbol[i]] for i in found]
    return annotations.sample[found], np.array(labels, dtype="<U1")


def covered_fraction(
    intervals: tuple[tuple[float, float], ...], start_s: np.ndarray, *, window_s: float
) -> np.ndarray:
    """Return which fraction of each window the (disjoint) intervals cover, shape ``(n_windows,)``."""
    covered = np.zeros(len(start_s))
    for begin, end in intervals:
        overlap = np.minimum(start_s + window_s, end) - np.maximum(start_s, begin)
        covered += np.clip(overlap, 0.0, None)
    return covered / window_s


def _rhythm_stretches(marks: Annotations, end: int) -> list[tuple[int, int, str]]:
    changes = [i for i, symbol in enumerate(marks.symbol) if symbol == "+" and marks.note[i]]
    starts = [int(marks.sample[i]) for i in changes]
    stops = [*starts, end][1:]
    return [(a, b, marks.note[i]) for i, a, b in zip(changes, starts, stops, strict=True)]


def _bracketed(marks: Annotations, end: int) -> list[tuple[int, int]]:
    stretches, opened = [], None
    for sample, symbol in zip(marks.sample, marks.symbol, strict=True):
        if symbol == VA_START and opened is None:
            opened = int(sample)
        elif symbol == VA_STOP and opened is not None:
            stretches.append((opened, int(sample)))
            opened = None
    if opened is not None:
        stretches.append((opened, end))
    return stretches


def _merge(stretches: list[tuple[int, int]], fs_hz: float) -> tuple[tuple[float, float], ...]:
    """Join touching and overlapping stretches and turn samples into seconds."""
    merged: list[list[int]] = []
    for start, stop in sorted(stretches):
        if stop <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    return tuple((start / fs_hz, stop / fs_hz) for start, stop in merged)
