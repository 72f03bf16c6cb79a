"""Time, memory and arithmetic of one meta-step of each engine, learn2learn beside; in one run.

    python benchmarks/meta_engine.py [--json FILE] [--repeats 5] [--threads N] [--device cuda]
    python benchmarks/meta_engine.py --growth [--json FILE] [--plot FILE.svg]

A meta-step of MAML: 16 tasks, 20 support and 40 query windows (one lead, 400 samples, two classes),
5 inner steps, on compact CNNs of three sizes; first and second order; float32. The engines take
turns, the median of the repeats counts, after one step each that warms up. Their meta-gradients are
compared first, in float64 and as timed, and wrong answers are not timed. The rate of matrix
multiplication (float32, 1024 x 1024) is measured between the repeats.

A row for --json: engine, order, parameters, seconds, ratio_to_learn2learn (learn2learn's seconds
over this engine's: above 1 is faster; null without learn2learn), peak_bytes (what the step adds to
the memory of a process of its own, benchmarks/meta_step/memory.py), share_of_matmul_peak
(operations that the mathematics needs, benchmarks/meta_step/flops.py, over the seconds and the
rate). The last row is {"summary": true} with the facts about the run. --growth varies tasks, inner
steps, parameters and task_chunk, second order, and its rows also say what was varied and its value.
"""

import argparse
import json
import platform
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from meta_step.cases import ENGINES, Case, absent
from meta_step.growth import draw, growth_cases
from meta_step.measure import MatmulRate, WrongAnswer, measure, rows
from meta_step.memory import can_reset_peak
from meta_step.tables import markdown, show

SIZES = {"7k": 16, "29k": 32, "112k": 64}
"""About so many parameters: the width of compact-cnn."""
ORDERS = ("second", "first")


def compare(args: argparse.Namespace, base: Case) -> list[dict]:
    """Return the rows that compare the engines, and the summary."""
    works = [(SIZES[size], order) for size in args.sizes for order in ORDERS]
    cases = [
        replace(base, engine=engine, order=order, width=width)
        for width, order in works
        for engine in args.engines
    ]
    rate = MatmulRate(args.device)
    found = measure(cases, repeats=args.repeats, rate=rate)
    operations = [{"order": c.order, "parameters": c.parameters, "flops": c.flops} for c in cases]
    unique = [facts for i, facts in enumerate(operations) if facts not in operations[:i]]
    return [*rows(found, rate.median), {**summary(args, rate), "flops": unique}]


def grow(args: argparse.Namespace, base: Case) -> list[dict]:
    """Return the rows of the cost as work grows, and the summary."""
    engines = [name for name in args.engines if name != "func-vmap"]
    varied = list(growth_cases(base, engines))
    rate = MatmulRate(args.device)
    found = measure([case for _, case in varied], repeats=args.repeats, rate=rate)
    fields = dict.fromkeys(field for field, _ in varied)
    lines = []
    for field in fields:
        part = {case: found[case] for name, case in varied if name == field}
        lines += rows(part, rate.median, varied=field)
    return [*lines, summary(args, rate)]


def summary(args: argparse.Namespace, rate: MatmulRate) -> dict:
    """Return the last row: the facts about the run."""
    return {
        "summary": True,
        "ratio_to_learn2learn": "learn2learn's seconds over this engine's",
        "matmul_flop_per_s": round(rate.median),
        "matmul_flop_per_s_range": [round(min(rate.rates)), round(max(rate.rates))],
        "threads": torch.get_num_threads(),
        "device": args.device,
        "repeats": args.repeats,
        "peak_was_reset": args.device != "cpu" or can_reset_peak(),
        "left_out": args.left_out,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    names = ("metaecg", "torch", "learn2learn")
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments, engines that can't run here taken out and named in `left_out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--repeats", type=_positive, default=5)
    parser.add_argument("--sizes", type=_names(SIZES), default=tuple(SIZES))
    parser.add_argument("--engines", type=_names(ENGINES), default=ENGINES)
    parser.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--growth", action="store_true", help="the cost as work grows instead")
    parser.add_argument("--plot", type=Path, help="draw the growth there (SVG)")
    parser.add_argument("--show", type=Path, help="show the rows of this file; measure nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    if args.plot and not args.growth:
        parser.error("--plot draws the cost as work grows; add --growth.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, and torch sees no GPU; leave it out.")
    if not args.show:
        reasons = {name: absent(name) for name in args.engines}
        args.left_out = {name: reason for name, reason in reasons.items() if reason}
        args.engines = [name for name in args.engines if name not in args.left_out]
        if not args.engines:
            parser.error(f"no engine is left: {args.left_out}")
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} was given; 1 or more was expected.")
    return value


def _names(known):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown} unknown; known are {', '.join(known)}.")
        return names

    return parse


def measured(args: argparse.Namespace) -> list[dict]:
    """Measure what the arguments ask for."""
    torch.set_num_threads(args.threads)
    if args.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 as on the CPU, like torch.mm
    for name, reason in args.left_out.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    base = Case(
        engine="", order="second", width=SIZES["29k"], device=args.device, n_threads=args.threads
    )
    return grow(args, base) if args.growth else compare(args, base)


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write rows and plot if asked."""
    args = parse_args(argv)
    try:
        lines = json.loads(args.show.read_text()) if args.show else measured(args)
    except WrongAnswer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n")
    if args.plot:
        draw(lines, args.plot)
    if args.markdown:
        print(markdown(lines))
    else:
        show(lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
