"""Processes that learn are killed at random moments, and others go on: is anything lost?

`python -m lab.reliability.kill --kills N` prints figures as one line of JSON. Each process is a
fork of one that holds the open base, so that a kill costs no start; nothing but the run's folder
goes from one to the next. A kill counts only if it met a process at work.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import time
from collections import Counter
from pathlib import Path

from lab.reliability.small_runs import METHODS, Workshop, mark, workshop
from pinxit.generation.generate import Notice
from pinxit.runs.checkpoint import newest
from pinxit.runs.folder import Saved
from pinxit.runs.journal import Journal
from pinxit.training.recipe import Recipe
from pinxit.training.train import Step

_KILLS_A_RUN = 4
_SAID = struct.Struct("3q")  # the last step that was said to be saved, the first learned, notices


class _Said:
    """What a process told before it was killed, in memory that it shares."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SAID.size)

    def clear(self) -> None:
        """Nothing was told."""
        self.put(0, 0, 0)

    def put(self, saved: int, first: int, notices: int) -> None:
        """Tell."""
        _SAID.pack_into(self._memory, 0, saved, first, notices)

    def get(self) -> tuple[int, int, int]:
        """What was told."""
        return _SAID.unpack_from(self._memory)


def learn(shop: Workshop, folder: Path, recipe: Recipe, said: _Said) -> int:
    """A process that begins a run or goes on with it; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        saved = first = notices = 0
        for event in shop.events(folder, recipe):
            if isinstance(event, Saved):
                saved = event.number
            elif isinstance(event, Step):
                first = first or event.number
            elif isinstance(event, Notice):
                notices += 1
            said.put(saved, first, notices)
        status = 0
    finally:
        os._exit(status)


def one_run(
    shop: Workshop, folder: Path, recipe: Recipe, chance: random.Random, seconds: float
) -> Counter[str]:
    """A run that is killed several times and then left alone."""
    said, found = _Said(), Counter[str]()
    surely = 0  # what was told to be saved, by any process of this run
    for turn in range(_KILLS_A_RUN + 1):
        before = newest(folder / "checkpoints")
        journal = Journal(folder / "journal.jsonl").steps()
        said.clear()
        child = learn(shop, folder, recipe, said)
        if turn < _KILLS_A_RUN:
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        saved, first, notices = said.get()
        found["kills"] += os.WIFSIGNALED(status)
        found["failed"] += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
        begun = 1 + (before.manifest.step if before else 0)
        found["silent restarts"] += bool(first == 1 and journal and not (before or notices))
        found["lost"] += bool(first and first != begun)
        surely = max(surely, saved)
        now = newest(folder / "checkpoints")
        found["lost"] += (now.manifest.step if now else 0) < surely
        if os.WIFEXITED(status):
            break
    return found


def main() -> None:
    """Kill until there are enough of them, method after method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with workshop() as shop:
        _ = shop.model
        recipes = {method: shop.recipe(method) for method in METHODS}
        wanted, seconds = dict[str, str](), dict[str, float]()
        for method, recipe in recipes.items():
            folder = shop.folder / f"whole-{method}"
            for _ in range(2):  # the first paints the class pictures
                shutil.rmtree(folder, ignore_errors=True)
                began = time.perf_counter()
                _, status = os.waitpid(learn(shop, folder, recipe, _Said()), 0)
                assert status == 0
                seconds[method] = time.perf_counter() - began
            wanted[method] = mark(folder)
        total, runs = Counter[str](), 0
        by_method = Counter[str]()
        while total["kills"] < asked.kills:
            method = METHODS[runs % len(METHODS)]
            folder = shop.folder / f"run-{runs}"
            found = one_run(shop, folder, recipes[method], chance, seconds[method])
            found["differing"] = mark(folder) != wanted[method]
            by_method[method] += found["kills"]
            total += found
            runs += 1
            shutil.rmtree(folder)
        names = ("kills", "lost", "differing", "silent restarts", "failed")
        print(
            json.dumps(
                {"runs": runs, **{name: total[name] for name in names}, "by method": by_method}
            )
        )


if __name__ == "__main__":
    main()
