"""`--gpus N`: start one process for each device, and end them together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from pinxit.cli.screen import say
from pinxit.files.atomic_write import STOP_SIGNALS

# Seconds until the others are killed after one process has ended: rank 0 may save gigabytes.
_GRACE = 600.0
_POLL = 0.1


class StartRanks(Exception):  # noqa: N818 (no error: the command starts again in `count` processes)
    """Raised by a command that is to run in several processes."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


def start_ranks(arguments: Sequence[str], count: int) -> int:
    """Run this command in `count` processes until all end; returns the exit status of rank 0.

    Stop signals are sent on to all. If a process is killed, the others
    end by themselves, and are killed if they do not.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the processes use this store
    }
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pinxit", *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # Ctrl-C reaches them once, through this process
        )
        for rank in range(count)
    ]

    def forward(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    return _wait(processes)


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    deadline = float("inf")
    while None in (codes := [process.poll() for process in processes]):
        if deadline == float("inf") and any(codes):
            deadline = time.monotonic() + _GRACE
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(_POLL)
    for rank, process in enumerate(processes):
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            say(f"process {rank} of {len(processes)} was killed by {name}")
    codes = (process.returncode for process in processes)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)
