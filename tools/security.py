"""Every figure of docs/security.md: opening, the hostile set, the fuzzer; one line of JSON."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent


def main() -> None:
    """Run the three, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    _ = parser.add_argument("--inputs", type=int, default=1_000_000)
    _ = parser.add_argument("--seconds", type=float, default=900, help="the fuzzer's, at most")
    _ = parser.add_argument("--every", type=int, default=16, help="only each so-manyth gadget")
    asked = parser.parse_args()
    figures: dict[str, Any] = {
        "opening": _run("opening"),
        "hostile": _run("hostile", "--every", str(asked.every)),
        "fuzzed": _run("fuzz", "--inputs", str(asked.inputs), "--seconds", str(asked.seconds)),
    }
    print(json.dumps(figures))


def _run(tool: str, *words: str) -> Any:
    command = [sys.executable, str(TOOLS / f"{tool}.py"), *words]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
