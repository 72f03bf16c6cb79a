"""Patients of the server benchmark: generated ECG, a few real fits, many detectors made of those.

Fitting a thousand detectors would take minutes and show nothing more, so detectors are fitted for a
few generated patients, and every stored patient gets one of these with all its numbers moved by
about one percent, so that no two patients' answers are the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from serve_bench_load import http_request

from metaecg import Personalizer
from metaecg.data.demo_patients import FS_HZ, LEAD, MIN_DURATION_S, generate_patient
from metaecg.data.records import Record
from metaecg.data.windows import cut_at, windows_from_marks
from metaecg.serve.adapter_file import adapter_bytes, load_adapter, packed, unpacked
from metaecg.serve.store import Store

N_SHOTS = 10
VA = ("VT", "VF", "VFL")
SEED = 8
MOVED = 0.01
"""Size of the change that makes another patient's detector of a fitted one, of each tensor's own size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A generated patient with enough arrhythmia for a personalization."""

    record: Record
    marks: list[tuple[float, float, str]]
    """The earliest stretches with `N_SHOTS` windows of either class, on the grid of the windows."""


def make_examples(base, n: int) -> list[Example]:
    """Return `n` generated patients that have `N_SHOTS` windows of both classes."""
    found, index = [], 0
    while len(found) < n:
        example = _example(base, index)
        found += [] if example is None else [example]
        index += 1
    return found


def fit_some(base, examples: Sequence[Example]) -> list[Personalizer]:
    """Return the detectors of these patients, as the server would fit them."""
    return [Personalizer(base).fit_record(e.record, e.marks) for e in examples]


def moved(adapter: bytes, rng: np.random.Generator) -> bytes:
    """Return the bytes of an adapter whose numbers differ a little from another one's."""
    import torch

    tensors, document = unpacked(adapter)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            noise = torch.from_numpy(rng.standard_normal(tuple(tensor.shape), dtype=np.float32))
            tensors[name] = tensor + MOVED * tensor.std(correction=0) * noise.to(tensor.dtype)
    return packed(tensors, document)


def many_adapters(fitted: Sequence[Personalizer], n: int) -> list[bytes]:
    """Return `n` different adapters; number `i` comes from ``fitted[i % len(fitted)]``."""
    rng = np.random.default_rng(SEED)
    sources = [adapter_bytes(personal) for personal in fitted]
    return [moved(sources[i % len(sources)], rng) for i in range(n)]


def patient_name(i: int) -> str:
    """Return the name of stored patient `i`."""
    return f"bench-{i:05d}"


def fill_store(url: str, adapters: Sequence[bytes], fitted: Sequence[Personalizer]) -> str:
    """Store a patient with an active detector for each adapter; return the organisation's token."""
    store = Store(url)
    # Only here: this file can be made again. The server that opens it waits for the disk as always.
    sa.event.listen(store.engine, "connect", _without_waiting_for_the_disk)
    store.migrate()
    org_id = store.create_org("bench").org_id
    _, secret = store.create_token(org_id, "bench")
    for i, adapter in enumerate(adapters):
        personal = fitted[i % len(fitted)]
        store.create_patient(org_id, patient_name(i))
        store.add_detector(
            org_id,
            patient_name(i),
            adapter=adapter,
            facts=facts_of(personal),
            base_fingerprint=personal.base.fingerprint,
        )
    store.close()
    return secret


def facts_of(personal: Personalizer) -> dict:
    """Return what the server keeps beside an adapter."""
    return {
        "method": personal.method,
        "rhythm": personal.rhythm,
        "n_support": personal.n_support_,
        "fit_seconds": personal.fit_seconds_,
    }


def make_windows(base, examples: Sequence[Example], n: int) -> np.ndarray:
    """Return `n` stretches of one window, millivolts in steps of 0.005, ``(n, n_samples)``."""
    rng = np.random.default_rng(SEED + 1)
    n_samples = round(base.preprocessing.window_s * FS_HZ)
    found = np.empty((n, n_samples))
    for i in range(n):
        signal = examples[i % len(examples)].record.signal_mv[0]
        start = rng.integers(0, len(signal) - n_samples)
        found[i] = signal[start : start + n_samples]
    return np.round(found * 200) / 200  # as a recorder with 200 steps per millivolt would give them


def predict_requests(windows: np.ndarray, token: str) -> list[bytes]:
    """Return the request that asks patient `i` about window `i`."""
    facts = {"fs_hz": FS_HZ, "unit": "mV", "lead_names": [LEAD]}
    return [
        http_request(
            "POST",
            f"/v1/patients/{patient_name(i)}/predict",
            token=token,
            body=json.dumps({**facts, "signal": window.tolist()}).encode(),
        )
        for i, window in enumerate(windows)
    ]


def expected_probability(base, adapter: bytes, window: np.ndarray) -> float:
    """Return what the library alone says of a window, with the detector's own file."""
    record = Record(
        record_id="bench/1",
        subject_id="bench",
        signal_mv=window[None].astype(np.float32),
        fs_hz=FS_HZ,
        lead_names=(LEAD,),
    )
    windows, _ = cut_at(record, np.zeros(1), base.preprocessing)
    positive = list(base.classes).index("va")
    return float(softmax_of(load_adapter(adapter, base).logits(windows))[0, positive])


def softmax_of(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of each row."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _example(base, index: int) -> Example | None:
    patient = generate_patient(index, duration_s=MIN_DURATION_S, seed=SEED)
    record = Record(
        record_id=f"demo/{index}",
        subject_id=f"demo/{index}",
        signal_mv=patient.signal_mv[None].astype(np.float32),
        fs_hz=FS_HZ,
        lead_names=(LEAD,),
    )
    marks, left = [], {"va": N_SHOTS, "other": N_SHOTS}
    for segment in patient.segments:
        label = "va" if segment.rhythm in VA else "other"
        if segment.rhythm == "NOISE":
            continue
        found = _on_grid(segment, base.preprocessing.window_s, left[label])
        if found is not None:
            marks.append((*found, label))
            left[label] -= round((found[1] - found[0]) / base.preprocessing.window_s)
    if any(left.values()):
        return None
    windows_from_marks(record, marks, base.preprocessing, classes=base.classes)
    return Example(record=record, marks=marks)


def _on_grid(segment, window_s: float, n_most: int) -> tuple[float, float] | None:
    """Return the first `n_most` windows of the grid that lie inside a stretch of one rhythm."""
    first = int(np.ceil(segment.start_s / window_s - 1e-9))
    last = min(first + n_most, int(np.floor(segment.stop_s / window_s + 1e-9)))
    return (first * window_s, last * window_s) if last > first else None


def _without_waiting_for_the_disk(connection, _record) -> None:
    connection.execute("PRAGMA synchronous = OFF")
