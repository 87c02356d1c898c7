"""One measured job, which is a side, a method and a base model, and its outcome."""

import os
from dataclasses import dataclass
from pathlib import Path

METHODS = ("textual-inversion", "lora", "dreambooth", "generation")
BATCHABLE = ("textual-inversion", "lora")  # methods whose concepts can share a batch
SIDES = ("plain", "pinxit")  # others, such as "cached", are only measured by lab.speed.device
COMPILED = ("compiled", "graphs")  # pinxit with --compile and --cuda-graphs
TOKEN = "<mytoy>"
GUIDANCE = 7.5


@dataclass(frozen=True)
class Job:
    """What one process measures. For generation a step is an image of `sampling_steps` steps."""

    side: str
    method: str
    base: str
    noun: str
    size: int
    steps: int
    batch: int
    concepts: int
    sampling_steps: int
    device: str
    precision: str
    seed: int = 0

    @property
    def images(self) -> Path:
        """The folder of training images, which come with pinxit."""
        return Path(os.environ["PINXIT_BENCH_PICTURES"])


@dataclass(frozen=True)
class Outcome:
    """Wall time and CPU time in seconds, and peak memory in gigabytes.

    A step is a step of all `concepts` in one batch; `first` is the first one, which fills caches,
    `steps` are the others. `loading_gb` and `steps_gb` are the peaks of resident memory before and
    after the first step begins (0 if the system cannot separate them), `peak_gb` is the higher one,
    `anonymous_gb` the peak of memory that is not mapped from files, `device_steps_gb` the peak on
    a GPU after the first step. `predicted_gb` is what was in use when all was loaded, and what the
    side said a step needs; 0 if it said nothing.
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
    device_steps_gb: float = 0.0
    predicted_gb: float = 0.0
