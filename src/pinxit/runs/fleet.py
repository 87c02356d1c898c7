"""Many subjects trained by many workers. All state is in the run folders and `groups.json`.

The driver only lists subjects, hands out groups and receives messages: it opens no base model, no
image and no run. If it or a worker is killed, the same command continues.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pydantic import field_validator

from pinxit import registry
from pinxit.errors import PinxitError, RequestError, RunError
from pinxit.files.atomic_write import make_folder, waiting_lock, write_text
from pinxit.files.untrusted import read_untrusted_text
from pinxit.options import Option, Options
from pinxit.runs.events import RunFailure
from pinxit.runs.file_names import JOURNAL
from pinxit.runs.fleet_worker import (
    ConceptWork,
    Done,
    Ended,
    Message,
    Setup,
    Status,
    Task,
    Unusable,
)
from pinxit.runs.groups import GroupMember, plan_groups
from pinxit.runs.journal import TrainingLog
from pinxit.runs.many import SUBJECTS, RunGroup
from pinxit.runs.store import Store

_GROUPS = "groups.json"
_SURVEY = 32  # subjects in one task that finds out how to group them
_ATTEMPTS = 3  # a group may end its worker so often, then its subjects are tried alone


class FleetOptions(Options):
    """Where many subjects are trained."""

    error_type = RequestError
    table_title = "train-many"

    engine: str = "local"
    """what does the work: local is this process, processes are workers on this machine, ray are
    workers on a Ray cluster (needs pinxit[ray])"""
    workers: int | None = Option(
        None, ge=1, default_is="one for each accelerator, or one if there is none"
    )
    """number of workers of the engine"""
    address: str | None = Option(None, default_is="Ray is started on this machine")
    """address of a running Ray cluster, or auto"""
    shard: str | None = None
    """do only a part of the work: 2/8 is the second of eight parts, for job arrays"""
    store: str | None = None
    """object storage of the runs, such as s3://bucket/runs: runs are copied in before the work on
    them, and out at each checkpoint; the folder of the runs is then one of each machine"""

    @field_validator("shard")
    @classmethod
    def _is_part(cls, shard: str | None) -> str | None:
        part = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard or "1/1")
        if not part or not 1 <= int(part[1]) <= int(part[2]):
            raise RequestError(
                f"--shard cannot be {shard}", "write it as 2/8: the second of eight parts"
            )
        return shard

    def open(self, setup: Setup) -> "Engine":
        """The engine; RunError if there is none of that name or its package is not installed."""
        setup = replace(setup, store=self.store)
        return registry.load("engines", self.engine)(setup, self.workers, self.address)

    def part_of(self, groups: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
        """The groups of the shard."""
        first, count = map(int, (self.shard or "1/1").split("/"))
        return groups[first - 1 :: count]


class Engine(Protocol):
    """Starts workers, and carries tasks to them and messages back. A worker is its number."""

    workers: int

    def send(self, number: int, task: Task) -> None:
        """Give a task to a worker that has none; it is started if it does not run."""
        ...

    def receive(self) -> Iterable[tuple[int, Message | None]]:
        """Messages of the workers that have a task, perhaps none yet; None if one has died."""
        ...

    def close(self) -> None:
        """End all workers; they save what they train."""
        ...


# A message of a worker by its number, None if it has died and is started again; or the number of
# subjects to train, once it is known.
FleetEvent = tuple[int, Ended | Status | None] | int


def fetch_list(folder: Path, store: str | None) -> None:
    """Copy the list of subjects and their groups from object storage, if they are there."""
    if store:
        for name in (SUBJECTS, _GROUPS):
            Store(store, folder).fetch(name)


def prepare_folder(folder: Path, group: RunGroup, store: str | None = None) -> None:
    """Write a new folder for the runs; RunError if it exists for other subjects or options."""
    make_folder(folder)
    with waiting_lock(folder):
        fetch_list(folder, store)
        if not group.is_in(folder):
            group.create(folder)
        if store:
            Store(store, folder).put(SUBJECTS)


def train_fleet(
    engine: Engine, group: RunGroup, folder: Path, options: FleetOptions
) -> Generator[FleetEvent]:
    """Start or continue the runs of a folder; the groups are the same in every attempt.

    A subject that cannot be trained ends with an error, and the others are trained. A PinxitError
    if no worker can work.
    """
    with closing(engine):
        with waiting_lock(folder):
            groups = _read_groups(folder, group)
            grouped = {name for names in groups for name in names}
            names = [name for name in group.subjects if name not in grouped]
            parts = (names[start : start + _SURVEY] for start in range(0, len(names), _SURVEY))
            members: list[GroupMember] = []
            surveys = (_task(group, part, survey=True) for part in parts)
            for number, message in _Tasks(engine, surveys, folder).messages():
                if isinstance(message, GroupMember):
                    members.append(message)
                else:
                    yield number, message
            if members:
                new = plan_groups(members, group.max_concepts_per_batch).groups
                groups += [[folder.name for folder in folders] for folders in new]
                write_text(folder / _GROUPS, json.dumps({"groups": groups}))
                if options.store:
                    Store(options.store, folder).put(_GROUPS)
        own = options.part_of(groups)
        yield sum(map(len, own))
        tasks = (_task(group, names) for names in own)
        for number, message in _Tasks(engine, tasks, folder).messages():
            if not isinstance(message, GroupMember):
                yield number, message


def concept_fleet(
    engine: Engine, group: RunGroup, folder: Path, work: ConceptWork, options: FleetOptions
) -> Generator[FleetEvent]:
    """Work with the concept of each run of a folder, one in each task."""
    own = options.part_of([[name] for name in group.subjects])
    yield sum(map(len, own))
    tasks = (replace(_task(group, part), work=work) for part in own)
    with closing(engine):
        for number, message in _Tasks(engine, tasks, folder).messages():
            if not isinstance(message, GroupMember):
                yield number, message


def _task(group: RunGroup, names: Iterable[str], *, survey: bool = False) -> Task:
    return Task({name: group.subjects[name] for name in names}, survey)


class _Tasks:
    """Hands tasks out to the workers; one whose worker dies is done again, a few times."""

    def __init__(self, engine: Engine, tasks: Iterator[Task], folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self._tasks = tasks
        self._retries: deque[Task] = deque()
        self._busy: dict[int, Task] = {}
        self._deaths = Counter[tuple[str, ...]]()
        self._silent_deaths = 0

    def messages(self) -> Generator[tuple[int, Ended | GroupMember | Status | None]]:
        """Do all tasks; a PinxitError if no worker can do any."""
        while self._hand_out():
            for number, message in self.engine.receive():
                self._silent_deaths = 0 if message else self._silent_deaths + 1
                if isinstance(message, Unusable):
                    raise message.error
                if isinstance(message, Done):
                    del self._busy[number]
                    yield number, Status(0, 0, "waiting")
                    continue
                yield number, message
                if message is None:
                    yield from ((number, ended) for ended in self._after_death(number))

    def _hand_out(self) -> bool:
        """Give each worker a task; whether any of them has one."""
        for number in set(range(self.engine.workers)).difference(self._busy):
            if task := self._retries.popleft() if self._retries else next(self._tasks, None):
                self._busy[number] = task
                self.engine.send(number, task)
        return bool(self._busy)

    def _after_death(self, number: int) -> Iterator[Ended]:
        """Do the task of a worker again, or its subjects alone; leave out one that ends it too."""
        if self._silent_deaths >= _ATTEMPTS * self.engine.workers:
            raise RunError("workers end as soon as they start", "try --engine local")
        task = self._busy.pop(number)
        names = tuple(task.subjects)
        self._deaths[names] += 1
        if self._deaths[names] < _ATTEMPTS:
            self._retries.append(task)
            return
        if len(names) > 1:
            self._retries += [replace(task, subjects={n: task.subjects[n]}) for n in names]
            return
        error = RunError(
            f"its worker has died {_ATTEMPTS} times",
            "look for a reason in the system's log; too little memory is a common one",
        )
        for name in names:
            log = self.folder / name / JOURNAL
            if log.is_file() and not task.work:
                TrainingLog(log).append(RunFailure(error))
            yield Ended(name, error)


def _read_groups(folder: Path, group: RunGroup) -> list[list[str]]:
    """The groups of earlier attempts; RunError if the file is not valid."""
    file = folder / _GROUPS
    if not file.is_file():
        return []
    try:
        groups = [list(names) for names in json.loads(read_untrusted_text(file))["groups"]]
        if all(name in group.subjects for names in groups for name in names):
            return groups
    except (ValueError, TypeError, KeyError, RecursionError, PinxitError):
        pass
    raise RunError(f"{file} is not valid", "delete it: the subjects are then grouped again")
