"""Peak memory of one training step of each method; memory and latency of teacher and student.

    python benchmarks/h_tuning_memory.py [--json FILE] [--size medium] [--batch 128] [--chunk 16]
    python benchmarks/h_tuning_memory.py --fake

Training: full fine-tuning, LoRA (rank 16), LoRA with accumulation (micro-batches of the chunk's
size and of 2), LoRA with the first block frozen, H-Tuning, H-Tuning in chunks, head only; 12 leads
of 6144 samples, 18 classes, float32, AdamW, the second step (its moments are there). All low-rank
rows train the same weights. Inference: the teacher, and the student on 12, 3 and 1 leads, its
first layers cut down to them; the networks take turns, the median of the repeats counts.

Peak memory on the CPU is that of live tensors (metaecg/evaluate/memory.py: weights, batch,
gradients, moments, activations; no workspace of a kernel), on a GPU that of torch's allocator.
--fake counts the same tensors without computing them: seconds of work instead of minutes, no
times. The medium size at 128 windows takes about 8 GiB and minutes for real.

A row for --json: part ("training" or "inference"), what was measured, peak_bytes, seconds; of the
method, at_once is the size of its pieces. The last row has the ratios, see
benchmarks/h_tuning/measure.py.
"""

import argparse
import json
import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from h_tuning.cases import Case
from h_tuning.measure import inference_rows, models, summary, training_row
from h_tuning.tables import markdown, show

from metaecg.models.backbones.cnn_transformer import SIZES

STUDENT = "tinylight"
PARTS = ("training", "inference")


def cases(args: argparse.Namespace) -> list[Case]:
    """Return the training steps to measure."""
    plain = Case(
        method="full",
        size=args.size,
        batch=args.batch,
        n_samples=args.n_samples,
        device=args.device,
    )
    works = [
        ("full", None),
        ("lora", None),
        ("lora", args.chunk),
        ("lora", 2),
        ("lora-frozen", None),
        ("h-tuning", None),
        ("h-tuning", args.chunk),
        ("head", None),
    ]
    return [replace(plain, method=method, piece=piece) for method, piece in works]


def measured(args: argparse.Namespace) -> list[dict]:
    """Measure what the arguments ask for; return the rows, the summary last."""
    torch.set_num_threads(args.threads)
    rows = []
    if "training" in args.parts:
        rows += [training_row(case, fake=args.fake) for case in cases(args)]
    if "inference" in args.parts:
        found = models(args.size, STUDENT, n_samples=args.n_samples)
        for batch in args.inference_batches:
            rows += inference_rows(
                found,
                batch=batch,
                n_samples=args.n_samples,
                repeats=args.repeats,
                device=args.device,
                fake=args.fake,
            )
    return [*rows, {**summary(rows), **facts(args)}]


def facts(args: argparse.Namespace) -> dict[str, object]:
    """Return the facts about the run."""
    return {
        "fake": args.fake,
        "device": args.device,
        "threads": args.threads,
        "repeats": args.repeats,
        "n_samples": args.n_samples,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("metaecg", "torch", "peft")},
        },
    }


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments; what can't be run is refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--size", choices=SIZES, default="medium", help="of the trained network")
    parser.add_argument("--batch", type=_positive, default=128, help="windows in a training step")
    parser.add_argument("--chunk", type=_positive, default=16, help="windows at once")
    parser.add_argument("--n-samples", type=_positive, default=6144)
    parser.add_argument("--inference-batches", type=_positives, default=(1, 16, 128))
    parser.add_argument("--repeats", type=_positive, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--fake", action="store_true", help="count tensors, compute nothing")
    parser.add_argument("--show", type=Path, help="show the rows of this file; measure nothing")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    args = parser.parse_args(argv)
    if args.fake and args.device == "cuda":
        parser.error("--fake counts tensors on the CPU; leave out --device cuda or --fake.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, and torch sees no GPU; leave it out.")
    if args.chunk > args.batch or args.batch < 2:
        parser.error(f"--batch is {args.batch}; 2 or more, and --chunk's at least, was expected.")
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} was given; 1 or more was expected.")
    return value


def _positives(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> int:
    """Measure, print tables, and write the rows if asked."""
    args = parse_args(argv)
    rows = json.loads(args.show.read_text()) if args.show else measured(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.markdown:
        print(markdown(rows))
    else:
        show(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
