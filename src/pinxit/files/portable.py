"""Paths in files that are meant to be shared: without folders and the name of the account."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath


def with_tilde(text: str) -> str:
    """The path with "~" for the user's folder; other texts are returned unchanged."""
    home = os.path.expanduser("~")  # noqa: PTH111 (pathlib's raises RuntimeError)
    is_inside = len(home) > 1 and text.startswith(home + os.sep)
    return f"~{text[len(home) :]}" if is_inside else text


def without_tilde(text: str) -> str:
    """The inverse of `with_tilde`."""
    return os.path.expanduser(text) if text.startswith("~/") else text  # noqa: PTH111


def portable(text: str) -> str:
    """The path relative to the working folder if it is inside, else `with_tilde`."""
    here = str(Path.cwd()) + os.sep
    return text.removeprefix(here) if text.startswith(here) else with_tilde(text)


def last_name(text: str) -> str:
    """The last name of a path that is absolute or begins with "~"; other texts are unchanged."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute() or text.startswith("~"):
            return kind(text).name
    return text


def numbered(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of files, with numbers in place of the file names."""
    return {f"{n:03}": value for n, value in enumerate(sorted(fingerprints.values()), 1)}
