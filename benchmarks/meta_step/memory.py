"""How much memory a call adds at its peak, measured in a process of its own.

On Linux: resident memory just before the call, and the highest since then (``VmHWM``, set back by
writing 5 to ``/proc/self/clear_refs``, proc(5)). Where it can't be set back, the highest ever before
the call takes the place of the first; the growth is then a lower bound.
On a GPU: the same from the counters of torch's allocator.
"""

import ctypes
import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def peak_growth(prepare: Callable[..., Callable], *args, device: str = "cpu") -> int:
    """Return the bytes that ``prepare(*args)()`` adds at its peak, preparation left out.

    A new process, started afresh, does both; what this process holds plays no part. `prepare` must
    stand at the top of a module, and `args` must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_grown, prepare, args, device).result()


def can_reset_peak() -> bool:
    """Tell whether the highest resident memory can be set back here."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _grown(prepare: Callable[..., Callable], args: tuple, device: str) -> int:
    work = prepare(*args)
    gc.collect()
    _return_freed_memory()
    if device != "cpu":
        return _grown_on_gpu(work)
    before = _resident("VmRSS") if can_reset_peak() else _highest()
    work()
    return max(0, _highest() - before)


def _grown_on_gpu(work: Callable) -> int:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _return_freed_memory() -> None:
    """Give back what glibc keeps after a free: the call would take it again without growing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _highest() -> int:
    if STATUS.exists():
        return _resident("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident(field: str) -> int:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024
