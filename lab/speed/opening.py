"""Time and memory to open a checkpoint of Stable Diffusion 1.5's size, by pinxit and by torch.

`python -m lab.speed.opening [--gigabytes G] [--rounds N]` prints results as one line of JSON. The
file is in build/ during the measurement.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pinxit.files.pickle.torch_file import read_torch_file

ROOT = Path(__file__).resolve().parents[2]
TENSORS = 1131  # U-Net, autoencoder and text encoder together
READERS = ("torch", "pinxit")


def make(path: Path, gigabytes: float, new: bool) -> None:
    """Write the checkpoint; half of the tensors are vectors, like biases and norms."""
    width = 1280
    rows = int(gigabytes * 1e9 / 4 / width / (TENSORS // 2))
    weights = {
        f"model.diffusion_model.blocks.{n}.weight": torch.full(
            (rows, width) if n % 2 else (width,), n / TENSORS
        )
        for n in range(TENSORS)
    }
    torch.save(
        {"state_dict": weights, "global_step": 470_000},
        path,
        _use_new_zipfile_serialization=new,
    )
    os.sync()


def time_opening(path: Path, reader: str) -> dict[str, float]:
    """Time and memory of this process to open the file, and to read all values."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clocks = [(time.perf_counter(), time.process_time())]
    read: Any = torch.load(path, weights_only=True) if reader == "torch" else read_torch_file(path)
    clocks.append((time.perf_counter(), time.process_time()))
    total = sum(float(weight.sum()) for weight in read["state_dict"].values())
    clocks.append((time.perf_counter(), time.process_time()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    (wall, busy), (wall_open, busy_open), (wall_used, busy_used) = clocks
    return {
        "open": wall_open - wall,
        "open, processor": busy_open - busy,
        "used": wall_used - wall,
        "used, processor": busy_used - busy,
        "peak GB": peak * 1024 / 1e9,
        "sum": total,
    }


def measure(gigabytes: float, times: int) -> dict[str, Any]:
    """Measure both readers on both layouts alternately, each time in a new process."""
    (ROOT / "build").mkdir(exist_ok=True)
    figures: dict[str, Any] = {"tensors": TENSORS}
    for layout in ("zip", "legacy"):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
            path = Path(folder) / "sd15.ckpt"
            _run("--make", layout, str(path), str(gigabytes))
            figures[f"{layout} GB"] = round(path.stat().st_size / 1e9, 2)
            rounds = [
                {who: _run("--open", who, str(path)) for who in READERS} for _ in range(times)
            ]
        if len({once[who]["sum"] for once in rounds for who in READERS}) != 1:
            raise ValueError("the readers do not read the same")
        for who in READERS:
            keys = [key for key in rounds[0][who] if key != "sum"]
            figures[f"{layout}, {who}"] = {
                key: round(median(once[who][key] for once in rounds), 3) for key in keys
            }
    return figures


def _run(*words: str) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-m", "lab.speed.opening", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Print the results, or do the work of one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.27)
    parser.add_argument("--rounds", type=int, default=3, help="measurements per median")
    parser.add_argument("--make", nargs=3)
    parser.add_argument("--open", nargs=2)
    asked = parser.parse_args()
    if asked.make:
        layout, path, gigabytes = asked.make
        make(Path(path), float(gigabytes), layout == "zip")
        answer: dict[str, Any] = {}
    elif asked.open:
        answer = time_opening(Path(asked.open[1]), asked.open[0])
    else:
        answer = measure(asked.gigabytes, asked.rounds)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
