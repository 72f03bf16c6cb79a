"""Measure training steps and answers; give rows."""

import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaecg.adapt.distill import REDUCED_LEADS
from metaecg.evaluate.memory import peak_memory
from metaecg.models.backbones.cnn_transformer import slim_leads

from .cases import Case, build, prepare, windows
from .fake import without_arithmetic

PUBLISHED_GIB = {"full": 9.21, "lora": 8.75, "h-tuning": 1.45}
"""Of the medium size at 128 windows; said to be GB, in GiB by the arithmetic."""


def training_row(case: Case, *, fake: bool) -> dict[str, object]:
    """Return what one step of a case costs; without arithmetic there are no seconds."""
    gc.collect()
    with prepare(case, fake=fake) as ready:
        held = (ready.network, ready.optimizer, ready.x, ready.y)
        begin = time.perf_counter()
        peak = peak_memory(ready.step, *held, device=case.device)
        seconds = time.perf_counter() - begin
        n_trained = ready.n_trained
    print(f"{case.name}: {peak / 2**30:.3f} GiB", file=sys.stderr)
    return {
        "part": "training",
        "method": case.method,
        "size": case.size,
        "batch": case.batch,
        "at_once": case.piece,
        "trained": n_trained,
        "peak_bytes": peak,
        "published_gib": _published(case),
        "seconds": None if fake else round(seconds, 4),
    }


@dataclass(frozen=True)
class Model:
    """A network that answers."""

    name: str
    size: str
    n_leads: int
    network: nn.Module


def models(teacher: str, student: str, *, n_samples: int) -> list[Model]:
    """Return the teacher, and the student as it is deployed on 12, 3 and 1 leads."""
    whole = {"n_leads": len(REDUCED_LEADS[12]), "n_samples": n_samples}
    found = [Model("teacher", teacher, whole["n_leads"], build(teacher, **whole))]
    for n_leads, leads in REDUCED_LEADS.items():
        slim = slim_leads(build(student, **whole), leads)
        found.append(Model("student", student, n_leads, slim))
    for model in found:
        model.network.eval()
    return found


def inference_rows(
    found: Sequence[Model],
    *,
    batch: int,
    n_samples: int,
    repeats: int,
    device: str,
    fake: bool,
) -> list[dict[str, object]]:
    """Return what answers to `batch` windows cost each network, timed in turn."""
    inputs = [windows(batch, n_leads=m.n_leads, n_samples=n_samples, device=device) for m in found]
    work = [_answer(m.network.to(device), x) for m, x in zip(found, inputs, strict=True)]
    seconds = [None] * len(found) if fake else _in_turn(work, repeats, device)
    peaks = [_peak(model, batch, n_samples, device, fake) for model in found]
    print(f"answers to {batch} windows at once: done", file=sys.stderr)
    return [
        {
            "part": "inference",
            "network": model.name,
            "size": model.size,
            "leads": model.n_leads,
            "batch": batch,
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "peak_bytes": peak,
            "seconds": time_,
        }
        for model, peak, time_ in zip(found, peaks, seconds, strict=True)
    ]


def summary(rows: Sequence[dict]) -> dict[str, object]:
    """Return the last row: the four ratios, and those of the answers for every batch.

    Those without a batch are of one window at a time, as a wearable answers, or else of the
    smallest batch that was measured; ``inference_batch`` says which. The student has 12 leads.
    """
    peaks = {(r["method"], r["at_once"]): r["peak_bytes"] for r in rows if r["part"] == "training"}
    chunked = [at_once for method, at_once in peaks if method == "h-tuning" and at_once]
    full, chunk = peaks.get(("full", None)), min(chunked, default=None)
    answers = [row for row in rows if row["part"] == "inference"]
    batches = sorted({row["batch"] for row in answers})
    by_batch = {str(batch): _teacher_over_student(answers, batch) for batch in batches}
    first = next(iter(by_batch.values()), {"latency": None, "memory": None})
    return {
        "summary": True,
        "memory_ratio_full_over_htuning": _ratio(full, peaks.get(("h-tuning", None))),
        "memory_ratio_full_over_htuning_chunked": _ratio(full, peaks.get(("h-tuning", chunk)))
        if chunk
        else None,
        "latency_ratio_teacher_over_student": first["latency"],
        "memory_ratio_teacher_over_student": first["memory"],
        "inference_batch": batches[0] if batches else None,
        "teacher_over_student_by_batch": by_batch,
    }


def _published(case: Case) -> float | None:
    is_theirs = (case.size, case.batch, case.n_samples) == ("medium", 128, 6144)
    return PUBLISHED_GIB.get(case.method) if is_theirs and case.piece is None else None


def _answer(network: nn.Module, x: Tensor) -> Callable[[], None]:
    def answer() -> None:
        with torch.inference_mode():
            network(x)

    return answer


def _peak(model: Model, batch: int, n_samples: int, device: str, fake: bool) -> int:
    """Return the peak of one answer; on a GPU with the other networks out of the way."""
    network = copy.deepcopy(model.network) if fake else model.network
    with without_arithmetic(network, wanted=fake):
        x = windows(batch, n_leads=model.n_leads, n_samples=n_samples, device=device)
        return peak_memory(_answer(network, x), network, x, device=device)


def _in_turn(work: Sequence[Callable], repeats: int, device: str) -> list[float]:
    """Return the median seconds of each; they take turns after one run each that warms up."""
    times: list[list[float]] = [[] for _ in work]
    for turn in range(repeats + 1):
        for i in range(len(work)):
            which = (turn + i) % len(work)  # nobody always comes after the same one
            times[which].append(_timed(work[which], device))
    return [round(statistics.median(seconds[1:]), 6) for seconds in times]


def _timed(work: Callable, device: str) -> float:
    begin = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _teacher_over_student(answers: Sequence[dict], batch: int) -> dict[str, float | None]:
    of_batch = [row for row in answers if row["batch"] == batch and row["leads"] == 12]
    by_name = {row["network"]: row for row in of_batch}
    teacher, student = by_name["teacher"], by_name["student"]
    return {
        "latency": _ratio(teacher["seconds"], student["seconds"]),
        "memory": _ratio(teacher["peak_bytes"], student["peak_bytes"]),
    }


def _ratio(a: float | None, b: float | None) -> float | None:
    return round(a / b, 3) if a and b else None
