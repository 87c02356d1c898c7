"""The trash of a studio, and the space that each kind of file takes."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from pinxit.files.atomic_write import make_folder
from pinxit.files.cache import bytes_in
from pinxit.studio.jobs import Job, JobQueue, numbered_folders
from pinxit.studio.workspace import Workspace

_SPACE = {
    "runs": "Trainings",
    "generated": "Generated images and reports",
    "images": "Images to train on",
    "files": "Opened and converted files",
    "trash": "Trash",
}


class Trash:
    """Removed jobs with all their files; each job can be restored."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.folder = workspace.folder / "trash"

    def jobs(self) -> list[Job]:
        """The removed jobs, newest first."""
        return JobQueue(self.folder / "queue").all()[::-1]

    def add(self, job: Job) -> None:
        """Move a job with everything that it made to the trash."""
        for place in _places(job):
            _move(self.workspace.folder / place, self.folder / place)

    def restore(self, number: str) -> None:
        """Move a job back from the trash, with what it made first; nothing if it is not there."""
        for job in self.jobs():
            if job.id == number:
                for place in reversed(_places(job)):
                    _move(self.folder / place, self.workspace.folder / place)

    def empty(self) -> None:
        """Delete all removed jobs for good. The newest numbers stay taken: addresses name them."""
        for job in self.jobs():
            self.add(job)  # what is not here yet: the process may have been killed while it moved
        for kind in self.folder.iterdir():
            folders = [path for path in numbered_folders(kind) if path.is_dir()]
            for folder in folders:
                shutil.rmtree(folder)
            for folder in folders[-1:]:
                make_folder(folder)


def space(workspace: Workspace) -> Mapping[str, int]:
    """The bytes that each kind of file takes in a studio; links are not followed."""
    return {title: bytes_in(workspace.folder / kind) for kind, title in _SPACE.items()}


def _places(job: Job) -> list[Path]:
    """The folders of a job, its own first: without it, the job is not there."""
    file = job.id if job.kind == "convert" else job.options.get("file")
    numbers = {"queue": job.id, "runs": job.id, "generated": job.id, "files": file}
    numbers["images"] = job.options.get("snapshot")
    return [Path(kind, number) for kind, number in numbers.items() if number]


def _move(source: Path, target: Path) -> None:
    if source.is_dir():
        make_folder(target.parent)
        source.replace(target)
