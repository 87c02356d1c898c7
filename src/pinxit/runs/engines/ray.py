"""Workers on a Ray cluster, one for each GPU (needs pinxit[ray])."""

import logging
import os
import re
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

from pinxit.errors import RequestError, RunError, first_line
from pinxit.runs.fleet_worker import Done, Message, Setup, Task, Unusable, Worker

# What a cluster says that is not for the user: usage statistics, and warnings about settings.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

# In seconds. Ray needs some milliseconds for each message, and a worker gets its next task only
# after all its messages have arrived.
_SEND_EVERY = 0.5
# What Ray says of a token, after the names of its errors and before its advice.
_TOKEN = re.compile(
    r"AuthenticationError: (?:RPC error: InvalidAuthToken: )?(.+?)\. (?:Note|Ensure)"
)


class Ray:
    """Workers are Ray actors; all machines need pinxit, and the same file system."""

    def __init__(self, setup: Setup, workers: int | None = None, address: str | None = None):
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise RequestError("Ray is not installed", 'pip install "pinxit[ray]"') from error
        os.environ.update({**_QUIET, **os.environ})
        # Without an address always a cluster of this command's own, not one found by chance.
        address = address or "local"
        try:
            check_reachable(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ray.exceptions.RayError) as error:
            raise connection_error(address, error) from error
        self._ray = ray
        gpus = 0 if setup.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        self.workers = workers or gpus or 1
        machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        machines = [cpus for cpus in machines if cpus] or [1]
        # An actor cannot have CPUs of two machines.
        per_machine = -(-self.workers // len(machines))
        cpus = 1 if gpus else max(1, min(machines) // per_machine)
        self._resources = {"num_cpus": cpus, "num_gpus": 1 if gpus else 0}
        self._setup = replace(setup, threads=setup.threads or (None if gpus else cpus))
        self._actors: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    def send(self, number: int, task: Task) -> None:
        """Give a task to a worker that has none; it is started if it does not run."""
        if number not in self._actors:
            actor = self._ray.remote(_Actor).options(**self._resources)
            self._actors[number] = actor.remote(self._setup)
        run_task = self._actors[number].run_task.options(num_returns="streaming")
        self._streams[number] = run_task.remote(task)

    def receive(self) -> Iterator[tuple[int, Message | None]]:
        """Messages of the workers, or None from one that has died; waits for one second."""
        numbers = {id(stream): number for number, stream in self._streams.items()}
        ready, _ = self._ray.wait(list(self._streams.values()), timeout=1)
        for stream in ready:
            number = numbers[id(stream)]
            messages: list[Message | None] = [None]
            try:
                messages = self._ray.get(next(stream))
            except (self._ray.exceptions.RayError, StopIteration):
                self._ray.kill(self._actors.pop(number))
            for message in messages:
                if message is None or isinstance(message, Done):
                    del self._streams[number]
                yield number, message

    def close(self) -> None:
        """End all workers; steps after the last checkpoint are trained again later."""
        self._ray.shutdown()


def check_reachable(address: str) -> None:
    """Raise OSError if nothing answers at host:port; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def connection_error(address: str, error: Exception) -> RunError:
    """Why Ray cannot be used; Ray tells of a refused token only in the error's cause."""
    reason = _TOKEN.search(f"{type(error).__name__}: {error}\n{error.__cause__}")
    hint = "start a cluster with `ray start --head`, and give its address to --address"
    if reason:
        hint = "set RAY_AUTH_MODE=token and copy ~/.ray/auth_token from the cluster's first machine"
    text = reason[1] if reason else first_line(error)
    return RunError(f"Ray cannot be used at {address}: {text}", hint)


class _Actor:
    """A worker in a process of the cluster, which Ray places on a free device."""

    def __init__(self, setup: Setup) -> None:
        self._worker = Worker(setup)

    def run_task(self, task: Task) -> Generator[list[Message]]:
        """Do a task; messages are sent while it is done, those in quick succession together."""
        messages: list[Message] = []
        sent = time.monotonic()
        for message in self._worker.run_task(task):
            messages.append(message)
            if isinstance(message, Done | Unusable) or time.monotonic() - sent > _SEND_EVERY:
                yield messages
                messages, sent = [], time.monotonic()
