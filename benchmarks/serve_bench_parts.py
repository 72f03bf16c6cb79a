"""The parts of the server benchmark that need a running server; each returns rows for ``--json``."""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from serve_bench_lives import Lives
from serve_bench_load import Answers, http_request, percentile, poisson_times, send_all
from serve_bench_patients import (
    N_SHOTS,
    Example,
    expected_probability,
    fill_store,
    fit_some,
    make_examples,
    make_windows,
    many_adapters,
    patient_name,
    predict_requests,
)
from serve_bench_server import MemoryWatch, Server, growth, metaecg_server, running

from metaecg import Personalizer, load_base
from metaecg.client import Client
from metaecg.data.demo_patients import FS_HZ
from metaecg.data.windows import cut_at
from metaecg.serve.adapter_file import load_adapter

N_COMPARED = 50
"""Patients whose answer is compared with the library's own."""
WARM_UP_S = 3.0
LIMIT_P99_S = 0.1
MIXED_ITEMS = 1000


@dataclass(kw_only=True)
class Bench:
    """What all parts share: settings, a folder, patients and their detectors."""

    folder: Path
    n_patients: int = 1000
    n_stored: int = 10_000
    n_personalizations: int = 100
    rate: float = 200.0
    requests_s: float = 60.0
    soak_s: float = 600.0
    life_s: float = 10.0
    n_fitted: int = 8
    n_starts: int = 3
    ladder: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    """Multiples of `rate` that are tried, too, until the server can't follow."""
    caches_mb: tuple[int, ...] = (16, 4096)
    """Bounds of the cache in the part start: far below what all detectors need, and above it."""
    model: str = "va-base"

    @cached_property
    def base(self):
        """The base, in this process: for fits and comparisons."""
        import torch

        torch.set_num_threads(1)  # as the server's default
        return load_base(self.model)

    @cached_property
    def examples(self) -> list[Example]:
        return make_examples(self.base, self.n_fitted)

    @cached_property
    def fitted(self) -> list[Personalizer]:
        return fit_some(self.base, self.examples)

    @cached_property
    def adapters(self) -> list[bytes]:
        return many_adapters(self.fitted, self.n_patients)

    @cached_property
    def windows(self) -> np.ndarray:
        return make_windows(self.base, self.examples, self.n_patients)

    @cached_property
    def store(self) -> tuple[str, str]:
        """Address and token of a store with `n_patients` patients and their detectors."""
        url = f"sqlite:///{self.folder / 'bench.db'}"
        return url, fill_store(url, self.adapters, self.fitted)

    def due_s(self, rate: float, duration_s: float) -> np.ndarray:
        """Return the same arrival times whenever the same is asked for."""
        return poisson_times(rate, duration_s, np.random.default_rng(int(rate)))


PEERS = {
    "threads": "peer: a Personalizer per patient, in threads",
    "loop": "peer: the same, one request after the other",
}
"""What `serve_bench_peer` can be, and the names of their rows."""


def say(text: str) -> None:
    """Tell the person who waits how far it is."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def personalize(bench: Bench) -> list[dict]:
    """Time personalizations through the API, each beside the library's own fit of the same labels."""
    asked, server_s, library_s, gaps = [], [], [], []
    url = f"sqlite:///{bench.folder / 'personalize.db'}"
    token = fill_store(url, [], [])
    with metaecg_server(url, model=bench.model) as server, Client(server.url, token) as client:
        names = [f"new-{i}" for i in range(len(bench.examples))]
        for name, example in zip(names, bench.examples, strict=True):
            client.create_patient(name)
            recording = client.add_recording(name, example.record)
            client.mark(name, recording.recording_id, example.marks)
        pairs = itertools.cycle(zip(names, bench.examples, strict=True))
        for i, (name, example) in enumerate(itertools.islice(pairs, bench.n_personalizations + 1)):
            begin = time.perf_counter()
            found = client.personalize(name, method="lora", rhythm="none")
            asked.append(time.perf_counter() - begin)
            server_s.append(found.fit_seconds)
            begin = time.perf_counter()
            own = Personalizer(bench.base).fit_record(example.record, example.marks)
            library_s.append(time.perf_counter() - begin)
            if i < len(names):
                theirs = load_adapter(client.export_adapter(name, found.version), bench.base)
                windows = _probe(bench, example)
                gap = own.predict_proba(windows) - theirs.predict_proba(windows)
                gaps.append(np.abs(gap).max())
    rows = [
        _timing("server: from the request to the finished job", asked[1:]),
        _timing("server: fit_seconds of its result", server_s[1:]),
        _timing("library: Personalizer.fit_record alone", library_s[1:]),
    ]
    rows[0] |= {"first_s": asked[0], "largest_difference_of_probability": float(max(gaps))}
    return [{"part": "personalize", "n_windows": 2 * N_SHOTS, "method": "lora", **r} for r in rows]


def requests_part(bench: Bench) -> list[dict]:
    """Single-window predictions at a fixed rate: the server, an empty answer, and a plain peer."""
    rows = []
    url, token = bench.store
    questions = predict_requests(bench.windows, token)
    due_s = bench.due_s(bench.rate, bench.requests_s)
    with metaecg_server(url, model=bench.model) as server:
        rows += [_requests_row("server", server, questions, due_s, bench)]
        health = [http_request("GET", "/health")]
        rows += [_requests_row("server, GET /health", server, health, due_s)]
        rows += list(_ladder(bench, server, questions))
    peer = [sys.executable, str(Path(__file__).parent / "serve_bench_peer.py"), url]
    for kind, what in PEERS.items():
        with running([*peer, str(bench.n_patients), kind]) as server:
            rows.append(_requests_row(what, server, questions, due_s, bench))
    return [{"part": "requests", "n_patients": bench.n_patients, **row} for row in rows]


def soak(bench: Bench) -> list[dict]:
    """The same load for long, with a patient's whole life beside it now and then; memory each second."""
    url, token = bench.store
    questions = predict_requests(bench.windows, token)
    with metaecg_server(url, model=bench.model) as server:
        send_all(server.port, questions, bench.due_s(bench.rate, WARM_UP_S))
        due_s = bench.due_s(bench.rate, bench.soak_s)
        processor_s = server.processor_s()
        beside = Lives(
            server.url,
            token,
            folder=bench.folder,
            examples=bench.examples,
            pause_s=bench.life_s,
        )
        with beside as lives, MemoryWatch(server) as watch:
            answers = send_all(server.port, questions, due_s)
        processor_s = server.processor_s() - processor_s
    return [
        {
            "part": "soak",
            "soak_s": bench.soak_s,
            "n_patients": bench.n_patients,
            **answers.facts(),
            **_cost(answers, processor_s),
            "n_lives": lives.n,
            **growth(watch.time_s, watch.rss_bytes),
            "rss_bytes_each_10_s": watch.rss_bytes[::10],
        }
    ]


def start(bench: Bench) -> list[dict]:
    """Start with many stored detectors, ask for all of them, and look at the memory."""
    say(f"storing {bench.n_stored} patients")
    adapters = many_adapters(bench.fitted, bench.n_stored)
    url = f"sqlite:///{bench.folder / 'many.db'}"
    token = fill_store(url, adapters, bench.fitted)
    n_bytes = sum(len(adapter) for adapter in adapters)
    empty = f"sqlite:///{bench.folder / 'empty.db'}"
    fill_store(empty, [], [])
    rows = [_start_row(bench, empty, "", 0, bench.caches_mb[0])]
    for cache_mb in bench.caches_mb:
        rows.append(_start_row(bench, url, token, bench.n_stored, cache_mb))
    return [{"part": "start", "stored_adapter_bytes": n_bytes, **row} for row in rows]


def _requests_row(
    what: str, server: Server, questions: list[bytes], due_s: np.ndarray, bench: Bench | None = None
) -> dict:
    """Warm up, send the load, and return its facts; with `bench` the answers are compared, too."""
    say(f"{what}: {len(due_s)} requests in {due_s[-1]:.0f} s")
    n = len(questions)
    send_all(server.port, questions, np.linspace(0, max(n / 200, WARM_UP_S), max(n, 100)))
    processor_s = server.processor_s()
    answers = send_all(server.port, questions, due_s, keep_bodies=bench is not None)
    cost = _cost(answers, server.processor_s() - processor_s)
    row = {"what": what, **answers.facts(), **cost, "rss_bytes": server.rss_bytes()}
    if bench is not None:
        row["largest_difference_of_probability"] = _largest_difference(bench, answers)
    return row


def _cost(answers: Answers, processor_s: float) -> dict:
    """Return what a server's processor time means, as a share of one core and per good answer."""
    n_good = int((answers.status == 200).sum())
    return {
        "server_processor_share": processor_s / answers.span_s,
        "server_processor_s_per_request": processor_s / n_good if n_good else None,
    }


def _ladder(bench: Bench, server: Server, questions: list[bytes]) -> Iterator[dict]:
    """Raise the rate until the server can't follow, ten seconds each."""
    seconds = min(10.0, bench.requests_s)
    for factor in bench.ladder:
        rate = bench.rate * factor
        row = _requests_row(f"server at {rate:g}/s", server, questions, bench.due_s(rate, seconds))
        yield row
        if row["n_failed"] or row["p99_s"] is None or row["p99_s"] > LIMIT_P99_S:
            return


def _largest_difference(bench: Bench, answers: Answers) -> float:
    """Compare answers with the library's own for the first patients."""
    n = min(N_COMPARED, bench.n_patients)
    gaps = []
    for i in range(n):
        at = np.flatnonzero(np.arange(len(answers.due_s)) % bench.n_patients == i)
        at = [k for k in at if answers.status[k] == 200]
        if not at:
            continue
        expected = expected_probability(bench.base, bench.adapters[i], bench.windows[i])
        for k in at:
            said = json.loads(answers.bodies[k])["windows"][0]["probability"]
            gaps.append(abs(said - expected))
    return float(max(gaps)) if gaps else float("nan")


def _start_row(bench: Bench, url: str, token: str, n_patients: int, cache_mb: int) -> dict:
    """Start several times; in the last server ask for every patient's detector twice."""
    starts = []
    for _ in range(bench.n_starts - 1):
        with metaecg_server(url, "--cache-mb", str(cache_mb), model=bench.model) as server:
            starts.append(server.start_s)
    with metaecg_server(url, "--cache-mb", str(cache_mb), model=bench.model) as server:
        starts.append(server.start_s)
        row = {"start_processor_s": server.start_processor_s}
        row["rss_at_start_bytes"] = server.rss_bytes()
        if n_patients:
            with MemoryWatch(server) as watch, Client(server.url, token) as client:
                for _ in range(2):
                    _ask_for_all(client, bench.windows, n_patients)
            row["rss_after_all_bytes"] = server.rss_bytes()
            row["rss_max_bytes"] = max(watch.rss_bytes)
    say(f"{n_patients} stored, cache {cache_mb} MiB: start in {statistics.median(starts):.2f} s")
    return {
        "n_stored": n_patients,
        "cache_mb": cache_mb,
        "start_p50_s": statistics.median(starts),
        "start_max_s": max(starts),
        **row,
    }


def _ask_for_all(client: Client, windows: np.ndarray, n_patients: int) -> None:
    for first in range(0, n_patients, MIXED_ITEMS):
        numbers = range(first, min(first + MIXED_ITEMS, n_patients))
        pairs = [(patient_name(i), windows[i % len(windows)]) for i in numbers]
        client.predict_many(pairs, fs_hz=FS_HZ, unit="mV")


def _probe(bench: Bench, example: Example) -> np.ndarray:
    """Return windows of the patient's whole recording."""
    window_s = bench.base.preprocessing.window_s
    starts = window_s * np.arange(int(example.record.duration_s / window_s))
    return cut_at(example.record, starts, bench.base.preprocessing)[0]


def _timing(what: str, seconds: list[float]) -> dict:
    values = np.asarray(seconds)
    return {
        "what": what,
        "n": len(values),
        "p50_s": percentile(values, 50),
        "p99_s": percentile(values, 99),
        "max_s": float(values.max()),
    }


PARTS: dict[str, Callable[[Bench], list[dict]]] = {
    "personalize": personalize,
    "requests": requests_part,
    "soak": soak,
    "start": start,
}
