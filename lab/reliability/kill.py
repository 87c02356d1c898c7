"""Kill training processes at random moments and resume the runs: is anything lost?

`python -m lab.reliability.kill --kills N` prints figures as one line of JSON. Each process is a
fork of one with the open base model, which saves the time of loading it; only the run folder is
passed from one to the next. A kill counts only if the process was still training.
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

from lab.reliability.small_runs import METHODS, Workshop, result_hash, workshop
from pinxit.progress import Notice
from pinxit.runs.checkpoint import newest_checkpoint
from pinxit.runs.events import SavedCheckpoint
from pinxit.runs.reader import read_run
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult

_KILLS_PER_RUN = 4
_REPORT = struct.Struct("3q")  # last saved step, first trained step, number of notices


class _Report:
    """What a process reported before it was killed, in shared memory."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _REPORT.size)

    def clear(self) -> None:
        """Reset the report."""
        self.put(0, 0, 0)

    def put(self, saved: int, first: int, notices: int) -> None:
        """Set the report."""
        _REPORT.pack_into(self._memory, 0, saved, first, notices)

    def get(self) -> tuple[int, int, int]:
        """Last saved step, first trained step, number of notices."""
        return _REPORT.unpack_from(self._memory)


def start_training(shop: Workshop, folder: Path, recipe: Recipe, report: _Report) -> int:
    """Start a process that trains or continues a run; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        saved = first = notices = 0
        for event in shop.events(folder, recipe):
            if isinstance(event, SavedCheckpoint):
                saved = event.step
            elif isinstance(event, StepResult):
                first = first or event.number
            elif isinstance(event, Notice):
                notices += 1
            report.put(saved, first, notices)
        status = 0
    finally:
        os._exit(status)


def one_run(
    shop: Workshop, folder: Path, recipe: Recipe, rng: random.Random, seconds: float
) -> Counter[str]:
    """A run that is killed several times and then trained to its end."""
    report, counts = _Report(), Counter[str]()
    last_saved = 0  # as reported by any process of this run
    for attempt in range(_KILLS_PER_RUN + 1):
        before = newest_checkpoint(folder / "checkpoints")
        log = read_run(folder).steps if Run.exists(folder) else []
        report.clear()
        child = start_training(shop, folder, recipe, report)
        if attempt < _KILLS_PER_RUN:
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        saved, first, notices = report.get()
        counts["kills"] += os.WIFSIGNALED(status)
        counts["failed"] += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
        expected = 1 + (before.manifest.step if before else 0)
        counts["silent restarts"] += bool(first == 1 and log and not (before or notices))
        counts["lost"] += bool(first and first != expected)
        last_saved = max(last_saved, saved)
        after = newest_checkpoint(folder / "checkpoints")
        counts["lost"] += (after.manifest.step if after else 0) < last_saved
        if os.WIFEXITED(status):
            break
    return counts


def main() -> None:
    """Kill runs of all methods in turn until there are enough kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with workshop() as shop:
        _ = shop.model
        recipes = {method: shop.recipe(method) for method in METHODS}
        expected, seconds = dict[str, str](), dict[str, float]()
        for method, recipe in recipes.items():
            folder = shop.folder / f"finished-{method}"
            for _ in range(2):  # the first one generates the class images
                shutil.rmtree(folder, ignore_errors=True)
                start = time.perf_counter()
                _, status = os.waitpid(start_training(shop, folder, recipe, _Report()), 0)
                assert status == 0
                seconds[method] = time.perf_counter() - start
            expected[method] = result_hash(folder)
        total, runs = Counter[str](), 0
        by_method = Counter[str]()
        while total["kills"] < arguments.kills:
            method = METHODS[runs % len(METHODS)]
            folder = shop.folder / f"run-{runs}"
            counts = one_run(shop, folder, recipes[method], rng, seconds[method])
            counts["differing"] = result_hash(folder) != expected[method]
            by_method[method] += counts["kills"]
            total += counts
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
