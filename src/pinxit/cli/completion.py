"""`pinxit --install-completion`: complete commands and flags in the shell."""

from pathlib import Path
from typing import Literal

from pinxit.cli.screen import data, say
from pinxit.errors import RequestError
from pinxit.files.atomic_write import disk_errors

Shell = Literal["bash", "zsh", "fish", "powershell"]
_ZSH = "autoload -Uz compinit && compinit"


def install(*, shell: Shell | None = None, output: Path | None = None) -> None:
    """Install completion for a shell, and load it in the shell's start file.

    Args:
        shell: shell to install for (default: the one that this is typed in)
        output: file for the script (default: where the shell looks for such scripts)
    """
    from cyclopts.completion.detect import ShellDetectionError

    from pinxit.cli import app

    try:
        with disk_errors(output or Path.home()):
            file = app.install_completion(shell=shell, output=output)
    except ShellDetectionError:
        raise RequestError(
            "the shell that you use is not known: the variable SHELL names none",
            "name it: pinxit --install-completion --shell bash (or zsh, fish, powershell)",
        ) from None
    data(str(file))
    say("completion works in a new terminal")
    if file.name.startswith("_"):  # a file name of zsh
        say(f"if it does not, add this line to ~/.zshrc: {_ZSH}")
