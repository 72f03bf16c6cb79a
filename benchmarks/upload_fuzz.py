"""Send malformed uploads to `metaecg.serve.uploads`: each ends in a sentence or in a correct recording.

    python benchmarks/upload_fuzz.py [--n 10000] [--seed 0] [--only CASE] [--json FILE]

Case `i` of a seed is always the same: a good recording of generated numbers in one of the formats,
one to three things done to it, such as a header that lies, a path for a name, a table of a million
columns (`upload_fuzz_cases.py`, `upload_fuzz_formats.py`). Wrong are: any other exception than DataError; a recording from an
upload that can't be one; a recording with impossible values; a file opened, made or removed outside
the private folder, a process or a connection; a file left in the private folder; more than
`LIMIT_S` of the processor for one case. Each is printed with its case. The exit code is 1 if there
was one.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import upload_fuzz_formats  # noqa: F401 - registers its cases
from upload_files import FORMATS, Upload, as_csv, as_edf, as_json, as_wfdb, made_recording
from upload_fuzz_cases import DAMAGE, MAY_PASS, MUST_BE_REFUSED, pick

from metaecg.errors import DataError
from metaecg.serve.upload_folder import LOCK, PREFIX
from metaecg.serve.uploads import ParsedRecording, UploadFacts, UploadLimits, parse_upload

LIMIT_S = 10.0
"""Of the processor, for one case; the largest uploads here have some megabytes."""
LIMITS = UploadLimits(n_bytes=8 * 1024 * 1024, duration_s=3600.0)
WATCHED = ("open", "os.", "shutil.", "subprocess.", "socket.", "ctypes.", "tempfile.")
HARMLESS = ("os.putenv", "os.fork", "os.getcwd", "os.fwalk", "os.walk")


class Watch:
    """Notes what is done to files, processes and connections, by Python's own audit events."""

    def __init__(self, private: Path) -> None:
        self.private, self.is_on, self.seen = str(private), False, []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.is_on and event.startswith(WATCHED) and event not in HARMLESS:
            path = arguments[0] if arguments else ""
            inside = isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(
                os.path.join(self.private, PREFIX)
            )
            # A folder is removed through its descriptor, by names within it; numbers are descriptors.
            is_relative = isinstance(path, int) or (
                event in ("open", "os.remove", "os.rmdir", "os.scandir")
                and isinstance(path, str)
                and os.sep not in path
                and path in OURS
            )
            if not inside and not is_relative:
                self.seen.append(f"{event} {str(path)[:80]}")

    @contextmanager
    def watching(self):
        """Note what happens inside the block."""
        self.seen, self.is_on = [], True
        try:
            yield
        finally:
            self.is_on = False


OURS = (LOCK, "rec.hea", *(f"rec{i}.dat" for i in range(256)))


def good_upload(rng: np.random.Generator) -> Upload:
    """Return a recording in one of the formats."""
    name = pick(rng, FORMATS)
    made = made_recording(rng, has_gaps=name != "edf" and bool(rng.integers(2)))
    if name == "wfdb":
        return as_wfdb(made, format=pick(rng, ("16", "212")))
    if name == "csv":
        return as_csv(made, has_names=bool(rng.integers(4)), gap=pick(rng, ("nan", "")))
    return as_edf(made) if name == "edf" else as_json(made)


def malformed(rng: np.random.Generator, decoy: Path) -> tuple[Upload, list[str], bool]:
    """Return an upload, what was done to it, and whether it must be refused."""
    upload, done = good_upload(rng), []
    must = bool(rng.integers(3))
    if must:
        chosen = [pick(rng, MUST_BE_REFUSED[upload.format])]
    else:  # what knows the format first, then bytes
        chosen = [pick(rng, MAY_PASS[upload.format])] * bool(rng.integers(2))
        chosen += [pick(rng, DAMAGE) for _ in range(int(rng.integers(1 - len(chosen), 3)))]
    for mutation in chosen:
        if all(upload.files.values()):
            upload, done = mutation(upload, rng), [*done, mutation.__name__]
    return _with_decoy(upload, decoy), done, must


def _with_decoy(upload: Upload, decoy: Path) -> Upload:
    """Put the true path of the decoy where a case asks for it, in names and in a header."""

    def put(text: str) -> str:
        return text.replace("{decoy}", str(decoy)).replace("{decoy_name}", decoy.name)

    files = {put(name): content for name, content in upload.files.items()}
    if b"{decoy" in files.get("rec.hea", b""):
        files["rec.hea"] = put(files["rec.hea"].decode()).encode()
    return Upload(upload.format, files, upload.facts)


def wrong_with(found: ParsedRecording, upload: Upload) -> str:
    """Return what is impossible about a recording; nothing if it is as it has to be."""
    signal_mv = found.signal_mv
    measured = signal_mv[~np.isnan(signal_mv)]
    holds = {
        "type": signal_mv.dtype == np.float32 and signal_mv.ndim == 2 and signal_mv.size > 0,
        "values": measured.size > 0 and bool((np.abs(measured) <= 1e4).all()),
        "rate": LIMITS.min_fs_hz <= found.fs_hz <= LIMITS.max_fs_hz,
        "names": len({*found.lead_names}) == len(signal_mv) and all(found.lead_names),
        "lead": 0 <= found.lead < len(signal_mv),
        "size": signal_mv.size <= 2 * sum(map(len, upload.files.values())),
        "title": found.name.isprintable() and len(found.name) <= 200,
    }
    return ", ".join(name for name, is_so in holds.items() if not is_so)


def outcome(upload: Upload, must: bool) -> tuple[str, str]:
    """Return (``refused``, ``accepted`` or ``wrong``, what is to be said about it)."""
    try:
        found = parse_upload(upload.format, upload.files, UploadFacts(**upload.facts), LIMITS)
    except DataError as error:
        text = str(error)
        is_sentence = 20 < len(text) < 2000 and text.endswith((".", "?")) and PREFIX not in text
        return ("refused", text) if is_sentence else ("wrong", f"no sentence: {text[:300]!r}")
    except BaseException as error:  # whatever it is, it is what this looks for
        if isinstance(error, KeyboardInterrupt):
            raise
        return "wrong", f"{type(error).__name__}: {str(error)[:300]}"
    problem = "can't be a recording" if must else wrong_with(found, upload)
    return ("wrong", f"accepted: {problem}") if problem else ("accepted", "")


def _too_long(signum, frame) -> None:
    raise TimeoutError(f"more than {LIMIT_S:g} s of the processor")


def run_case(seed: int, case: int, watch: Watch, decoy: Path) -> dict:
    """Return what came of one case."""
    upload, done, must = malformed(np.random.default_rng([seed, case]), decoy)
    begin = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
    with watch.watching():
        what, text = outcome(upload, must)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    left = [path for path in Path(watch.private).iterdir() if path != decoy]
    if watch.seen or left:
        what, text = "wrong", f"outside the private folder: {watch.seen[:3]}, left: {left[:3]}"
    seconds = time.process_time() - begin
    return {
        "case": case, "format": upload.format, "what": what, "text": text, "done": done,
        "seconds": seconds, "n_bytes": sum(map(len, upload.files.values())),
    }  # fmt: skip


def warm_up() -> None:
    """Let every format import what it needs, so that imports open no files later."""
    rng = np.random.default_rng(0)
    made = made_recording(rng, has_gaps=False)
    for upload in (
        as_wfdb(made),
        as_wfdb(made, format="212"),
        as_edf(made),
        as_csv(made),
        as_json(made),
    ):
        parse_upload(upload.format, upload.files, UploadFacts(**upload.facts), LIMITS)
    files = as_wfdb(made).files  # the reader of unusual layouts, wfdb's own
    content = files["rec.hea"].replace(b".dat 16 ", b".dat 16+0 ").replace(b"200/mV", b"0/mV")
    parse_upload("wfdb", {**files, "rec.hea": content}, UploadFacts(gain_per_mv=200.0), LIMITS)
    odd = b"r 1 250 500\nr.dat 80 200/mV\n"
    parse_upload("wfdb", {"r.hea": odd, "r.dat": bytes([100] * 500)}, UploadFacts(), LIMITS)


def summary(results: list[dict]) -> dict:
    """Return the counts and the slowest case of a run."""
    counts = Counter(row["what"] for row in results)
    slowest = max(results, key=lambda row: row["seconds"])
    return {
        "summary": True,
        "n": len(results),
        "refused": counts["refused"],
        "accepted": counts["accepted"],
        "wrong": counts["wrong"],
        "distinct_sentences": len(
            {row["text"][:40] for row in results if row["what"] == "refused"}
        ),
        "slowest_s": round(slowest["seconds"], 3),
        "slowest_case": slowest["case"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="uploads")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other uploads")
    parser.add_argument("--only", type=int, help="one case again, with its sentence")
    parser.add_argument("--json", type=Path, help="where rows by format and the summary go")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the cases; return 1 if one went wrong."""
    args = parse_args(argv)
    signal.signal(signal.SIGVTALRM, _too_long)
    cases = range(args.n) if args.only is None else [args.only]
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        decoy = Path(folder) / "decoy.dat"
        decoy.write_bytes(b"\1\0" * 4000)
        warm_up()
        watch = Watch(Path(folder))
        results = [run_case(args.seed, case, watch, decoy) for case in cases]
        tempfile.tempdir = None
    for row in results:
        if row["what"] == "wrong" or args.only is not None:
            print(
                f"case {row['case']} ({row['format']}: {', '.join(row['done'])}): {row['what']}: {row['text']}"
            )
    rows = [
        {"format": name, **Counter(r["what"] for r in results if r["format"] == name)}
        for name in FORMATS
    ]
    last = {**summary(results), "seed": args.seed}
    print(json.dumps(last, indent=1))
    if args.json:
        args.json.write_text(json.dumps([*rows, last], indent=1) + "\n")
    return int(last["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
