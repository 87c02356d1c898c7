"""`pinxit train-many` with workers: a line for each worker and the totals, or JSON lines."""

import json
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from pinxit.cli.opening import Opening
from pinxit.cli.screen import bars, data, say, stoppable
from pinxit.errors import PinxitError, RunError
from pinxit.evaluation.networks import fetch_networks
from pinxit.progress import Progress, ProgressCallback
from pinxit.runs.fleet import FleetEvent, FleetOptions, prepare_folder, train_fleet
from pinxit.runs.fleet_worker import Ended, Setup, Status
from pinxit.runs.many import RunGroup
from pinxit.runs.reader import result_file

_JSON_EVERY = 1.0  # seconds between JSON lines of progress


def train_by_workers(
    group: RunGroup, folder: Path, opening: Opening, options: FleetOptions, *, as_json: bool
) -> None:
    """Start or continue the runs of a folder; print the path of each concept, or JSON lines."""
    recipe = next(iter(group.subjects.values()))
    if recipe.base != "pocket":
        fetch_networks(opening.judges)
    prepare_folder(folder, group)
    engine = options.open(Setup(folder.resolve(), opening.device))
    display = _Display(folder, engine.workers, len(group.subjects), as_json=as_json)
    resume = "continue with the same command"
    try:
        fleet = closing(train_fleet(engine, group, folder, options))
        with stoppable(), bars() as progress, fleet as events:
            for event in events:
                display.show(event, progress)
    except KeyboardInterrupt:
        say(f"stopped; what was trained is saved in {folder}", f"hint: {resume}")
        raise
    say(f"trained {display.trained} subjects in {folder}")
    if display.left_out:
        names = sorted(display.left_out)
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
        raise RunError(
            f"{len(names)} of {display.total} subjects were not trained: {shown}",
            f"correct the errors above, then {resume}",
        )


class _Display:
    """Shows what the workers do: a line for each and the totals, or JSON lines."""

    def __init__(self, folder: Path, workers: int, total: int, *, as_json: bool) -> None:
        self.folder = folder
        self.as_json = as_json
        self.workers = [Status(0, 0, "waiting") for _ in range(workers)]
        self.restarts = 0
        self.total = total
        self.trained = 0
        self.left_out: dict[str, PinxitError] = {}
        self._next_line = 0.0

    def show(self, event: FleetEvent, progress: ProgressCallback) -> None:
        """Show an event of the fleet."""
        match event:
            case int(total):
                self.total = total + len(self.left_out)
            case (number, Status() as status):
                self.workers[number] = status
            case (_, Ended(name, None)):
                self._show_trained(name)
            case (_, Ended(name, error)) if error:
                self._show_left_out(name, error)
            case (number, _):
                self._show_restart(number)
        self._show_progress(progress)

    def _show_trained(self, name: str) -> None:
        self.trained += 1
        concept = str(result_file(self.folder / name))
        if self.as_json:
            self._write("trained", subject=name, concept=concept)
        else:
            data(concept)

    def _show_left_out(self, name: str, error: PinxitError) -> None:
        self.left_out[name] = error
        say(f"{name} is left out: {error.message}", f"hint: {error.hint}")
        self._write("left_out", subject=name, message=error.message, hint=error.hint)

    def _show_restart(self, number: int) -> None:
        self.restarts += 1
        self.workers[number] = Status(0, 0, "starts again")
        say(f"note: worker {number + 1} has died and is started again")
        self._write("restart", worker=number + 1)

    def _show_progress(self, progress: ProgressCallback) -> None:
        done = self.trained + len(self.left_out)
        counts = {"left out": len(self.left_out), "restarts": self.restarts}
        note = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        progress(Progress("subjects", done, self.total, note))
        # A pipe gets only the totals, which are shown first: see the bars.
        for number, status in enumerate(self.workers, 1):
            progress(Progress(f"worker {number}", status.done, status.total + 1, status.note))
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _JSON_EVERY
            workers = [asdict(status) for status in self.workers]
            self._write("progress", done=done, total=self.total, **counts, workers=workers)

    def _write(self, kind: str, **values: object) -> None:
        if self.as_json:
            data(json.dumps({"type": kind, **values}))
