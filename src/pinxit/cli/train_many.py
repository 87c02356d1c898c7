"""`pinxit train-many`: train concepts of many subjects and show their progress."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pinxit import registry
from pinxit.cli.flags import (
    Values,
    aliased,
    canonical,
    command,
    device_flag,
    flag,
    flags,
    positional,
)
from pinxit.cli.opening import open_base_model
from pinxit.cli.screen import bars, data, say
from pinxit.cli.train_run import recipe_values
from pinxit.errors import RunError
from pinxit.models.prompt import file_name
from pinxit.progress import Notice, Progress, ProgressCallback
from pinxit.runs.best import PreviewScores
from pinxit.runs.folder import AnyEvent, EarlyStop, MemoryNotice, RunFailure, SavedCheckpoint
from pinxit.runs.many import BatchGroups, RunGroup, train_many
from pinxit.runs.run import Run
from pinxit.training.method import Method
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult

# Options that each subject has for itself; a class noun may be common to all.
_PER_SUBJECT = frozenset({"method", "images", "token", "class_noun"})
_ALIASES = {"class_name": "class_noun", "together": "max_concepts_per_batch"}
_CLASS_NOUN = "class noun of all subjects for which the table has none"


def __getattr__(name: str) -> Callable[..., None]:
    """The command of a method, which the parser imports by the method's name."""
    if name not in registry.names("methods"):
        raise AttributeError(name)
    return method_command(name)


def method_command(name: str) -> Callable[..., None]:
    """The command `pinxit train-many NAME SUBJECTS`, with flags for the options in common."""
    method: type[Method] = registry.load("methods", name)

    def run_command(given: Values) -> None:
        given = canonical(given, _ALIASES)
        limit: int | None = given.get("max_concepts_per_batch")
        common = recipe_values(name, method, given)
        group = RunGroup.from_table(given["subjects"], common, limit)
        device = given.get("device", "cpu")
        if "resume" in given:
            resume(given["resume"], device, group)
            return
        out = given.get("out") or Path("runs") / file_name(given["subjects"].stem)
        group.create(out)
        follow(group, out, device)

    return command(
        [
            positional("subjects", Path, "folder of image folders, or a table in TOML or CSV"),
            *aliased(flag("class_noun", str, _CLASS_NOUN, "that of the table"), "class_name"),
            *flags(Recipe, leave_out=_PER_SUBJECT),
            *flags(RunGroup, leave_out=frozenset({"subjects"})),
            flag("out", Path, "folder for the runs; must be new", "runs/SUBJECTS"),
            flag("resume", Path, "folder of runs of the same subjects, to continue them", "none"),
            device_flag(),
            *flags(method, group=f"Options of {name}"),
        ],
        run_command,
    )


def resume(folder: Path, device: str, expected: RunGroup | None = None) -> None:
    """Continue the runs in a folder; RunError if their subjects or options are not as expected."""
    group = RunGroup.open(folder)
    if expected not in (None, group):
        raise RunError(
            f"{folder} was started with other subjects or options",
            f"continue with those: pinxit train-many --resume {folder}",
        )
    follow(group, folder, device)


def follow(group: RunGroup, folder: Path, device: str) -> None:
    """Train all with one progress bar; print the paths of the concepts on stdout."""
    runs = group.runs(folder)
    model = open_base_model(next(iter(group.subjects.values())), device)
    display = _GroupDisplay(runs)
    training = train_many(model, list(runs.values()), group.max_concepts_per_batch)
    try:
        with bars() as progress, closing(training) as events:
            for event in events:
                display.show(event, progress)
    except KeyboardInterrupt:
        say(
            f"stopped; all steps are saved in {folder}",
            f"hint: continue with: pinxit train-many --resume {folder}",
        )
        raise
    display.summarize()
    unfinished = [name for name, run in runs.items() if not run.finished]
    if unfinished:
        raise RunError(
            f"{len(unfinished)} of {len(runs)} subjects were not trained: {', '.join(unfinished)}",
            f"correct the errors above, then continue with: pinxit train-many --resume {folder}",
        )


class _GroupDisplay:
    """Shows the events of many runs, with one progress bar for all of them."""

    def __init__(self, runs: dict[str, Run]) -> None:
        self.names = {run: name for name, run in runs.items()}
        self.steps = dict.fromkeys(self.names, 0)
        self.early_stops: dict[Run, int] = {}

    def show(self, item: BatchGroups | tuple[Run, AnyEvent], progress: ProgressCallback) -> None:
        """Show one event."""
        if isinstance(item, BatchGroups):
            sizes = ", ".join(str(len(group)) for group in item.groups)
            say(f"concepts per batch: {sizes}{f' ({item.reason})' if item.reason else ''}")
            return
        run, event = item
        name = self.names[run]
        if isinstance(event, Progress):
            progress(replace(event, task=f"{name}: {event.task}"))
        elif isinstance(event, StepResult):
            self.steps[run] = event.number
            total = sum(self.early_stops.get(one, one.plan.steps) for one in self.steps)
            done = sum(self.steps.values())
            progress(Progress("training", done, total, f"loss {event.loss:.3f}"))
        elif isinstance(event, MemoryNotice | PreviewScores | EarlyStop):
            self._show_text(run, event)
        elif isinstance(event, Notice):
            say(f"note: {name}: {event.message}")
        elif isinstance(event, SavedCheckpoint) and self._is_last(run, event.step):
            say(f"trained {run.recipe.token}; generate with: --concept {run.folder}")
        elif isinstance(event, RunFailure):
            del self.steps[run]
            say(f"{name} is left out: {event.error.message}", f"hint: {event.error.hint}")

    def _show_text(self, run: Run, event: MemoryNotice | PreviewScores | EarlyStop) -> None:
        if isinstance(event, EarlyStop):
            self.early_stops[run] = event.step
        subject = "" if isinstance(event, MemoryNotice) else f"{self.names[run]}: "
        say(f"{subject}{event.text}")

    def _is_last(self, run: Run, step: int) -> bool:
        return step in (run.recipe.steps, self.early_stops.get(run))

    def summarize(self) -> None:
        """Print a line for each finished concept."""
        finished = [(name, run) for run, name in self.names.items() if run.finished]
        width = max((len(name) for name, _ in finished), default=0)
        for name, run in finished:
            loss = str(run.logged_steps()[-1]["losses"]).strip("[]")
            steps = run.concept.provenance.steps
            say(f"{name:{width}}  {steps:5} steps  loss {loss:.6}  {run.folder}")
            data(str(run.result_file))
