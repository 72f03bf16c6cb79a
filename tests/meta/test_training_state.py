"""A meta-training goes on from its checkpoint as if never stopped; damaged or foreign ones don't."""

import json
import math

import numpy as np
import pytest
import torch
from swapped_patients import TRAINING, make_windows
from torch import nn

from metaecg.data.augment import Augmentation
from metaecg.errors import AdaptationError, CheckpointError, DataError, MetaECGWarning
from metaecg.meta.algorithms import ALGORITHMS, Algorithm
from metaecg.meta.func_engine import FuncEngine
from metaecg.meta.loop import meta_train
from metaecg.meta.training_state import Checkpoint
from metaecg.tasks.curriculum import PACINGS, Curriculum, RunningLoss
from metaecg.tasks.sampler import TaskSampler

N_ITERATIONS = 9


class StopHere(Exception):
    """Stands for whatever stops a training."""


class Setup:
    """A small training with everything that can have a state: dropout, running losses, rates."""

    def __init__(
        self, *, algorithm="maml", pacing="self-paced", outer_lr=0.01, width=6, seed=3, augment=None
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Flatten(), nn.Linear(8, width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 2)
            )
        if algorithm == "anil":
            self.network = _Headed(self.network)
        self.engine = FuncEngine(
            self.network, Algorithm(name=algorithm, inner_lr=0.2, inner_steps=2)
        )
        self.sampler = TaskSampler(make_windows(), n_shots=3, n_query=3)
        self.curriculum = Curriculum(
            TRAINING,
            pacing=pacing,
            difficulty=RunningLoss(range(len(TRAINING))),
            n_iterations=N_ITERATIONS,
            meta_batch_size=2,
            rng=np.random.default_rng(seed),
        )
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.augment, self.augment_generator = augment, torch.Generator().manual_seed(seed + 1)
        self.outer_lr = outer_lr

    def run(self, **settings):
        self.found = meta_train(
            self.network,
            engine=self.engine,
            sampler=self.sampler,
            curriculum=self.curriculum,
            n_iterations=N_ITERATIONS,
            outer_lr=self.outer_lr,
            rng=self.rng,
            generator=self.generator,
            augment=self.augment,
            augment_generator=self.augment_generator,
            **settings,
        )
        return self

    def end(self) -> dict:
        """Everything that a training leaves, in comparable form."""
        tensors = {**self.network.state_dict(), **self.found.rates}
        return {
            "tensors": {name: value.tolist() for name, value in tensors.items()},
            "history": self.found.history,
            "curriculum": self.curriculum.state(),
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state().tolist(),
            "augment_generator": self.augment_generator.get_state().tolist() * bool(self.augment),
        }


class _Headed(nn.Module):
    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.features, self.head = layers[:-1], layers[-1]

    def forward(self, x):
        return self.head(self.features(x))


def stop_at(n: int, error=StopHere):
    def on_step(iteration, values):
        if iteration == n:
            raise error

    return on_step


def stopped(path, *, at, every=100, error=StopHere, made_with=None, **settings) -> Checkpoint:
    """Run a training that stops after iteration `at`; return its checkpoint."""
    checkpoint = Checkpoint(path=path / "state.safetensors", every=every, made_with=made_with or {})
    with pytest.raises(error):
        Setup(**settings).run(checkpoint=checkpoint, on_step=stop_at(at, error))
    return checkpoint


@pytest.mark.parametrize(
    ("algorithm", "at"),
    [("maml", 0), ("maml", N_ITERATIONS - 1), *((name, 5) for name in ALGORITHMS)],
)
def test_a_training_that_was_stopped_goes_on_to_the_same_end_bit_for_bit(tmp_path, algorithm, at):
    expected = Setup(algorithm=algorithm).run().end()
    checkpoint = stopped(tmp_path, at=at, algorithm=algorithm)
    # Other seeds: all that is random must come from the checkpoint.
    resumed = Setup(algorithm=algorithm, seed=99)
    seen = []
    resumed.run(start=checkpoint.load(), on_step=lambda iteration, _: seen.append(iteration))
    assert resumed.end() == expected
    assert seen == list(range(at + 1, N_ITERATIONS))


def test_an_augmented_training_goes_on_too(tmp_path):
    augment = Augmentation(gain=0.3, polarity=0.5, baseline=0.3, time_warp=0.1, probability=0.8)
    expected = Setup(augment=augment).run().end()
    assert expected["tensors"] != Setup().run().end()["tensors"]
    checkpoint = stopped(tmp_path, at=4, augment=augment)
    assert Setup(augment=augment, seed=99).run(start=checkpoint.load()).end() == expected


@pytest.mark.parametrize("pacing", PACINGS)
def test_the_curriculum_goes_on_too(tmp_path, pacing):
    expected = Setup(pacing=pacing).run().end()
    checkpoint = stopped(tmp_path, at=4, pacing=pacing)
    assert Setup(pacing=pacing, seed=99).run(start=checkpoint.load()).end() == expected


def test_a_training_can_be_stopped_again_and_again(tmp_path):
    expected = Setup().run().end()
    checkpoint = stopped(tmp_path, at=1)
    for at in (2, 3, 6):
        with pytest.raises(KeyboardInterrupt):
            Setup().run(
                checkpoint=checkpoint,
                start=checkpoint.load(),
                on_step=stop_at(at, KeyboardInterrupt),
            )
        assert checkpoint.load().n_done == at + 1
    assert Setup().run(start=checkpoint.load(), checkpoint=checkpoint).end() == expected
    assert checkpoint.load().n_done == N_ITERATIONS


def test_a_finished_training_comes_back_without_another_step(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "deep" / "state.safetensors")
    expected = Setup().run(checkpoint=checkpoint).end()
    assert Setup(seed=99).run(start=checkpoint.load(), on_step=stop_at(0)).end() == expected


def test_writing_checkpoints_changes_nothing_of_the_training(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "state.safetensors", every=1)
    assert Setup().run(checkpoint=checkpoint).end() == Setup().run().end()


def test_a_state_is_written_at_the_start_every_so_many_iterations_and_at_the_end(tmp_path):
    class Counted(Checkpoint):
        def save(self, state):
            written.append(state.n_done)

    written: list[int] = []
    Setup().run(checkpoint=Counted(path=tmp_path / "x", every=4))
    assert written == [0, 4, 8, 9]


def test_a_process_that_is_killed_without_warning_loses_what_came_after_the_last_write(tmp_path):
    class Dead(Checkpoint):
        def save(self, state):
            if state.n_done in (0, 4):
                super().save(state)

    path = tmp_path / "state.safetensors"
    with pytest.raises(StopHere):
        Setup().run(checkpoint=Dead(path=path, every=4), on_step=stop_at(6))
    checkpoint = Checkpoint(path=path)
    assert checkpoint.load().n_done == 4
    assert Setup(seed=99).run(start=checkpoint.load()).end() == Setup().run().end()


def poison(setup, *, at: int, what=lambda step: step.support_losses) -> None:
    """Let a number of iteration `at` turn NaN, once."""
    real, calls = setup.engine.meta_gradients, []

    def meta_gradients(parameters, batch, **keywords):
        step = real(parameters, batch, **keywords)
        calls.append(None)
        if len(calls) == at + 1:
            what(step)[1, 0] = math.nan
        return step

    setup.engine.meta_gradients = meta_gradients


def test_a_loss_that_turns_nan_leaves_the_last_good_state_and_says_where(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "state.safetensors")
    setup = Setup()
    poison(setup, at=5)
    with pytest.raises(AdaptationError, match=r"iteration 5: .* at inner step 2 of 2") as caught:
        setup.run(checkpoint=checkpoint)
    said = f"The state after 5 iterations is kept in {checkpoint.path}: --resume goes on"
    assert said in str(caught.value)
    assert checkpoint.load().n_done == 5
    assert Setup(seed=99).run(start=checkpoint.load()).end() == Setup().run().end()


def test_without_a_checkpoint_the_message_promises_none():
    setup = Setup()
    poison(setup, at=0)
    with pytest.raises(AdaptationError) as caught:
        setup.run()
    assert "resume" not in str(caught.value)


def test_a_gradient_that_is_not_finite_leaves_the_last_good_state_too(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "state.safetensors")
    setup = Setup()
    poison(setup, at=3, what=lambda step: step.gradients["1.weight"])
    with pytest.raises(AdaptationError, match="meta-gradient is nan.*after 3 iterations is kept"):
        setup.run(checkpoint=checkpoint)
    assert Setup(seed=99).run(start=checkpoint.load()).end() == Setup().run().end()


def test_nothing_to_go_on_from_is_none(tmp_path):
    assert Checkpoint(path=tmp_path / "nothing").load() is None


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-40], lambda b: b[:100], lambda b: b"", lambda b: b[:-8] + b"\x01" * 8],
    ids=["cut", "cut in the header", "empty", "changed"],
)
def test_a_damaged_checkpoint_counts_as_none_with_a_warning(tmp_path, damage):
    checkpoint = stopped(tmp_path, at=2)
    checkpoint.path.write_bytes(damage(checkpoint.path.read_bytes()))
    with pytest.warns(MetaECGWarning, match=r"state.safetensors is damaged .*starts afresh"):
        assert checkpoint.load() is None


def test_a_change_in_the_header_is_damage(tmp_path):
    checkpoint = stopped(tmp_path, at=2)
    content = checkpoint.path.read_bytes()
    changed = content.replace(rb"\"n_done\": 3", rb"\"n_done\": 2")
    assert changed != content
    checkpoint.path.write_bytes(changed)
    with pytest.warns(MetaECGWarning, match="its checksum is another one"):
        assert checkpoint.load() is None


def test_a_file_of_another_kind_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds format None.*'metaecg-meta-training'"):
        Checkpoint(path=path).load()


def test_a_checkpoint_made_with_other_data_is_refused_and_says_what_differs(tmp_path):
    stopped(tmp_path, at=2, made_with={"data": "abc", "config": {"seed": 1, "folds": [1, 2]}})
    other = {"data": "abc", "config": {"seed": 2, "folds": (1, 2)}}
    message = r"of another training: config.seed was 1, is now 2. Going on would mix"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(path=tmp_path / "state.safetensors", made_with=other).load()


def another_sampler(setup) -> None:
    setup.sampler = TaskSampler(make_windows(), n_shots=3, n_query=4)


def other_windows(setup) -> None:
    setup.sampler.windows.windows[0] += 1


def another_rng(setup) -> None:
    setup.rng = np.random.Generator(np.random.MT19937(3))


@pytest.mark.parametrize(
    ("settings", "change", "said"),
    [
        ({"algorithm": "fomaml"}, None, "algorithm.name was 'maml', is now 'fomaml'"),
        ({"outer_lr": 0.02}, None, "outer_lr was 0.01, is now 0.02"),
        ({"width": 7}, None, r"parameters.1.weight was '\[6, 8\] torch.float32', is now '\[7, 8\]"),
        ({"augment": Augmentation(gain=0.2)}, None, "augment.gain was absent, is now 0.2"),
        ({}, another_sampler, "sampler.n_query was 3, is now 4"),
        ({}, other_windows, "sampler.windows was"),
        ({}, another_rng, "rng was 'PCG64', is now 'MT19937'"),
    ],
)
def test_a_state_of_another_training_is_refused_and_says_what_differs(
    tmp_path, settings, change, said
):
    start = stopped(tmp_path, at=2).load()
    setup = Setup(**settings)
    if change:
        change(setup)
    with pytest.raises(CheckpointError, match=said):
        setup.run(start=start)


def test_any_of_numpys_generators_can_go_on(tmp_path):
    def build():
        setup = Setup()
        setup.rng = np.random.Generator(np.random.MT19937(3))
        return setup

    checkpoint = Checkpoint(path=tmp_path / "state.safetensors")
    with pytest.raises(StopHere):
        build().run(checkpoint=checkpoint, on_step=stop_at(3))
    resumed, straight = build().run(start=checkpoint.load()), build().run()
    assert resumed.end()["tensors"] == straight.end()["tensors"]


def test_a_checkpoint_is_tensors_and_json_with_the_callers_notes(tmp_path):
    from safetensors import safe_open

    checkpoint = Checkpoint(path=tmp_path / "state.safetensors", notes={"before": [1.5]})
    Setup(algorithm="meta-sgd").run(checkpoint=checkpoint)
    assert checkpoint.load().notes == {"before": [1.5]}
    with safe_open(checkpoint.path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        names = set(file.keys())
    assert facts["n_done"] == N_ITERATIONS
    expected = {"network.1.weight", "rates.inner_lr.1.weight", "generator"}
    expected |= {"optimizer.1.weight.exp_avg", "optimizer.inner_lr.1.weight.exp_avg_sq"}
    assert expected <= names


def test_a_disk_without_room_is_named_and_the_last_state_stays(tmp_path, monkeypatch):
    import os

    checkpoint = stopped(tmp_path, at=2)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"can't be written to .*No space left"):
        Setup().run(checkpoint=checkpoint, start=checkpoint.load())
    assert checkpoint.load().n_done == 3
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
