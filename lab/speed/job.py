"""One measured job: a side, a method, a base; the worker process that does it prints JSON.

Each job has a process of its own, so that its peak of memory is its own.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

Side = Callable[["Job"], Iterator[None]]

METHODS = ("textual-inversion", "lora", "dreambooth", "generation")
TOGETHER = ("textual-inversion", "lora")  # of these pinxit learns several concepts in one batch
SIDES = ("plain", "pinxit")
TOKEN = "<mytoy>"
GUIDANCE = 7.5


@dataclass(frozen=True)
class Job:
    """What one process does; of generation a step is a whole picture of `painting` steps."""

    side: str
    method: str
    base: str
    noun: str
    size: int
    steps: int
    batch: int
    concepts: int
    painting: int
    device: str
    precision: str
    seed: int = 0

    @property
    def pictures(self) -> Path:
        """The pictures that are learned from: those which ship with pinxit."""
        return Path(os.environ["PINXIT_BENCH_PICTURES"])


@dataclass(frozen=True)
class Outcome:
    """What it took: seconds of the clock and of the processor, and gigabytes at most.

    A step is one of all `concepts` together; `first` is the first, in which caches are filled, and
    `steps` are all others. `loading_gb` and `steps_gb` are the peaks of resident memory before the
    first step and since (0 if the system does not tell them apart), `peak_gb` the higher one, and
    `anonymous_gb` the peak of memory that is no file's.
    """

    concepts: int
    loading: float
    first: float
    steps: tuple[float, ...]
    processor: tuple[float, ...]
    peak_gb: float
    loading_gb: float
    steps_gb: float
    anonymous_gb: float
    device_gb: float
    threads: int
    gflops: dict[str, float]


def measured(job: Job) -> Outcome:
    """Do the job here, and watch it."""
    import torch

    from lab.speed.calibration import product_rates
    from lab.speed.memory import Peaks
    from lab.speed.sides import side

    began = time.perf_counter()
    ends: list[float] = []
    used: list[float] = []
    with Peaks(torch.device(job.device)) as peaks:
        steps = side(job)
        next(steps)
        loaded = time.perf_counter()
        peaks.loaded()
        for _ in steps:
            if job.device.startswith("cuda"):
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            used.append(time.process_time())
    return Outcome(
        concepts=job.concepts,
        loading=loaded - began,
        first=ends[0] - loaded,
        steps=tuple(after - before for before, after in pairwise(ends)),
        processor=tuple(after - before for before, after in pairwise(used)),
        **peaks.gigabytes(),
        threads=torch.get_num_threads(),
        gflops=product_rates(torch.device(job.device)),
    )


def main() -> None:
    """Do the job that is given as JSON, and print what it took."""
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(measured(job))))


if __name__ == "__main__":
    main()
