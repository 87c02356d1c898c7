"""`pinxit train METHOD`, `--recipe` and `--resume`: train one concept and show its progress."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pinxit import registry
from pinxit.cli.check import check_before_training
from pinxit.cli.flags import Values, command, device_flag, flag, flags, positional_option
from pinxit.cli.opening import open_base_model
from pinxit.cli.screen import bars, data, say, stoppable
from pinxit.images.inspect import check_folder
from pinxit.models.prompt import file_name
from pinxit.progress import Notice, Progress, ProgressCallback
from pinxit.runs.best import PreviewScores
from pinxit.runs.folder import EarlyStop, Event, MemoryNotice
from pinxit.runs.run import Run
from pinxit.training.method import Method
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult

# The loss in the progress bar is an exponential moving average with this decay.
_LOSS_DECAY = 0.95
# Resolutions at which images are checked before the base model is open.
_RESOLUTIONS = {"pocket": 64}
_DEFAULT_RESOLUTION = 512


def __getattr__(name: str) -> Callable[..., None]:
    """The command of a method, which the parser imports by the method's name."""
    if name not in registry.names("methods"):
        raise AttributeError(name)
    return method_command(name)


def method_command(name: str) -> Callable[..., None]:
    """The command `pinxit train NAME IMAGES`, with flags for the recipe and for the method."""
    method: type[Method] = registry.load("methods", name)

    def run_command(given: Values) -> None:
        recipe = Recipe.model_validate(recipe_values(name, method, given))
        start(recipe, given.get("out"), given.get("device", "cpu"))

    return command(
        [
            *positional_option(Recipe, "images"),
            *flags(Recipe, leave_out=frozenset({"method", "images"})),
            flag("out", Path, "folder for the run; must be new", "runs/TOKEN"),
            device_flag(),
            *flags(method, group=f"Options of {name}"),
        ],
        run_command,
    )


def recipe_values(name: str, method: type[Method], given: Values) -> dict[str, object]:
    """The typed options of a recipe and its method, as `Recipe` takes them."""
    return {**Recipe.chosen(given), "method": {"name": name, **method.chosen(given)}}


def train_recipe_file(file: Path, out: Path | None, device: str) -> None:
    """Train from a recipe file."""
    start(Recipe.from_toml(file), out, device)


def start(recipe: Recipe, out: Path | None, device: str) -> None:
    """Start a run in a new folder."""
    follow(Run.create(out or Path("runs") / file_name(recipe.token), recipe), device)


def resume(
    folder: Path, device: str, steps: int | None, images: Path | None, base: str | None
) -> None:
    """Continue a run from its last checkpoint; `images` and `base` are for files that moved."""
    follow(Run.open(folder, steps, images, base), device)


def follow(run: Run, device: str) -> None:
    """Train with progress bars; print the path of the concept on stdout."""
    recipe = run.recipe
    # Problems of the images are shown before a large base model is opened.
    run.check_image_folder()
    resolution = recipe.resolution or _RESOLUTIONS.get(recipe.base, _DEFAULT_RESOLUTION)
    images = check_folder(recipe.images, resolution, masks=recipe.masks)
    check_before_training(images, recipe.skip_bad)
    model = open_base_model(recipe, device)
    display = _EventDisplay()
    try:
        with stoppable(), bars() as progress, closing(run.train(model)) as events:
            for event in events:
                display.show(event, progress)
    except KeyboardInterrupt:
        say(*_stop_message(run))
        raise
    say(f"trained {recipe.token}; generate with: --concept {run.folder}", *_best_step_note(run))
    say(*(f"problem in the previews: {problem}" for problem in run.problems))
    data(str(run.result_file))


class _EventDisplay:
    """Shows the events of a run, with a smoothed loss."""

    def __init__(self) -> None:
        self.loss: float | None = None

    def show(self, event: Event, progress: ProgressCallback) -> None:
        """Show one event."""
        if isinstance(event, Progress):
            progress(event)
        elif isinstance(event, StepResult):
            average = event.loss if self.loss is None else self.loss
            self.loss = _LOSS_DECAY * average + (1 - _LOSS_DECAY) * event.loss
            progress(Progress("training", event.number, event.total, f"loss {self.loss:.3f}"))
        elif isinstance(event, MemoryNotice | PreviewScores | EarlyStop):
            say(event.text)
        elif isinstance(event, Notice):
            say(f"note: {event.message}")


def _best_step_note(run: Run) -> list[str]:
    """A line about the step of the result, if it is not the last step."""
    last = run.folder / "concept.safetensors"
    if run.result_file == last or run.best_step == run.concept.provenance.steps:
        return []
    return [f"the result is from step {run.best_step}, the best score; the last step is {last}"]


def _stop_message(run: Run) -> list[str]:
    """Lines for a user who stopped the run."""
    if run.saved_step == 0:
        return ["stopped before the first step: nothing was trained"]
    return [
        f"stopped at step {run.saved_step} of {run.recipe.steps}; saved in {run.folder}",
        f"hint: continue with: pinxit train --resume {run.folder}",
    ]
