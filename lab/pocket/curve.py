# pyright: standard
"""What pocket's U-Net paints by the samples it has seen, and what ten times as many may bring.

`python -m lab.pocket.curve --work WORK` looks at every state in WORK/kept (painter-STEP copies of
the state of training, made by whoever wants a curve) and at the last. A state that WORK/curve.json
has is not painted with again. The last line is JSON.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from lab.pocket.trials import seen_by
from pinxit.pocket import painter

FURTHEST = 10  # times as many samples as were seen: the line is drawn no further


def main() -> None:
    """Measure the states, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", choices=tuple(painter.SIZES), default="small")
    parser.add_argument("--pictures", type=int, default=96)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kept = chosen.work / "curve.json"
    found: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    states = sorted((chosen.work / "kept").glob("painter-*.safetensors"))
    for path in (*states, chosen.work / f"painter-{chosen.size}.safetensors"):
        step = painter.Trainer(path, painter.build(chosen.size), 0.0, 1).step
        if str(step) not in found:
            found[str(step)] = seen_by(chosen.work, path, chosen)
            kept.write_text(json.dumps(found, indent=1))
            print(step, found[str(step)], flush=True)
    points = {int(step) * painter.BATCH: shares for step, shares in found.items()}
    print(json.dumps({"measured": points, "expected": expected(points)}))


def expected(points: dict[int, dict[str, float]]) -> dict[str, dict[int, float]]:
    """The shares at twice, five and ten times the most samples, by the last half of the points.

    What is wrong is taken to fall as a power of the samples: a line between logarithms.
    """
    samples = sorted(points)
    last = samples[len(samples) // 2 - 1 :] if len(samples) > 3 else samples
    found: dict[str, dict[int, float]] = {}
    for what in points[samples[-1]]:
        wrong = [math.log(max(1 - points[n][what], 0.005)) for n in last]
        slope, start = np.polyfit(np.log(last), wrong, 1)
        found[what] = {
            n: round(1 - math.exp(start + min(slope, 0.0) * math.log(n)), 3)
            for n in (samples[-1] * times for times in (2, 5, FURTHEST))
        }
    return found


if __name__ == "__main__":
    main()
