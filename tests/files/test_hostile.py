"""No file runs code, harms memory or stalls: the hostile set, the fuzzer, and their controls."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent

# The watch must see what runs: the same tricks, read by the module that runs them.
CONTROL = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lab.security import hostile, watch
def spin(path):
    while True:
        pass
looker = watch.Watch()
for body in hostile.routes("posix", "system"):
    path = Path("gadget")
    path.write_bytes(b"\\x80\\x04" + body.replace(b"pinxit-canary", b"touch canary!") + b".")
    print(looker.outcome(lambda path: pickle.loads(path.read_bytes()), path))
print(looker.outcome(lambda path: __import__("this"), path))
print(looker.outcome(lambda path: Path("/etc/hosts").read_text(), path))
print(looker.outcome(spin, path))
print(looker.outcome(lambda path: [0] * 10**11, path))
print(looker.outcome(lambda path: object(), path))
print(dict(looker.events))
"""


def figures(tool: str, *words: str) -> Any:
    command = [sys.executable, "-m", f"lab.security.{tool}", *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


def clean(found: Any, said: str) -> None:
    assert (found["code run"], found["crashes"], found["hangs"]) == (0, 0, 0), said


@pytest.mark.long
def test_nothing_in_a_hostile_file_runs() -> None:
    found, said = figures("hostile", "--every", "300")
    clean(found, said)
    assert found["read"] == 0, said
    assert found["refused"] == found["hostile files"] > 1500


@pytest.mark.long
def test_the_watch_sees_code_that_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTROL, str(ROOT)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = run.stdout.splitlines()
    assert said[-6:-1] == ["code run", "code run", "hang", "crash", "crash"]
    assert said[:-6].count("code run") >= 5
    assert (tmp_path / "canary!").exists()
    assert "'os.system'" in said[-1]
    assert "'import'" in said[-1]


@pytest.mark.long
def test_damaged_files_are_refused_or_read() -> None:
    found, said = figures("fuzz", "--inputs", "1000")
    clean(found, said)
    assert found["inputs"] == found["refused"] + found["read"] == 1000
    assert found["read"] > 20  # it reaches behind the first check


@pytest.mark.slow
def test_ten_thousand_damaged_files() -> None:
    found, said = figures("fuzz", "--inputs", "10000", "--seed", "7")
    clean(found, said)
    assert found["inputs"] == 10_000


@pytest.mark.slow
def test_more_of_the_hostile_set() -> None:
    found, said = figures("hostile", "--every", "16")
    clean(found, said)
