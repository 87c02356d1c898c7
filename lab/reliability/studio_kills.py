"""Kill the studio's worker and web process at random moments while jobs are queued and done.

`python -m lab.reliability.studio_kills [--kills N]` prints figures as JSON. Every
confirmed job must end, no job may stay "running" without a worker, and every result must have the
bytes of a run that was never killed.
"""

import argparse
import http.client
import json
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from lab.reliability.small_runs import Workshop, result_hash
from lab.reliability.studio import Client, answers, forked, free_port, kill, server, wait_for
from pinxit.studio.image_set import ImageSet
from pinxit.studio.intake import check
from pinxit.studio.jobs import Job
from pinxit.studio.submit import generate_job, train_job
from pinxit.studio.worker import Worker
from pinxit.studio.workspace import Workspace

STEPS, MAX_ACTIVE = 24, 3
PARTS = ("worker", "server")
_CHECKSUM = 32  # bytes


class Load:
    """A client that keeps a few jobs queued; `confirmed` are those the server has accepted."""

    def __init__(self, workspace: Workspace, client: Client, values: dict[str, Any]) -> None:
        self.workspace = workspace
        self.client = client
        self.values = values
        self.confirmed: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Queue jobs until `ended`; a dead server only means another try."""
        while not self.ended.wait(0.02):
            if sum(job.is_active for job in self.workspace.queue.all()) >= MAX_ACTIVE:
                continue
            kind = ("train", "generate")[len(self.confirmed) % 2]
            try:
                status, body = self.client.call(f"/api/{kind}", self.values[kind])
                assert status == 201, body
                self.confirmed.append(json.loads(body)["id"])
            except (OSError, ValueError, http.client.HTTPException):
                continue


def result(workspace: Workspace, job: Job) -> str:
    """A hash of what a job has made: concept, checkpoint and log, or images."""
    if job.kind == "train":
        # Apart from the number of the training's own copy of the images, which is JSON inside
        # JSON, and the checksum at the end.
        images = json.dumps(json.dumps(f'images = "{job.options["snapshot"]}"')[1:-1])[1:-1]
        folder = workspace.folder / "runs" / job.id
        concept = (folder / "concept.safetensors").read_bytes()[:-_CHECKSUM]
        return result_hash(folder, concept.replace(images.encode(), b""))
    return sha256(b"".join(path.read_bytes() for path in workspace.generated(job))).hexdigest()


def killed(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill the worker, the server or both, again and again, and compare all results."""
    shop = Workshop(folder)
    workspace = Workspace(folder / "studio", (str(shop.base),))
    workspace.create()
    images = ImageSet(workspace.new_folder("images"))
    for path in shop.images.iterdir():
        shutil.copyfile(path, images.folder / path.name)
    check(images.folder, workspace.resolution)
    options = {"batch_size": 1, "steps": STEPS, "preview_every": 0, "checkpoint_every": 4}
    values: dict[str, Any] = {
        "train": {"images": images.id, "class_noun": "toy", "token": "<toy>", **options}
    }
    reference = train_job(workspace, values["train"])
    start = time.monotonic()
    Worker(workspace, "cpu", _quiet).run(until_empty=True)
    values["generate"] = {"prompt": "a <toy>", "concepts": [reference.id], "steps": 4, "seed": 5}
    values["generate"]["num_images"] = 2
    image = generate_job(workspace, values["generate"])
    Worker(workspace, "cpu", _quiet).run(until_empty=True)
    seconds = time.monotonic() - start
    expected = {job.kind: result(workspace, job) for job in (reference, image)}
    counts, load = _kill(workspace, values, kills, seconds, rng)
    Worker(workspace, "cpu", _quiet).run(until_empty=True)
    jobs = Workspace(workspace.folder).queue.all()
    done = [job for job in jobs if job.state == "done"]
    return {
        **counts,
        "confirmed": len(load.confirmed),
        "jobs": len(jobs),
        "lost": len(set(load.confirmed) - {job.id for job in done}),
        "not_done": [(job.id, job.kind, job.state, job.result) for job in jobs if job not in done],
        "different": sum(result(workspace, job) != expected[job.kind] for job in done),
        "seconds_of_both_jobs": round(seconds, 1),
    }


def _kill(
    workspace: Workspace, values: dict[str, Any], kills: int, seconds: float, rng: random.Random
) -> tuple[Counter[str], Load]:
    """The kills, while a client queues jobs; returns counts and the client."""
    port, counts = free_port(), Counter[str]()
    starts: dict[str, Callable[[], object]] = {
        "worker": lambda: Worker(workspace, "cpu", _quiet).run(),
        "server": server(workspace, port),
    }
    load = Load(workspace, Client(workspace, port), values)
    thread = threading.Thread(target=load.run)
    running = {part: forked(starts[part]) for part in PARTS}
    thread.start()
    try:
        while counts["times"] < kills:
            wait_for(lambda: answers(port), 60)
            time.sleep(rng.uniform(0.02, 2 * seconds))
            for part in rng.choice((("worker",), ("server",), PARTS)):
                kill(running.pop(part))
                counts[f"{part}_kills"] += 1
            counts["times"] += 1
            for job in workspace.queue.all():  # killed too often without any progress in between
                if job.state == "failed":
                    counts["continued_by_hand"] += 1
                    job.requeue()
            if "worker" not in running:
                states = [job.state for job in workspace.queue.all()]
                counts["stuck"] += sum(state in ("running", "stopping") for state in states)
            running |= {part: forked(starts[part]) for part in PARTS if part not in running}
    finally:
        load.ended.set()
        thread.join()
        for process in running.values():
            kill(process)
    return counts, load


def _quiet(_: str) -> None:
    """Say nothing."""


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(killed(Path(folder), arguments.kills, random.Random(0))))


if __name__ == "__main__":
    main()
