"""The folder of a studio, and everything the pages read from it. Without torch."""

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinxit.errors import RequestError
from pinxit.files.atomic_write import (
    check_claim,
    check_regular,
    claim_folder,
    is_locked,
    make_folder,
    regular_files,
    remove,
    waiting_lock,
    write_text,
)
from pinxit.runs.file_names import JOURNAL, RECIPE, result_file
from pinxit.studio.image_set import PNG, ImageSet
from pinxit.studio.jobs import (
    Job,
    JobQueue,
    is_number,
    new_numbered_folder,
    numbered_folders,
    read_json,
    stamp_of,
)
from pinxit.studio.stored import REPORTS, problem_of
from pinxit.studio.terminal_runs import TerminalRun, terminal_runs

if TYPE_CHECKING:
    from pinxit.runs.reader import RunState

REMOVED = ".removed"  # in the folder of a job's images
DEVICE = "device"  # in the folder of a worker: the device that its name stands for
# In the folder of a base model: its name, a copy of its tokenizer, and how many tokens fit.
_NAME, TOKENIZER, ROOM = "name", "tokenizer.json", "room"
TOKENS = "tokens.json"  # in the folder of a job: what the tokens of its concept stand for
_KIND = "studio"
_FOLDERS = (
    *("queue", "runs", "images", "generated", "files", "workers", "keys", "trash", "votes"),
    "bases",
)
_CONCEPT_FILE = re.compile(r"[\w][\w \-.]*\.(safetensors|pt|bin|ckpt|pth)")
_POCKET_SIZE, _USUAL_SIZE = 64, 512
_LAST_WORDS = 3000  # bytes of a worker's log


@dataclass
class Workspace:
    """A studio's folder. Everything is found by its number; no path comes from a request.

    `bases` are the base models that may be used.
    """

    folder: Path
    bases: Sequence[str] = ("pocket",)
    _runs: "dict[Path, tuple[object, RunState]]" = field(default_factory=dict, repr=False)

    def create(self) -> None:
        """Make the folder, or use that of an earlier studio; RunError if it is something else.

        Also if a folder in it is a link, other than a run of the terminal in `runs`.
        """
        check_claim(self.folder, _KIND, *_FOLDERS)
        for place, names, _ in os.walk(self.folder):
            if Path(place) == self.folder / "runs":  # those of the terminal are only read
                names[:] = filter(is_number, names)
            check_regular(*(Path(place, name) for name in names))
        claim_folder(self.folder, _KIND)
        for name in _FOLDERS:
            make_folder(self.folder / name)
        for private in (self.folder, self.folder / "keys"):
            private.chmod(0o700)
        for base in self.bases:
            make_folder(self.base_folder(base))
            write_text(self.base_folder(base) / _NAME, base)

    @cached_property
    def queue(self) -> JobQueue:
        """The jobs."""
        return JobQueue(self.folder / "queue")

    @property
    def _terminal_runs(self) -> dict[str, TerminalRun]:
        return terminal_runs(self.folder / "runs", self._read_run)

    def jobs(self) -> list[Job]:
        """All jobs and all runs of the terminal, oldest first."""
        jobs, runs = self.queue.all(), self._terminal_runs.values()
        return sorted([*runs, *jobs], key=lambda job: job.created) if runs else jobs

    def job(self, number: str) -> Job:
        """The job or run with this number; RequestError if there is none."""
        run = None if is_number(number) else self._terminal_runs.get(number)
        return run or self.queue.get(number)

    @property
    def resolution(self) -> int:
        """The image size in pixels that images are checked for; pocket's is small."""
        return _POCKET_SIZE if tuple(self.bases) == ("pocket",) else _USUAL_SIZE

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The fields of all options, for forms and programs; see `schema`."""
        return json.loads((files("pinxit.studio") / "options.json").read_text("utf-8"))

    def images_of(self, number: str) -> ImageSet:
        """An image set; RequestError if there is none."""
        return ImageSet(self.numbered("images", number))

    def earlier_images(self, count: int) -> list[ImageSet]:
        """The newest sets of several images, without the copies that trainings have."""
        sets = map(ImageSet, reversed(numbered_folders(self.folder / "images")))
        return list(islice((s for s in sets if len(s.checks["images"]) > 1 and s.files), count))

    def new_folder(self, kind: str) -> Path:
        """A new folder with a free number for images or files."""
        return new_numbered_folder(self.folder / kind, self.folder / "trash" / kind)

    def run(self, job: Job) -> "RunState | None":
        """The state of a training from its log; None before it has started."""
        folder = self.run_folder(job)
        return self._read_run(folder) if (folder / RECIPE).is_file() else None

    def run_folder(self, job: Job) -> Path:
        """Where a training writes."""
        return job.folder if isinstance(job, TerminalRun) else self.folder / "runs" / job.id

    def _read_run(self, folder: Path) -> "RunState":
        from pinxit.runs.reader import read_log

        stamp = [stamp_of(folder / name) for name in (JOURNAL, RECIPE)]
        cached = self._runs.get(folder)
        if not cached or cached[0] != stamp:
            cached = self._runs[folder] = stamp, read_log(folder)
        return replace(cached[1], is_running=is_locked(folder))

    def concept_file(self, job: Job) -> Path | None:
        """The concept that a job has trained, converted or inspected; None if there is none."""
        if job.kind == "train":
            file = result_file(self.run_folder(job))
            return file if file.is_file() else None
        number = job.id if job.kind == "convert" else job.options.get("file", "")
        folder = self.folder / "files" / number
        concepts = regular_files(folder, _CONCEPT_FILE) if number else []
        return concepts[0] if concepts else None

    def concepts(self) -> list[Job]:
        """The jobs that have a concept to generate with, newest first."""
        jobs = [job for job in reversed(self.jobs()) if job.kind in ("train", "inspect")]
        return [job for job in jobs if self.has_concept(job)]

    def has_concept(self, job: Job) -> bool:
        """Whether a job has a concept that can be used: not one that is refused, or not read."""
        return (job.kind == "train" or job.state == "done") and self.concept_file(job) is not None

    def has_strength(self, job: Job) -> bool:
        """Whether a strength can scale the concept of a job; also True where it is not known."""
        if job.kind == "train":
            method = job.options["recipe"]["method"]["name"]
            return method in self.options["defaults"]["with_strength"]
        return (self.report(job) or {}).get("has_strength", True)

    def training_texts(self, images: ImageSet) -> Mapping[str, Any] | None:
        """The texts that a training would use, as a job has found them last; None if none has."""
        jobs = [job for job in self.queue.all() if job.options.get("images") == images.id]
        reports = (self.report(job) for job in reversed(jobs) if job.kind == "texts")
        return next(filter(None, reports), None)

    def report(self, job: Job) -> Mapping[str, Any] | None:
        """What a worker has written about a job for its page; None if it has not, or not yet."""
        report = read_json(job.folder / "report.json")
        return None if problem_of(report, REPORTS.get(job.kind, {}), "") else report

    def drift(self, training: Job) -> Job | None:
        """The newest job that generates without the token of a training; None if there is none."""
        jobs = [job for job in self.queue.all() if job.options.get("concept") == training.id]
        return next((job for job in reversed(jobs) if job.kind == "drift"), None)

    def token(self, job: Job) -> str:
        """The placeholder token of a job's concept; empty if it is not known."""
        if job.kind == "inspect":
            return (self.report(job) or {}).get("token", "")
        return str(job.options.get("recipe", {}).get("token", ""))

    def generated(self, job: Job) -> list[Path]:
        """The images that a job has generated so far."""
        return regular_files(self.folder / "generated" / job.id, PNG)

    def generated_image(self, job: Job, place: int) -> Path:
        """The image with this place; it keeps its place when others are removed."""
        for path in self.generated(job):
            if path.stem == f"{place:04}":
                return path
        raise RequestError("there is no such image", "reload the page")

    def remove_image(self, image: Path) -> None:
        """Take a generated image out of its job; undone by `restore_images`."""
        make_folder(image.parent / REMOVED)
        image.replace(image.parent / REMOVED / image.name)

    def removed_images(self, job: Job) -> list[Path]:
        """The images that were taken out of a job."""
        return regular_files(self.folder / "generated" / job.id / REMOVED, PNG)

    def restore_images(self, job: Job) -> None:
        """Bring back the images that were taken out of a job."""
        for image in self.removed_images(job):
            image.replace(image.parent.parent / image.name)

    @cached_property
    def secret(self) -> bytes:
        """The secret that all tokens follow from; it is made on first use."""
        file = self.folder / "secret"
        with waiting_lock(self.folder / "keys"):
            if not (file.is_file() and file.stat().st_size):  # empty after a crash
                write_text(file, secrets.token_hex(32))  # in a folder of the user only
                file.chmod(0o600)
        return file.read_bytes()

    def token_for(self, purpose: str) -> str:
        """The token for "cookie", "form" or "api": 256 bits."""
        return hmac.new(self.secret, purpose.encode(), hashlib.sha256).hexdigest()

    def new_key(self) -> str:
        """A key that opens the studio once; only its hash is stored."""
        key = secrets.token_urlsafe(32)
        write_text(self.folder / "keys" / _hash(key), "")
        return key

    def use_key(self, key: str) -> bool:
        """Whether the key is valid; from now on it is not."""
        try:
            (self.folder / "keys" / _hash(key)).unlink()
        except FileNotFoundError:
            return False
        return True

    def drop_keys(self) -> None:
        """Make all keys invalid."""
        remove(*(self.folder / "keys").glob("[!.]*"))

    def base_folder(self, base: str) -> Path:
        """Where workers write what pages show of a base model."""
        return self.folder / "bases" / _hash(base)[:16]

    def known_bases(self) -> list[str]:
        """The base models that this studio has ever offered."""
        names = (self.folder / "bases").glob(f"*/{_NAME}")
        return [name.read_text("utf-8", "replace") for name in sorted(names) if name.is_file()]

    def cost_file(self, base: str, method: str, device: str) -> Path:
        """The file with time and memory of the last training; see `cost`."""
        return self.base_folder(base) / "costs" / method / device.replace(":", "-")

    def cost(self, base: str, method: str) -> str:
        """What a training takes, by the newest text that has been written; empty if none was."""
        files = (self.base_folder(base) / "costs" / method).glob("*")
        newest_first = sorted(
            filter(Path.is_file, files), key=lambda file: -file.stat().st_mtime_ns
        )
        return next(filter(None, (file.read_text("utf-8", "replace") for file in newest_first)), "")

    def cost_stamps(self) -> list[int]:
        """Numbers that change when the cost of a training becomes known."""
        files = sorted((self.folder / "bases").glob("*/costs/*/*"))
        return [file.stat().st_mtime_ns for file in files]

    def workers(self) -> dict[str, bool]:
        """Whether the worker of each device runs."""
        devices = sorted({self.device_of(folder.name) for folder in self._worker_folders()})
        return {device: is_locked(self.worker_folder(device)) for device in devices}

    def worker_folder(self, name: str) -> Path:
        """The folder of a worker that was started for a device, or for "auto"."""
        return self.folder / "workers" / name.replace(":", "-")

    def device_of(self, name: str) -> str:
        """The device that a worker found under a name; before it has looked, the name itself."""
        file = self.worker_folder(name) / DEVICE
        return file.read_text("utf-8", "replace") if file.is_file() else name

    def last_words(self) -> dict[str, str]:
        """The end of the log of each worker that died, by the name it was started for."""
        logs = [folder / "last.log" for folder in self._worker_folders()]
        return {
            log.parent.name: log.read_bytes()[-_LAST_WORDS:].decode(errors="replace")
            for log in logs
            if log.is_file()
        }

    def _worker_folders(self) -> list[Path]:
        return sorted(path for path in (self.folder / "workers").glob("*") if path.is_dir())

    @property
    def free_bytes(self) -> int:
        """Free space on the disk."""
        return shutil.disk_usage(self.folder).free

    def numbered(self, kind: str, number: str) -> Path:
        """The folder of a kind (images, votes) with this number; RequestError if there is none."""
        folder = self.folder / kind / number
        if not is_number(number) or folder.is_symlink() or not folder.is_dir():
            what = f"nothing with the number {number[:20]!r} among the {kind}"
            raise RequestError(f"there is {what}", "it may have been deleted: use another one")
        return folder


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
