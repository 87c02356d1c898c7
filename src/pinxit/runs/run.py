"""A run: one concept trained in its own folder, alone or in one batch with other runs."""

import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from pinxit.adapters.adapter import before_denoise
from pinxit.concepts.read import ConceptReference
from pinxit.errors import PinxitError, RequestError, RunError, typed
from pinxit.files.atomic_write import check_new, defer_signals, exclusive_lock, make_folder
from pinxit.generation.image_cache import copy_images
from pinxit.images.folder import TrainingImage
from pinxit.models.device import device_name, memory_errors
from pinxit.models.model import Model
from pinxit.progress import Notice
from pinxit.runs.class_images import generate_class_images, read_class_images
from pinxit.runs.events import Event, Finished, RunFailure, Started, Stopped
from pinxit.runs.file_names import BASE_IMAGES, CONCEPT, RECIPE
from pinxit.runs.folder import RunFolder
from pinxit.runs.follow import MakeClassImages, Train
from pinxit.runs.judging import subject_judge
from pinxit.runs.preview_base import check_preview_base, preview_model
from pinxit.runs.reader import recipe_file, saved_step
from pinxit.runs.training_notices import step_notices, training_notices
from pinxit.runs.written_files import check_own_files
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.memory import MemoryPlan
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.shared_state import share_state
from pinxit.training.train import TrainingSession, train_with_plans


class Run(RunFolder):
    """One concept trained from a recipe. Everything about it is in its folder."""

    @classmethod
    def create(cls, folder: Path | str, recipe: Recipe) -> "Run":
        """A new run; nothing is written yet. RunError if the folder exists and is not empty."""
        run = cls(Path(folder), recipe)
        run.check_new()
        run.is_new = True
        return run

    @classmethod
    def open(
        cls,
        folder: Path | str,
        steps: int | None = None,
        images: Path | None = None,
        base: str | None = None,
    ) -> "Run":
        """An existing run, with another number of steps if given; RunError if there is no run.

        `images` and `base` are for files that were moved. If the image folder or the assistant is
        missing, one of its name is looked for in the run's folder and in the folders above.
        """
        folder = Path(folder)
        recipe = Recipe.from_toml(recipe_file(folder))
        saved = saved_step(folder / CONCEPT) or 0
        if steps is not None and saved > steps:
            raise RunError(
                f"{folder} has already trained {saved} steps, more than {steps}",
                f"train longer with --steps {saved + 100}",
            )
        changes = {
            "steps": recipe.steps if steps is None else steps,
            "images": images or _find_moved(recipe.images, folder),
            "base": base or recipe.base,
            "assistant": recipe.assistant and _moved_assistant(recipe.assistant, folder),
        }
        run = cls(folder, Recipe.model_validate({**recipe.model_dump(), **changes}))
        early_stop = run.state.early_stop
        if steps and early_stop and steps > early_stop:  # train on after early stopping
            run.recipe = run.recipe.model_copy(update={"early_stop": 0.0})
        return run

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder is a run's."""
        return (folder / RECIPE).is_file()

    @property
    def finished(self) -> bool:
        """Whether the last step of the recipe is trained and saved, or training stopped early."""
        return self.exists(self.folder) and self.state.is_done

    def check_new(self) -> None:
        """RunError if the folder exists and is not empty."""
        otherwise = (
            f"continue with --resume {typed(self.folder)}" if self.exists(self.folder) else ""
        )
        check_new(self.folder, otherwise)

    def check_image_folder(self) -> None:
        """RunError if an existing run's image folder is missing."""
        if self.exists(self.folder) and not self.recipe.images.is_dir():
            raise RunError(
                f"the run's image folder {self.recipe.images} does not exist any more",
                f"say where it is: pinxit train --resume {typed(self.folder)} --images FOLDER",
            )

    def train(self, model: Model, images: tuple[TrainingImage, ...] = ()) -> Generator[Event]:
        """Start training, or continue from the last checkpoint; an event is on disk when yielded.

        `images` are those of the recipe if they have been read already. All steps are saved
        however it ends: last step, Ctrl-C, or the generator closed. If
        training diverges it continues once from an earlier checkpoint with a lower learning rate.
        RunError if it diverges again or if another process uses the folder; DiskError if the disk
        is full or fails.
        """
        self.settle_recipe(model, images)
        with closing(train_together(model, [self])) as events:
            for _, event in events:
                if isinstance(event, RunFailure):
                    raise event.error
                yield event

    def settle_recipe(self, model: Model, images: tuple[TrainingImage, ...] = ()) -> None:
        """Read the images, and choose all options that depend on them or on the base model."""
        self.check_image_folder()
        self.images = images or self.recipe.read_images()
        check_preview_base(self.recipe, model)
        with _enough_memory(model):
            self.plan = TrainingPlan.of(self.recipe, model, len(self.images))
        self.recipe = self.plan.recipe

    def create_judge(self, model: Model, others: Iterable["Run"] = ()) -> Iterator[Notice]:
        """Create the judge that scores previews, if they are to be scored and the metrics exist.

        `others` are runs on the same base model, whose images of it need not be generated again.
        """
        recipe = self.recipe
        if self.judge or not (recipe.score_previews and recipe.preview_every):
            return
        try:
            model, folder = preview_model(recipe, model), self.folder / BASE_IMAGES
            same = (one for one in others if _prompts_of(one.recipe) == _prompts_of(recipe))
            if not folder.exists() and (other := next(same, None)):
                copy_images(other.folder / BASE_IMAGES, folder)
            judge = subject_judge(model, recipe, self.images, folder=folder)
            judge.score(judge.base_images, judge.prompts)  # fails early if it cannot
            self.judge = judge
            if judge.no_likeness:
                yield Notice(f"{judge.no_likeness}; the result will be that of the last step")
        except RequestError as error:
            yield Notice(f"previews are not scored: {error.message}. hint: {error.hint}")


def _prompts_of(recipe: Recipe) -> tuple[object, ...]:
    """What decides the prompts for previews, and the images of the base model for them."""
    return recipe.class_noun, recipe.kind, recipe.resolution, recipe.clip_skip


def train_together(model: Model, runs: Sequence[Run]) -> Generator[tuple[Run, Event]]:
    """Start or continue several runs in one batch; yields each event with its run.

    Call `settle_recipe` of each before. A run that fails leaves the batch with a RunFailure, the
    others continue. A run that diverges tries once more when the others are done. All steps are
    saved however it ends.
    """
    diverged = yield from _train_once(model, dict.fromkeys(runs))
    yield from _train_once(model, diverged)


def _train_once(
    model: Model, runs: Mapping[Run, str | None]
) -> Generator[tuple[Run, Event], None, dict[Run, str]]:
    """Train all runs to the end; returns the runs that diverged, with the error message of each.

    `runs` has the error of the first attempt if this is the second. The training session is freed
    on return, so the second attempt needs no additional memory.
    """
    trainers: dict[Run, ConceptTrainer] = {}
    with ExitStack() as locks:
        for run, last_error in runs.items():
            for event in _lock_and_start(model, run, last_error, trainers, locks):
                yield run, event
        if trainers:
            with _recorded_failure(model, trainers):
                yield from _train_started(model, trainers)
        diverged = {run: trainer.error for run, trainer in trainers.items() if trainer.error}
        for run, error in diverged.items():
            event = RunFailure(error) if runs[run] else Notice(error.message)
            run.record_end(event)
            yield run, event
    return {run: error.message for run, error in diverged.items()}


def _enough_memory(model: Model) -> AbstractContextManager[None]:
    """A context that raises RunError if memory runs out."""
    hint = "choose a smaller --resolution or base model, another --precision, or --device cpu"
    return memory_errors(RunError, f"on {model.device} to train", hint)


@contextmanager
def _recorded_failure(model: Model, runs: Iterable[Run]) -> Generator[None]:
    """Log an error of the block in each run; RunError if memory runs out."""
    try:
        with _enough_memory(model):
            yield
    except PinxitError as error:
        for run in runs:
            run.record_end(RunFailure(error))
        raise


def _lock_and_start(
    model: Model,
    run: Run,
    last_error: str | None,
    trainers: dict[Run, ConceptTrainer],
    locks: ExitStack,
) -> Generator[Event]:
    """Lock and start a run; the last event is a RunFailure if that fails."""
    try:
        make_folder(run.folder)
        check_own_files(run.folder)
        locks.enter_context(exclusive_lock(run.folder))
        if run.is_new:  # another process may have trained here since
            run.check_new()
            run.is_new = False
        with _recorded_failure(model, [run]):
            yield from _start(model, run, last_error, trainers)
    except PinxitError as error:
        trainers.pop(run, None)
        yield RunFailure(error)


def _start(
    model: Model, run: Run, last_error: str | None, trainers: dict[Run, ConceptTrainer]
) -> Generator[Event]:
    """Prepare a run, add its trainer to `trainers`, and restore it from the last checkpoint."""
    run.write_recipe()
    required = run.plan.class_images
    run.ranks.exchange(MakeClassImages(required))
    preparation = generate_class_images(model, required, run.ranks)
    for event in chain(preparation, run.create_judge(model, trainers)):
        yield run.record(event)
    class_images = read_class_images(model, required)
    trainer = trainers[run] = ConceptTrainer(model, run.plan, run.images, class_images, run.ranks)
    for notice in training_notices(trainer, run.images):
        yield run.record(notice)
    for message in trainer.unused_inputs():
        yield run.record(Notice(message))
    yield from run.restore(trainer, last_error)
    device, precision = device_name(model.device), model.placement.precision
    yield run.record(Started(trainer.steps_done, trainer.total_steps, device, precision))
    if trainer.unfinished:
        for event in chain(trainer.samples.encode_images(), trainer.answer_with_base()):
            yield run.record(event)
        for message in trainer.samples.cache.notices():
            yield run.record(Notice(message))
    else:
        yield run.record(Finished(trainer.steps_done, run.state.result_file))


def _train_started(
    model: Model, trainers: Mapping[Run, ConceptTrainer]
) -> Generator[tuple[Run, Event]]:
    """Train runs whose trainers are ready; writes logs, previews and checkpoints."""
    runs = list(trainers)
    session = TrainingSession(model, list(trainers.values()), runs[0].ranks)
    session.memory_plan = logged_plan = _logged_memory_plan(runs[0])
    if not session.finished:
        session.ranks.exchange(Train(runs[0].recipe, logged_plan))
        share_state(session.ranks, session.trainers[0], runs[0].images)
    seconds: list[float] = []
    precision = model.placement.precision
    with closing(train_with_plans(session)) as steps, ExitStack() as ends:
        for run, trainer in trainers.items():
            ends.callback(_finish, run, trainer, session, runs.index(run))
        for step in steps:
            for notice in step_notices(step, seconds, precision):
                recorded = [run.record(notice) for run in runs]
                yield runs[0], recorded[0]
            if isinstance(step, MemoryPlan):
                continue
            shares = [(runs[place], share) for place, share in step.per_concept()]
            for run, share in shares:
                run.log_step(share, trainers[run])
            for run, share in shares:
                # Previews are of this run's concept.
                place = runs.index(run)
                before_denoise(model, torch.zeros(1), torch.tensor([place]))
                for event in run.after_step(share, trainers[run], partial(session.answer, place)):
                    yield run, event


def _finish(run: Run, trainer: ConceptTrainer, session: TrainingSession, place: int) -> None:
    """Save a run, and log its last step if an interrupt came before that."""
    with defer_signals():
        for at, share in session.last_result.per_concept() if session.last_result else ():
            if at == place:
                run.log_step(share, trainer)
        unsaved = trainer.steps_done > run.saved_step and not trainer.error
        divided = trainer.division.divided and unsaved
        with session.ranks.ending(sys.exception()) if divided else nullcontext():
            run.save(trainer)
        if trainer.unfinished and not trainer.error:
            run.record_end(Stopped(trainer.steps_done))


def _logged_memory_plan(run: Run) -> MemoryPlan | None:
    """How the last steps of a run were computed; None before the first step."""
    notice = run.state.memory_plan
    return MemoryPlan(notice.micro_batch, notice.gradient_checkpointing) if notice else None


def train_run(model: Model, recipe: Recipe, folder: Path | str) -> Run:
    """Train a concept from a recipe, to the end; everything is saved in the run's folder."""
    run = Run.create(folder, recipe)
    for _ in run.train(model):
        pass
    return run


def _find_moved(path: Path, folder: Path) -> Path:
    """The path, or if it is missing one of its name in the run's folder or in one above.

    One that agrees in more of the folders above its name comes first.
    """
    parents = (folder, *folder.resolve().parents)
    names = (Path(*path.parts[-length:]) for length in range(len(path.parts) - 1, 0, -1))
    candidates = (path, *(above / name for name in names for above in parents))
    return next((candidate for candidate in candidates if candidate.exists()), path)


def _moved_assistant(reference: str, folder: Path) -> str:
    chosen = ConceptReference.parse(reference)
    return str(replace(chosen, path=_find_moved(chosen.path, folder)))
