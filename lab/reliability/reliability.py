"""What the docs promise of saved things, tried: stops, crashes, faults, damage, numbers gone wrong.

`python -m lab.reliability.reliability [PART ...]` prints figures as one line of JSON; all parts
without names. `lab/reliability/kill.py` kills real processes.
"""

import argparse
import errno
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.reliability.broken_numbers import numbers
from lab.reliability.disk import Disk, after_power_loss, laid_out
from lab.reliability.small_runs import METHODS, Workshop, instead_of_os, mark, workshop
from pinxit.concepts.concept import Concept
from pinxit.errors import DiskError, PinxitError
from pinxit.generation.generate import Notice
from pinxit.runs.checkpoint import Found, Manifest, keep, newest
from pinxit.runs.folder import Saved
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import Learner
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, Step, train

Figures = dict[str, Any]
_LONG = 30
_ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EPERM": errno.EPERM, "EDQUOT": errno.EDQUOT}


class Crash(BaseException):
    """The power went: nothing of the program runs any more, not even what cleans up."""


def stops(shop: Workshop, asked: argparse.Namespace) -> Figures:
    """After each step of a run another goes on: stopped in order, or dead without a word."""
    found = Counter[str]()
    for method in METHODS:
        recipe = shop.recipe(method, steps=asked.steps, every=10)
        wanted = shop.whole(shop.folder / f"{method}-whole", recipe)
        for step, way in ((step, way) for step in range(1, asked.steps) for way in (True, False)):
            folder = shop.folder / f"{method}-{step}-{way}"
            events = shop.events(folder, recipe)
            with instead_of_os(disk := Disk()):
                for event in events:
                    if isinstance(event, Step) and event.number == step:
                        break
                if not way:
                    disk.dies(Crash)
                with suppress(Crash):
                    events.close()
            found["stops"] += 1
            found["differing"] += shop.whole(folder, recipe) != wanted
            shutil.rmtree(folder)
    return {"steps": asked.steps, "methods": len(METHODS), "differing": 0, **found}


def crashes(shop: Workshop, asked: argparse.Namespace) -> Figures:
    """Each call of several saves is the last: what does a disk hold then, whatever it lost?"""
    found = Counter[str]()
    for method in METHODS:
        folder, states = shop.folder / f"saves-{method}", dict[int, dict[str, Tensor]]()
        folder.mkdir()
        disk, surely = Disk(), [0]
        for lesson in lessons(shop, method):
            states[lesson.done] = {name: t.clone() for name, t in lesson.state().items()}
            with instead_of_os(disk):
                save(folder, states[lesson.done])
            surely += [surely[-1]] * (len(disk.log) - len(surely)) + [lesson.done]
        kinds = ["", *(call.kind for call in disk.log), ""]
        for call in range(len(disk.log) + 1):
            amid = kinds[call] == kinds[call + 1] == "write"
            if amid and call % asked.writes:
                continue
            found["calls"] += 1
            for state in after_power_loss(disk.log, call):
                there = real(shop, state, folder)
                found["states"] += 1
                found["lost"] += not right(there, states, surely[min(call, len(surely) - 1)])
    return {"lost": 0, **found}


def lessons(shop: Workshop, method: str, count: int = 4) -> Iterator[Learner]:
    """A learner after each of its first steps."""
    run = Run.create(shop.folder / "never", shop.recipe(method))
    run.settle(shop.model)
    list(run.prepare(shop.model))
    lesson = Lesson.of(shop.model, run.recipe, run.pictures)
    with closing(train(lesson)) as steps:
        for _ in islice(steps, count):
            yield lesson.learners[0]


def save(folder: Path, state: dict[str, Tensor]) -> None:
    """Keep a state as a run does."""
    keep(folder / "checkpoints", state, Manifest(int(state["done"]), "base", {}), every=2)


def right(there: Path, states: dict[int, dict[str, Tensor]], surely: int) -> bool:
    """Whether a checkpoint no older than what was surely kept loads, to the bit."""
    try:
        found = newest(there / "checkpoints")
    except PinxitError:
        return False
    return surely == 0 if found is None else found.manifest.step >= surely and same(found, states)


def same(found: Found, states: dict[int, dict[str, Tensor]]) -> bool:
    """Whether a checkpoint is what was kept."""
    kept = states[found.manifest.step]
    equal = all(torch.equal(found.state[name], kept[name]) for name in kept)
    return equal and found.state.keys() == kept.keys()


def real(shop: Workshop, state: dict[Path, bytes | None], root: Path) -> Path:
    """A state of a disk as files."""
    target = shop.folder / "there"
    shutil.rmtree(target, ignore_errors=True)
    laid_out(state, root, target)
    return target


def runs(shop: Workshop, asked: argparse.Namespace) -> Figures:
    """Whole runs lose their power at random calls, and go on with what the disk holds then."""
    found, chance = Counter[str](), random.Random(asked.seed)
    for method in METHODS:
        recipe, root = shop.recipe(method), shop.folder / f"logged-{method}"
        root.mkdir()
        disk, saved = Disk(), [0]
        with instead_of_os(disk):
            for event in shop.events(root / "run", recipe):
                known = event.number if isinstance(event, Saved) else saved[-1]
                saved += [saved[-1]] * (len(disk.log) - len(saved)) + [known]
        wanted = mark(root / "run")
        for _ in range(-(-asked.crashes // len(METHODS))):
            call = chance.randrange(len(disk.log) + 1)
            state = chance.choice(list(after_power_loss(disk.log, call)))
            surely = saved[min(call, len(saved) - 1)]
            found["crashes"] += 1
            found += resumed(shop, real(shop, state, root) / "run", recipe, surely, wanted)
    return {"lost": 0, "differing": 0, "silent restarts": 0, **found}


def resumed(shop: Workshop, folder: Path, recipe: Recipe, surely: int, wanted: str) -> Counter[str]:
    """What going on with a run comes to."""
    found, first, told = Counter[str](), recipe.steps or 0, False
    noted = (folder / "journal.jsonl").is_file() and Run.open(folder).journal()
    for event in shop.events(folder, recipe):
        told = told or isinstance(event, Notice)
        first = min(first, event.number) if isinstance(event, Step) else first
    found["lost"] += first < surely
    found["silent restarts"] += bool(noted and first == 1 and not told)
    found["differing"] += mark(folder) != wanted
    return found


def faults(shop: Workshop, _asked: argparse.Namespace) -> Figures:
    """Each call of a save fails, in each way, once or from then on; space comes back later."""
    found = Counter[str]()
    first, second = (
        {name: t.clone() for name, t in lesson.state().items()}
        for lesson in lessons(shop, METHODS[-1], 2)
    )
    states = {int(state["done"]): state for state in (first, second)}
    kinds = [(error, lasting) for error in _ERRORS for lasting in (False, True)]
    for kind, lasting in (*kinds, ("short write", False)):
        for at in range(1, 1000):
            folder = shop.folder / "faults"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            save(folder, first)
            disk, reported = Disk(fault(kind, at, lasting)), False
            with instead_of_os(disk):
                try:
                    save(folder, second)
                except DiskError:
                    reported = True
            if disk.calls < at:
                break
            name = kind if kind == "short write" else "errors"
            found[name] += 1
            found["unreported"] += not reported and name == "errors"
            found["lost"] += not right(folder, states, 2 if not reported else 1)
            save(folder, second)
            found["lost"] += not right(folder, states, 2)
    return {"unreported": 0, "lost": 0, **found, **full(shop)}


def fault(kind: str, at: int, lasting: bool) -> Callable[[int, str], OSError | int | None]:
    """A disk's trouble at a call, or from it on."""

    def trouble(number: int, name: str) -> OSError | int | None:
        if number != at and not (lasting and number > at):
            return None
        if kind == "short write":
            return 1 if name == "write" else None
        return OSError(_ERRORS[kind], kind)

    return trouble


def full(shop: Workshop) -> dict[str, int]:
    """The disk is full from some call of a run on; then there is space, and it goes on."""
    found, recipe = Counter[str](), shop.recipe(METHODS[-1])
    wanted = shop.whole(shop.folder / "roomy", recipe)
    disk = Disk()
    with instead_of_os(disk):
        shop.whole(shop.folder / "counted", recipe)
    for at in range(1, disk.calls, 5):
        folder = shop.folder / "full"
        shutil.rmtree(folder, ignore_errors=True)
        with instead_of_os(Disk(fault("ENOSPC", at, True))):
            try:
                list(shop.events(folder, recipe))
            except DiskError as error:
                found["reported"] += "space" in error.hint
        found["full disks"] += 1
        found["differing"] += shop.whole(folder, recipe) != wanted
    return {"differing": 0, **found}


def flips(shop: Workshop, asked: argparse.Namespace) -> Figures:
    """Every bit of what files say of themselves, and random ones of the rest, are turned."""
    found, chance = Counter[str](), random.Random(asked.seed)
    folder = shop.folder / "flipped"
    shop.whole(folder, shop.recipe(METHODS[-1]))
    concept = folder / "concept.safetensors"
    checkpoint = max((folder / "checkpoints").iterdir())
    for other in (folder / "checkpoints").iterdir():
        if other != checkpoint:
            other.unlink()
    readers: dict[Path, Callable[[Path], object]] = {
        concept: Concept.load,
        checkpoint: lambda file: newest(file.parent),
    }
    for file, read in readers.items():
        good = file.read_bytes()
        header = 8 * (8 + int.from_bytes(good[:8], "little"))
        bits = [chance.randrange(header, 8 * len(good)) for _ in range(asked.flips)]
        for bit in (*range(header), *bits):
            byte = good[bit // 8] ^ (1 << bit % 8)
            damaged = good[: bit // 8] + bytes([byte]) + good[bit // 8 + 1 :]
            found["in what it says of itself" if bit < header else "in the rest"] += 1
            found["unseen"] += reads(file, read, damaged)
        for length in range(0, len(good), max(1, len(good) // 500)):
            found["cut off"] += 1
            found["unseen"] += reads(file, read, good[:length])
            found["false alarms"] += not reads(file, read, good)
    return {"unseen": 0, "false alarms": 0, **found}


def reads(file: Path, read: Callable[[Path], object], content: bytes) -> bool:
    """Whether a file of this content is taken for good."""
    file.write_bytes(content)
    try:
        read(file)
    except PinxitError:
        return False
    return True


PARTS = {f.__name__: f for f in (stops, crashes, runs, faults, flips, numbers)}


def main() -> None:
    """Try the parts asked for, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=_LONG)
    parser.add_argument("--crashes", type=int, default=200)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--writes", type=int, default=50, help="of many in a row, each n-th")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    figures = Figures()
    for part in asked.parts or PARTS:
        with workshop() as shop:
            figures[part] = PARTS[part](shop, asked)
        print(part, figures[part], file=sys.stderr, flush=True)
    if asked.kills:
        kill = [sys.executable, "-m", "lab.reliability.kill", "--kills"]
        answer = subprocess.run([*kill, str(asked.kills)], capture_output=True, check=True)
        figures["kills"] = json.loads(answer.stdout.splitlines()[-1])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
