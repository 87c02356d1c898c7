"""The worker: takes one job after another from the queue and does it, one worker per device."""

import re
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing

from pinxit.errors import PinxitError, RunError
from pinxit.files.atomic_write import exclusive_lock, make_folder, write_text
from pinxit.models.device import find_device
from pinxit.progress import Notice, Progress
from pinxit.studio.jobs import Job
from pinxit.studio.measure import Measuring
from pinxit.studio.tasks import Tasks
from pinxit.studio.workspace import DEVICE, Workspace

# A file that was opened, of which people know the name and not the path of its copy.
_OPENED_FILE = re.compile(r"`?[^\s`]*[/\\]files[/\\]\d{6}[/\\]([\w -]+\.\w+)`?")
_POLL = 0.2  # seconds between looks at an empty queue
_LOG_EVERY = 0.5  # seconds between lines of progress in the log of a job


class Worker:
    """Does the jobs of a workspace on a device, such as "cpu". `say` receives messages.

    `device` is its full name: "auto" and "cuda" become "cuda:0" if that is what they mean.
    """

    def __init__(self, workspace: Workspace, device: str, say: Callable[[str], None]) -> None:
        self.workspace = workspace
        self.name, self.device = device, _full_name(device)
        self.say = say
        self.tasks = Tasks(workspace, self.device)
        self.measuring = Measuring(workspace, self.device)
        self._next_line = self._next_look = 0.0

    def run(self, *, until_empty: bool = False) -> None:
        """Do jobs until a signal ends the process, or with `until_empty` until none is left.

        RunError if another worker uses the device, by whatever name.
        """
        named, folder = map(self.workspace.worker_folder, (self.name, self.device))
        make_folder(named)
        write_text(named / DEVICE, self.device)
        make_folder(folder)
        with exclusive_lock(folder), ExitStack() as at_end:
            at_end.callback(self.measuring.stop)
            self.say(f"worker on {self.device} is ready")
            while True:
                with self.workspace.queue.claim() as job:
                    if job:
                        self.measuring.stop()
                        self._do(job)
                if not job:
                    if until_empty:
                        return
                    self.measuring.start()
                    time.sleep(_POLL)

    def _do(self, job: Job) -> None:
        """Do a job, and record how it ended unless it is to continue later."""
        self.say(f"job {job.id}: {job.kind}")
        try:
            run = self.workspace.run(job) if job.kind == "train" else None
            job.count_attempt(run.saved_step if run else len(self.workspace.generated(job)))
            try:
                is_finished = self._finished(job)
            finally:  # a process that is killed does not come here
                job.reset_attempts()
            if is_finished:
                job.finish()
                self.say(f"job {job.id} is done")
        except PinxitError as error:
            self.say(f"job {job.id} failed: {error}")
            job.finish(RunError(_OPENED_FILE.sub(r"`\1`", error.message), error.hint))
        except Exception as error:  # a bug must not stop the jobs after this one
            self.say(traceback.format_exc())
            hint = "this is a bug: the log of the worker has more about it"
            job.finish(RunError(f"{type(error).__name__}: {error}", hint))

    def _finished(self, job: Job) -> bool:
        """Do a job; False if it was stopped, or paused so that a short job can run."""
        with closing(self.tasks.start(job)) as events:
            for event in events:
                if event and self._is_due(event):
                    job.log.append(event)
                if self._must_pause(job):
                    return False
        return True

    def _is_due(self, event: Progress | Notice) -> bool:
        """Whether an event is to be logged: all notices, and now and then the progress."""
        if isinstance(event, Notice) or event.done in (0, event.total):
            return True
        if time.monotonic() < self._next_line:
            return False
        self._next_line = time.monotonic() + _LOG_EVERY
        return True

    def _must_pause(self, job: Job) -> bool:
        """Whether to stop, or to let a short job go first: a training continues exactly later."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _LOG_EVERY
        short = job.kind == "train" and self.workspace.queue.next_waiting(short=True)
        return bool(short) or job.stop_requested


def _full_name(name: str) -> str:
    """The device of a name, with its number if it is one of several."""
    device = find_device(name)
    return device.type if device.type == "cpu" else f"{device.type}:{device.index or 0}"
