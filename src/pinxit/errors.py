"""What can go wrong in ways a user can mend; anything else is a bug and shows its traceback.

PinxitError
├── PictureError   a picture or a folder of pictures cannot be used
├── ModelError     a base model cannot be opened, or lacks what is asked of it
├── RecipeError    a method, a knob, a token or a recipe file is not right
├── ConceptError   a learned concept cannot be read, written or used with this model
├── RunError       a run folder cannot be made, read or continued
├── RequestError   a request to paint is not right
├── DiskError      a file cannot be written, or not so that it stays
└── FileError      a file of another program cannot be read, or holds more than data
"""

from collections.abc import Iterable
from difflib import get_close_matches


class PinxitError(Exception):
    """What is wrong, with the value in it, and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


class PictureError(PinxitError):
    """A picture or a folder of pictures cannot be used."""


class ModelError(PinxitError):
    """A base model cannot be opened, or lacks what is asked of it."""


class RecipeError(PinxitError):
    """A method, a knob, a token or a recipe file is not right."""


class ConceptError(PinxitError):
    """A learned concept cannot be read, written or used with this model."""


class RunError(PinxitError):
    """A run folder cannot be made, read or continued."""


class RequestError(PinxitError):
    """A request to paint is not right."""


class DiskError(PinxitError):
    """A file cannot be written, or not so that it stays."""


class FileError(PinxitError):
    """A file of another program cannot be read, or holds more than data."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The hint for a misspelt name: the nearest known one if there is one, and all of them."""
    choices = sorted(known)
    listed = ", ".join(choices) or "none"
    near = get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]}? known: {listed}" if near else f"known: {listed}"
