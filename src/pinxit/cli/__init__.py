"""The command line: parse, call, print. A command is imported when it is typed."""

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import pairwise

from cyclopts import App, CycloptsError

from pinxit.cli.launch import StartRanks, start_ranks
from pinxit.cli.layout import show_panel
from pinxit.cli.screen import print_error, usage_error
from pinxit.errors import FileError, PinxitError, RequestError

BAD_INPUT = 2
SIGNALLED = 128
# What a user can do about errors of the operating system.
_UNREADABLE = dict.fromkeys((errno.EACCES, errno.EPERM), "check its owner and its permissions")
_UNREADABLE[errno.EIO] = "the disk, or the connection to it, may be failing: use another one"
_SIGPIPE = 13  # Windows has no name for it
_ADDRESS = re.compile(r"(--[\w-]+=)?https?://")
# Flags and commands that take a prompt, which may be empty.
_PROMPTS = re.compile("prompt|negative")
_WITH_PROMPT = ("generate", "transfer", "generate-many")


def _version() -> str:
    from importlib.metadata import version

    return f"pinxit {version('pinxit')}"


app = App(
    name="pinxit",
    help="Train an image model on a few images of a subject or a style, and generate images of it.",
    version=_version,
    help_format="plaintext",
    help_formatter=show_panel,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for _name, _target, _help in (
    ("train", "cli.train:train", "Train a concept from images, by LoRA unless you name a method."),
    ("train-many", "cli.train:many", "Train concepts of many subjects, several at once."),
    ("check", "cli.check:check", "Check training images before training."),
    ("generate", "cli.generate:generate", "Generate images from a prompt."),
    ("generate-many", "cli.fleet:generate_many", "Generate with all concepts of a train-many."),
    ("transfer", "cli.transfer:transfer", "Generate from an image and a prompt."),
    ("evaluate", "cli.evaluate:evaluate", "Measure concepts and write a report."),
    ("evaluate-many", "cli.evaluate:evaluate_many", "Measure all concepts of a train-many."),
    ("runs", "cli.library:runs", "List the runs in a folder."),
    ("concepts", "cli.library:concepts", "List the concepts in a folder."),
    ("tensorboard", "cli.library:tensorboard", "Write the logs of runs for TensorBoard."),
    ("show", "cli.library:show", "Show how an image was generated."),
    ("inspect", "cli.inspect:inspect", "Show what a concept file contains."),
    ("convert", "cli.convert:convert", "Convert a concept to another file format."),
    ("lora", "cli.lora:lora", "Merge, reduce and extract LoRAs."),
    ("studio", "studio.commands:studio", "Open the studio, a web page for all of this."),
    ("worker", "studio.commands:worker", "Do the jobs of a studio."),
    ("demo", "cli.show:demo", "Train, generate and measure; write a report."),
    ("doctor", "cli.doctor:doctor", "Show what this machine has, and hints for problems."),
    ("list", "cli.show:plugins", "List methods, model families, metrics and other plug-ins."),
    ("--install-completion", "cli.completion:install", "Install completion for your shell."),
):
    app.command(f"pinxit.{_target}", name=_name, help=_help)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: done; 2: an error that the user can correct; 128 + n: stopped by signal n, or by the signal
    of a pipe whose reader, such as `head`, has closed it.
    """
    _prepare_streams()
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        pass
    except SystemExit as end:  # rich turns the error of a pipe into it
        if not isinstance(end.__context__, BrokenPipeError):
            raise
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # Python writes the rest of their buffers at its end
        os.dup2(nowhere, stream.fileno())
    return SIGNALLED + _SIGPIPE


def _run(typed: Sequence[str]) -> int:
    """Run one command; errors of the user are printed."""
    try:
        _check_words(typed)
        app(typed, exit_on_error=False, print_error=False)
    except StartRanks as several:
        return start_ranks(typed, several.count)
    except PinxitError as error:
        print_error(error)
        return BAD_INPUT
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        what = f"{error.filename or 'a file'} cannot be read or written: {error.strerror}"
        print_error(FileError(what, _UNREADABLE[error.errno]))
        return BAD_INPUT
    except CycloptsError as error:
        print_error(usage_error(error))
        return BAD_INPUT
    except KeyboardInterrupt as interrupt:
        return SIGNALLED + next(iter(interrupt.args), signal.SIGINT)
    return 0


def _check_words(typed: Sequence[str]) -> None:
    """Raise RequestError for an address of the web, and for an empty text that is no prompt."""
    for before, word in pairwise(("", *typed)):
        if _ADDRESS.match(word):
            raise RequestError(
                f"{word} is an address of the web, and pinxit opens files and folders",
                "download it and type its path; a model of Hugging Face has an id: owner/name",
            )
        is_flag = before.startswith("-")
        if not word and not (_PROMPTS.search(before) if is_flag else typed[0] in _WITH_PROMPT):
            raise RequestError(
                f"the value after {before} is empty",
                "type a value; a variable of the shell that has none gives an empty text",
            )


def _prepare_streams() -> None:
    """Discard output for which there is no stream: the shell's `>&-` closes it."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # its encoding may lack letters of a path or a token
            stream.reconfigure(errors="backslashreplace")
