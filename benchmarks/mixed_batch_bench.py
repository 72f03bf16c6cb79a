"""One pass for windows of many patients, against one adapter after another with PEFT's switching.

    python benchmarks/mixed_batch_bench.py [--json FILE] [--base va-base] [--patients 256] [--rounds 7]

One window per patient, all in turns in the same run, on `--threads` threads:

    mixed        ours, `metaecg.serve.mixed.MixedBatch`: checks and normalisation of the windows included
    peft         one PEFT model that holds all adapters: for each patient `set_adapter` and a pass of one
                 window, in inference mode
    peft-passes  the same passes without a switch between them, as if switching took no time (its
                 answers are those of one patient)
    peft-names   PEFT's own mixed batch, ``model(x, adapter_names=[...])``: a loop over adapters in each layer
    base         the base alone over the same windows in one pass of torch, without any patient's numbers

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


def without_switching(model, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of each window by whatever adapter is active."""
    with torch.inference_mode():
        return torch.cat([model(x[patient : patient + 1]) for patient in range(len(x))])


def by_names(model, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of all windows by PEFT's own way to mix adapters."""
    with torch.inference_mode():
        return model(x, adapter_names=[str(patient) for patient in range(len(x))])


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
        "base": lambda: base.logits(windows),
        "peft": lambda: one_after_another(model, x),
        "peft-passes": lambda: without_switching(model, x),
        "peft-names": lambda: by_names(model, x),
    }
    found = {key: call() for key, call in calls.items()}  # the first round loads what is lazy
    times = {key: [] for key in calls}
    for _ in range(n_rounds):
        for key, call in calls.items():
            begin = time.perf_counter(), time.process_time()
            call()
            times[key].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    rows = [row_of(key, values) for key, values in times.items()]
    peers = [found[key].double().numpy() for key in ("peft", "peft-names")]
    difference = max(float(np.abs(found["mixed"] - peer).max()) for peer in peers)
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
    mixed = by_name["mixed"]["p50_s"]
    ratio = {name: row["p50_s"] / mixed for name, row in by_name.items()}
    return {
        "summary": True,
        "n_patients": n_patients,
        "threads": torch.get_num_threads(),
        "mixed_batch_speedup": ratio["peft"],
        "over_passes_without_switching": ratio["peft-passes"],
        "over_peft_names": ratio["peft-names"],
        "speed_of_the_base_alone": ratio["base"],
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
            f"{row['what']:11s} p50 {row['p50_s'] * 1e3:9.2f} ms (cpu {row['cpu_p50_s'] * 1e3:.2f})"
        )
    last = rows[-1]
    print(
        f"{last['mixed_batch_speedup']:.1f} times as fast as switching, "
        f"{last['over_passes_without_switching']:.1f} times as fast as its passes alone, "
        f"{last['speed_of_the_base_alone']:.0%} of the speed of the base alone in torch; outputs "
        f"within {last['max_difference']:.1e}"
    )
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
