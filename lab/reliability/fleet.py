"""A fleet on Ray against one process: same results with kills, throughput, and the driver's cost.

    python -m lab.reliability.fleet same --subjects 1000 --base nano --noun toy
    python -m lab.reliability.fleet rate --subjects 160 --rounds 5
    python -m lab.reliability.fleet driver

All subjects are trained with two steps, in batches of 16, on pocket or another base (nano: that of
the tests). `same` trains them once in one process and once with two Ray workers on a running
cluster, and compares concept and checkpoint of each; whenever the driver and the workers have used
30 seconds of CPU time together, one of them is killed. `rate` alternates
between bare processes, each with its part of the subjects, and as many Ray workers; it counts from
the first batch of each to the last, by the clock and in CPU time, which is fair on a busy machine,
and gives the mean ratio of the rounds with its 95% interval. `driver` gives batches to workers that
do nothing. Each command continues where it was stopped; results go to --json.
"""

import argparse
import csv
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from runpy import run_path
from statistics import median
from typing import Any

import numpy as np
import psutil
from PIL import Image

from pinxit.evaluation.confidence import bootstrap
from pinxit.runs.fleet import FleetOptions, prepare_folder, train_fleet
from pinxit.runs.fleet_worker import Done, Ended, Message, Task
from pinxit.runs.groups import GroupMember
from pinxit.runs.many import RunGroup

_PORT = 6399
_BATCH = 16
_OPTIONS = ("--steps=2", "--batch-size=1", "--preview-every=0", "--json")
_WITH_RAY = ("--engine=ray", f"--address=127.0.0.1:{_PORT}")
_ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # of this command, so none need be on the machine
    "RAY_worker_niceness": "0",  # as nice as the bare processes
}


def parse_args() -> argparse.Namespace:
    """The command line arguments."""
    parser = argparse.ArgumentParser(prog="python -m lab.reliability.fleet", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("what", choices=("same", "rate", "driver"))
    add("--subjects", type=int, default=1000, help="number of subjects")
    add("--base", default="pocket", help="base model: pocket, nano or a folder")
    add("--noun", default="robot", help="class noun of all subjects")
    add("--every", type=float, default=30.0, help="CPU seconds between kills")
    add("--workers", type=int, default=2, help="workers and bare processes of `rate`")
    add("--rounds", type=int, default=3, help="measurements of the throughput")
    add("--work", type=Path, default=Path("build/fleet"), help="folder for images and runs")
    add("--json", type=Path, default=Path("build/fleet.json"), help="file for the results")
    return parser.parse_args()


def write_table(work: Path, count: int) -> Path:
    """Write subjects with one image of noise each, and their table; returns the table."""
    draw = np.random.default_rng(0)
    table = work / f"subjects-{count}.csv"
    names = [f"s{number:05}" for number in range(count)]
    for name in names:
        pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        file = work / "images" / name / "0.png"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return write_rows(table, names)


def write_rows(table: Path, names: Sequence[str]) -> Path:
    """Write a table of subjects by name."""
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "images"))
        rows.writerows((name, f"images/{name}") for name in names)
    return table


@contextmanager
def cluster(cpus: int) -> Generator[psutil.Process]:
    """A Ray cluster on this machine with so many processors; yields its main process."""
    command = ["ray", "start", "--head", "--block", f"--port={_PORT}", f"--num-cpus={cpus}"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000"]
    # With ports of its own, Ray does not wait for its agents, which a busy machine starts slowly.
    agents = ("dashboard-agent-grpc-port", "dashboard-agent-listen-port", "runtime-env-agent-port")
    command += [f"--{agent}={_PORT + number}" for number, agent in enumerate(agents, 1)]
    head = subprocess.Popen(command, env=_ENVIRONMENT, stdout=subprocess.DEVNULL)
    try:
        while subprocess.run(
            ["ray", "health-check", f"--address=127.0.0.1:{_PORT}"],
            env=_ENVIRONMENT,
            capture_output=True,
        ).returncode:
            if head.poll() is not None:
                raise SystemExit("Ray does not start")
            time.sleep(1)
        yield psutil.Process(head.pid)
    finally:
        head.terminate()
        head.wait()


def start(
    args: argparse.Namespace, table: Path, out: Path, *options: str
) -> "subprocess.Popen[str]":
    """Start `pinxit train-many` in a process of its own."""
    command = [sys.executable, "-m", "pinxit", "train-many", "textual-inversion", str(table)]
    command += [*_OPTIONS, f"--max-concepts-per-batch={_BATCH}", f"--out={out}"]
    command += [f"--base={args.base}", f"--class-noun={args.noun}", *options]
    return subprocess.Popen(command, env=_ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def finish(
    process: "subprocess.Popen[str]", head: psutil.Process | None = None
) -> list[tuple[float, float]]:
    """When concepts were trained, and the CPU time until then, once the process has ended.

    The CPU time is that of the process and of the workers of a cluster.
    """
    times: list[tuple[float, float]] = []
    for line in process.stdout or ():
        if json.loads(line)["type"] == "trained":
            used = sum(cpu_seconds(process.pid, head).values())
            times.append((time.perf_counter(), used))
    if process.wait():
        raise SystemExit(f"{process.args} failed")
    return times


def kill_often(
    args: argparse.Namespace, table: Path, out: Path, head: psutil.Process
) -> Counter[str]:
    """Train all subjects on Ray; kills the driver or a worker again and again. Counts kills."""
    draw, counts = random.Random(1), Counter[str]()
    while True:
        driver = start(args, table, out, *_WITH_RAY, "--workers=2")
        counts["starts of the driver"] += 1
        before = cpu_seconds(driver.pid, head)
        while True:
            try:
                driver.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                now = cpu_seconds(driver.pid, head)
                if sum(used - before.get(pid, 0) for pid, used in now.items()) < args.every:
                    continue
                before, victim = now, draw.choice(list(now))
                counts["driver killed" if victim == driver.pid else "worker killed"] += 1
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            if driver.poll() is not None:
                break
        if driver.returncode == 0:
            return counts
        if driver.returncode > 0:
            raise SystemExit("train-many failed")


def cpu_seconds(driver: int, head: psutil.Process | None) -> dict[int, float]:
    """The CPU time of the driver and of each process of the cluster that trains, by number."""
    seconds: dict[int, float] = {}
    workers = head.children(recursive=True) if head else ()
    for process in [psutil.Process(driver), *workers]:
        with suppress(psutil.Error):
            if process.pid == driver or process.name().startswith("ray::_Actor"):
                seconds[process.pid] = sum(process.cpu_times()[:2])
    return seconds


def digest(run: Path) -> str:
    """The hash of a run's concept and last checkpoint."""
    files = (run / "concept.safetensors", max((run / "checkpoints").iterdir()))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def measure_same(args: argparse.Namespace) -> dict[str, Any]:
    """Compare all results of one process with those of a fleet that is killed."""
    table, one = write_table(args.work, args.subjects), args.work / f"one-{args.subjects}"
    begin = time.perf_counter()
    finish(start(args, table, one))
    seconds = time.perf_counter() - begin
    fleet = args.work / f"fleet-{args.subjects}"
    with cluster(2) as head:
        begin = time.perf_counter()
        counts = kill_often(args, table, fleet, head)
        fleet_seconds = time.perf_counter() - begin
    names = sorted(path.name for path in (args.work / "images").iterdir())[: args.subjects]
    differing = sum(digest(one / name) != digest(fleet / name) for name in names)
    return {
        "subjects": args.subjects,
        "CPU seconds between kills": args.every,
        "differing": differing,
        **counts,
        "seconds of one process": round(seconds),
        "seconds of the fleet": round(fleet_seconds),
    }


def rates_of(workers: int, *processes: list[tuple[float, float]]) -> tuple[float, float]:
    """Concepts in a second, and CPU seconds of one, after a batch for each worker.

    `processes` is what `finish` returns for each process that was started.
    """
    times = sorted(time for one in processes for time, _ in one)
    left_out = workers * _BATCH
    count, first = len(times) - left_out, left_out // len(processes)
    used = sum(one[-1][1] - one[first - 1][1] for one in processes)
    return count / (times[-1] - times[left_out - 1]), used / count


def measure_rate(args: argparse.Namespace) -> dict[str, Any]:
    """Throughput and CPU time of bare processes and of as many Ray workers, alternately."""
    table = write_table(args.work, args.subjects)
    names = [f"s{number:05}" for number in range(args.subjects)]
    parts = [
        write_rows(args.work / f"part-{part}.csv", names[part :: args.workers])
        for part in range(args.workers)
    ]
    rates: dict[str, list[float]] = {"bare": [], "ray": []}
    cpu: dict[str, list[float]] = {"bare": [], "ray": []}
    with cluster(args.workers) as head:
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory(dir=args.work) as folder:
                out = Path(folder)
                bare = [start(args, part, out / part.stem) for part in parts]
                with ThreadPoolExecutor(args.workers) as readers:  # a line is timed when it is read
                    figures = {"bare": rates_of(args.workers, *readers.map(finish, bare))}
                ray = start(args, table, out / "ray", *_WITH_RAY, f"--workers={args.workers}")
                figures["ray"] = rates_of(args.workers, finish(ray, head))
            for side, (rate, used) in figures.items():
                rates[side].append(rate)
                cpu[side].append(used)
            print(json.dumps(figures), file=sys.stderr, flush=True)
    return {
        "subjects": args.subjects,
        "workers": args.workers,
        "subjects a second": _compared(rates["ray"], rates["bare"]),
        "CPU seconds a subject": _compared(cpu["bare"], cpu["ray"]),
    }


def _compared(ours: list[float], others: list[float]) -> dict[str, Any]:
    """Both medians, and the ratio of each round, their mean and its interval; 1 is no loss."""
    ratios = [one / other for one, other in zip(ours, others, strict=True)]
    mean = bootstrap(np.array(ratios))
    values = {"medians": [median(ours), median(others)], "ratios": ratios}
    values |= {"ratio": [mean.value], "interval": [mean.low, mean.high]}
    return {name: [round(one, 4) for one in each] for name, each in values.items()}


class _Dry:
    """Two workers that do nothing."""

    workers = 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks: dict[int, Task] = {}

    def send(self, number: int, task: Task) -> None:
        """Give a worker a task."""
        self.tasks[number] = task

    def receive(self) -> Iterator[tuple[int, Message]]:
        """The same messages as if the task were done."""
        for number in list(self.tasks):
            task = self.tasks.pop(number)
            for name, recipe in task.subjects.items():
                method = recipe.method.name
                member = (self.folder / name, recipe.token, method, True, 1, name, (), False)
                yield number, GroupMember(*member) if task.survey else Ended(name)
            yield number, Done()

    def close(self) -> None:
        """Nothing to end."""


def driver_cost(count: int) -> dict[str, float]:
    """CPU time and memory of a driver for this number of subjects, from the table to the end."""
    with tempfile.TemporaryDirectory() as folder:
        table = write_rows(Path(folder) / "t.csv", [f"s{number:07}" for number in range(count)])
        common = {"method": "textual-inversion", "class_noun": "robot", "steps": 2}
        out = Path(folder) / "out"
        before, begin = psutil.Process().memory_info().rss, time.process_time()
        group = RunGroup.from_table(table, common, _BATCH)
        prepare_folder(out, group)
        for _ in train_fleet(_Dry(out), group, out, FleetOptions()):
            pass
        seconds = time.process_time() - begin
        growth = 1024 * getrusage(RUSAGE_SELF).ru_maxrss - before
    return {
        "milliseconds a subject": round(1000 * seconds / count, 2),
        "megabytes before": round(before / 1e6),
        "megabytes in addition": round(growth / 1e6, 1),
    }


def main() -> None:
    """Measure one thing and store it next to the other results."""
    args = parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.base == "nano":
        save_nano = run_path(str(Path(__file__).parents[2] / "tests" / "conftest.py"))["save_nano"]
        args.base = save_nano(args.work.resolve() / "nano")
    measured: dict[str, Any] = {}
    if args.what == "driver":
        for count in (100, 1000, 10_000):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                measured[str(count)] = pool.submit(driver_cost, count).result()
    else:
        measured = (measure_same if args.what == "same" else measure_rate)(args)
    results = json.loads(args.json.read_text()) if args.json.is_file() else {}
    args.json.write_text(json.dumps({**results, args.what: measured}, indent=1) + "\n")
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
