"""The file layer works where the calls of POSIX are missing, as on Windows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = Path(__file__).parent
# Locks between processes, SIGHUP, and opening of folders and pipes do not exist there.
LEFT_OUT = "only_one_process or 129 or mkdir or mkfifo"


@pytest.mark.long
def test_the_tests_of_files_pass_without_posix() -> None:
    names = ("test_atomic_write.py", "test_safetensors_file.py", "test_untrusted.py")
    tests = [str(FILES / name) for name in names]
    options = ["-q", "-p", "tests.files.without_posix", "-p", "no:cacheprovider"]
    selection = ["-k", f"not ({LEFT_OUT})"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *selection, *tests],
        cwd=FILES.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed
    assert int(passed[1]) > 40
