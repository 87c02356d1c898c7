"""Output: messages and progress bars on stderr, data on stdout."""

import os
import re
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import (
    CycloptsError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from pinxit import registry
from pinxit.cli.notebook import NotebookBars, in_notebook
from pinxit.errors import PinxitError, RequestError, closest, did_you_mean
from pinxit.files.atomic_write import STOP_SIGNALS
from pinxit.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from cyclopts.argument import Argument as CommandArgument
    from rich import progress as rich_progress

# A flag without a `--no-` form.
Switch = Annotated[bool, Parameter(negative="")]
# Seconds between progress lines where there is no terminal.
_LOG_EVERY = 10.0
# Characters between the columns of a table, and at its edges, for each column.
_GAP = 4
# Commands with a prompt, and the words before it.
_PROMPT_COMMANDS = {"pinxit generate": "", "pinxit transfer": "IMAGE "}


# Of several processes that work together, only the first one prints messages.
_QUIET = os.environ.get("RANK", "0") != "0"

_CURRENT: ContextVar[ProgressCallback | None] = ContextVar("current", default=None)


def say(*lines: str) -> None:
    """Print lines for the user on stderr."""
    # A notebook shows stderr as an error.
    file = sys.stdout if in_notebook() else sys.stderr
    for line in () if _QUIET else lines:
        print(printable(line), file=file, flush=True)


def data(line: str) -> None:
    """Print a line of output on stdout: unchanged for a program, escaped for a terminal."""
    if not _QUIET:
        print(printable(line) if sys.stdout.isatty() else line, flush=True)


def labelled(label: str, text: str, width: int) -> None:
    """Print a label of this width and a text beside it, wrapped between words on a terminal.

    In a narrow terminal the text is below the label.
    """
    start, text = f"{printable(label):{width}}", printable(text)
    columns = get_terminal_size().columns
    if not sys.stdout.isatty() or len(start + text) <= columns:
        data(start + text)
        return
    indent = " " * (width if 2 * width < columns else 2)
    if 2 * width >= columns:
        data(start.rstrip())
        start = indent
    wrapper = textwrap.TextWrapper(
        columns, start, indent, break_long_words=False, break_on_hyphens=False
    )
    for part in wrapper.wrap(text):
        data(part)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal; elsewhere lines with tabs and without the head.

    In a terminal that is too narrow for the words side by side, each row is a list of its cells.
    """
    if not sys.stdout.isatty():
        for row in rows:
            data("\t".join(printable(cell) for cell in row))
        return
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    columns = [" ".join(cells).split() for cells in zip(head, *rows, strict=True)]
    widths = [max(map(cell_len, words), default=0) for words in columns]
    if sum(widths) + _GAP * len(widths) > console.width:
        width = max(map(len, head)) + 2
        for row in rows:
            for title, cell in zip(head, row, strict=True):
                labelled(title, cell, width)
            data("")
        return
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, width in zip(head, widths, strict=True):
        lines.add_column(title, min_width=width)
    for row in rows:
        lines.add_row(*(Text(printable(cell)) for cell in row))
    console.print(lines)


def print_error(error: PinxitError) -> None:
    """Print the message and the hint of an error on stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error:", "bold red"), f" {printable(error.message)}"))
    console.print(Text.assemble(("hint:", "bold cyan"), f" {printable(error.hint)}"))


def printable(text: str) -> str:
    """The text as one line without control characters, which a terminal would obey."""
    line = text.replace("\n", " ")
    return "".join(character if character.isprintable() else "?" for character in line)


def usage_error(error: CycloptsError) -> PinxitError:
    """An error of the command line parser as a message and a hint."""
    command = " ".join(("pinxit", *(error.command_chain or ())))
    see_help = f"see `{command} --help`"
    words = error.unused_tokens or []
    if isinstance(error, UnknownCommandError) and error.app and words:
        # The parser's own message would import every command.
        names = [name for name in error.app if not name.startswith("-")]
        hint = did_you_mean(words[0], names, {"--version": "--version", "help": "--help"})
        return RequestError(f"unknown command `{words[0]}`", hint)
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error, command, see_help)
    if isinstance(error, UnusedCliTokensError) and words:
        hint = f"a value with spaces needs quotes; {see_help}"
        if command in _PROMPT_COMMANDS:
            hint = (
                f'put the prompt in quotes: {command} {_PROMPT_COMMANDS[command]}"a photo of ..."'
            )
            if all(map(os.path.exists, words)):
                hint = f"for more concepts: {' '.join(f'--concept {word}' for word in words)}"
        return RequestError(f"`{command}` does not take the words `{' '.join(words)}`", hint)
    return _other_error(error, command, see_help)


def _other_error(error: CycloptsError, command: str, see_help: str) -> PinxitError:
    """An error for which there are only the words of the parser."""
    message = str(error)
    missing = re.search(r"parameter (\S+) requires an argument", message)
    if missing and missing[1] in (error.root_input_tokens or ()):
        return RequestError(f"{missing[1]} has no value", f"type it after the flag; {see_help}")
    if missing:
        return RequestError(f"`{command}` needs {missing[1]}", see_help)
    sentence, *rest = re.split(r"\.? (?=Did you mean|Choose from|Available commands)", message)
    choices = [part for part in rest if not part.startswith("Did you mean")]
    hint = " ".join(part[0].lower() + part[1:].rstrip(".") for part in choices)
    return RequestError(sentence[0].lower() + sentence[1:].rstrip("."), hint or see_help)


def _unknown_option(error: UnknownOptionError, command: str, see_help: str) -> PinxitError:
    typed = (error.token.keyword or error.token.value).partition("=")[0]
    flags = {
        name: name if argument.parameter.show is not False else _shown_flag(argument)
        for argument in error.argument_collection
        for name in argument.names
    }
    similar = closest(typed, flags)
    hint = f"did you mean {flags[similar]}? {see_help}" if similar else see_help
    if command.startswith("pinxit train"):
        name = typed.removeprefix("--").replace("-", "_")
        methods = {one: registry.load("methods", one) for one in registry.names("methods")}
        others = [one for one, options in methods.items() if name in options.option_names()]
        hint = f"it is an option of {', '.join(others)}; {see_help}" if others else hint
    return RequestError(f"`{command}` has no option {typed}", hint)


def _shown_flag(alias: "CommandArgument") -> str:
    """The flag that a hidden flag is another name of."""
    name = (alias.parameter.help or "").removeprefix("same as ").removeprefix("--")
    return f"--{name.replace('_', '-')}"


@contextmanager
def bars(*, visible: bool = True) -> Generator[ProgressCallback]:
    """Show a progress bar for each task, also in a notebook; plain lines where there is neither.

    Downloads are shown too. A context inside another one shows the same bars.
    """
    outer = _CURRENT.get()
    if outer or _QUIET or not visible:
        yield outer or (lambda _: None)
        return
    from pinxit.models.hub import progress_to

    with _bars() as progress:
        token = _CURRENT.set(progress)
        try:
            with progress_to(progress):
                yield progress
        finally:
            _CURRENT.reset(token)


@contextmanager
def _bars() -> Generator[ProgressCallback]:
    if in_notebook():
        yield NotebookBars()
        return
    from rich.console import Console

    console = Console(stderr=True)
    # Variables such as FORCE_COLOR make the library take a log file for a terminal.
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield _Log()
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    )
    # Lines on a terminal are printed above the bars; lines for a pipe must stay in the pipe.
    redirect = sys.stdout.isatty()
    progress = rich_progress.Progress(*columns, console=console, redirect_stdout=redirect)
    try:
        yield _Bars(progress)
    finally:
        progress.stop()


def stoppable() -> AbstractContextManager[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGHUP too, unless they are ignored (nohup)."""

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    return _stop_handler(stop, lambda before: before == signal.SIG_DFL)  # Python handles SIGINT


def killable() -> AbstractContextManager[None]:
    """Let stop signals end the process at once: there is nothing to save.

    Python's own handlers wait until code of a library in C or Rust returns, which can take long.
    """
    return _stop_handler(signal.SIG_DFL, callable)


@contextmanager
def _stop_handler(handler: Any, is_replaced: Callable[[object], bool]) -> Generator[None]:
    """Let `handler` handle the stop signals whose present handler `is_replaced` in the block."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS if in_main_thread}
    handlers = {number: one for number, one in before.items() if is_replaced(one)}
    for number in handlers:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Bars:
    """A bar for each task, on a terminal."""

    def __init__(self, progress: "rich_progress.Progress") -> None:
        self.progress = progress
        self.tasks: dict[str, rich_progress.TaskID] = {}

    def __call__(self, event: Progress) -> None:
        task, done, total, note = event.task, event.done, event.total, printable(event.note)
        self.progress.start()  # the first time; before, the cursor stays visible
        if task not in self.tasks:
            # A resumed run starts at its own step: the speed is that of the steps done now.
            self.tasks[task] = self.progress.add_task(
                printable(task), total=total, completed=max(done - 1, 0), note=note
            )
        self.progress.update(self.tasks[task], completed=done, total=total, note=note)


class _Log:
    """A progress line every few seconds, for log files and other programs."""

    def __init__(self) -> None:
        self.started: dict[str, tuple[float, int]] = {}
        self.last_line = -_LOG_EVERY

    def __call__(self, event: Progress) -> None:
        task, done, total, note = event.task, event.done, event.total, event.note
        now = time.monotonic()
        start, first = self.started.setdefault(task, (now, done))
        if done < total and now - self.last_line < _LOG_EVERY:
            return
        self.last_line = now
        left = (now - start) / (done - first) * (total - done) if done > first else None
        time_left = f", {left:.0f} s left" if left else ""
        say(f"{task}: {done} of {total}{time_left}{', ' if note else ''}{note}")
