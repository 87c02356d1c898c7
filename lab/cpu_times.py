"""A plug-in of pytest that measures the CPU seconds of each test.

`pytest -p lab.cpu_times -p no:xdist tests/runs` writes a line of JSON for each test to
build/cpu_times.jsonl: its name, and the user and system seconds of this process (`own`) and of
the processes that it started and that have ended (`children`). Unlike durations, they hardly
depend on what else the machine does.
"""

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

_FILE = Path("build") / "cpu_times.jsonl"


def pytest_configure() -> None:
    """Begin a new file."""
    _FILE.parent.mkdir(exist_ok=True)
    _FILE.write_text("")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Write the seconds of a test, with those of fixtures that it is the first to use."""
    before = os.times()
    result = yield
    after = os.times()
    own = after.user + after.system - before.user - before.system
    children = sum(after[2:4]) - sum(before[2:4])
    line = {"test": item.nodeid, "own": round(own, 2), "children": round(children, 2)}
    with _FILE.open("a") as file:
        file.write(f"{json.dumps(line)}\n")
    return result
