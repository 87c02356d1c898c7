"""Runs the measurements that the docs quote, and saves their results in docs/figures.

Each command prints JSON as its last line. `python -m lab.figures [NAME ...]`; without a name all
are run.
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "figures"

# Commands by the name of the measurement; run from the root with .venv/bin first in PATH.
COMMANDS: dict[str, str] = {
    "pocket": "python -m pinxit.pocket measure --photographs photographs",
    "pocket-trials": "python -m lab.pocket.trials --work pocket-work "
    "--fork pocket-work/kept/painter-01000.safetensors --seconds 200",
    "pocket-curve": "python -m lab.pocket.curve --work pocket-work",
    "help-time": "python tools/help_time.py",
    "styles": "python -m lab.quality.styles",
    "truths": "python -m lab.quality.truths",
    "scale": "python -m lab.quality.scale",
    "transfer": "python -m lab.quality.transfer",
    "stopping": "python -m lab.quality.stopping --judged",
    "real-pictures": "python -m lab.quality.real_images --steps 600",
    "opening": "python -m lab.speed.opening --gigabytes 2.13 --rounds 1",
    "arithmetic": "python -m lab.speed.arithmetic",
    "fits": "python -m lab.speed.fits",
    "pictures": "python -m lab.images.odd_images --mutants 10000",
    "crops": "python -m lab.images.crops",
    "reliability": "python -m lab.reliability.reliability --kills 1000",
    "learning-unharmed": "python -m lab.speed.learning --precisions int8 fp16",
    "gradients": "python -m lab.speed.gradients",
    "speed-pocket": "python -m lab.speed --rounds 5 --steps 20 --json -",
    "speed-int8": "python -m lab.speed --base sd15 --methods textual-inversion lora generation "
    "--rounds 2 --steps 3 --precision int8 --json -",
    "speed": "python -m lab.speed --base sd15 --rounds 2 --steps 2 --json -",
    "security": "python -m lab.security.security --every 1 --seconds 1260",
}


def machine() -> dict[str, object]:
    """The machine that a measurement runs on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def commit() -> str:
    """The current commit, marked if files were changed before the measurement."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "no commit yet"


def measure(name: str) -> bool:
    """Run one command and save its result; returns whether it succeeded."""
    command = COMMANDS[name]
    print(f"{name}: {command}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start, measured_at = time.perf_counter(), commit()
    answer = subprocess.run(
        command.split(),
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if answer.returncode:
        print(f"{name}: exit status {answer.returncode}", file=sys.stderr)
        return False
    result = {
        "command": command,
        "commit": measured_at,
        "machine": machine(),
        "seconds": round(time.perf_counter() - start, 1),
        "figures": json.loads(answer.stdout.splitlines()[-1]),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
    return True


def main(names: list[str]) -> int:
    """Returns 0 if all measurements succeeded."""
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        print(f"no figures {', '.join(unknown)}. hint: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    results = [measure(name) for name in names or COMMANDS]  # all run, even after a failure
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
