"""Measures many words learned in one batch against as many runs one after the other.

    python -m lab.speed.many --concepts 16 --batches 1 4 --rounds 3

Both sides take turns within a round: each single run of some steps is followed by a part of the
steps of all together. Loading the base is not counted; encoding pictures and saving are. The table
goes to stdout; "processor" counts only the time that this process computed.
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
from pinxit.models.model import Model, open_base
from pinxit.runs.many import Many, learn_many
from pinxit.training.train import Step

_NOUNS = {"pocket": "robot"}
_WHOLE = 300


@dataclass
class Clock:
    """Seconds by the wall and of the processor: each step's, and all that is not a step."""

    steps: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    besides: tuple[float, float] = (0.0, 0.0)

    def whole(self, which: int, steps: int) -> float:
        """How long so many steps would take, with all that is besides."""
        each = sum(step[which] for step in self.steps) / len(self.steps)
        return self.besides[which] + each * steps


def asked() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m lab.speed.many", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--base", default="pocket", help=f"{', '.join(bases.NAMES)}, or a folder")
    add("--method", default="textual-inversion", help="which method")
    add("--concepts", type=int, default=16, help="how many in one batch")
    add("--batches", type=int, nargs="+", default=[1, 4], help="pictures of each in a step")
    add("--rounds", type=int, default=3, help="how often all is done")
    add("--size", type=int, help="pixels of a side; else the base's")
    add("--device", default="cpu", help="cpu or cuda")
    add("--precision", default="auto", help="fp32, bf16, or what is best for the device")
    add("--json", type=Path, help="a file for every number")
    add("--work", type=Path, default=Path("build/bases"), help="for bases of random weights")
    return parser.parse_args()


def subjects(folder: Path, count: int, side: int) -> Path:
    """So many folders with four pictures of noise."""
    draw = np.random.default_rng(0)
    for name in range(count):
        (folder / f"s{name:02}").mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"s{name:02}" / f"{number}.png")
    return folder


def ticking(model: Model, many: Many, names: list[str], out: Path, clock: Clock) -> Iterator[None]:
    """Learn some of the subjects together; a pause after each step of all of them."""
    runs = [run for name, run in many.runs(out).items() if name in names]
    heard, prepared = 0, False
    began = time.perf_counter(), time.process_time()
    with closing(learn_many(model, runs)) as events:
        for event in events:
            heard += isinstance(event, tuple) and isinstance(event[1], Step)
            if heard == len(runs):
                # Before the first step pictures are encoded: it is no step like the others.
                if prepared:
                    clock.steps.append(_since(began))
                else:
                    clock.besides = _plus(clock.besides, _since(began))
                heard, prepared = 0, True
                yield
                began = time.perf_counter(), time.process_time()
            elif not heard:
                clock.besides = _plus(clock.besides, _since(began))
                began = time.perf_counter(), time.process_time()
    clock.besides = _plus(clock.besides, _since(began))


def measured(
    given: argparse.Namespace, models: tuple[Model, Model], size: int
) -> list[dict[str, Any]]:
    """What a round of both sides took, for each batch size."""
    found: list[dict[str, Any]] = []
    for pictures in given.batches:
        with tempfile.TemporaryDirectory() as work:
            place = subjects(Path(work) / "subjects", given.concepts, min(size, 512))
            common = {
                "method": given.method,
                "class_noun": _NOUNS.get(given.base, "dog"),
                "steps": given.concepts,
                "batch_size": pictures,
                "preview_every": 0,
                "size": size,
            }
            many = Many.of(place, common, given.concepts)
            names = list(many.subjects)
            together, alone = Clock(), Clock()
            whole = ticking(models[0], many, names, Path(work) / "together", together)
            for name in names:
                for _ in ticking(models[1], many, [name], Path(work) / "alone", alone):
                    pass
                next(whole)
            for _ in whole:
                pass
        found.append({"pictures": pictures, "together": asdict(together), "alone": asdict(alone)})
        print(f"{pictures} of each: {ratios(found[-1], given)}", file=sys.stderr, flush=True)
    return found


def ratios(one: dict[str, Any], given: argparse.Namespace) -> dict[str, float]:
    """Concepts an hour in both ways, pictures a second, and how many times more together."""
    told: dict[str, float] = {}
    for which, name in enumerate(("wall", "processor")):
        both = {
            side: Clock(**one[side]).whole(
                which, _WHOLE * (given.concepts if side == "alone" else 1)
            )
            for side in ("alone", "together")
        }
        told |= {f"{name} {side}": 3600 * given.concepts / spent for side, spent in both.items()}
        told[f"{name} gain"] = both["alone"] / both["together"]
    for side in ("alone", "together"):
        each = median(step[0] for step in one[side]["steps"])
        learned = one["pictures"] * (given.concepts if side == "together" else 1)
        told[f"pictures a second {side}"] = learned / each
    return {name: round(value, 2) for name, value in told.items()}


def main() -> int:
    """Measure, and print the medians with the least and the most of all rounds."""
    given = asked()
    base = given.base if given.base == "pocket" else bases.folder(given.base, given.work)
    models = tuple(open_base(base, given.device, given.precision) for _ in range(2))
    size = given.size or models[0].picture_size
    rounds = [measured(given, (models[0], models[1]), size) for _ in range(given.rounds)]
    print(f"{given.base}, {size} pixels, {given.concepts} concepts, {_WHOLE} steps, {vars(given)}")
    for at, pictures in enumerate(given.batches):
        told = [ratios(one[at], given) for one in rounds]
        for name in told[0]:
            values = [one[name] for one in told]
            low, high = min(values), max(values)
            print(f"{pictures} of each  {name:28}{median(values):10.2f}  ({low:.2f} to {high:.2f})")
    if given.json:
        given.json.write_text(json.dumps(rounds) + "\n", encoding="utf-8")
    return 0


def _since(began: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - began[0], time.process_time() - began[1]


def _plus(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


if __name__ == "__main__":
    sys.exit(main())
