"""The worker of a fleet: keeps a base model open and does one task after another."""

import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from pinxit.concepts.read import ConceptReference
from pinxit.errors import PinxitError, RunError
from pinxit.files.atomic_write import check_regular, is_locked, make_folder, remove
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.device import AUTO
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.runs.events import RunFailure, SavedCheckpoint
from pinxit.runs.file_names import BEST, CONCEPT, result_file
from pinxit.runs.groups import GroupMember
from pinxit.runs.many import group_member
from pinxit.runs.run import Run, train_together
from pinxit.runs.store import Store
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult

_STATUS_EVERY = 1.0  # seconds between messages about the progress of a group
# A worker whose driver was killed saves its runs before it ends: the next one waits for that.
_LOCKED_SECONDS = 60.0


@dataclass(frozen=True)
class Setup:
    """What all workers of a fleet have in common: the folder of the runs, and the device.

    `threads` limits the threads of a worker on the CPU; None leaves it to torch. `store` is the
    address of the runs in object storage, if they are not on a file system that all workers share.
    """

    folder: Path
    device: str | None = None
    threads: int | None = None
    store: str | None = None


class ConceptWork(Protocol):
    """What to do with the concept of each run; what is done already is not done again."""

    @property
    def out(self) -> Path:
        """The folder for the results."""
        ...

    def result(self, name: str) -> Path:
        """The file or folder in `out` with the result of a run, by its name."""
        ...

    def work(self, model: Model, run: Path, recipe: Recipe) -> None:
        """Do it for one run, by its folder; a PinxitError if that is not possible."""
        ...


@dataclass(frozen=True)
class Generation:
    """What to generate with each concept: {} in the prompt is its token. Folders are in `out`."""

    request: GenerationRequest
    out: Path

    def result(self, name: str) -> Path:
        """The folder with the images of a run."""
        return self.out / name

    def work(self, model: Model, run: Path, recipe: Recipe) -> None:
        """Generate the images of a run that are not there yet, as RUN/SEED.png in `out`."""
        out = self.result(run.name)
        files = {seed: out / f"{seed}.png" for seed in self.request.seeds}
        if all(file.is_file() for file in files.values()):
            return
        prompt = self.request.prompt.replace("{}", recipe.token)
        models = {"base": recipe.base, "vae": recipe.vae}
        concept = ConceptReference(result_file(run))
        changes = {"prompt": prompt, "concepts": (concept,), **models}
        request = self.request.model_copy(update=changes)
        images = generate_images(model, request, [concept.open()])
        make_folder(out)
        for image in images:
            image.save(files[image.request.seed])


@dataclass(frozen=True)
class Task:
    """Subjects to train in one batch, or what else to do with them.

    With `survey`, only to find out how to group them; with `work`, to do that with each concept.
    """

    subjects: Mapping[str, Recipe]
    survey: bool = False
    work: ConceptWork | None = None


@dataclass(frozen=True)
class Ended:
    """A subject is trained, or is left out because of an error."""

    name: str
    error: PinxitError | None = None


@dataclass(frozen=True)
class Status:
    """How far the task of a worker is: steps of all its subjects."""

    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Unusable:
    """The worker cannot do any task, since it cannot open the base model."""

    error: PinxitError


@dataclass(frozen=True)
class Done:
    """The task is done."""


# A `GroupMember` says that a subject can be trained, and how it can be grouped.
Message = GroupMember | Ended | Status | Unusable | Done


class Worker:
    """Does tasks on one device; the base model is opened for the first one."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._store = Store(setup.store, setup.folder) if setup.store else None
        self._model: Model | None = None

    def run_task(self, task: Task) -> Generator[Message]:
        """Do a task; the last message is `Done` or `Unusable`. A bug ends only the task."""
        try:
            model = self._open(next(iter(task.subjects.values())))
        except PinxitError as error:
            yield Unusable(error)
            return
        ended: set[str] = set()
        try:
            work = self._kind(task)
            stored = self._store.copied(task.subjects) if self._store else nullcontext()
            with stored, closing(work(model, task)) as messages:
                for message in messages:
                    if isinstance(message, Ended):
                        ended.add(message.name)
                    yield message
        except Exception as error:  # the other groups are trained all the same
            failure = error if isinstance(error, PinxitError) else _bug(error)
            yield from (Ended(name, failure) for name in task.subjects if name not in ended)
        yield Done()

    def _kind(self, task: Task) -> Callable[[Model, Task], Generator[Message]]:
        if task.survey:
            return self._survey
        return self._each if task.work else self._train

    def _open(self, recipe: Recipe) -> Model:
        if self._model is None:
            if self.setup.threads:
                torch.set_num_threads(self.setup.threads)
            device = self.setup.device or recipe.device or AUTO
            precision = recipe.precision or "auto"
            self._model = open_base(
                recipe.base, device, precision, recipe.vae, recipe.text_encoders
            )
        return self._model

    def _run(self, name: str, recipe: Recipe) -> Run:
        folder = self.setup.folder / name
        check_regular(folder)
        return Run.open(folder) if Run.exists(folder) else Run(folder, recipe)

    def _survey(self, model: Model, task: Task) -> Generator[Message]:
        for name, recipe in task.subjects.items():
            try:
                yield group_member(model, self._run(name, recipe))
            except PinxitError as error:
                yield Ended(name, error)

    def _each(self, model: Model, task: Task) -> Generator[Message]:
        for number, (name, recipe) in enumerate(task.subjects.items()):
            yield Status(number, len(task.subjects), name)
            try:
                if task.work:
                    task.work.work(model, self.setup.folder / name, recipe)
                yield Ended(name)
            except PinxitError as error:
                yield Ended(name, error)

    def _train(self, model: Model, task: Task) -> Generator[Message]:
        names: dict[Run, str] = {}
        for name, recipe in task.subjects.items():
            try:
                names[self._run(name, recipe)] = name
            except PinxitError as error:
                yield Ended(name, error)
        if not all(run.finished for run in names):
            _wait_until_free(names)
            for run in list(names):
                try:
                    run.settle_recipe(model)
                except PinxitError as error:
                    yield Ended(names.pop(run), error)
            return_to_common_step(list(names))
            yield from self._train_together(model, names)
        yield from (Ended(name) for run, name in names.items() if run.finished)

    def _train_together(self, model: Model, names: Mapping[Run, str]) -> Iterator[Message]:
        steps = dict.fromkeys(names, 0)
        total, next_status = sum(run.plan.steps for run in names), 0.0
        with closing(train_together(model, list(names))) as events:
            for run, event in events:
                if isinstance(event, RunFailure):
                    yield Ended(names[run], event.error)
                elif isinstance(event, StepResult):
                    steps[run] = event.number
                elif isinstance(event, SavedCheckpoint) and self._store:
                    self._store.put(names[run])
                if time.monotonic() >= next_status:
                    next_status = time.monotonic() + _STATUS_EVERY
                    first, *others = names.values()
                    note = f"{first} and {len(others)} more" if others else first
                    yield Status(sum(steps.values()), total, note)


def return_to_common_step(runs: Sequence[Run]) -> None:
    """Return the runs of a group to the last step that all have saved, if one is ahead.

    A killed process can leave a group with runs saved at different steps. Rounding depends on the
    batch, so only runs that continue at the same step train exactly as without the interruption.
    Runs that ended with an error do not count: they may stay behind.
    """
    states = {run: run.state for run in runs if Run.exists(run.folder)}
    unfinished = [0] * (len(runs) - len(states))
    states = {run: state for run, state in states.items() if not state.error}
    steps = {run: list(map(_step, state.checkpoints)) for run, state in states.items()}
    unfinished += [max(steps[run], default=0) for run in states if not states[run].is_done]
    common = min(unfinished, default=0)
    for run, state in states.items() if unfinished else ():
        if common in steps[run]:
            remove(*(file for file in state.checkpoints if _step(file) > common))
        elif not common and steps[run]:  # in this order: without its concept it is not finished
            remove(run.folder / CONCEPT, run.folder / BEST, *state.checkpoints)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem)


def _wait_until_free(runs: Iterable[Run]) -> None:
    deadline = time.monotonic() + _LOCKED_SECONDS
    while any(is_locked(run.folder) for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)


def _bug(error: Exception) -> PinxitError:
    where = traceback.format_exception(error)[-2].strip().partition("\n")[0]
    return RunError(f"{type(error).__name__}: {error} ({where})", "this is a bug: report it")
