"""Measure cases in turn, beside the machine's rate of matrix multiplication; give rows."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from metaecg.meta.engine import MetaStep

from .cases import AGREEMENT, Case, disagreement, prepare, prepare_warm
from .memory import peak_growth

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
N_MATMULS = 10


class WrongAnswer(Exception):
    """Two engines disagree; neither is timed."""


class MatmulRate:
    """The machine's float32 rate of matrix multiplication: square, both factors dense."""

    def __init__(self, device: str) -> None:
        self.device = device
        size = MATMUL_SIZE[device]
        self.factor = torch.rand(size, size, device=device)
        self.product = torch.empty_like(self.factor)
        self.rates: list[float] = []
        self._multiply()  # the first call starts threads and plans

    def note(self) -> None:
        """Measure once more."""
        operations = 2 * MATMUL_SIZE[self.device] ** 3 * N_MATMULS
        self.rates.append(operations / timed(self._multiply))

    @property
    def median(self) -> float:
        """Operations a second, the median of what was noted."""
        return statistics.median(self.rates)

    def _multiply(self) -> None:
        for _ in range(N_MATMULS):
            torch.mm(self.factor, self.factor, out=self.product)
        if self.device != "cpu":
            torch.cuda.synchronize()


def measure(cases: Iterable[Case], *, repeats: int, rate: MatmulRate) -> dict[Case, tuple]:
    """Return (seconds, bytes at the peak) of every case.

    Cases of the same work are timed in turn. Noted in `rate` as often, for the same reason.
    """
    groups: dict[Case, list[Case]] = {}
    for case in dict.fromkeys(cases):
        groups.setdefault(case.work, []).append(case)
    found = {}
    for n_done, group in enumerate(groups.values(), start=1):
        seconds = _seconds(group, repeats, rate)
        for case in group:
            found[case] = seconds[case], peak_growth(prepare_warm, case, device=case.device)
        print(f"{n_done} of {len(groups)} comparisons done", file=sys.stderr)
    return found


def timed(work: Callable) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def refuse_disagreement(steps: dict[Case, MetaStep]) -> None:
    """Raise `WrongAnswer` if a case's meta-gradient is not that of the first."""
    (first, expected), *others = steps.items()
    for case, step in others:
        distance = disagreement(step, expected)
        limit = AGREEMENT[case.dtype]
        if not distance <= limit:  # NaN is no agreement either
            raise WrongAnswer(
                f"the {case.order}-order meta-gradients of {case.engine} and {first.engine} at width "
                f"{case.width} differ by {distance:.1e} of their length in {case.dtype}; at most "
                f"{limit:.0e} was expected. One of them is wrong, so none is timed."
            )


def rows(
    found: dict[Case, tuple], rate: float, *, varied: str | None = None
) -> list[dict[str, object]]:
    """Return the rows for JSON, in the order of the cases; `varied` names the field that changes."""
    return [_row(case, found, rate, varied) for case in found]


def _row(case: Case, found: dict[Case, tuple], rate: float, varied: str | None) -> dict:
    seconds, peak = found[case]
    peer = found.get(replace(case, engine="learn2learn"))
    of_growth = {"varied": varied, "value": getattr(case, varied)} if varied else {}
    return {
        "engine": case.engine,
        "order": case.order,
        "parameters": case.parameters,
        "seconds": round(seconds, 5),
        "ratio_to_learn2learn": round(peer[0] / seconds, 3) if peer else None,
        "peak_bytes": peak,
        "share_of_matmul_peak": round(case.flops / seconds / rate, 4),
        **of_growth,
    }


def _seconds(group: Sequence[Case], repeats: int, rate: MatmulRate) -> dict[Case, float]:
    exact = [replace(case, dtype="float64", n_tasks=2) for case in group]
    refuse_disagreement({case: prepare(case)() for case in exact})
    work = {case: prepare(case) for case in group}
    refuse_disagreement({case: step() for case, step in work.items()})  # warms up, too
    times: dict[Case, list[float]] = {case: [] for case in group}
    for i in range(repeats):
        turn = i % len(group)  # nobody always comes after the same one
        for case in [*group[turn:], *group[:turn]]:
            times[case].append(timed(work[case]))
        rate.note()
    return {case: statistics.median(seconds) for case, seconds in times.items()}
