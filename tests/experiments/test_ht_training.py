"""What a step of `h_tuning` learns from, what it leaves alone, and whose weights are kept."""

import numpy as np
import pytest
import torch

from metaecg.adapt.h_tuning import HTuning
from metaecg.adapt.methods import prepare_network, running_statistics, trained_parameters
from metaecg.errors import AdaptationError
from metaecg.experiments.ht_config import HTConfig
from metaecg.experiments.ht_methods import METHODS, FineTuning
from metaecg.experiments.ht_training import FirstOrder, Trainer, fine_tune, shuffled_batches
from metaecg.models.backbones.cnn_transformer import CNNTransformer

N_CLASSES = 3
CONFIG = HTConfig(train={"n_steps": 4, "batch_size": 6, "lr": 1e-2}, h_tuning={"chunk": 2})


def make_network() -> CNNTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return CNNTransformer(n_leads=12, n_samples=256, fs_hz=100.0, n_classes=N_CLASSES)


def make_records(n: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.eye(N_CLASSES, dtype=np.uint8)[np.arange(n) % N_CLASSES]
    signals = rng.standard_normal((n, 12, 256)).astype(np.float32)
    return signals + 2.0 * labels.argmax(axis=1)[:, None, None].astype(np.float32), labels


def make_trainer(name: str, config: HTConfig = CONFIG, *, method: FineTuning | None = None):
    method = method or METHODS[name]
    return Trainer(
        make_network(), method, config, settings=HTuning(), n_records=6, seed=1
    )  # fmt: skip


def run(trainer: Trainer, *, patience: int = 10, validation=None):
    validation = validation or make_records(9, seed=8)
    return fine_tune(trainer, make_records(6), validation, check_every=2, patience=patience, seed=5)


def gradients(*, micro_batch: int | None, batch_norm: str) -> list[torch.Tensor]:
    network = prepare_network(make_network(), "h-tuning", rank=4)
    signals, labels = make_records(7)
    step = FirstOrder(network, micro_batch=micro_batch, batch_norm=batch_norm)
    step.backward(torch.from_numpy(signals), torch.as_tensor(labels, dtype=torch.float32))
    return [parameter.grad for parameter in step.parameters]


def test_gradients_of_pieces_add_up_to_that_of_the_whole():
    whole = gradients(micro_batch=None, batch_norm="eval")
    for size in (2, 3, 16):
        pieces = gradients(micro_batch=size, batch_norm="eval")
        for mine, other in zip(pieces, whole, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_statistics_of_the_batch_give_another_gradient():
    whole = gradients(micro_batch=None, batch_norm="eval")
    fresh = gradients(micro_batch=None, batch_norm="train")
    assert any(not torch.allclose(a, b, rtol=0.1) for a, b in zip(whole, fresh, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_moves_only_what_it_says(name):
    trainer = make_trainer(name)
    before = {n: p.detach().clone() for n, p in trainer.network.named_parameters()}
    statistics = [t.clone() for _, t in running_statistics(trainer.network)]
    course = run(trainer)
    learned = set(trained_parameters(trainer.network))
    for n, parameter in trainer.network.named_parameters():
        if n not in learned:
            assert torch.equal(parameter, before[n]), n
    moved = {
        n
        for n in learned
        if not torch.equal(dict(trainer.network.named_parameters())[n], before[n])
    }
    assert moved
    after = [t for _, t in running_statistics(trainer.network)]
    stays = all(torch.equal(a, b) for a, b in zip(statistics, after, strict=True))
    assert stays == (METHODS[name].gradient == "first-order" and METHODS[name].batch_norm == "eval")
    assert course.n_trained == sum(before[n].numel() for n in learned)


def test_frozen_early_blocks_do_not_learn():
    names = trained_parameters(make_trainer("lora-frozen-early").network)
    assert not any("conv_blocks.0" in name or "conv_blocks.1" in name for name in names)
    assert any("conv_blocks.2" in name for name in names)


def test_the_network_has_the_weights_of_its_best_look(monkeypatch):
    weights, scores = [], iter([0.4, 0.6, 0.5])

    def scored(network, signals, labels):
        weights.append([p.detach().clone() for p in trained_parameters(network).values()])
        return next(scores)

    monkeypatch.setattr("metaecg.experiments.ht_training.score", scored)
    trainer = make_trainer("full", HTConfig(train={"n_steps": 6, "batch_size": 6}))
    course = run(trainer)
    assert (course.best_step, course.scores) == (4, {2: 0.4, 4: 0.6, 6: 0.5})
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, weights[1], strict=True))


def test_training_ends_when_the_validation_no_longer_gets_better(monkeypatch):
    monkeypatch.setattr("metaecg.experiments.ht_training.score", lambda *arguments: 0.5)
    trainer = make_trainer("head", HTConfig(train={"n_steps": 100, "batch_size": 6}))
    course = run(trainer, patience=3)
    assert (len(course.losses), course.best_step) == (8, 2)


def test_a_loss_that_is_not_finite_ends_the_job():
    config = HTConfig(train={"n_steps": 4, "batch_size": 6, "lr_full": 1e30})
    with pytest.raises(AdaptationError, match="not finite|no longer finite|loss is"):
        run(make_trainer("full", config))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_stream_alone():
    state = torch.get_rng_state()
    first, second = make_trainer("h-tuning"), make_trainer("h-tuning")
    assert run(first).losses == run(second).losses
    assert torch.equal(torch.get_rng_state(), state)
    for mine, other in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(mine, other)


def test_a_random_sign_changes_the_step_and_nothing_before_it():
    plain, control = make_trainer("h-tuning"), make_trainer("h-tuning-random-sign")
    losses = run(plain).losses, run(control).losses
    assert losses[0][0] == losses[1][0]
    assert losses[0] != losses[1]


def test_a_batch_that_is_everything_comes_in_another_order_each_time():
    batches = shuffled_batches(5, 5, torch.Generator().manual_seed(0))
    first, second = next(batches).tolist(), next(batches).tolist()
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


def test_too_few_for_a_batch_wait_for_the_next_order():
    batches = shuffled_batches(7, 3, torch.Generator().manual_seed(0))
    assert [len(next(batches)) for _ in range(5)] == [3] * 5
