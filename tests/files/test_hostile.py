"""No file runs code, exhausts memory or hangs: hostile files, fuzzed files and a control test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent

# A control: the watch must detect code that runs, with the same payloads read by pickle itself.
CONTROL = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lab.security import hostile, watch
def spin(path):
    while True:
        pass
watcher = watch.Watch()
for body in hostile.routes("posix", "system"):
    path = Path("gadget")
    path.write_bytes(b"\\x80\\x04" + body.replace(b"pinxit-canary", b"touch canary!") + b".")
    print(watcher.outcome(lambda path: pickle.loads(path.read_bytes()), path))
print(watcher.outcome(lambda path: __import__("this"), path))
print(watcher.outcome(lambda path: Path("/etc/hosts").read_text(), path))
print(watcher.outcome(spin, path))
print(watcher.outcome(lambda path: [0] * 10**11, path))
print(watcher.outcome(lambda path: object(), path))
print(dict(watcher.events))
"""


def run_tool(tool: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", f"lab.security.{tool}", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


def assert_harmless(counts: Any, errors: str) -> None:
    assert (counts["code run"], counts["crashes"], counts["hangs"]) == (0, 0, 0), errors


@pytest.mark.long
def test_no_code_in_hostile_files_runs() -> None:
    counts, errors = run_tool("hostile", "--every", "300")
    assert_harmless(counts, errors)
    assert counts["read"] == 0, errors
    assert counts["refused"] == counts["hostile files"] > 1500


@pytest.mark.long
def test_the_watch_detects_code_that_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTROL, str(ROOT)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert lines[-6:-1] == ["code run", "code run", "hang", "crash", "crash"]
    assert lines[:-6].count("code run") >= 5
    assert (tmp_path / "canary!").exists()
    assert "'os.system'" in lines[-1]
    assert "'import'" in lines[-1]


@pytest.mark.long
def test_damaged_files_are_refused_or_read() -> None:
    counts, errors = run_tool("fuzz", "--inputs", "1000")
    assert_harmless(counts, errors)
    assert counts["inputs"] == counts["refused"] + counts["read"] == 1000
    assert counts["read"] > 20  # some inputs pass the first checks


@pytest.mark.slow
def test_ten_thousand_damaged_files() -> None:
    counts, errors = run_tool("fuzz", "--inputs", "10000", "--seed", "7")
    assert_harmless(counts, errors)
    assert counts["inputs"] == 10_000


@pytest.mark.slow
def test_a_larger_share_of_the_hostile_files() -> None:
    counts, errors = run_tool("hostile", "--every", "16")
    assert_harmless(counts, errors)
