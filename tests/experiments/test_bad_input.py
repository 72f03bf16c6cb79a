"""What goes wrong at the command line: one clear message, the right exit code, nothing half-written."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from metaecg.data.demo import write_demo_database
from metaecg.experiments import va_fewshot

RUN = ["--methods", "scratch", "folds=2", "workers=1", "tracking.enabled=false"]


@pytest.fixture
def data(tmp_path):
    """A copy of generated recordings that a test may damage."""
    write_demo_database(tmp_path / "data", n_subjects=8, duration_s=180.0)
    return tmp_path / "data"


def run(tmp_path, data, *arguments) -> int:
    places = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    return va_fewshot.main([*places, *RUN, *arguments])


def rewrite(file, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def truncate(data):
    file = data / "demo" / "demo03.dat"
    file.write_bytes(file.read_bytes()[:-1000])


def remove_signal(data):
    (data / "demo" / "demo03.dat").unlink()


def empty_annotations(data):
    (data / "demo" / "demo03.atr").write_bytes(b"")


def another_unit(data):
    rewrite(data / "demo" / "demo03.hea", "/mV", "/mmHg")


def no_rate(data):
    rewrite(data / "demo" / "demo03.hea", " 250 ", " 0 ")


def other_signal(data):
    shutil.copy(data / "demo" / "demo04.dat", data / "demo" / "demo03.dat")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cut short"),
        (remove_signal, "is missing"),
        (empty_annotations, "demo03.atr"),
        (another_unit, "mmHg.*expected mV"),
        (no_rate, "sampling rate"),
        (other_signal, "checksum"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_recording_is_named_and_nothing_is_written(
    tmp_path, data, capsys, damage, message
):
    damage(data)
    assert run(tmp_path, data) == 3
    text = capsys.readouterr().err
    assert re.search(message, text), text
    assert "demo03" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache" / "windows").glob("*"))


def test_a_full_disk_while_caching_says_where_and_what_to_do(tmp_path, data, capsys, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert run(tmp_path, data) == 3
    text = capsys.readouterr().err
    assert "No space left on device" in text
    assert "--cache DIR" in text
    assert not [p for p in (tmp_path / "cache" / "windows").iterdir() if not p.name.startswith(".")]


def test_subjects_with_one_class_only_are_a_clear_error(tmp_path, capsys):
    data = tmp_path / "data"
    write_demo_database(data, n_subjects=16, duration_s=180.0)
    for file in (data / "demo").glob("*.hea"):
        if file.stem not in ("demo06", "demo11", "demo16"):  # those without VA
            file.unlink()
    assert run(tmp_path, data) == 3
    text = capsys.readouterr().err
    assert "no held-out subject is eligible" in text
    assert "has 0 windows of class 'va'" in text


def test_one_recording_under_two_names_is_leakage(tmp_path, data, capsys):
    for extension in ("hea", "dat", "atr"):
        shutil.copy(data / "demo" / f"demo03.{extension}", data / "demo" / f"copy.{extension}")
    header = data / "demo" / "copy.hea"
    header.write_text(header.read_text().replace("demo03", "copy"))
    assert run(tmp_path, data) == 3
    text = capsys.readouterr().err
    assert "leakage" in text
    assert "one person under two names" in text


def test_a_full_disk_while_keeping_a_result_says_where_and_what_to_do(
    tmp_path, data, capsys, monkeypatch
):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert run(tmp_path, data) == 3
    text = capsys.readouterr().err
    assert "No space left on device" in text
    assert "give the same command again" in text
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_base_that_is_no_base_is_named(tmp_path, data, capsys):
    assert run(tmp_path, data, "--base", str(tmp_path / "nothing"), "--methods", "lora") == 3
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.arguments={widht: 3}", "Did you mean 'width'"),
        ("pretrain.batch_size=1", "pretrain.batch_size is 1"),
        ("include_seen=true", "only goes with --base"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_prepared(
    tmp_path, data, capsys, override, message
):
    assert run(tmp_path, data, override) == 2
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_one_shot_and_a_split_of_the_support_do_not_go_together(tmp_path, data, capsys):
    methods = ("--methods", "maml+curriculum+prefine+full", "--n-shots", "1")
    assert run(tmp_path, data, *methods) == 2
    assert "splits the support in time" in capsys.readouterr().err


def test_an_unknown_database_is_answered_with_the_nearest(tmp_path, data, capsys):
    assert run(tmp_path, data, "--databases", "vfbd") == 3
    assert "vfdb" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_training_stops_with_one_line_and_leaves_no_process(tmp_path, data, number):
    places = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    methods = ["--methods", "maml,pretrain", "folds=2", "budget_windows=2000000", "workers=2"]
    command = [sys.executable, "-m", "metaecg.experiments.va_fewshot", *places, *methods]
    # A shell would start a background process with SIGINT ignored; a terminal does not.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(8)  # well inside the training of the workers
    os.killpg(process.pid, number)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "interrupted. Finished parts are kept" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run" / "results.json").exists()
    assert group_is_gone(process.pid)


def group_is_gone(number: int) -> bool:
    """Wait a little for Python's own helper processes, which end just after the last of ours."""
    for _ in range(100):
        try:
            os.killpg(number, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


def test_equal_annotation_files_of_two_patients_are_no_leakage(tmp_path, data):
    from metaecg.data.datasets import prepare
    from metaecg.evaluate.protocol import eligibility
    from metaecg.experiments.config import build_config
    from metaecg.experiments.va_splits import splits_of

    shutil.copy(data / "demo" / "demo01.atr", data / "demo" / "demo02.atr")
    dataset = prepare(data, ["demo"])
    who = eligibility(dataset, protocol="deploy", n_shots=10)
    splits = splits_of(build_config({"folds": 2}), dataset, who)
    assert {s for split in splits for s in split.test} == set(dataset.subject_ids)
