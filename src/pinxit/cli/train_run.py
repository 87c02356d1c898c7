"""`pinxit train` and `pinxit train-many`: train concepts and show their progress."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from inspect import Parameter as Argument
from pathlib import Path
from typing import Any

from pinxit import registry
from pinxit.cli.check import HUB_RESOLUTION, check_before_training
from pinxit.cli.flags import (
    COMPILE,
    DEVICE,
    DOWNLOAD,
    GPUS,
    SHARD_WEIGHTS,
    Values,
    aliased,
    command,
    flag,
    flags,
    positional,
    positional_option,
)
from pinxit.cli.fleet import fleet_flags, train_by_workers
from pinxit.cli.opening import Opening
from pinxit.cli.screen import bars, data, say, stoppable
from pinxit.errors import RecipeError, RunError, typed
from pinxit.images.folder import TrainingImage
from pinxit.images.inspect import check_folder
from pinxit.models.joining import is_rank
from pinxit.models.open_base import local_resolution
from pinxit.models.prompt import file_name
from pinxit.progress import Notice, Progress, ProgressCallback
from pinxit.runs.events import EarlyStop, Event, Finished, MemoryNotice, PreviewScores, RunFailure
from pinxit.runs.fleet import FleetOptions, fetch_list
from pinxit.runs.follow import OpenBase, follow
from pinxit.runs.groups import BatchGroups
from pinxit.runs.many import RunGroup, train_many
from pinxit.runs.reader import RunState
from pinxit.runs.run import Run
from pinxit.training.division import check_shards
from pinxit.training.method import Method
from pinxit.training.plan import check_options, check_words
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult

# The loss in the progress bar is an exponential moving average with this decay.
_LOSS_DECAY = 0.95
# Larger images than this, in pixels of the shorter side, are hardly illustrations for pocket.
_PHOTO_SIDE = 256
# Options that each subject has for itself, and the device, which is chosen for all and belongs to
# the machine; a class noun may be common to all.
_PER_SUBJECT = frozenset({"method", "images", "token", "class_noun", "device"})
_CLASS_NOUN = "class noun of all subjects for which the table has none"
_MANY = "many "


def __getattr__(name: str) -> Callable[..., None]:
    """The command of a method, which the parser imports by name: METHOD or `many METHOD`."""
    method_name = name.removeprefix(_MANY)
    if method_name not in registry.names("methods"):
        raise AttributeError(name)
    method: type[Method] = registry.load("methods", method_name)
    is_many = name.startswith(_MANY)
    run = _train_many if is_many else _train_one

    def run_command(given: Values) -> None:
        method_options = {"name": method_name, **method.chosen(given)}
        options = {name: value for name, value in given.items() if name != "device"}
        run(given, {**Recipe.chosen(options), "method": method_options})

    common = _many_flags() if is_many else [*_train_flags(), GPUS, SHARD_WEIGHTS, COMPILE]
    own = flags(method, group=f"Options of {method_name}")
    return command([*common, DEVICE, DOWNLOAD, *own], run_command)


def _train_flags() -> list[Argument]:
    return [
        *positional_option(Recipe, "images"),
        *flags(Recipe, leave_out=frozenset({"method", "images", "device"})),
        flag("recipe", Path, "TOML file with options; those that are typed replace them", "none"),
        flag("out", Path, "folder for the run; must be new", "runs/TOKEN"),
    ]


def _many_flags() -> list[Argument]:
    return [
        positional("subjects", Path, "folder of image folders, or a table in TOML or CSV"),
        *aliased(flag("class_noun", str, _CLASS_NOUN, "that of the table"), "class_name"),
        *flags(Recipe, leave_out=_PER_SUBJECT),
        *flags(RunGroup, leave_out=frozenset({"subjects"})),
        *fleet_flags(),
        flag("out", Path, "folder for the runs; must be new", "runs/SUBJECTS"),
        flag("resume", Path, "folder of runs of the same subjects, to continue them", "none"),
    ]


def _train_one(given: Values, recipe: dict[str, Any]) -> None:
    """`pinxit train METHOD IMAGES`; options of a recipe file are replaced by those typed."""
    if "recipe" in given:
        stored = Recipe.from_toml(given["recipe"]).model_dump(exclude_unset=True)
        if stored["method"]["name"] != recipe["method"]["name"]:
            raise RecipeError(
                f"the method of {given['recipe']} is {stored['method']['name']}, not "
                f"{recipe['method']['name']}",
                f"type: pinxit train --recipe {given['recipe']}",
            )
        recipe = {**stored, **recipe, "method": {**stored["method"], **recipe["method"]}}
    run_recipe = Recipe.model_validate(recipe)
    out = given.get("out") or Path("runs") / file_name(run_recipe.token)
    train_run(Run.create(out, run_recipe), Opening.typed(given))


def _train_many(given: Values, common: dict[str, object]) -> None:
    """`pinxit train-many METHOD SUBJECTS`; `common` has the options of all recipes."""
    group = RunGroup.from_table(given["subjects"], common, given.get("max_concepts_per_batch"))
    opening = Opening.typed(given)
    fleet, as_json = FleetOptions.chosen(given), given.get("json", False)
    out = given.get("out") or Path("runs") / file_name(given["subjects"].stem)
    if "resume" in given:
        out = given["resume"]
        fetch_list(out, given.get("store"))
        group.check_in(out)
    elif not fleet and not as_json:  # with workers, the same command also continues
        group.create(out)
    _train_group(group, out, opening, fleet, as_json=as_json)


def train_run(run: Run, opening: Opening) -> None:
    """Train with progress bars; print the path of the concept on stdout."""
    if opening.shard_weights:
        check_shards(run.recipe, several=opening.gpus > 1 or is_rank())
    with opening.joined(run.recipe.device) as run.ranks:
        if run.ranks.rank:
            with stoppable():
                follow(run.ranks, opening.open)
        # Problems of the images are shown before a large base model is opened.
        images = read_and_check_images(run)
        run.ranks.exchange(OpenBase(run.recipe))
        model = opening.open(run.recipe)
        with closing(run.train(model, images)) as events:
            _show_events({run: ""}, ((run, event) for event in events), lambda: stop_message(run))
        say(*best_step_lines(run.state))
        data(str(run.state.result_file))


def read_and_check_images(run: Run) -> tuple[TrainingImage, ...]:
    """The training images of a run; prints what is odd about them.

    Raises an error for everything in the recipe that is wrong whatever the base model is.
    """
    run.check_image_folder()
    recipe = run.recipe
    check_words(recipe)
    check_options(recipe)
    resolution = recipe.resolution or local_resolution(recipe.base) or HUB_RESOLUTION
    checks = check_folder(recipe.images, resolution, 8, recipe.masks, recipe.caption_extension)
    check_before_training(checks, recipe.skip_bad)
    if recipe.base == "pocket" and any(min(one.size) > _PHOTO_SIDE for one in checks.checks):
        say(
            "note: pocket generates flat illustrations of 64 pixels; for photographs choose a base "
            "model that knows them: docs/guides/photographs.md"
        )
    return checks.images


def resume_group(
    folder: Path, opening: Opening, fleet: Mapping[str, object], *, as_json: bool
) -> None:
    """Continue the runs in a folder, with the options of `FleetOptions` that were typed."""
    fetch_list(folder, FleetOptions.model_validate(fleet).store)
    _train_group(RunGroup.open(folder), folder, opening, fleet, as_json=as_json)


def _train_group(
    group: RunGroup, folder: Path, opening: Opening, fleet: Mapping[str, object], *, as_json: bool
) -> None:
    if fleet or as_json:
        options = FleetOptions.model_validate(fleet)
        train_by_workers(group, folder, opening, options, as_json=as_json)
    else:
        train_group(group, folder, opening)


def train_group(group: RunGroup, folder: Path, opening: Opening) -> None:
    """Train all with one progress bar; print the paths of the concepts on stdout."""
    if is_rank():
        raise RunError(
            "train-many trains many subjects in one process, and torchrun has started several",
            "without torchrun, give train-many --engine: see docs/guides/many-subjects.md",
        )
    runs = group.runs(folder)
    for recipe in {one.kind: one for one in group.subjects.values()}.values():
        check_options(recipe)  # options are common to all; words are checked with each subject
    model = opening.open(next(iter(group.subjects.values())))
    resume = f"continue with: pinxit train-many --resume {typed(folder)}"
    names = {run: name for name, run in runs.items()}
    with closing(train_many(model, list(names), group.max_concepts_per_batch)) as events:
        stopped = [f"stopped; all steps are saved in {folder}", f"hint: {resume}"]
        _show_events(names, events, lambda: stopped)
    _summarize(names)
    unfinished = [name for name, run in runs.items() if not run.finished]
    if unfinished:
        raise RunError(
            f"{len(unfinished)} of {len(runs)} subjects were not trained: {', '.join(unfinished)}",
            f"correct the images, then {resume}; a corrected table needs a new --out",
        )


def _show_events(
    names: Mapping[Run, str],
    events: Iterable[BatchGroups | tuple[Run, Event]],
    stop_message: Callable[[], list[str]],
) -> None:
    """Show the events of runs, each with the name of its run unless that is empty."""
    display = RunDisplay(names)
    try:
        with stoppable(), bars() as progress:
            for item in events:
                if not isinstance(item, BatchGroups):
                    display.show(*item, progress)
                elif item.groups:
                    sizes = ", ".join(str(len(group)) for group in item.groups)
                    say(f"concepts per batch: {sizes}{f' ({item.reason})' if item.reason else ''}")
    except KeyboardInterrupt:
        say(*stop_message())
        raise


class RunDisplay:
    """Shows the events of runs, with one progress bar for the steps of all."""

    def __init__(self, names: Mapping[Run, str]) -> None:
        self.names = names
        self.steps = dict.fromkeys(names, 0)
        self.finished: set[Run] = set()
        self.losses: dict[Run, float] = {}
        self.notices: set[str] = set()

    def show(self, run: Run, event: Event, progress: ProgressCallback) -> None:
        """Show one event."""
        prefix = f"{self.names[run]}: " if self.names[run] else ""
        if isinstance(event, Progress):
            progress(replace(event, task=f"{prefix}{event.task}"))
        elif isinstance(event, StepResult):
            self._show_step(run, event, progress)
        elif isinstance(event, RunFailure):
            del self.steps[run]
            error = event.error
            say(f"{self.names[run]} is left out: {error.message}", f"hint: {error.hint}")
        elif isinstance(event, Finished):
            self.finished.add(run)
            nothing = "" if self.steps[run] else f"nothing left to do, step {event.step} is done; "
            say(
                f"{nothing}trained {run.recipe.token}; generate with: --concept {typed(run.folder)}"
            )
        elif isinstance(event, Notice) and event.message not in self.notices:
            self.notices.add(event.message)  # the same one of many runs is shown once
            say(f"note: {prefix}{event.message}")
        elif isinstance(event, MemoryNotice | PreviewScores | EarlyStop):
            say(f"{prefix}{event.text}")

    def _show_step(self, run: Run, step: StepResult, progress: ProgressCallback) -> None:
        average = self.losses.get(run, step.loss)
        self.losses[run] = _LOSS_DECAY * average + (1 - _LOSS_DECAY) * step.loss
        self.steps[run] = step.number
        total = sum(
            done if one in self.finished else one.plan.steps for one, done in self.steps.items()
        )
        note = f"loss {self.losses[run]:.3f}"
        progress(Progress("training", sum(self.steps.values()), total, note))


def best_step_lines(state: RunState) -> Iterator[str]:
    """The step of the result if it is not the last one, and the problems in its previews."""
    if state.best_step not in (None, state.saved_step):
        yield (
            f"the result is from step {state.best_step}, the best score; "
            f"the last step is {state.concept_file}"
        )
    scores = state.best or next(reversed(state.of_kind(PreviewScores)), None)
    for problem in scores.problems if scores else ():
        yield f"previews: {problem}"


def _summarize(names: Mapping[Run, str]) -> None:
    """Print a line for each finished concept."""
    finished = {run: name for run, name in names.items() if run.finished}
    width = max(map(len, finished.values()), default=0)
    for run, name in finished.items():
        state = run.state
        loss = f"{state.steps[-1].loss}"
        say(f"{name:{width}}  {state.saved_step:5} steps  loss {loss:.6}  {run.folder}")
        data(str(state.result_file))


def stop_message(run: Run) -> list[str]:
    """Lines for a user who stopped the run."""
    if run.saved_step == 0:
        return ["stopped before the first step: nothing was trained"]
    return [
        f"stopped at step {run.saved_step} of {run.recipe.steps}; saved in {run.folder}",
        f"hint: continue with: pinxit train --resume {typed(run.folder)}",
    ]
