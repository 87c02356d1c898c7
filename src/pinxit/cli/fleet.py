"""Commands that share their work among workers: a line for each worker, or JSON lines."""

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from inspect import Parameter
from pathlib import Path

from pinxit.cli.flags import DEVICE, Values, command, flag, flags, positional
from pinxit.cli.generate import parse_size
from pinxit.cli.opening import Opening
from pinxit.cli.screen import bars, data, say, stoppable
from pinxit.errors import PinxitError, RequestError, RunError, listed
from pinxit.evaluation.networks import fetch_networks
from pinxit.generation.request import GenerationRequest
from pinxit.models.prompt import check_braces
from pinxit.progress import Progress, ProgressCallback
from pinxit.runs.file_names import result_file
from pinxit.runs.fleet import (
    Engine,
    FleetEvent,
    FleetOptions,
    concept_fleet,
    fetch_list,
    prepare_folder,
    train_fleet,
)
from pinxit.runs.fleet_worker import ConceptWork, Ended, Generation, Setup, Status
from pinxit.runs.many import RunGroup

_OUT = Path("generated")
# Options that follow from each run, or that all concepts cannot share.
_NO_FLAGS = frozenset({"prompt", "concepts", "width", "height", "controls"})
_OF_RUN = frozenset({"base", "vae", "text_encoders", "precision"})
_JSON_EVERY = 1.0  # seconds between JSON lines of progress


def fleet_flags() -> list[Parameter]:
    """The flags of commands that share their work among workers."""
    about = "print what happens as JSON lines, one for each event"
    return [*flags(FleetOptions, group="Workers"), flag("json", bool, about, "False")]


def train_by_workers(
    group: RunGroup, folder: Path, opening: Opening, options: FleetOptions, *, as_json: bool
) -> None:
    """Start or continue the runs of a folder; print the path of each concept, or JSON lines."""
    if next(iter(group.subjects.values())).base != "pocket":
        fetch_networks(opening.judges)
    prepare_folder(folder, group, options.store)
    engine = options.open(Setup(folder.resolve(), opening.device))

    def result(name: str) -> str:
        return f"{options.store}/{name}" if options.store else str(result_file(folder / name))

    display = _Display("trained", result, group, as_json=as_json)
    _show(train_fleet(engine, group, folder, options), engine, display, folder)


def _generate_many(given: Values) -> None:
    values = GenerationRequest.chosen(given)
    check_braces(given["prompt"], RequestError)
    if "{}" not in given["prompt"]:
        raise RequestError(
            f"the prompt `{given['prompt']}` names no subject",
            "write {} for the token of each subject, such as: a photo of {} on the beach",
        )
    if "size" in given:
        values["width"], values["height"] = parse_size(given["size"])
    out = given.get("out", _OUT).resolve()
    request = GenerationRequest.model_validate(values)
    request.check()
    generation = Generation(request, out)
    group, options = open_group(given)
    work_with_all(given, group, options, generation, "generated")


def open_group(given: Values) -> tuple[RunGroup, FleetOptions]:
    """The group of the folder `runs` of a train-many, and where to work with its concepts."""
    options = FleetOptions.model_validate(FleetOptions.chosen(given))
    fetch_list(given["runs"], options.store)
    return RunGroup.open(given["runs"]), options


def work_with_all(
    given: Values, group: RunGroup, options: FleetOptions, work: ConceptWork, verb: str
) -> None:
    """Do the work with each concept; print the path of each result, or JSON lines."""
    folder = given["runs"]
    engine = options.open(Setup(folder.resolve(), given.get("device")))
    display = _Display(
        verb, lambda name: str(work.result(name)), group, as_json=given.get("json", False)
    )
    events = concept_fleet(engine, group, folder, work, options)
    _show(events, engine, display, work.out)


generate_many = command(
    [
        positional("runs", Path, "folder of a train-many"),
        positional("prompt", str, "text prompt in quotes; {} is the token of each subject"),
        flag("size", str, "image size in pixels: 64 or 96x64", "that of the base model"),
        *flags(GenerationRequest, _NO_FLAGS | _OF_RUN),
        DEVICE,
        flag("out", Path, "folder for a folder of images for each subject", str(_OUT)),
        *fleet_flags(),
    ],
    _generate_many,
)


def _show(events: Generator[FleetEvent], engine: Engine, display: "_Display", folder: Path) -> None:
    """Show all events; RunError if subjects are left out."""
    display.workers = [Status(0, 0, "waiting") for _ in range(engine.workers)]
    again = "continue with the same command"
    try:
        with stoppable(), bars() as progress, closing(events):
            for event in events:
                display.show(event, progress)
    except KeyboardInterrupt:
        say(f"stopped; what is done is in {folder}", f"hint: {again}")
        raise
    say(f"{display.verb} {display.done} subjects in {folder}")
    if names := sorted(display.left_out):
        shown = listed(names, 20)
        raise RunError(
            f"{len(names)} of {display.total} subjects were not {display.verb}: {shown}",
            f"correct the errors above, then {again}",
        )


class _Display:
    """Shows what the workers do: a line for each and the totals, or JSON lines."""

    def __init__(
        self, verb: str, result: Callable[[str], str], group: RunGroup, *, as_json: bool
    ) -> None:
        self.verb = verb
        self.result = result
        self.as_json = as_json
        self.workers: list[Status] = []
        self.restarts = 0
        self.total = len(group.subjects)
        self.done = 0
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
                self._show_done(name)
            case (_, Ended(name, error)) if error:
                self.left_out[name] = error
                say(f"{name} is left out: {error.message}", f"hint: {error.hint}")
                self._write("left_out", subject=name, message=error.message, hint=error.hint)
            case (number, _):
                self.restarts += 1
                self.workers[number] = Status(0, 0, "starts again")
                say(f"note: worker {number + 1} has died and is started again")
                self._write("restart", worker=number + 1)
        self._show_progress(progress)

    def _show_done(self, name: str) -> None:
        self.done += 1
        path = self.result(name)
        if self.as_json:
            self._write(self.verb, subject=name, path=path)
        else:
            data(path)

    def _show_progress(self, progress: ProgressCallback) -> None:
        done = self.done + len(self.left_out)
        counts = {"left out": len(self.left_out), "restarts": self.restarts}
        note = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        progress(Progress("subjects", done, self.total, note))
        # A pipe gets only the totals, which are shown first: see the bars.
        for number, status in enumerate(self.workers, 1):
            progress(Progress(f"worker {number}", status.done, status.total + 1, status.note))
        if time.monotonic() >= self._next_line or done == self.total:
            self._next_line = time.monotonic() + _JSON_EVERY
            workers = [asdict(status) for status in self.workers]
            self._write("progress", done=done, total=self.total, **counts, workers=workers)

    def _write(self, kind: str, **values: object) -> None:
        if self.as_json:
            data(json.dumps({"type": kind, **values}))
