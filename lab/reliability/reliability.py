"""Test what the docs promise about saved files: stops, crashes, disk errors, damage and NaN.

`python -m lab.reliability.reliability [PART ...]` prints figures as one line of JSON; without
names it runs all parts. `lab/reliability/kill.py` kills real processes.
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
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.reliability.broken_numbers import numbers
from lab.reliability.disk import Disk, after_power_loss, write_state
from lab.reliability.small_runs import METHODS, Workshop, result_hash, simulated_disk, workshop
from pinxit.concepts.read import read_concept
from pinxit.errors import DiskError, PinxitError
from pinxit.progress import Notice
from pinxit.runs.checkpoint import Checkpoint, Manifest, newest_checkpoint, save_checkpoint
from pinxit.runs.class_images import read_class_images
from pinxit.runs.events import SavedCheckpoint
from pinxit.runs.run import Run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult, TrainingSession, train

Figures = dict[str, Any]
_STEPS = 30
_ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EPERM": errno.EPERM, "EDQUOT": errno.EDQUOT}


class Crash(BaseException):
    """The process died: not even its clean-up code runs."""


def stops(shop: Workshop, arguments: argparse.Namespace) -> Figures:
    """Stop a run after each step, regularly or by a crash, and continue it."""
    counts = Counter[str]()
    for method in METHODS:
        recipe = shop.recipe(method, steps=arguments.steps, every=10)
        expected = shop.finish(shop.folder / f"{method}-finished", recipe)
        cases = product(range(1, arguments.steps), (True, False))
        for step, regular in cases:
            folder = shop.folder / f"{method}-{step}-{regular}"
            events = shop.events(folder, recipe)
            with simulated_disk(disk := Disk()):
                for event in events:
                    if isinstance(event, StepResult) and event.number == step:
                        break
                if not regular:
                    disk.stop(Crash)
                with suppress(Crash):
                    events.close()
            counts["stops"] += 1
            counts["differing"] += shop.finish(folder, recipe) != expected
            shutil.rmtree(folder)
    return {"steps": arguments.steps, "methods": len(METHODS), "differing": 0, **counts}


def crashes(shop: Workshop, arguments: argparse.Namespace) -> Figures:
    """Lose power before each call of several saves: does the disk still have a valid checkpoint?"""
    counts = Counter[str]()
    for method in METHODS:
        folder, states = shop.folder / f"saves-{method}", dict[int, dict[str, Tensor]]()
        folder.mkdir()
        disk, saved_steps = Disk(), [0]
        for trainer in trainers(shop, method):
            states[trainer.steps_done] = {name: t.clone() for name, t in trainer.state().items()}
            with simulated_disk(disk):
                save(folder, states[trainer.steps_done])
            saved_steps += [saved_steps[-1]] * (len(disk.log) - len(saved_steps))
            saved_steps.append(trainer.steps_done)
        kinds = ["", *(call.kind for call in disk.log), ""]
        for call in range(len(disk.log) + 1):
            between_writes = kinds[call] == kinds[call + 1] == "write"
            if between_writes and call % arguments.writes:
                continue
            counts["calls"] += 1
            for state in after_power_loss(disk.log, call):
                folder_after = write_to_folder(shop, state, folder)
                counts["states"] += 1
                counts["lost"] += not is_valid(
                    folder_after, states, saved_steps[min(call, len(saved_steps) - 1)]
                )
    return {"lost": 0, **counts}


def trainers(shop: Workshop, method: str, count: int = 4) -> Iterator[ConceptTrainer]:
    """A trainer after each of its first steps."""
    run = Run.create(shop.folder / "unused", shop.recipe(method))
    run.settle_recipe(shop.model)
    class_images = read_class_images(shop.model, run.plan.class_images)
    session = TrainingSession(
        shop.model, [ConceptTrainer(shop.model, run.plan, run.images, class_images)]
    )
    with closing(train(session)) as steps:
        for _ in islice(steps, count):
            yield session.trainers[0]


def save(folder: Path, state: dict[str, Tensor]) -> None:
    """Save a state as a run does."""
    save_checkpoint(
        folder / "checkpoints", state, Manifest(int(state["done"]), "base", {}), every=2
    )


def is_valid(folder_after: Path, states: dict[int, dict[str, Tensor]], saved_step: int) -> bool:
    """Whether a bit-identical checkpoint of `saved_step` or later can be read."""
    try:
        checkpoint = newest_checkpoint(folder_after / "checkpoints")
    except PinxitError:
        return False
    return (
        saved_step == 0
        if checkpoint is None
        else checkpoint.manifest.step >= saved_step and is_equal(checkpoint, states)
    )


def is_equal(checkpoint: Checkpoint, states: dict[int, dict[str, Tensor]]) -> bool:
    """Whether a checkpoint is equal to the state that was saved at its step."""
    saved = states[checkpoint.manifest.step]
    equal = all(torch.equal(checkpoint.state[name], saved[name]) for name in saved)
    return equal and checkpoint.state.keys() == saved.keys()


def write_to_folder(shop: Workshop, state: dict[Path, bytes | None], root: Path) -> Path:
    """Write a possible state of the disk to a folder."""
    target = shop.folder / "after"
    shutil.rmtree(target, ignore_errors=True)
    write_state(state, root, target)
    return target


def runs(shop: Workshop, arguments: argparse.Namespace) -> Figures:
    """Lose power at random calls of a run, and continue it from the contents of the disk."""
    counts, rng = Counter[str](), random.Random(arguments.seed)
    for method in METHODS:
        recipe, root = shop.recipe(method), shop.folder / f"logged-{method}"
        root.mkdir()
        disk, saved = Disk(), [0]
        with simulated_disk(disk):
            for event in shop.events(root / "run", recipe):
                saved_step = event.step if isinstance(event, SavedCheckpoint) else saved[-1]
                saved += [saved[-1]] * (len(disk.log) - len(saved)) + [saved_step]
        expected = result_hash(root / "run")
        for _ in range(-(-arguments.crashes // len(METHODS))):
            call = rng.randrange(len(disk.log) + 1)
            state = rng.choice(list(after_power_loss(disk.log, call)))
            saved_step = saved[min(call, len(saved) - 1)]
            counts["crashes"] += 1
            counts += resume(
                shop, write_to_folder(shop, state, root) / "run", recipe, saved_step, expected
            )
    return {"lost": 0, "differing": 0, "silent restarts": 0, **counts}


def resume(
    shop: Workshop, folder: Path, recipe: Recipe, saved_step: int, expected: str
) -> Counter[str]:
    """Continue a run and count what went wrong."""
    counts, first, notified = Counter[str](), recipe.steps or 0, False
    logged = (folder / "journal.jsonl").is_file() and Run.open(folder).state.steps
    for event in shop.events(folder, recipe):
        notified = notified or isinstance(event, Notice)
        first = min(first, event.number) if isinstance(event, StepResult) else first
    counts["lost"] += first < saved_step
    counts["silent restarts"] += bool(logged and first == 1 and not notified)
    counts["differing"] += result_hash(folder) != expected
    return counts


def faults(shop: Workshop, _arguments: argparse.Namespace) -> Figures:
    """Let each call of a save fail in several ways, once or permanently, then save again."""
    counts = Counter[str]()
    first, second = (
        {name: t.clone() for name, t in trainer.state().items()}
        for trainer in trainers(shop, METHODS[-1], 2)
    )
    states = {int(state["done"]): state for state in (first, second)}
    kinds = [(error, permanent) for error in _ERRORS for permanent in (False, True)]
    for kind, permanent in (*kinds, ("short write", False)):
        for call in range(1, 1000):
            folder = shop.folder / "faults"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            save(folder, first)
            disk, reported = Disk(fault(kind, call, permanent)), False
            with simulated_disk(disk):
                try:
                    save(folder, second)
                except DiskError:
                    reported = True
            if disk.calls < call:
                break
            name = kind if kind == "short write" else "errors"
            counts[name] += 1
            counts["unreported"] += not reported and name == "errors"
            counts["lost"] += not is_valid(folder, states, 2 if not reported else 1)
            save(folder, second)
            counts["lost"] += not is_valid(folder, states, 2)
    return {"unreported": 0, "lost": 0, **counts, **full(shop)}


def fault(kind: str, call: int, permanent: bool) -> Callable[[int, str], OSError | int | None]:
    """A fault of the disk at one call, or from it on."""

    def fail(number: int, name: str) -> OSError | int | None:
        if number != call and not (permanent and number > call):
            return None
        if kind == "short write":
            return 1 if name == "write" else None
        return OSError(_ERRORS[kind], kind)

    return fail


def full(shop: Workshop) -> dict[str, int]:
    """Let the disk be full from some call of a run on, then continue the run with free space."""
    counts, recipe = Counter[str](), shop.recipe(METHODS[-1])
    expected = shop.finish(shop.folder / "reference", recipe)
    disk = Disk()
    with simulated_disk(disk):
        shop.finish(shop.folder / "counted", recipe)
    for call in range(1, disk.calls, 5):
        folder = shop.folder / "full"
        shutil.rmtree(folder, ignore_errors=True)
        with simulated_disk(Disk(fault("ENOSPC", call, True))):
            try:
                list(shop.events(folder, recipe))
            except DiskError as error:
                counts["full disks"] += 1
                counts["reported"] += "space" in error.hint
            else:  # only calls after the last write failed
                counts["differing"] += result_hash(folder) != expected
        counts["differing"] += shop.finish(folder, recipe) != expected
    return {"differing": 0, **counts}


def flips(shop: Workshop, arguments: argparse.Namespace) -> Figures:
    """Flip every bit of the headers of files, and random bits of the rest."""
    counts, rng = Counter[str](), random.Random(arguments.seed)
    folder = shop.folder / "flipped"
    shop.finish(folder, shop.recipe(METHODS[-1]))
    concept = folder / "concept.safetensors"
    checkpoint = max((folder / "checkpoints").iterdir())
    for other in (folder / "checkpoints").iterdir():
        if other != checkpoint:
            other.unlink()
    readers: dict[Path, Callable[[Path], object]] = {
        concept: read_concept,
        checkpoint: lambda file: newest_checkpoint(file.parent),
    }
    for file, read in readers.items():
        good = file.read_bytes()
        header = 8 * (8 + int.from_bytes(good[:8], "little"))
        bits = [rng.randrange(header, 8 * len(good)) for _ in range(arguments.flips)]
        for bit in (*range(header), *bits):
            byte = good[bit // 8] ^ (1 << bit % 8)
            damaged = good[: bit // 8] + bytes([byte]) + good[bit // 8 + 1 :]
            counts["in what it says of itself" if bit < header else "in the rest"] += 1
            counts["unseen"] += reads(file, read, damaged)
        for length in range(0, len(good), max(1, len(good) // 500)):
            counts["cut off"] += 1
            counts["unseen"] += reads(file, read, good[:length])
            counts["false alarms"] += not reads(file, read, good)
    return {"unseen": 0, "false alarms": 0, **counts}


def reads(file: Path, read: Callable[[Path], object], content: bytes) -> bool:
    """Whether a file with this content is read without an error."""
    file.write_bytes(content)
    try:
        read(file)
    except PinxitError:
        return False
    return True


PARTS = {f.__name__: f for f in (stops, crashes, runs, faults, flips, numbers)}


def main() -> None:
    """Run the parts and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--crashes", type=int, default=200)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument(
        "--writes", type=int, default=50, help="test only every N-th of many writes in a row"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = Figures()
    for part in arguments.parts or PARTS:
        with workshop() as shop:
            figures[part] = PARTS[part](shop, arguments)
        print(part, figures[part], file=sys.stderr, flush=True)
    if arguments.kills:
        kill = [sys.executable, "-m", "lab.reliability.kill", "--kills"]
        answer = subprocess.run([*kill, str(arguments.kills)], capture_output=True, check=True)
        figures["kills"] = json.loads(answer.stdout.splitlines()[-1])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
