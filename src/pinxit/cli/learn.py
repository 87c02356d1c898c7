"""What `pinxit train METHOD`, `--recipe` and `--resume` do: follow a run on the screen."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pinxit import registry
from pinxit.cli.check import before_learning
from pinxit.cli.flags import Values, command, flag, flags, word
from pinxit.cli.opening import opened
from pinxit.cli.screen import Report, bars, data, say, stoppable
from pinxit.generation.generate import Notice
from pinxit.images.inspect import survey
from pinxit.models.prompt import file_name
from pinxit.runs.best import Scored
from pinxit.runs.folder import Chosen, Event, Stopped
from pinxit.runs.run import Run
from pinxit.training.method import Method, Preparing
from pinxit.training.recipe import Recipe
from pinxit.training.train import Step

# How much the loss beside the bar remembers of the steps before.
_SMOOTH = 0.95
# What bases are taken to learn at before they are open.
_SIDES = {"pocket": 64}


def __getattr__(name: str) -> Callable[..., None]:
    """The command of a method, which the parser asks for by the method's name."""
    if name not in registry.names("methods"):
        raise AttributeError(name)
    return method_command(name)


def method_command(name: str) -> Callable[..., None]:
    """`pinxit train NAME PICTURES`: flags for the recipe's fields and for the method's knobs."""
    method: type[Method] = registry.load("methods", name)
    about = Recipe.model_fields["pictures"].description or ""

    def learn(given: Values) -> None:
        recipe = Recipe.model_validate(choices(name, method, given))
        begin(recipe, given.get("out"), given.get("device", "cpu"))

    return command(
        [
            word("pictures", Path, about),
            *flags(Recipe, leave_out=frozenset({"method", "pictures"})),
            flag("out", Path, "folder for the run; must be new", "runs/ and the word"),
            flag("device", str, "where to compute: cpu, cuda or mps", "cpu"),
            *flags(method, group=f"Knobs of {name}"),
        ],
        learn,
    )


def choices(name: str, method: type[Method], given: Values) -> dict[str, object]:
    """What was typed of a recipe's fields and of a method's knobs, as a recipe has it."""
    knobs = {knob: given[knob] for knob in method.model_fields if knob in given}
    own = {field: given[field] for field in Recipe.model_fields if field in given}
    return {**own, "method": {"name": name, **knobs}}


def by_recipe(file: Path, out: Path | None, device: str) -> None:
    """Begin the run that a recipe's file describes."""
    begin(Recipe.from_toml(file), out, device)


def begin(recipe: Recipe, out: Path | None, device: str) -> None:
    """Begin a run in a folder of its own."""
    follow(Run.create(out or Path("runs") / file_name(recipe.token), recipe), device)


def go_on(
    folder: Path, device: str, steps: int | None, pictures: Path | None, base: str | None
) -> None:
    """Go on with a run from its last checkpoint, perhaps for more steps, or after it was moved."""
    follow(Run.open(folder, steps, pictures, base), device)


def follow(run: Run, device: str) -> None:
    """Learn, with bars; when stopped say what was kept. The concept's path goes to stdout."""
    recipe = run.recipe
    # What is wrong with them is said before a large base opens, which may be of another size.
    run.find_pictures()
    side = recipe.size or _SIDES.get(recipe.base, 512)
    before_learning(survey(recipe.pictures, side, masks=recipe.masks), recipe.skip_bad)
    model = opened(recipe, device)
    told = _Told()
    try:
        with stoppable(), bars() as report, closing(run.learn(model)) as events:
            for event in events:
                told.hear(event, report)
    except KeyboardInterrupt:
        say(_last_words(run))
        raise
    say(f"{recipe.token} is learned; paint with it by --concept {run.folder}{_which(run)}")
    for said in run.wrong:
        say(f"what its previews show: {said}")
    data(str(run.result))


class _Told:
    """What the events of a run have said so far."""

    def __init__(self) -> None:
        self.loss: float | None = None

    def hear(self, event: Event, report: Report) -> None:
        """Show one event."""
        if isinstance(event, Preparing):
            report(event.what, event.done, event.total)
        elif isinstance(event, Step):
            known = event.loss if self.loss is None else self.loss
            self.loss = _SMOOTH * known + (1 - _SMOOTH) * event.loss
            report("learning", event.number, event.total, f"loss {self.loss:.3f}")
        elif isinstance(event, Chosen | Scored | Stopped):
            say(event.text)
        elif isinstance(event, Notice):
            say(f"note: {event.message}")


def _which(run: Run) -> str:
    """Which step the result is of, if it is not the last."""
    last = run.folder / "concept.safetensors"
    if run.result == last or run.best == run.concept.provenance.steps:
        return ""
    return f"\nit is that of step {run.best}, which scored best; the last is {last}"


def _last_words(run: Run) -> str:
    """What a person who stopped the run wants to know."""
    if run.kept == 0:
        return "stopped before a step was done: nothing new was learned"
    return (
        f"stopped after step {run.kept}; what was learned is saved in {run.folder}\n"
        f"hint: go on with pinxit train --resume {run.folder}"
    )
