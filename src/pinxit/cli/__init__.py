"""The command line: parse, call, print. Commands are imported only when they are typed."""

import os
import signal
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from pinxit.cli.screen import complain, usage_error
from pinxit.errors import PinxitError

BAD_INPUT = 2
SIGNALLED = 128


def _version() -> str:
    from importlib.metadata import version

    return f"pinxit {version('pinxit')}"


app = App(
    name="pinxit",
    help="Teach a Stable Diffusion model a subject or a style from a few pictures; paint with it.",
    version=_version,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command("pinxit.cli.train:train", name="train", help="Learn a word from pictures.")
app.command("pinxit.cli.train:many", name="train-many", help="Learn many words at once.")
app.command("pinxit.cli.check:check", name="check", help="Look at pictures before learning.")
app.command("pinxit.cli.paint:generate", name="generate", help="Paint a prompt.")
app.command("pinxit.cli.transfer:transfer", name="transfer", help="Paint a picture anew.")
app.command("pinxit.cli.evaluate:evaluate", name="evaluate", help="Judge words; write a report.")
app.command("pinxit.cli.inspect:inspect", name="inspect", help="Say what a concept's file is.")
app.command("pinxit.cli.convert:convert", name="convert", help="Write it as others open it.")
app.command("pinxit.cli.show:demo", name="demo", help="Learn, paint and measure; write a report.")
app.command("pinxit.cli.show:plugins", name="list", help="List methods, families, metrics, ...")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for what the user can mend, 128 + n for a signal."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(given, exit_on_error=False, print_error=False)
    except PinxitError as error:
        complain(error)
        return BAD_INPUT
    except CycloptsError as error:
        complain(usage_error(error))
        return BAD_INPUT
    except KeyboardInterrupt as stopped:
        return SIGNALLED + next(iter(stopped.args), signal.SIGINT)
    except BrokenPipeError:  # whoever reads the answer, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
