"""What a long task reports while it runs: its progress, and notices for the user."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a task are done; `note` has details, such as the loss."""

    task: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Notice:
    """Something that the user should know; the task continues."""

    message: str


# Receives the progress of tasks; the first call for a task starts its bar.
ProgressCallback = Callable[[Progress], None]
