"""Named streams, and torch's own stream borrowed and given back."""

import pytest
import torch

from metaecg.seeding import borrowed_torch_stream, torch_generator


def test_the_global_stream_goes_on_as_if_nothing_had_been_drawn():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with borrowed_torch_stream(1):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


def test_the_same_seed_draws_the_same_inside():
    drawn = []
    for _ in range(2):
        with borrowed_torch_stream(1):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_the_stream_is_given_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), borrowed_torch_stream(1):
        torch.rand(1)
        raise RuntimeError("stop")
    assert torch.equal(torch.get_rng_state(), before)


def test_gpus_are_not_seeded_for_work_on_the_cpu(monkeypatch):
    def refuse(*_):
        raise AssertionError("a GPU was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    with borrowed_torch_stream(1):
        torch.rand(1)


def test_another_name_is_another_stream():
    first, second = (torch_generator(0, name) for name in ("a", "b"))
    assert first.initial_seed() != second.initial_seed()
