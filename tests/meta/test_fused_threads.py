"""Chunks in threads, what is fused and what is not, and numba's files."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fused_cases import make_cnn, make_meta_batch
from reference import assert_same_step, weights_of
from torch import nn
from torch.nn import functional as F

import metaecg
from metaecg.meta.algorithms import Algorithm
from metaecg.meta.engine import build_engine
from metaecg.meta.func_engine import FuncEngine
from metaecg.meta.fused_threads import FusedThreads, can_fuse
from metaecg.models.backbones.compact_cnn import CompactCNN

MAML = Algorithm(inner_lr=0.1, inner_steps=3)


def step_of(engine, batch, **parameters):
    return engine.meta_gradients(weights_of(engine.network) | parameters, batch)


def assert_equal_bits(found, expected):
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.support_losses, expected.support_losses)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name


@pytest.fixture
def two_torch_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("width", [8, 48])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(width, dtype, two_torch_threads):
    network = make_cnn(width=width).to(dtype)
    batch = make_meta_batch(n_tasks=11)
    x = {side: getattr(batch, side).to(dtype) for side in ("support_x", "query_x")}
    batch = replace(batch, **x)
    expected = step_of(FuncEngine(network, MAML, n_threads=1), batch)
    for n_threads in (2, 3, None):
        engine = FuncEngine(network, MAML, n_threads=n_threads)
        for _ in range(2):
            assert_equal_bits(step_of(engine, batch), expected)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_torch_uses_one_thread_within_and_as_many_as_before_behind(n_threads, two_torch_threads):
    seen = []

    def count(model, part):
        seen.append(torch.get_num_threads())

    threads = FusedThreads(make_cnn(), task_chunk=None, n_threads=n_threads)
    threads.map(count, make_meta_batch(n_tasks=9))
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_exception_in_a_chunk_reaches_the_caller_and_leaves_no_trace(
    n_threads, two_torch_threads
):
    network, batch = make_cnn(), make_meta_batch(n_tasks=11)
    engine = FuncEngine(network, MAML, n_threads=n_threads)
    expected = step_of(engine, batch)
    bad = replace(batch, support_y=batch.support_y.clone())
    bad.support_y[9, 0] = 7  # a class that the network doesn't have
    with pytest.raises(RuntimeError, match="[Cc]lass values must be smaller than num_classes"):
        step_of(engine, bad)
    assert torch.get_num_threads() == 2
    assert_equal_bits(step_of(engine, batch), expected)


def most_at_once(network, *, task_chunk, n_threads, n_tasks=24) -> int:
    """The greatest number of tasks at work at one time, where every chunk takes a moment."""
    lock, at_work, most = threading.Lock(), [0], [0]

    def work(model, part):
        with lock:
            at_work[0] += len(part)
            most[0] = max(most[0], at_work[0])
        threading.Event().wait(0.005)
        with lock:
            at_work[0] -= len(part)

    threads = FusedThreads(network, task_chunk=task_chunk, n_threads=n_threads)
    threads.map(work, make_meta_batch(n_tasks=n_tasks))
    return most[0]


@pytest.mark.parametrize("width", [8, 48])
@pytest.mark.parametrize("task_chunk", [1, 2, 3, 4, 5, 7, 8])
def test_no_more_tasks_than_task_chunk_are_at_work_at_once(task_chunk, width):
    assert (
        1 <= most_at_once(make_cnn(width=width), task_chunk=task_chunk, n_threads=4) <= task_chunk
    )


def test_without_a_limit_threads_work_side_by_side():
    two_at_once = threading.Barrier(2, timeout=60)
    threads = FusedThreads(make_cnn(), task_chunk=None, n_threads=2)
    threads.map(lambda model, part: two_at_once.wait(), make_meta_batch(n_tasks=16))


@pytest.mark.parametrize("n_tasks", [1, 4, 5])
@pytest.mark.parametrize("task_chunk", [None, 1, 3])
def test_chunks_give_what_vmap_gives(n_tasks, task_chunk):
    network, batch = make_cnn(), make_meta_batch(n_tasks=n_tasks)
    expected = step_of(FuncEngine(network, MAML, backend="vmap"), batch)
    engine = FuncEngine(network, MAML, task_chunk=task_chunk, n_threads=2)
    assert_same_step(step_of(engine, batch), expected)


def test_each_model_is_used_by_one_thread_at_a_time_and_again_by_the_next():
    threads = FusedThreads(make_cnn(), task_chunk=None, n_threads=3)
    lock, busy, seen = threading.Lock(), set(), set()

    def work(model, part):
        with lock:
            assert id(model) not in busy
            busy.add(id(model))
            seen.add(id(model))
        threading.Event().wait(0.002)
        with lock:
            busy.remove(id(model))

    for _ in range(3):
        threads.map(work, make_meta_batch(n_tasks=40))
    assert 1 <= len(seen) <= 3


def test_a_thread_that_finds_no_free_model_makes_one():
    threads = FusedThreads(make_cnn(), task_chunk=None, n_threads=1)
    first = threads._take()
    assert threads._take() is not first
    threads._free.append(first)
    assert threads._take() is first


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("side", ["support", "query"])
def test_nan_shows_at_its_subject_and_not_in_the_next_meta_step(side, width):
    network, batch = make_cnn(width=width), make_meta_batch(n_tasks=4)
    engine = FuncEngine(network, MAML, n_threads=1)
    expected = step_of(engine, batch)
    for subjects, value in [([2], torch.nan), ([0, 1, 2, 3], torch.nan), ([2], torch.inf)]:
        bad = replace(batch, **{f"{side}_x": getattr(batch, f"{side}_x").clone()})
        getattr(bad, f"{side}_x")[subjects] = value
        step = step_of(engine, bad)
        is_bad = [i in subjects for i in range(4)]
        assert torch.isnan(step.losses).tolist() == is_bad
        in_the_loop = is_bad if side == "support" else [False] * 4
        assert torch.isnan(step.support_losses).tolist() == [in_the_loop] * 3
        assert_equal_bits(step_of(engine, batch), expected)


@pytest.mark.parametrize("backend", ["auto", "vmap"])
def test_weights_that_overflow_show_at_the_inner_step_where_they_do(backend):
    """The first step throws the head so far that the second finds infinite logits."""
    network, batch = make_cnn(), make_meta_batch(n_tasks=3)
    batch.support_x[0], batch.support_y[0] = 0.0, torch.tensor([0, 1, 0, 1, 0])
    engine = FuncEngine(network, Algorithm(inner_lr=1e308, inner_steps=3), backend=backend)
    step = step_of(engine, batch)
    assert torch.isfinite(step.support_losses[0]).all()
    assert not torch.isfinite(step.support_losses[2]).any()


# Parameters


@pytest.mark.parametrize("name", ["meta-sgd", "maml++"])
def test_learned_rates_may_come_in_another_order_than_the_weights(name):
    network, batch = make_cnn(), make_meta_batch()
    algorithm = replace(MAML, name=name)
    generator = torch.Generator().manual_seed(5)
    rates = {
        key: rate.double() * torch.rand(rate.shape, generator=generator)
        for key, rate in algorithm.initial_rates(weights_of(network)).items()
    }
    expected = step_of(FuncEngine(network, algorithm, backend="vmap"), batch, **rates)
    backwards = dict(reversed(rates.items()))
    found = step_of(FuncEngine(network, algorithm), batch, **backwards)
    in_order = {key: found.gradients[key] for key in expected.gradients}
    assert_same_step(replace(found, gradients=in_order), expected)


@pytest.mark.parametrize("backend", ["auto", "vmap"])
def test_a_weight_that_the_network_does_not_have_is_refused(backend):
    engine = FuncEngine(make_cnn(), MAML, backend=backend)
    with pytest.raises(ValueError, match="'head.extra', which CompactCNN has no weight for"):
        step_of(engine, make_meta_batch(), **{"head.extra": torch.ones(2)})


@pytest.mark.parametrize("n_threads", [1, 2])  # a thread has a grad mode of its own
def test_trained_and_frozen_weights_may_require_gradients(n_threads):
    network, batch = make_cnn(), make_meta_batch(n_tasks=9)
    trained = {k: p for k, p in network.named_parameters() if "norm" not in k}
    step = FuncEngine(network, MAML, n_threads=n_threads).meta_gradients(trained, batch)
    tensors = (step.losses, step.support_losses, *step.gradients.values())
    assert not any(t.requires_grad for t in tensors)
    assert step.gradients.keys() == trained.keys()


# What is fused


class Child(CompactCNN):
    pass


class ChildBlock(nn.Module):
    def forward(self, x):
        return F.relu(x)


def conv(**settings):
    return nn.Conv1d(
        8, 8, **({"kernel_size": 5, "stride": 2, "padding": 2, "bias": False} | settings)
    )


def replaced(block: int, **layers):
    def change(network):
        for name, layer in layers.items():
            setattr(network.blocks[block], name, layer)

    return change


def give_hook(network):
    network.blocks[1].conv.register_forward_hook(lambda module, args, output: output * 2)


def give_pre_hook(network):
    network.blocks[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


REASONS = {
    "subclass": lambda n: setattr(n, "__class__", Child),
    "other block": lambda n: n.blocks.append(ChildBlock()),
    "other container": lambda n: setattr(n, "blocks", nn.ModuleList(n.blocks)),
    "other conv": replaced(1, conv=nn.LazyConv1d(8, 5)),
    "bias of a convolution": replaced(1, conv=conv(bias=True)),
    "dilation": replaced(1, conv=conv(dilation=2, padding=4)),
    "groups of a convolution": replaced(1, conv=conv(groups=2)),
    "padding": replaced(1, conv=conv(padding=0)),
    "padding by name": replaced(1, conv=conv(padding="same", stride=1)),
    "padding mode": replaced(1, conv=conv(padding_mode="circular")),
    "stride beyond the kernel": replaced(1, conv=conv(stride=7)),
    "groups of a norm": replaced(1, norm=nn.GroupNorm(2, 8)),
    "eps of a norm": replaced(1, norm=nn.GroupNorm(4, 8, eps=1e-3)),
    "norm without weights": replaced(1, norm=nn.GroupNorm(4, 8, affine=False)),
    "other norm": replaced(1, norm=nn.Identity()),
    "head of layers": lambda n: setattr(n, "head", nn.Sequential(nn.Linear(32, 2))),
    "head without bias": lambda n: setattr(n, "head", nn.Linear(32, 2, bias=False)),
    "parametrization": lambda n: nn.utils.parametrizations.weight_norm(n.blocks[1].conv),
    "hook": give_hook,
    "hook before": give_pre_hook,
    "hook on the way back": lambda n: n.register_full_backward_hook(lambda *_: None),
    "half precision": lambda n: n.half(),
    "other device": lambda n: n.to("meta"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_network_that_is_not_as_built_is_not_fused(reason):
    network = make_cnn()
    assert can_fuse(network, MAML, F.cross_entropy)
    REASONS[reason](network)
    assert not can_fuse(network, MAML, F.cross_entropy)
    assert FuncEngine(network, MAML).fused is None


def test_another_loss_another_network_and_anil_are_not_fused():
    network = make_cnn()
    assert not can_fuse(network, MAML, lambda output, y: F.cross_entropy(output, y))
    assert not can_fuse(network.blocks[0], MAML, F.cross_entropy)
    assert not can_fuse(network, replace(MAML, name="anil"), F.cross_entropy)


@pytest.mark.parametrize("name", ["maml", "fomaml", "meta-sgd", "maml++", "reptile"])
def test_every_algorithm_that_adapts_all_weights_is_fused(name):
    assert can_fuse(make_cnn(), replace(MAML, name=name), F.cross_entropy)


def test_a_changed_layer_is_heeded():
    network, batch = make_cnn(), make_meta_batch()
    plain = step_of(FuncEngine(network, MAML), batch)
    network.blocks[1].norm.eps = 0.5
    found = step_of(FuncEngine(network, MAML), batch)
    assert not torch.allclose(found.losses, plain.losses)
    assert_same_step(found, step_of(FuncEngine(network, MAML, backend="vmap"), batch))


def test_the_backend_can_be_chosen_and_an_unknown_one_is_refused():
    network = make_cnn()
    assert FuncEngine(network, MAML, backend="vmap").fused is None
    assert FuncEngine(network, MAML).fused is not None
    assert build_engine("func", network, MAML, task_chunk=3).fused.chunk == 3
    with pytest.raises(ValueError, match="backend is 'fused'"):
        FuncEngine(network, MAML, backend="fused")


@pytest.mark.parametrize("n_threads", [0, -1])
def test_a_number_of_threads_below_one_is_refused(n_threads):
    with pytest.raises(ValueError, match=f"n_threads is {n_threads}"):
        FuncEngine(make_cnn(), MAML, n_threads=n_threads)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_an_engine_can_be_copied_and_pickled_after_use(copied):
    engine, batch = FuncEngine(make_cnn(), MAML), make_meta_batch()
    expected = step_of(engine, batch)
    other = copied(engine)
    assert other.network is not engine.network
    assert_equal_bits(step_of(other, batch), expected)
    with torch.no_grad():
        for p in other.network.parameters():
            p.zero_()
    assert_equal_bits(step_of(engine, batch), expected)


# numba's files

PROBE = """
import numpy as np
from metaecg.meta import fused_kernels as kernels
x, ties = np.array([[[1.0], [3.0]]]), np.empty((1, 1, 1))
features = np.empty((1, 1, 2))
kernels.pool(x, features, ties, 2)
print(kernels.__file__, features.ravel().tolist(), kernels.pool.stats.cache_path)
"""


def run_copy(folder: Path, **environment: str) -> list[str]:
    """Run `PROBE` on a copy of the package's files that it needs, in a process of its own."""
    source = Path(metaecg.__file__).parent
    target = folder / "metaecg" / "meta"
    target.mkdir(parents=True)
    for package in (target, target.parent):
        (package / "__init__.py").touch()
    shutil.copy(source / "meta" / "fused_kernels.py", target)
    for blocked in (target / "__pycache__", folder / "file"):
        blocked.touch()  # a file where a folder is needed: root can't write there either
    command = [sys.executable, "-W", "error", "-c", PROBE]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    done = subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{target}/fused_kernels.py [2.0, 3.0] ")
    return done.stdout.split()[3:]


def test_the_kernels_run_where_no_folder_can_be_written(tmp_path):
    nowhere = str(tmp_path / "file" / "cache")
    environment = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "NUMBA_CACHE_DIR": nowhere}
    assert run_copy(tmp_path, **environment) == ["None"]


def test_the_kernels_are_kept_in_the_users_cache_where_the_package_cannot_be_written(tmp_path):
    cache = tmp_path / "cache"
    (kept,) = run_copy(tmp_path, XDG_CACHE_HOME=str(cache))
    assert Path(kept).is_relative_to(cache)
    assert any(Path(kept).glob("fused_kernels.pool-*.nbc"))


@pytest.mark.parametrize("module", ["metaecg.meta", "metaecg.meta.engine", "metaecg.meta.loop"])
def test_numba_is_not_imported_before_an_engine_is_built(module):
    code = f"import sys, {module}; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
