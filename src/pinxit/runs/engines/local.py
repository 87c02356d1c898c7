"""This process."""

from collections.abc import Generator, Iterator

from pinxit.errors import RequestError
from pinxit.runs.fleet_worker import Message, Setup, Task, Worker


class Local:
    """One worker, which is this process."""

    workers = 1

    def __init__(self, setup: Setup, workers: int | None = None, address: str | None = None):
        if workers not in (None, 1) or address:
            raise RequestError(
                "without an engine there is only one worker", "add --engine processes or ray"
            )
        self._worker = Worker(setup)
        self._tasks: dict[int, Generator[Message]] = {}

    def send(self, number: int, task: Task) -> None:
        """Give the task to the worker."""
        self._tasks[number] = self._worker.run_task(task)

    def receive(self) -> Iterator[tuple[int, Message]]:
        """The messages of the task."""
        for number, messages in self._tasks.items():
            yield from ((number, message) for message in messages)

    def close(self) -> None:
        """Save what is trained."""
        for messages in self._tasks.values():
            messages.close()
