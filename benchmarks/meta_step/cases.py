"""One meta-step, the same for every engine: fixed random windows, weights from a fixed seed."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from metaecg.checks import check_option
from metaecg.meta.algorithms import Algorithm
from metaecg.meta.engine import Engine, MetaBatch, MetaStep, build_engine
from metaecg.meta.func_engine import FuncEngine
from metaecg.models.registry import build_network
from metaecg.seeding import torch_generator

from . import flops

ENGINES = ("learn2learn", "func", "func-vmap")
"""func is what a user gets; func-vmap the same engine kept to its form for any network."""
SIGNAL = {"n_leads": 1, "n_samples": 400, "fs_hz": 200.0, "n_classes": 2}
INNER_LR = 0.05
AGREEMENT = {"float64": 1e-6, "float32": 5e-2}
"""Largest relative difference of two engines' meta-gradients. In float64 an error in an algorithm
shows. In float32, which is timed, rounding gives 1e-6 to 1e-3, the more inner steps the more, for it
tips ReLUs and maxima over; leaving out second derivatives gives more than 0.5."""


class EngineAbsent(Exception):
    """An engine of `ENGINES` that can't run here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One engine and one piece of work."""

    engine: str
    order: str
    """``first`` or ``second``."""
    width: int
    """Of compact-cnn."""
    n_tasks: int = 16
    n_support: int = 20
    n_query: int = 40
    inner_steps: int = 5
    task_chunk: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    n_threads: int = 1

    @property
    def work(self) -> "Case":
        """The same for every engine that does this work."""
        return replace(self, engine="")

    @property
    def parameters(self) -> int:
        """How many weights the network has."""
        return sum(p.numel() for p in _network(self).parameters())

    @property
    def flops(self) -> int:
        """Floating-point operations that the work needs, whichever engine does it."""
        window = torch.zeros(1, SIGNAL["n_leads"], SIGNAL["n_samples"])
        network = _network(replace(self, device="cpu", dtype="float32"))
        return flops.of_meta_step(
            flops.of_layers(network, window),
            n_tasks=self.n_tasks,
            n_support=self.n_support,
            n_query=self.n_query,
            inner_steps=self.inner_steps,
            second_order=self.order == "second",
        )


def prepare(case: Case) -> Callable[[], MetaStep]:
    """Return the call that does the case's meta-step, and returns once it is done."""
    torch.set_num_threads(case.n_threads)
    network = _network(case)
    engine, batch = _engine(case, network), _batch(case)
    parameters = {name: p.detach().clone() for name, p in network.named_parameters()}

    def step() -> MetaStep:
        found = engine.meta_gradients(parameters, batch)
        if case.device != "cpu":
            torch.cuda.synchronize()
        return found

    return step


def prepare_warm(case: Case) -> Callable[[], MetaStep]:
    """Like `prepare`, after a step so small that it loads the code and takes no memory to speak of."""
    prepare(replace(case, n_tasks=1, n_support=2, n_query=2))()
    return prepare(case)


def absent(engine: str) -> str | None:
    """Return why an engine can't run here; None if it can."""
    case = Case(engine=engine, order="first", width=4)
    try:
        _engine(case, _network(case))
    except EngineAbsent as error:
        return str(error)
    return None


def disagreement(one: MetaStep, other: MetaStep) -> float:
    """Return the distance of two meta-gradients over the length of the second."""

    def flat(step: MetaStep) -> torch.Tensor:
        return torch.cat([step.gradients[k].double().flatten() for k in sorted(step.gradients)])

    return float((flat(one) - flat(other)).norm() / flat(other).norm())


def _network(case: Case) -> torch.nn.Module:
    generator = torch_generator(7, "weights")
    network = build_network("compact-cnn", **SIGNAL, width=case.width, generator=generator)
    return network.to(case.device, getattr(torch, case.dtype))


def _engine(case: Case, network: torch.nn.Module) -> Engine:
    check_option("engine", case.engine, ENGINES)
    algorithm = Algorithm(
        inner_lr=INNER_LR, inner_steps=case.inner_steps, first_order=case.order == "first"
    )
    if case.engine == "func-vmap":
        if "backend" not in inspect.signature(FuncEngine).parameters:
            raise EngineAbsent("func has one form only here.")
        return FuncEngine(network, algorithm, task_chunk=case.task_chunk, backend="vmap")
    try:
        return build_engine(case.engine, network, algorithm, task_chunk=case.task_chunk)
    except ImportError as error:
        raise EngineAbsent(str(error)) from error


def _batch(case: Case) -> MetaBatch:
    """Return noise of the right shape: how long a step takes does not depend on its values."""
    generator = torch_generator(7, "windows")

    def side(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (case.n_tasks, n, SIGNAL["n_leads"], SIGNAL["n_samples"])
        labels = torch.arange(n).remainder(SIGNAL["n_classes"]).expand(case.n_tasks, n)
        windows = torch.randn(shape, generator=generator).to(getattr(torch, case.dtype))
        return windows.to(case.device), labels.contiguous().to(case.device)

    (support_x, support_y), (query_x, query_y) = side(case.n_support), side(case.n_query)
    return MetaBatch(
        subject_ids=tuple(f"s-{i}" for i in range(case.n_tasks)),
        support_x=support_x,
        support_y=support_y,
        query_x=query_x,
        query_y=query_y,
    )
