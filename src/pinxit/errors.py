"""Errors that a user can correct. Any other exception is a bug and shows its traceback.

PinxitError
├── ImageError     an image or a folder of images cannot be used
├── ModelError     a base model cannot be opened, or lacks a required feature
├── RecipeError    a method, an option, a token or a recipe file is invalid
├── ConceptError   a concept cannot be read, written or used with this model
├── RunError       a run folder cannot be created, read or continued
├── RequestError   a request to generate images is invalid
├── DiskError      a file cannot be written, or the disk returns other data than was written
└── FileError      a file cannot be read, is damaged, or contains more than data
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from shlex import quote

# Similarity from which a name is suggested, 0 to 1: "stepz" suggests "steps" (0.8).
_SIMILAR = 0.72


class PinxitError(Exception):
    """An error with a message, which contains the value, and a hint, which says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


class ImageError(PinxitError):
    """An image or a folder of images cannot be used."""


# The name of earlier versions.
PictureError = ImageError


class ModelError(PinxitError):
    """A base model cannot be opened, or lacks a required feature."""


class RecipeError(PinxitError):
    """A method, an option, a token or a recipe file is invalid."""


class ConceptError(PinxitError):
    """A concept cannot be read, written or used with this model."""


class RunError(PinxitError):
    """A run folder cannot be created, read or continued."""


class RequestError(PinxitError):
    """A request to generate images is invalid."""


class DiskError(PinxitError):
    """A file cannot be written, or the disk returns other data than was written."""


class FileError(PinxitError):
    """A file cannot be read, is damaged, or contains more than data."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def listed(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def typed(path: PurePath) -> str:
    """A path as it is typed in a shell: in quotes if it has spaces or special characters."""
    return quote(str(path))


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is spelled most like `name`, or None if none is similar."""
    matches = get_close_matches(name.lower(), list(known), n=1, cutoff=_SIMILAR)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """A hint for an unknown name: the most similar known one if there is one, and all of them.

    `aliases` maps other names that are accepted to known ones; they are compared, but not listed.
    """
    names = sorted(known)
    accepted = {**(aliases or {}), **{known_name: known_name for known_name in names}}
    similar = closest(name, accepted)
    listed = f"known: {', '.join(names) or 'none'}"
    return f"did you mean {accepted[similar]}? {listed}" if similar else listed
