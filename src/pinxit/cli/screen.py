"""What a person sees: messages and bars on stderr, data on stdout."""

import re
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from cyclopts import CycloptsError, UnknownCommandError

from pinxit.errors import PinxitError, RequestError, did_you_mean

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# How often a log that is no terminal gets a line, in seconds.
_LOG_EVERY = 10.0


class Report(Protocol):
    """Told how far a task is; the first word about a task starts its bar."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the task are over; `note` stands beside the bar."""
        ...


_SHOWN: ContextVar[Report | None] = ContextVar("shown", default=None)


def say(message: str) -> None:
    """A line for the person, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def data(line: str) -> None:
    """A line for a program, on stdout."""
    print(line, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows for the person, on stdout; for another program, lines with tabs and no head."""
    if not sys.stdout.isatty():
        for row in rows:
            data("\t".join(printable(cell).replace("\n", " ") for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        lines.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(lines)


def complain(error: PinxitError) -> None:
    """What is wrong, and what to do about it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error:", "bold red"), f" {printable(error.message)}"))
    console.print(Text.assemble(("hint:", "bold cyan"), f" {printable(error.hint)}"))


def printable(text: str) -> str:
    """The text without control characters, which a file's name could send to the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def usage_error(error: CycloptsError) -> PinxitError:
    """The parser's complaint as one of ours: a sentence, and the rest of it as the hint."""
    command = " ".join(("pinxit", *(error.command_chain or ())))
    if isinstance(error, UnknownCommandError) and error.app and error.unused_tokens:
        # Its own words would import every command, to look for names in them.
        names = [name for name in error.app if not name.startswith("-")]
        stray = error.unused_tokens[0]
        return RequestError(f"there is no command `{stray}`", did_you_mean(stray, names))
    told = str(error)
    missing = re.search(r"parameter (\S+) requires an argument", told)
    if missing:
        return RequestError(f"`{command}` needs {missing[1]}", f"see `{command} --help`")
    sentence, *rest = re.split(r"\.? (?=Did you mean|Choose from|Available commands)", told)
    hint = " ".join(part[0].lower() + part[1:].rstrip(".") for part in reversed(rest))
    sentence = sentence[0].lower() + sentence[1:].rstrip(".")
    return RequestError(sentence, hint or f"see `{command} --help`")


@contextmanager
def bars() -> Generator[Report]:
    """A bar with the time left for every task reported; plain lines where no terminal is.

    Downloads are tasks, whoever needs one. Bars inside of bars are the same.
    """
    if outer := _SHOWN.get():
        yield outer
        return
    from pinxit.models.hub import telling

    with _bars() as report:
        before = _SHOWN.set(report)
        try:
            with telling(report):
                yield report
        finally:
            _SHOWN.reset(before)


@contextmanager
def _bars() -> Generator[Report]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Log()
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    # Lines for a person's eyes go above the bars; lines for a pipe must stay in the pipe.
    above = sys.stdout.isatty()
    with Progress(*columns, console=console, redirect_stdout=above) as progress:
        yield _Bars(progress)


@contextmanager
def stoppable() -> Generator[None]:
    """Stop for SIGTERM, and when the terminal closes, as for Ctrl-C; nohup stays what it is."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    wanted = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    mine = threading.current_thread() is threading.main_thread()
    numbers = [number for number in wanted if number and mine]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class _Bars:
    """A bar for every task, on a terminal."""

    def __init__(self, progress: "Progress") -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        if task not in self.tasks:
            # A run that goes on begins at its own step: only what is done now tells the speed.
            self.tasks[task] = self.progress.add_task(
                task, total=total, completed=max(done - 1, 0), note=note
            )
        self.progress.update(self.tasks[task], completed=done, total=total, note=note)


class _Log:
    """A line now and then, for files and for other programs."""

    def __init__(self) -> None:
        self.started: dict[str, tuple[float, int]] = {}
        self.spoke = -_LOG_EVERY

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        began, first = self.started.setdefault(task, (now, done))
        if done < total and now - self.spoke < _LOG_EVERY:
            return
        self.spoke = now
        left = (now - began) / (done - first) * (total - done) if done > first else None
        ahead = f", {left:.0f} s left" if left else ""
        say(f"{task}: {done} of {total}{ahead}{', ' if note else ''}{note}")
