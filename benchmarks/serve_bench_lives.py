"""Whole lives of patients beside the soak's load, in a process of their own: the load has to be on time.

URL, a folder of examples and the pause as arguments, the token in METAECG_TOKEN; a line on
standard output for each life; the end of standard input ends it.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from metaecg.client import Client
from metaecg.data.demo_patients import FS_HZ, LEAD


class Lives:
    """Beside a load: create a patient, upload, label, personalize, judge, stream, delete, again.

    Parameters
    ----------
    url, token
        The server's.
    folder
        Where the examples are put for the other process.
    examples
        Patients with a record and marks; taken in turn.
    pause_s
        Between two lives; 0: there are none.
    """

    def __init__(self, url: str, token: str, *, folder: Path, examples, pause_s: float) -> None:
        self.n = 0
        self._pause_s = pause_s
        self._command = [sys.executable, __file__, url, str(folder), str(pause_s)]
        self._environment = {**os.environ, "METAECG_TOKEN": token}
        for i, example in enumerate(examples):
            np.save(folder / f"life-{i}.npy", example.record.signal_mv)
            (folder / f"life-{i}.json").write_text(json.dumps(example.marks))

    def __enter__(self) -> "Lives":
        if self._pause_s:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(
                self._command, text=True, env=self._environment, **pipes
            )
            self._process.stdout.readline()  # it has imported what it needs
        return self

    def __exit__(self, *_) -> None:
        if not self._pause_s:
            return
        told, _ = self._process.communicate()  # closes its standard input
        self.n = len(told.splitlines())
        if self._process.returncode:
            raise SystemExit("a life beside the soak failed; its words are above")


def one_life(client: Client, signal_mv: np.ndarray, marks: list, name: str) -> None:
    """Take a patient through everything that the API offers, and delete them."""
    client.create_patient(name)
    recording = client.add_recording(name, signal_mv, fs_hz=FS_HZ, unit="mV", lead_names=[LEAD])
    client.mark(name, recording.recording_id, marks)
    client.personalize(name, method="lora", rhythm="none")
    client.predictions(name, recording.recording_id)
    client.proposals(name, recording.recording_id)
    with client.stream(name, fs_hz=FS_HZ, unit="mV", lead_name=LEAD) as stream:
        stream.push(signal_mv[0, :5000])
    client.activate(name, 0)
    client.delete_patient(name)


def main(url: str, folder: str, pause_s: str) -> None:
    """Live until standard input ends."""
    paths = sorted(Path(folder).glob("life-*.npy"))
    examples = [(np.load(p), json.loads(p.with_suffix(".json").read_text())) for p in paths]
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    print("ready", flush=True)
    n = 0
    with Client(url, os.environ["METAECG_TOKEN"]) as client:
        while not is_over.is_set():
            one_life(client, *examples[n % len(examples)], f"life-{n}")
            n += 1
            print(n, flush=True)
            is_over.wait(float(pause_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
