# pyright: standard
"""Prompt accuracy of pocket's U-Net by the number of training samples, with an extrapolation.

`python -m lab.pocket.curve --work WORK` measures all training states in WORK/kept (copies named
painter-STEP, made by hand) and the last state. States that are in WORK/curve.json are not measured
again. The last line is JSON.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from lab.pocket.trials import accuracy
from pinxit.pocket import painter

MAX_FACTOR = 10  # the extrapolation goes to this multiple of the samples


def main() -> None:
    """Measure the states, extrapolate, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=tuple(painter.SIZES), default="small")
    parser.add_argument("--images", type=int, default=96)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results_file = args.work / "curve.json"
    results: dict[str, dict[str, float]] = (
        json.loads(results_file.read_text()) if results_file.exists() else {}
    )
    states = sorted((args.work / "kept").glob("painter-*.safetensors"))
    for path in (*states, args.work / f"painter-{args.size}.safetensors"):
        step = painter.Trainer(path, painter.build(args.size), 0.0, 1).step
        if str(step) not in results:
            results[str(step)] = accuracy(args.work, path, args)
            results_file.write_text(json.dumps(results, indent=1))
            print(step, results[str(step)], flush=True)
    points = {int(step) * painter.BATCH: shares for step, shares in results.items()}
    print(json.dumps({"measured": points, "expected": expected(points)}))


def expected(points: dict[int, dict[str, float]]) -> dict[str, dict[int, float]]:
    """The accuracies at 2, 5 and 10 times the samples, extrapolated from the last half.

    The error is assumed to be a power of the number of samples: a line in logarithmic axes.
    """
    samples = sorted(points)
    last = samples[len(samples) // 2 - 1 :] if len(samples) > 3 else samples
    curves: dict[str, dict[int, float]] = {}
    for what in points[samples[-1]]:
        wrong = [math.log(max(1 - points[n][what], 0.005)) for n in last]
        slope, start = np.polyfit(np.log(last), wrong, 1)
        curves[what] = {
            n: round(1 - math.exp(start + min(slope, 0.0) * math.log(n)), 3)
            for n in (samples[-1] * times for times in (2, 5, MAX_FACTOR))
        }
    return curves


if __name__ == "__main__":
    main()
