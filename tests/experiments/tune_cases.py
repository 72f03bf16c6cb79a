"""What the tests of `tune` share: a study so small that a trial takes a second."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from metaecg.experiments import tune
from metaecg.experiments.tune_options import make_plan

SMALL = [
    "config.budget_windows=640",
    "config.demo.n_subjects=12",
    "config.demo.duration_s=240",
    "n_inner_folds=2",
    "tracking.enabled=false",
]
CHEAP = ["--method", "head,pretrain+full"]
LONGER = [*SMALL, "config.budget_windows=10000"]  # a trial takes some seconds: time to kill it


def arguments(folder: Path, *more: str, out: str = "study", overrides=SMALL) -> list[str]:
    """Return a command line whose files all lie in `folder`."""
    places = ["--out", str(folder / out), "--cache", str(folder / "cache")]
    return [*places, *CHEAP, *more, *overrides]


def run(folder: Path, *more: str, out: str = "study", overrides=SMALL) -> int:
    """Run the command line in this process; return its exit code."""
    return tune.main(arguments(folder, *more, out=out, overrides=overrides))


def plan_of(folder: Path, **values):
    """Return the plan of a study in `folder`."""
    nested = {"budget_windows": 640, "demo": {"n_subjects": 12, "duration_s": 240}}
    given = {"out": str(folder / "study"), "cache": str(folder / "cache"), "n_inner_folds": 2}
    return make_plan({**given, "method": ["head", "pretrain+full"], "config": nested, **values})


def start(folder: Path, *more: str, out: str = "study", overrides=SMALL) -> subprocess.Popen:
    """Start the command line in a process (and a process group) of its own."""
    command = [sys.executable, "-m", "metaecg.experiments.tune"]
    return subprocess.Popen(
        [*command, *arguments(folder, *more, out=out, overrides=overrides)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # a shell that starts the tests in the background makes them ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def study_of(folder: Path, out: str = "study") -> dict:
    """Return what a study wrote."""
    return json.loads((folder / out / "study.json").read_text())


def values_of(study: dict) -> list[tuple]:
    """Return what must be the same when a study is repeated."""
    return [
        (t["number"], t["state"], t["params"], t["values"], t["intermediate"], t["subject_auc"])
        for t in study["trials"]
    ]


def counted(study: dict) -> list[dict]:
    """Return the trials that count."""
    return [trial for trial in study["trials"] if not trial["is_lost"]]


def running_process(process: subprocess.Popen, url: str, name: str = "study") -> int:
    """Wait until a trial of a command runs; return the number of its process."""
    from metaecg.experiments.tune_storage import opened_storage
    from metaecg.experiments.tune_study import WORKER, find_study

    while process.poll() is None:
        time.sleep(0.3)
        if "postgresql" not in url and not Path(url.partition(":")[2].replace("///", "/")).exists():
            continue
        with opened_storage(url) as storage:
            study = find_study(storage, name)
            for trial in study.get_trials(deepcopy=False) if study else ():
                if trial.state.name == "RUNNING" and WORKER in trial.user_attrs:
                    return int(trial.user_attrs[WORKER].split("|")[1])
    raise AssertionError(f"no trial was begun: {process.communicate()}")


def end(process: subprocess.Popen) -> None:
    """End a process that a test started, and the workers that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
