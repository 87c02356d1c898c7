"""Workers in processes of this machine, one for each accelerator."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from pinxit.errors import RequestError
from pinxit.models.device import AUTO, all_devices
from pinxit.runs.fleet_worker import Message, Setup, Task, Worker

_SAVE_SECONDS = 60.0  # for a worker to save its runs when it is stopped


class Processes:
    """Workers in processes of their own: they take turns on the accelerators, or share the CPU."""

    def __init__(self, setup: Setup, workers: int | None = None, address: str | None = None):
        if address:
            raise RequestError("processes have no --address", "remove it, or use --engine ray")
        devices = all_devices(setup.device or AUTO)
        self.workers = workers or len(devices)
        threads = max(1, (os.cpu_count() or 1) // self.workers) if devices == ["cpu"] else None
        self._setups = [
            replace(setup, device=devices[number % len(devices)], threads=setup.threads or threads)
            for number in range(self.workers)
        ]
        self._processes: dict[int, tuple[BaseProcess, Any]] = {}

    def send(self, number: int, task: Task) -> None:
        """Give a task to a worker that has none; it is started if it does not run."""
        if number not in self._processes:
            context = get_context("spawn")
            own, other = context.Pipe()
            arguments = (other, self._setups[number])
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            other.close()
            self._processes[number] = process, own
        with suppress(OSError):  # it has just died: `receive` finds out
            self._processes[number][1].send(task)

    def receive(self) -> Iterator[tuple[int, Message | None]]:
        """Messages of the workers, or None from one that has died; waits for one second."""
        waiting = {number: own for number, (_, own) in self._processes.items()}
        ready = wait(waiting.values(), timeout=1)
        for number, own in waiting.items():
            if own not in ready:
                continue
            try:
                yield number, own.recv()
            except (EOFError, OSError):
                self._end(number)
                yield number, None

    def close(self) -> None:
        """End all workers; they save what they train."""
        for process, _ in self._processes.values():
            process.terminate()
        for number in list(self._processes):
            self._end(number)

    def _end(self, number: int) -> None:
        process, own = self._processes.pop(number)
        own.close()
        process.join(_SAVE_SECONDS)
        process.kill()


def _work(connection: Any, setup: Setup) -> None:
    """Do tasks until the driver ends or stops this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver reacts to Ctrl-C
    signal.signal(signal.SIGTERM, _stop)
    worker = Worker(setup)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            with closing(worker.run_task(connection.recv())) as messages:
                for message in messages:
                    connection.send(message)


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
