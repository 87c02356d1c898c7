"""How long `pinxit --help` takes from a shell, over 20 runs; prints JSON."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 20


def main() -> None:
    """One run to warm the disk's cache, then the measured ones."""
    command = [str(Path(sys.executable).with_name("pinxit")), "--help"]
    seconds: list[float] = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - began)
    warm = sorted(seconds[1:])
    figures = {"median_s": statistics.median(warm), "slowest_s": warm[-1], "runs": RUNS}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
