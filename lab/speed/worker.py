"""Run one job and measure it. As a process it prints the outcome as JSON.

Each job runs in its own process, so that peak memory is measured for it alone.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise

import torch

from lab.speed.calibration import product_rates
from lab.speed.job import Job, Outcome
from lab.speed.memory import Peaks


def run_job(job: Job) -> Outcome:
    """Run a job in this process and measure it."""
    began = time.perf_counter()
    ends: list[float] = []
    used: list[float] = []
    predicted = 0.0
    with Peaks(torch.device(job.device)) as peaks:
        steps = _side(job)
        next(steps)
        loaded = time.perf_counter()
        in_use = peaks.loaded()
        for needed in steps:
            if job.device.startswith("cuda"):
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            used.append(time.process_time())
            if len(ends) == 1:
                peaks.first_step()
                predicted = in_use + needed / 1e9 if needed else 0.0
    return Outcome(
        concepts=job.concepts,
        loading=loaded - began,
        first=ends[0] - loaded,
        steps=tuple(after - before for before, after in pairwise(ends)),
        processor=tuple(after - before for before, after in pairwise(used)),
        **peaks.gigabytes(),
        threads=torch.get_num_threads(),
        gflops=product_rates(torch.device(job.device)),
        predicted_gb=predicted,
    )


def _side(job: Job) -> Iterator[int | None]:
    """The steps of a job. The first item means that all is loaded, each further one is a step.

    An item is the number of bytes that the side said a step needs, None if it said nothing.
    """
    # Imported here: the modules of the other side would count as memory of this one.
    if job.side == "plain":
        from lab.speed import plain as side
    elif job.side == "cached":
        from lab.speed.cached import training_steps

        return training_steps(job)
    else:
        from lab.speed import ours as side
    return side.generation_steps(job) if job.method == "generation" else side.training_steps(job)


def main() -> None:
    """Run the job of the first argument, a JSON object, and print the outcome as JSON."""
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(run_job(job))))


if __name__ == "__main__":
    main()
