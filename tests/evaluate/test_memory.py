"""The meter of live tensors, against sizes that are known and against arithmetic."""

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from metaecg.evaluate.memory import LiveTensors, peak_memory

KIB = 1024


def kib(n: int) -> torch.Tensor:
    return torch.zeros(n * KIB, dtype=torch.uint8)


def test_a_tensor_of_known_size_is_counted_until_it_dies():
    with LiveTensors() as live:
        a = kib(64)
        assert live.bytes == 64 * KIB
        b = kib(16)
        assert live.bytes == 80 * KIB
        del a
        assert live.bytes == 16 * KIB
        del b
    assert (live.bytes, live.peak_bytes) == (0, 80 * KIB)


def test_views_do_not_count_twice_and_keep_the_whole_alive():
    with LiveTensors() as live:
        whole = kib(64)
        part = whole.view(64, KIB)[3:5].t()
        assert live.bytes == 64 * KIB
        del whole
        assert live.bytes == 64 * KIB
        del part
    assert live.bytes == 0


def test_what_is_done_in_place_takes_nothing():
    with LiveTensors() as live:
        a = kib(64)
        a.add_(1).mul_(2)
        torch.add(a, 1, out=a)
    assert live.peak_bytes == 64 * KIB


def test_a_storage_that_grows_is_counted_with_its_new_size():
    with LiveTensors() as live:
        a = kib(1)
        a.resize_(64 * KIB)
        assert live.bytes == 64 * KIB


def test_what_was_there_before_counts_from_its_first_use_or_from_the_start_if_told():
    before, unused = kib(64), kib(8)
    with LiveTensors() as live:
        assert live.bytes == 0
        before.view(-1)
        assert live.bytes == 64 * KIB
        live.count(before, unused)
        assert live.bytes == 72 * KIB


def test_what_autograd_keeps_counts_until_the_way_back_is_done():
    x = torch.zeros(KIB, requires_grad=True)  # 4 KiB
    with LiveTensors() as live:
        live.count(x)
        y = x.exp().exp()  # each keeps its result, the inner one has no other holder
        assert live.bytes == 12 * KIB
        y = y.sum()
        assert live.bytes == 12 * KIB + 4
        y.backward()
        del y
        assert live.bytes == 8 * KIB  # x and its gradient


def test_the_peak_without_gradients_is_one_input_and_one_output():
    layers = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    x = torch.zeros(128, 64)

    def work():
        with torch.no_grad():
            return layers(x)

    weights, map_ = 10 * 64 * 64 * 4, 128 * 64 * 4
    # the batch itself stays, and two maps meet in every layer but the first
    assert peak_memory(work, layers, x) == weights + 3 * map_


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 8)
    )


WEIGHTS = 4 * (64 * 256 + 256 + 256 * 64 + 64 + 64 * 8 + 8)
BATCH = 32


def step_of(network: nn.Module, optimizer, x, y):
    def step():
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(network(x), y).backward()
        optimizer.step()

    return step


def trained(network: nn.Module, *, n_warm: int, batch: int = BATCH):
    """Return the peak of a step of AdamW after `n_warm` of them."""
    x, y = torch.zeros(batch, 64), torch.zeros(batch, 8)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    step = step_of(network, optimizer, x, y)
    for _ in range(n_warm):
        step()
    return peak_memory(step, network, optimizer, x, y)


def test_full_fine_tuning_is_weights_gradients_moments_and_activations():
    batch = 4096  # so many that the way back, not the optimizer's step, is the peak
    moments = 2 * WEIGHTS + 6 * 4  # one number per tensor: the count of steps
    data = batch * (64 + 8) * 4
    # ReLU keeps its result alone, the linear layer that follows the same one
    kept = batch * (256 + 64 + 8) * 4
    # the largest moment: back from the first ReLU, gradient of its result and of its input, whose
    # kept values are there still; the outputs of the layers above are gone
    largest = batch * (256 + 256 + 256) * 4
    found = trained(net(), n_warm=1, batch=batch)
    lower = data + WEIGHTS + moments + max(kept, largest)
    assert lower <= found <= 1.02 * (lower + WEIGHTS)


def test_the_optimizers_step_is_weights_gradients_moments_and_one_temporary():
    found = trained(net(), n_warm=1, batch=1)
    largest = 4 * 64 * 256  # AdamW works on one tensor at a time, with at most two of its size
    assert 4 * WEIGHTS + largest <= found <= 4 * WEIGHTS + 2 * largest + 4 * KIB


def test_frozen_weights_have_no_gradient_and_no_moments():
    network = net().requires_grad_(False)
    network[-1].requires_grad_(True)
    assert WEIGHTS < trained(network, n_warm=1, batch=1) < 1.1 * WEIGHTS


def test_fake_tensors_give_the_same_peak_without_the_arithmetic():
    with FakeTensorMode():
        faked = trained(net(), n_warm=1)
    assert faked == trained(net(), n_warm=1)


def test_a_network_with_peft_adapters_is_counted_adapters_included():
    from peft import LoraConfig, get_peft_model

    base = net()
    network = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "2"]))
    x = torch.zeros(1, 64)
    adapters = 4 * 2 * (64 + 256 + 256 + 64)
    with torch.no_grad():
        found = peak_memory(lambda: network(x), network, x)
    assert WEIGHTS + adapters < found < WEIGHTS + adapters + 8 * KIB


def test_weights_without_storage_of_their_own_count_once():
    tied = nn.ModuleList([nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)])
    tied[1].weight = tied[0].weight
    with LiveTensors() as live:
        live.count(tied)
    assert live.bytes == 64 * 64 * 4


def test_the_same_work_gives_the_same_peak():
    gc.disable()  # nothing hangs on the collector: no cycles keep tensors
    try:
        peaks = {trained(net(), n_warm=1) for _ in range(3)}
    finally:
        gc.enable()
    assert len(peaks) == 1


def test_a_device_that_can_not_be_measured_is_refused():
    with pytest.raises(ValueError, match="device is 'meta'; 'cpu' or a CUDA device"):
        peak_memory(lambda: None, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_on_a_gpu_the_allocators_peak_is_returned():
    before = torch.cuda.memory_allocated()
    found = peak_memory(lambda: torch.zeros(2**20, device="cuda"), device="cuda")
    assert found - before == 2**22
