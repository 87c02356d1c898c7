"""Run the hostile files and the fuzzer in parallel; prints their figures as one line of JSON."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=900, help="time limit of the fuzzer")
    parser.add_argument("--every", type=int, default=16, help="use only every N-th gadget")
    arguments = parser.parse_args()
    fuzzer = _start("fuzz", "--inputs", str(arguments.inputs), "--seconds", str(arguments.seconds))
    hostile = _start("hostile", "--every", str(arguments.every))
    print(json.dumps({"hostile": _result(hostile), "fuzzed": _result(fuzzer)}))


def _start(tool: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"lab.security.{tool}", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _result(process: subprocess.Popen[str]) -> object:
    output, _ = process.communicate()
    if process.returncode:
        raise ChildProcessError(f"exit status {process.returncode}")
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    main()
