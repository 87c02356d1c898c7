"""What `pinxit train-many` does: follow many runs on the screen."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pinxit import registry
from pinxit.cli.flags import Values, command, flag, flags, word
from pinxit.cli.learn import choices
from pinxit.cli.opening import opened
from pinxit.cli.screen import Report, bars, data, say
from pinxit.errors import RunError
from pinxit.generation.generate import Notice
from pinxit.models.prompt import file_name
from pinxit.runs.best import Scored
from pinxit.runs.folder import Chosen, Failed, Saved, Stopped, Told
from pinxit.runs.many import Grouped, Many, learn_many
from pinxit.runs.run import Run
from pinxit.training.method import Method, Preparing
from pinxit.training.recipe import Recipe
from pinxit.training.train import Step

_OWN = frozenset({"method", "pictures", "token", "class_noun"})


def __getattr__(name: str) -> Callable[..., None]:
    """The command of a method, which the parser asks for by the method's name."""
    if name not in registry.names("methods"):
        raise AttributeError(name)
    return method_command(name)


def method_command(name: str) -> Callable[..., None]:
    """`pinxit train-many NAME SUBJECTS`: flags for what the subjects' recipes have in common."""
    method: type[Method] = registry.load("methods", name)

    def learn(given: Values) -> None:
        common = choices(name, method, given)
        many = Many.of(given["subjects"], common, given.get("together"))
        device = given.get("device", "cpu")
        if "resume" in given:
            go_on(given["resume"], device, many)
            return
        out = given.get("out") or Path("runs") / file_name(given["subjects"].stem)
        many.begin(out)
        follow(many, out, device)

    return command(
        [
            word("subjects", Path, "folder of folders with pictures, or a table in TOML or CSV"),
            flag("class_noun", str, "what all are kinds of, unless the table says otherwise"),
            *flags(Recipe, leave_out=_OWN),
            *flags(Many, leave_out=frozenset({"subjects"})),
            flag("out", Path, "folder for the runs; must be new", "runs/ and the subjects' name"),
            flag("resume", Path, "folder of these very subjects, to go on with"),
            flag("device", str, "where to compute: cpu, cuda or mps", "cpu"),
            *flags(method, group=f"Knobs of {name}"),
        ],
        learn,
    )


def go_on(folder: Path, device: str, asked: Many | None = None) -> None:
    """Go on with subjects that were begun; RunError if others are asked for."""
    many = Many.open(folder)
    if asked not in (None, many):
        raise RunError(
            f"{folder} was begun with other subjects or choices",
            f"go on with what was chosen then: pinxit train-many --resume {folder}",
        )
    follow(many, folder, device)


def follow(many: Many, folder: Path, device: str) -> None:
    """Learn all, with a bar for the whole; the paths of the concepts go to stdout."""
    runs = many.runs(folder)
    model = opened(next(iter(many.subjects.values())), device)
    board = _Board(runs)
    try:
        with (
            bars() as report,
            closing(learn_many(model, list(runs.values()), many.together)) as told,
        ):
            for one in told:
                board.hear(one, report)
    except KeyboardInterrupt:
        say(
            f"stopped; what was learned is saved in {folder}\n"
            f"hint: go on with pinxit train-many --resume {folder}"
        )
        raise
    board.sum_up()
    left = [name for name, run in runs.items() if not run.finished]
    if left:
        raise RunError(
            f"{len(left)} of {len(runs)} subjects were not learned: {', '.join(left)}",
            "see above what is wrong with each; then take them up by "
            f"pinxit train-many --resume {folder}",
        )


class _Board:
    """How far each of many runs is."""

    def __init__(self, runs: dict[str, Run]) -> None:
        self.names = {run: name for name, run in runs.items()}
        self.done = dict.fromkeys(self.names, 0)
        self.enough: dict[Run, int] = {}  # after which step, of those that stopped early

    def hear(self, told: Grouped | tuple[Run, Told], report: Report) -> None:
        """Show one event."""
        if isinstance(told, Grouped):
            sizes = ", ".join(str(len(group)) for group in told.groups)
            say(f"learned together: {sizes}{f' ({told.why})' if told.why else ''}")
            return
        run, event = told
        name = self.names[run]
        if isinstance(event, Preparing):
            report(f"{name}: {event.what}", event.done, event.total)
        elif isinstance(event, Step):
            self.done[run] = event.number
            total = sum(self.enough.get(one, one.recipe.steps or 0) for one in self.done)
            report("learning", sum(self.done.values()), total, f"loss {event.loss:.3f}")
        elif isinstance(event, Chosen | Scored | Stopped):
            self._tell(run, event)
        elif isinstance(event, Notice):
            say(f"note: {name}: {event.message}")
        elif isinstance(event, Saved) and self._last(run, event.number):
            say(f"{run.recipe.token} is learned; paint with it by --concept {run.folder}")
        elif isinstance(event, Failed):
            del self.done[run]
            say(f"{name} is left out: {event.error.message}\nhint: {event.error.hint}")

    def _tell(self, run: Run, event: Chosen | Scored | Stopped) -> None:
        if isinstance(event, Stopped):
            self.enough[run] = event.number
        whose = "" if isinstance(event, Chosen) else f"{self.names[run]}: "
        say(f"{whose}{event.text}")

    def _last(self, run: Run, number: int) -> bool:
        return number in (run.recipe.steps, self.enough.get(run))

    def sum_up(self) -> None:
        """A line for each concept that was learned."""
        learned = [(name, run) for run, name in self.names.items() if run.finished]
        width = max((len(name) for name, _ in learned), default=0)
        for name, run in learned:
            loss = str(run.journal()[-1]["losses"]).strip("[]")
            steps = run.concept.provenance.steps
            say(f"{name:{width}}  {steps:5} steps  loss {loss:.6}  {run.folder}")
            data(str(run.result))
