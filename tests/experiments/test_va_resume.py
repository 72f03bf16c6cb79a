"""``--resume``: an interrupted run goes on within its meta-trainings, to the same numbers."""

import json
import signal
import subprocess
import sys
import time

import pytest
from safetensors import safe_open

from metaecg.experiments import va_fewshot, va_meta

METHOD = "maml+curriculum+full"
SMALL = ["--methods", METHOD, "folds=3", "max_folds=1", "budget_windows=2400", "workers=1"]
SMALL += [
    "demo.n_subjects=12",
    "demo.duration_s=240",
    "meta.inner_steps=2",
    "personalize.n_steps=2",
]
SMALL += ["tracking.enabled=false"]
JOB = "fold-0--seed-0--maml+curriculum"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Prepared windows, shared by all runs here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def straight(cache):
    """A run without an interruption."""
    out = cache / "straight"
    assert run(out, cache, "keep_jobs=true") == 0
    return out


def run(out, cache, *arguments) -> int:
    return va_fewshot.main(["--out", str(out), "--cache", str(cache), *SMALL, *arguments])


def facts_of(out) -> dict:
    facts = json.loads((out / "jobs" / JOB / "job.json").read_text())
    return {name: facts[name] for name in ("history", "curriculum")}


def same_end(out, other) -> bool:
    """Whether weights, course and curriculum of two runs that kept their jobs are the same."""
    weights = [
        (o / "jobs" / JOB / "base" / "weights.safetensors").read_bytes() for o in (out, other)
    ]
    return weights[0] == weights[1] and facts_of(out) == facts_of(other)


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that lets the next run stop at a meta-iteration."""

    def set_stop(at: int, *, error=KeyboardInterrupt) -> list[int]:
        seen: list[int] = []
        real = va_meta.meta_learn

        def meta_learn(kind, config, windows, fold, seed, on_step, **settings):
            def stopping(step, values, cost=1):
                on_step(step, values, cost)
                if cost == va_meta.META_COST:
                    seen.append(step)
                    if len(seen) == at:
                        raise error

            return real(kind, config, windows, fold, seed, stopping, **settings)

        monkeypatch.setattr("metaecg.experiments.va_bases.meta_learn", meta_learn)
        return seen

    return set_stop


def checkpoint_of(out):
    return out / "jobs" / f"{JOB}.safetensors"


def warm_starts(monkeypatch) -> list[int]:
    """Count the steps of supervised training."""
    from metaecg.meta import supervised

    found, real = [], supervised.pretrain

    def pretrain(*arguments, **keywords):
        found.append(keywords["n_steps"])
        return real(*arguments, **keywords)

    monkeypatch.setattr(supervised, "pretrain", pretrain)
    return found


def test_an_interrupted_training_goes_on_to_the_same_numbers_bit_for_bit(
    tmp_path, cache, straight, interrupt, monkeypatch, capsys
):
    interrupt(2)
    assert run(tmp_path / "out", cache, "keep_jobs=true") == 130
    assert "with --resume from within the meta-trainings" in capsys.readouterr().err
    assert checkpoint_of(tmp_path / "out").exists()
    told, supervised = interrupt(10**6), warm_starts(monkeypatch)
    assert run(tmp_path / "out", cache, "keep_jobs=true", "--resume") == 0
    assert f"meta-trainings go on: {JOB} at iteration 2." in capsys.readouterr().err
    assert supervised == []  # the warm start is not repeated
    assert told == list(range(len(told))) and len(told) >= 5  # what was before is told again
    assert same_end(tmp_path / "out", straight)
    assert not checkpoint_of(tmp_path / "out").exists()


def test_an_augmented_training_goes_on_to_the_same_numbers_too(
    tmp_path, cache, straight, interrupt, capsys
):
    augment = ["augment.noise=0.2", "augment.time_warp=0.1", "augment.polarity=0.5"]
    augment += ["keep_jobs=true"]
    assert run(tmp_path / "straight", cache, *augment) == 0
    assert not same_end(tmp_path / "straight", straight)
    interrupt(2)
    assert run(tmp_path / "out", cache, *augment) == 130
    with safe_open(checkpoint_of(tmp_path / "out"), framework="pt") as file:
        settings = json.loads(file.metadata()["facts"])["settings"]
    assert settings["augment"]["time_warp"] == 0.1  # of the tasks, not of the warm start alone
    interrupt(10**6)
    assert run(tmp_path / "out", cache, *augment, "--resume") == 0
    assert f"meta-trainings go on: {JOB} at iteration 2." in capsys.readouterr().err
    assert same_end(tmp_path / "out", tmp_path / "straight")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    described = results["methods"][METHOD]["description"]
    assert "(augment: polarity=0.5, noise=0.2, time_warp=0.1)" in described


def test_without_resume_a_training_starts_afresh_and_says_what_could_have_been(
    tmp_path, cache, straight, interrupt, monkeypatch, capsys
):
    interrupt(2)
    assert run(tmp_path / "out", cache, "keep_jobs=true") == 130
    supervised = warm_starts(monkeypatch)
    interrupt(10**6)
    assert run(tmp_path / "out", cache, "keep_jobs=true") == 0
    assert (
        f"interrupted meta-trainings start afresh: {JOB} at iteration 2." in capsys.readouterr().err
    )
    assert len(supervised) == 1
    assert same_end(tmp_path / "out", straight)


def test_a_run_that_stops_after_its_training_does_not_train_again(
    tmp_path, cache, straight, monkeypatch
):
    from metaecg.experiments import va_jobs
    from metaecg.meta.func_engine import FuncEngine

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(va_jobs, "predict_subject", interrupted)
        assert run(tmp_path / "out", cache, "keep_jobs=true") == 130
    monkeypatch.setattr(FuncEngine, "meta_gradients", None)  # a call would fail
    assert run(tmp_path / "out", cache, "keep_jobs=true", "--resume") == 0
    assert same_end(tmp_path / "out", straight)


def test_a_loss_that_turns_nan_exits_with_3_and_resumes_to_the_same_numbers(
    tmp_path, cache, straight, monkeypatch, capsys
):
    from metaecg.meta.func_engine import FuncEngine

    real, calls = FuncEngine.meta_gradients, []

    def meta_gradients(self, *arguments, **keywords):
        step = real(self, *arguments, **keywords)
        calls.append(None)
        if len(calls) == 3:
            step.support_losses[1, 0] = float("nan")
        return step

    monkeypatch.setattr(FuncEngine, "meta_gradients", meta_gradients)
    assert run(tmp_path / "out", cache, "keep_jobs=true") == 3
    text = capsys.readouterr().err
    assert "error: meta-training, iteration 2: the loss of subject 'demo/demo" in text
    assert "at inner step 2 of 2, on the support, is nan" in text
    assert f"after 2 iterations is kept in {checkpoint_of(tmp_path / 'out')}: --resume" in text
    assert "Traceback" not in text
    assert run(tmp_path / "out", cache, "keep_jobs=true", "--resume") == 0
    assert same_end(tmp_path / "out", straight)


def test_a_checkpoint_of_other_settings_is_refused_before_anything_is_replaced(
    tmp_path, cache, interrupt, capsys
):
    interrupt(2)
    assert run(tmp_path / "out", cache) == 130
    before = (tmp_path / "out" / "config.yaml").read_text()
    kept = checkpoint_of(tmp_path / "out").read_bytes()
    assert run(tmp_path / "out", cache, "--resume", "meta.inner_lr=0.01") == 3
    text = capsys.readouterr().err
    assert "checkpoint: " in text and JOB in text
    assert "config.meta.inner_lr was 0.05, is now 0.01" in text
    assert (tmp_path / "out" / "config.yaml").read_text() == before
    assert checkpoint_of(tmp_path / "out").read_bytes() == kept


def test_personalization_may_change_before_a_training_goes_on(tmp_path, cache, interrupt, capsys):
    interrupt(2)
    assert run(tmp_path / "out", cache) == 130
    interrupt(10**6)
    assert run(tmp_path / "out", cache, "--resume", "personalize.n_steps=1") == 0
    assert "meta-trainings go on" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_said_and_that_training_starts_afresh(
    tmp_path, cache, straight, interrupt, capsys
):
    interrupt(2)
    assert run(tmp_path / "out", cache, "keep_jobs=true") == 130
    checkpoint = checkpoint_of(tmp_path / "out")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    interrupt(10**6)
    assert run(tmp_path / "out", cache, "keep_jobs=true", "--resume") == 0
    assert f"{checkpoint} is damaged" in capsys.readouterr().err
    assert same_end(tmp_path / "out", straight)


def test_resume_with_nothing_to_resume_says_so_and_starts(tmp_path, cache, capsys):
    assert run(tmp_path / "out", cache, "--resume", "--methods", "scratch") == 0
    said = f"--resume: there is nothing to go on with in {tmp_path / 'out'}; starting afresh."
    assert said in capsys.readouterr().err


def test_resume_keeps_finished_jobs(tmp_path, cache, straight, capsys):
    assert run(straight, cache, "--resume", "keep_jobs=true") == 0
    assert "--resume: finished jobs taken up: 1." in capsys.readouterr().err


def n_written(path) -> int:
    """Return the iterations done at the last write of a checkpoint; -1 if there is none yet."""
    if not path.exists():
        return -1
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["facts"])["n_done"]


@pytest.mark.slow
def test_a_real_process_that_gets_sigterm_in_two_workers_is_gone_on_with(tmp_path, cache, capsys):
    longer = [
        "--methods",
        "maml+full,maml+curriculum+full",
        "budget_windows=30000",
        "keep_jobs=true",
    ]
    longer += ["network.arguments={width: 8}", "meta.first_order=true"]
    places = ["--out", str(tmp_path / "cut"), "--cache", str(cache)]
    command = [sys.executable, "-m", "metaecg.experiments.va_fewshot", *places, *SMALL, *longer]
    process = subprocess.Popen([*command, "workers=2"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while n_written(checkpoint_of(tmp_path / "cut")) < 25 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert 25 <= n_written(checkpoint_of(tmp_path / "cut")) < 62
    assert run(tmp_path / "cut", cache, *longer, "--resume") == 0
    assert "meta-trainings go on" in capsys.readouterr().err
    assert run(tmp_path / "straight", cache, *longer) == 0
    assert same_end(tmp_path / "cut", tmp_path / "straight")
