"""One measured job: a side, a method and a base model. The worker process prints JSON.

Each job runs in its own process, so that peak memory is measured for it alone.
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
BATCHABLE = ("textual-inversion", "lora")  # methods whose concepts can share a batch
SIDES = ("plain", "pinxit")
TOKEN = "<mytoy>"
GUIDANCE = 7.5


@dataclass(frozen=True)
class Job:
    """What one process measures. For generation a step is an image of `painting` steps."""

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
        """The folder of training images, which come with pinxit."""
        return Path(os.environ["PINXIT_BENCH_PICTURES"])


@dataclass(frozen=True)
class Outcome:
    """Wall time and CPU time in seconds, and peak memory in gigabytes.

    A step is a step of all `concepts` in one batch; `first` is the first one, which fills caches,
    `steps` are the others. `loading_gb` and `steps_gb` are the peaks of resident memory before and
    after the first step begins (0 if the system cannot separate them), `peak_gb` is the higher one,
    `anonymous_gb` the peak of memory that is not mapped from files.
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


def run_job(job: Job) -> Outcome:
    """Run a job in this process and measure it."""
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
    """Run the job of the first argument, a JSON object, and print the outcome as JSON."""
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(run_job(job))))


if __name__ == "__main__":
    main()
