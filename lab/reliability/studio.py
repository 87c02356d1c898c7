"""Measure the studio: times, page weight and many readers.

`python -m lab.reliability.studio` prints figures as one line of JSON; see also `studio_kills`.
"""

import argparse
import asyncio
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from pinxit.pocket import gallery
from pinxit.studio.app import create_app
from pinxit.studio.jobs import Job
from pinxit.studio.worker import Worker
from pinxit.studio.workspace import Workspace

PAGES = ("library", "train", "generate", "transfer", "compare", "files", "queue")
READERS, ROUNDS, STEPS = 60, 3, 15


def free_port() -> int:
    """A port that nothing uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], seconds: float) -> float:
    """Seconds until a condition is true; TimeoutError if it takes too long."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic() - start


class Client:
    """A program that uses a studio with the bearer token."""

    def __init__(self, workspace: Workspace, port: int) -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {workspace.token_for('api')}"}

    def call(self, path: str, values: object = None) -> tuple[int, bytes]:
        """Status and body of an answer; a POST with JSON if there are values."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = None if values is None else json.dumps(values)
        connection.request("POST" if body else "GET", path, body, self.headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def forked(task: Callable[[], object]) -> int:
    """Do a task in a fork of this process; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        task()
    except BaseException:  # the fork must not return into the loop of its parent
        traceback.print_exc()
    finally:
        os._exit(0)


def kill(process: int) -> None:
    """Kill a process at once, and wait until it is gone."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def silent_worker(workspace: Workspace) -> Callable[[], object]:
    """A worker that says nothing."""
    return lambda: Worker(workspace, "cpu", lambda _: None).run(until_empty=True)


def server(workspace: Workspace, port: int) -> Callable[[], object]:
    """A server without a worker."""
    app = create_app(workspace, port)
    return lambda: uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


def answers(port: int) -> bool:
    """Whether something listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def first_page(folder: Path) -> dict[str, Any]:
    """Seconds by the clock and of CPU time from the command to the first page, the best of five.

    For a core that nothing else uses: `chrt -f 1 python -m lab.reliability.studio --only start`.
    """
    seconds: list[tuple[float, float]] = []
    for number in range(5):
        start = time.monotonic()
        with studio(Workspace(folder / f"start{number}")) as (client, process):
            client.call("/train")
            seconds.append((time.monotonic() - start, _cpu_seconds(process)))
    clock, cpu = min(seconds)
    return {"clock": round(clock, 2), "cpu": round(cpu, 2)}


@contextmanager
def studio(workspace: Workspace) -> Generator[tuple[Client, int]]:
    """A studio without a worker, when its port answers: a client, and its process id."""
    workspace.create()
    client = Client(workspace, free_port())  # it makes the secret, which two must not do at once
    command = [sys.executable, "-m", "pinxit", "studio", str(workspace.folder), "--device", "none"]
    command += ["--port", str(client.port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: answers(client.port), 60)
            yield client, process.pid
        finally:
            process.terminate()


def times(folder: Path) -> dict[str, Any]:
    """A page, weight of pages, first event, and how soon a dead worker is shown."""
    workspace = Workspace(folder / "times")
    with studio(workspace) as (client, _):
        return _times(folder, workspace, client)


def _times(folder: Path, workspace: Workspace, client: Client) -> dict[str, Any]:
    client.call("/train")
    seconds: list[float] = []
    for _ in range(5):
        before = time.monotonic()
        client.call("/train")
        seconds.append(time.monotonic() - before)
    shared = sum(len(client.call(f"/static/studio.{name}")[1]) for name in ("css", "js"))
    weights = {page: len(client.call(f"/{page}")[1]) + shared for page in PAGES}
    worker = forked(lambda: Worker(workspace, "cpu", lambda _: None).run())
    wait_for(lambda: workspace.workers().get("cpu"), 60)
    # A new worker first finds out what trainings cost; a job waits for the part that it is at.
    early = workspace.queue.add("inspect", {"file": ""})
    first_job = wait_for(lambda: early.result, 60)
    methods = workspace.options["methods"]
    wait_for(lambda: all(workspace.cost("pocket", method) for method in methods), 300)
    job = workspace.queue.add("train", {"recipe": pocket_recipe(folder, 200)})
    first_event = wait_for(lambda: job.log.events(), 60)
    wait_for(lambda: (run := workspace.run(job)) and len(run.steps) > 3, 300)
    kill(worker)
    shown = wait_for(lambda: b"No worker is running" in client.call("/queue")[1], 30)
    return {
        "page": round(statistics.median(seconds), 4),
        "largest_page_bytes": max(weights.values()),
        "first_event": round(first_event, 2),
        "first_event_of_a_new_worker": round(first_job, 2),
        "dead_worker_shown": round(shown, 2),
        "state_after_kill": job.state,
    }


def pocket_recipe(folder: Path, steps: int) -> dict[str, Any]:
    """A training on pocket without previews."""
    gallery.write(folder / "gallery")
    images = {"images": str(folder / "gallery" / "subject"), "token": "<toy>", "class_noun": "dog"}
    return {"method": "textual-inversion", **images, "steps": steps, "preview_every": 0}


def _cpu_seconds(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


async def read_events(port: int, headers: dict[str, str], job: Job, lines: list[str]) -> None:
    """Read the events of a job until the task is cancelled."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET /jobs/{job.id}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    writer.write((head + f"Authorization: {headers['Authorization']}\r\n\r\n").encode())
    while line := await reader.readline():
        if line.startswith(b"data: ") and b'"type"' in line:
            lines.append(line.decode().strip())


def many_readers(folder: Path) -> dict[str, Any]:
    """CPU seconds of a training step without and with readers, and the events they received."""
    workspace, port = Workspace(folder / "readers"), free_port()
    workspace.create()
    web = forked(server(workspace, port))
    worker = forked(lambda: Worker(workspace, "cpu", lambda _: None).run())
    wait_for(lambda: answers(port), 30)
    job = workspace.queue.add("train", {"recipe": pocket_recipe(folder, 1000)})
    client, seen = Client(workspace, port), Counter[str]()
    figures: dict[str, list[float]] = {"alone": [], "read": [], "server": []}

    def num_steps() -> int:
        run = workspace.run(job)
        return len(run.steps) if run else 0

    async def events_of_readers(readers: int, last_step: int) -> list[list[str]]:
        lines: list[list[str]] = [[] for _ in range(readers)]
        tasks = [asyncio.create_task(read_events(port, client.headers, job, own)) for own in lines]
        while num_steps() < last_step:
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        return lines

    wait_for(lambda: num_steps() > 5, 300)
    for _ in range(ROUNDS):
        for name, readers in (("alone", 0), ("read", READERS)):
            first, start = num_steps(), time.monotonic()
            before = _cpu_seconds(worker), _cpu_seconds(web)
            lines = asyncio.run(events_of_readers(readers, first + STEPS))
            figures[name].append((_cpu_seconds(worker) - before[0]) / (num_steps() - first))
            if readers:
                share = (_cpu_seconds(web) - before[1]) / (time.monotonic() - start)
                figures["server"].append(share)
                seen["readers_that_missed_events"] += sum(len(own) < first for own in lines)
                seen["readers_that_differ"] += len({tuple(own[:first]) for own in lines}) - 1
    for process in (web, worker):
        kill(process)
    alone, with_readers, share = (statistics.median(values) for values in figures.values())
    return {
        "readers": READERS,
        "step_cpu_alone": round(alone, 4),
        "step_cpu_with_readers": round(with_readers, 4),
        "more": f"{with_readers / alone - 1:.1%}",
        "server_share_of_a_core": round(share, 3),
        **seen,
    }


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="one of the measurements")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "start": lambda: first_page(folder),
            "times": lambda: times(folder),
            "readers": lambda: many_readers(folder),
        }
        chosen = {arguments.only: parts[arguments.only]} if arguments.only else parts
        print(json.dumps({part: measure() for part, measure in chosen.items()}))


if __name__ == "__main__":
    main()
