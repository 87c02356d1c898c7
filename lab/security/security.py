"""The hostile set and the fuzzer, side by side; their figures as one line of JSON."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run both and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=900, help="the fuzzer's, at most")
    parser.add_argument("--every", type=int, default=16, help="only each so-manyth gadget")
    asked = parser.parse_args()
    fuzzed = _start("fuzz", "--inputs", str(asked.inputs), "--seconds", str(asked.seconds))
    hostile = _start("hostile", "--every", str(asked.every))
    print(json.dumps({"hostile": _answer(hostile), "fuzzed": _answer(fuzzed)}))


def _start(tool: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"lab.security.{tool}", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _answer(run: subprocess.Popen[str]) -> object:
    said, _ = run.communicate()
    if run.returncode:
        raise ChildProcessError(f"exit status {run.returncode}")
    return json.loads(said.splitlines()[-1])


if __name__ == "__main__":
    main()
