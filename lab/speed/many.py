"""Compares training many concepts in one batch with training them one after the other.

    python -m lab.speed.many --concepts 16 --batches 1 4 --rounds 3

Both sides alternate within a round: each single run is followed by a part of the joint run's
steps. Encoding images and saving are counted, loading the base model is not. The table goes to
stdout; "processor" is the CPU time of this process.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from lab.speed import bases
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.runs.many import RunGroup, train_many
from pinxit.training.train import StepResult

_NOUNS = {"pocket": "robot"}
_STEPS = 300  # of the runs that the rates are computed for


@dataclass
class Clock:
    """Wall time and CPU time in seconds, of each step and of everything else."""

    steps: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    overhead: tuple[float, float] = (0.0, 0.0)

    def total(self, which: int, steps: int) -> float:
        """The time of a run with this number of steps; `which` is 0 for wall, 1 for CPU time."""
        each = sum(step[which] for step in self.steps) / len(self.steps)
        return self.overhead[which] + each * steps


def parse_args() -> argparse.Namespace:
    """The command line arguments."""
    parser = argparse.ArgumentParser(prog="python -m lab.speed.many", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--base", default="pocket", help=f"{', '.join(bases.NAMES)}, or a folder")
    add("--method", default="textual-inversion", help="training method")
    add("--concepts", type=int, default=16, help="concepts in one batch")
    add("--batches", type=int, nargs="+", default=[1, 4], help="batch sizes of each concept")
    add("--rounds", type=int, default=3, help="number of measurements")
    add("--size", type=int, help="resolution; default: the base model's")
    add("--device", default="cpu", help="cpu or cuda")
    add("--precision", default="auto", help="auto, fp32 or bf16")
    add("--json", type=Path, help="JSON file for all results")
    add(
        "--work",
        type=Path,
        default=Path("build/bases"),
        help="folder for base models with random weights",
    )
    return parser.parse_args()


def subjects(folder: Path, count: int, side: int) -> Path:
    """Write `count` folders, each with four images of noise; returns `folder`."""
    draw = np.random.default_rng(0)
    for name in range(count):
        (folder / f"s{name:02}").mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"s{name:02}" / f"{number}.png")
    return folder


def timed_training(
    model: Model, many: RunGroup, names: list[str], out: Path, clock: Clock
) -> Iterator[None]:
    """Train subjects in one batch; yields after each step of all of them."""
    runs = [run for name, run in many.runs(out).items() if name in names]
    num_events, prepared = 0, False
    start = time.perf_counter(), time.process_time()
    with closing(train_many(model, runs)) as events:
        for event in events:
            num_events += isinstance(event, tuple) and isinstance(event[1], StepResult)
            if num_events == len(runs):
                # Images are encoded before the first step, so it is not counted as a step.
                if prepared:
                    clock.steps.append(_since(start))
                else:
                    clock.overhead = _plus(clock.overhead, _since(start))
                num_events, prepared = 0, True
                yield
                start = time.perf_counter(), time.process_time()
            elif not num_events:
                clock.overhead = _plus(clock.overhead, _since(start))
                start = time.perf_counter(), time.process_time()
    clock.overhead = _plus(clock.overhead, _since(start))


def run_round(
    args: argparse.Namespace, models: tuple[Model, Model], size: int
) -> list[dict[str, Any]]:
    """Measure both sides once for each batch size."""
    results: list[dict[str, Any]] = []
    for count in args.batches:
        with tempfile.TemporaryDirectory() as work:
            place = subjects(Path(work) / "subjects", args.concepts, min(size, 512))
            common = {
                "method": args.method,
                "class_noun": _NOUNS.get(args.base, "dog"),
                "steps": args.concepts,
                "batch_size": count,
                "preview_every": 0,
                "resolution": size,
            }
            many = RunGroup.from_table(place, common, args.concepts)
            names = list(many.subjects)
            together, alone = Clock(), Clock()
            whole = timed_training(models[0], many, names, Path(work) / "together", together)
            for name in names:
                for _ in timed_training(models[1], many, [name], Path(work) / "alone", alone):
                    pass
                next(whole)
            for _ in whole:
                pass
        results.append({"images": count, "together": asdict(together), "alone": asdict(alone)})
        print(f"{count} of each: {ratios(results[-1], args)}", file=sys.stderr, flush=True)
    return results


def ratios(one: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Concepts per hour and images per second of both sides, and the gain of one batch."""
    rates: dict[str, float] = {}
    for which, name in enumerate(("wall", "processor")):
        both = {
            side: Clock(**one[side]).total(
                which, _STEPS * (args.concepts if side == "alone" else 1)
            )
            for side in ("alone", "together")
        }
        rates |= {f"{name} {side}": 3600 * args.concepts / spent for side, spent in both.items()}
        rates[f"{name} gain"] = both["alone"] / both["together"]
    for side in ("alone", "together"):
        each = median(step[0] for step in one[side]["steps"])
        trained = one["images"] * (args.concepts if side == "together" else 1)
        rates[f"images a second {side}"] = trained / each
    return {name: round(value, 2) for name, value in rates.items()}


def main() -> int:
    """Measure, and print medians with the lowest and highest values."""
    args = parse_args()
    base = args.base if args.base == "pocket" else bases.folder(args.base, args.work)
    models = tuple(open_base(base, args.device, args.precision) for _ in range(2))
    size = args.size or models[0].default_size
    rounds = [run_round(args, (models[0], models[1]), size) for _ in range(args.rounds)]
    print(f"{args.base}, {size} pixels, {args.concepts} concepts, {_STEPS} steps, {vars(args)}")
    for at, count in enumerate(args.batches):
        results = [ratios(one[at], args) for one in rounds]
        for name in results[0]:
            values = [result[name] for result in results]
            low, high = min(values), max(values)
            print(f"{count} of each  {name:28}{median(values):10.2f}  ({low:.2f} to {high:.2f})")
    if args.json:
        args.json.write_text(json.dumps(rounds) + "\n", encoding="utf-8")
    return 0


def _since(start: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _plus(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


if __name__ == "__main__":
    sys.exit(main())
