"""One pass for windows of many patients, against one adapter after another with PEFT's switching.

    python benchmarks/mixed_batch_bench.py [--json FILE] [--base va-base] [--patients 256] [--rounds 7]

One window per patient. Ours is `metaecg.serve.mixed.MixedBatch`; the peer is one PEFT model that holds
all adapters, `set_adapter` and a pass of one window for each patient, in inference mode. Both are fed
the same normalised windows and run in turns, on `--threads` threads. `limit` is the base alone over the same
windows in one pass, without any patient's numbers: what is shared between patients can't be faster.

Adapters of a few fitted detectors are given to all patients, each with small changes of its own, so
that every patient's answer differs. Outputs of the two have to agree to 1e-5.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from metaecg.adapt.adapters import adapter_tensors, document_of
from metaecg.adapt.methods import import_peft
from metaecg.adapt.personalize import Personalizer
from metaecg.models.checkpoints import load_base
from metaecg.serve.adapter_file import packed
from metaecg.serve.mixed import MixedBatch

N_FITTED = 4
CHANGE = 0.05
"""Of a patient's numbers, relative to their own spread."""
TOLERANCE = 1e-5


def patients_tensors(base, n_patients: int, rng: np.random.Generator):
    """Yield the tensors of each patient's adapter, and the document they share."""
    shape = (20, base.n_leads, base.preprocessing.n_samples)
    fitted = []
    for seed in range(N_FITTED):
        windows = rng.normal(size=shape).astype(np.float32)
        personal = Personalizer(base, random_state=seed, n_steps=3).fit(windows, [0, 1] * 10)
        fitted.append((adapter_tensors(personal.network_), document_of(personal)))
    for patient in range(n_patients):
        tensors, document = fitted[patient % N_FITTED]
        yield {name: _changed(tensor, rng) for name, tensor in tensors.items()}, document


def _changed(tensor: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    spread = max(float(tensor.std(correction=0)), 0.01)
    return tensor + CHANGE * spread * torch.from_numpy(rng.normal(size=tensor.shape)).float()


def peft_model(base, patients):
    """Return one PEFT model with all adapters, named by the patient's number."""
    peft = import_peft()
    personal = Personalizer(base, n_steps=0).fit(
        np.zeros((2, base.n_leads, base.preprocessing.n_samples), np.float32), [0, 1]
    )
    config = personal.network_.peft_config["default"]
    model = peft.get_peft_model(base.new_network(), config, adapter_name="0")
    for patient, (tensors, _) in enumerate(patients):
        if patient:
            model.add_adapter(str(patient), config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.set_peft_model_state_dict(model, tensors, adapter_name=str(patient))
    return model.eval()


def one_after_another(model, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of each window by its own patient's adapter, by switching."""
    found = []
    with torch.inference_mode():
        for patient in range(len(x)):
            model.set_adapter(str(patient), inference_mode=True)
            found.append(model(x[patient : patient + 1]))
    return torch.cat(found)


def measure(name: str, n_patients: int, n_rounds: int) -> list[dict]:
    """Return a row per way and a last one that compares them."""
    base, rng = load_base(name), np.random.default_rng(0)
    patients = list(patients_tensors(base, n_patients, rng))
    windows = rng.normal(size=(n_patients, base.n_leads, base.preprocessing.n_samples))
    windows = windows.astype(np.float32)
    mixed = MixedBatch(base)
    adapters = [mixed.reader.read(packed(*patient)) for patient in patients]
    model = peft_model(base, patients)
    x = torch.from_numpy(base.preprocessing.normalize_windows(windows))
    calls = {
        "mixed": lambda: mixed.logits(windows, adapters),
        "limit": lambda: base.logits(windows),
        "peft": lambda: one_after_another(model, x),
    }
    found = {key: call() for key, call in calls.items()}  # the first round loads what is lazy
    times = {key: [] for key in calls}
    for _ in range(n_rounds):
        for key, call in calls.items():
            begin = time.perf_counter(), time.process_time()
            call()
            times[key].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    rows = [row_of(key, values) for key, values in times.items()]
    difference = float(np.abs(found["mixed"] - found["peft"].double().numpy()).max())
    return [*rows, summary(rows, difference, n_patients, adapters)]


def row_of(what: str, times: list[tuple[float, float]]) -> dict:
    """Return medians of wall-clock and processor time."""
    wall, cpu = ([pair[k] for pair in times] for k in (0, 1))
    return {
        "what": what,
        "p50_s": statistics.median(wall),
        "min_s": min(wall),
        "max_s": max(wall),
        "cpu_p50_s": statistics.median(cpu),
    }


def summary(rows: list[dict], difference: float, n_patients: int, adapters) -> dict:
    """Return what the rows say together; outputs that differ end the run."""
    by_name = {row["what"]: row for row in rows}
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"the outputs differ by {difference:.2e}; at most {TOLERANCE} was expected"
        )
    mixed, peft, limit = (by_name[key]["p50_s"] for key in ("mixed", "peft", "limit"))
    return {
        "summary": True,
        "n_patients": n_patients,
        "threads": torch.get_num_threads(),
        "mixed_batch_speedup": peft / mixed,
        "share_of_limit": limit / mixed,
        "max_difference": difference,
        "bytes_per_adapter": statistics.mean(adapter.n_bytes for adapter in adapters),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="va-base")
    parser.add_argument("--patients", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments.base, arguments.patients, arguments.rounds)
    for row in rows[:-1]:
        print(
            f"{row['what']:6s} p50 {row['p50_s'] * 1e3:9.2f} ms (cpu {row['cpu_p50_s'] * 1e3:.2f})"
        )
    last = rows[-1]
    print(
        f"{last['mixed_batch_speedup']:.1f} times as fast as switching, {last['share_of_limit']:.0%} "
        f"of the speed of the base alone; outputs within {last['max_difference']:.1e}"
    )
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
