"""Every figure that the docs quote: runs its command, and keeps the answer in docs/figures.

A command prints JSON as its last line. `python -m lab.figures [NAME ...]`; all without names.
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

# What is measured, by which command; run from the root with .venv/bin first on the path.
COMMANDS: dict[str, str] = {
    "pocket": "python -m pinxit.pocket measure --photographs ../shared/seed/pictures",
    "pocket-trials": "python -m lab.pocket.trials --work pocket-work "
    "--fork pocket-work/kept/painter-01000.safetensors --seconds 200",
    "pocket-curve": "python -m lab.pocket.curve --work pocket-work",
    "help-time": "python tools/help_time.py",
    "demo": "pinxit demo --out build/demo --json",
    "subjects": "python -m lab.quality.subjects --count 1",
    "styles": "python -m lab.quality.styles",
    "truths": "python -m lab.quality.truths",
    "transfer": "python -m lab.quality.transfer",
    "stopping": "python -m lab.quality.stopping --judged",
    "real-pictures": "python -m lab.quality.real_images --steps 600",
    "opening": "python -m lab.speed.opening --gigabytes 2.13 --rounds 1",
    "arithmetic": "python -m lab.speed.arithmetic",
    "pictures": "python -m lab.images.odd_images --mutants 10000",
    "crops": "python -m lab.images.crops",
    "reliability": "python -m lab.reliability.reliability --kills 1000",
    "learning-unharmed": "python -m lab.speed.learning --precisions int8 fp16",
    "speed-pocket": "python -m lab.speed --rounds 5 --steps 20 --json -",
    "speed-int8": "python -m lab.speed --base sd15 --methods textual-inversion lora generation "
    "--rounds 2 --steps 3 --precision int8 --json -",
    "speed": "python -m lab.speed --base sd15 --rounds 2 --steps 2 --json -",
    "security": "python -m lab.security.security --every 1 --seconds 1260",
}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
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
    """The commit the figures belong to, marked if files were changed since."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "no commit yet"


def measure(name: str) -> bool:
    """Run one command and keep what it found; whether it went well."""
    command = COMMANDS[name]
    print(f"{name}: {command}", flush=True)
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.perf_counter()
    answer = subprocess.run(
        command.split(),
        cwd=ROOT,
        env={**os.environ, "PATH": search},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if answer.returncode:
        print(f"{name}: exit status {answer.returncode}", file=sys.stderr)
        return False
    kept = {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "seconds": round(time.perf_counter() - began, 1),
        "figures": json.loads(answer.stdout.splitlines()[-1]),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
    return True


def main(names: list[str]) -> int:
    """0 if every figure asked for was measured."""
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        print(f"no figures {', '.join(unknown)}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return 0 if all([measure(name) for name in names or COMMANDS]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
