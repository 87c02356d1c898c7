"""A run: one concept learned in a folder of its own, alone or in one batch with others."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from pinxit.errors import PinxitError, RequestError, RunError
from pinxit.evaluation.judge import Judge
from pinxit.files.atomic_write import alone, make_folder, undisturbed
from pinxit.generation.generate import Notice
from pinxit.models.model import Model
from pinxit.runs.folder import PLAIN, RECIPE, Chosen, Event, Failed, RunFolder, Told
from pinxit.training.concept_trainer import Learner
from pinxit.training.method import Preparing
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, train

# What the judge compares with, painted without the word.


class Run(RunFolder):
    """A concept learned from a recipe; its folder holds all there is to know."""

    @classmethod
    def create(cls, folder: Path | str, recipe: Recipe) -> "Run":
        """A run that has not begun; nothing is written yet. RunError if the folder is taken."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
            raise RunError(
                f"{folder} exists already",
                f"go on with it by --resume {folder}, or give another --out",
            )
        return cls(folder, recipe)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        steps: int | None = None,
        pictures: Path | None = None,
        base: str | None = None,
    ) -> "Run":
        """A run that was begun, perhaps to go on for more steps; RunError if the folder is none.

        Pictures and base that are elsewhere now may be given. A pictures' folder that is gone is
        looked for beside the run's folder and above it.
        """
        folder = Path(folder)
        if not cls.begun(folder):
            raise RunError(f"{folder} is no run folder", f"a run folder has a {RECIPE}")
        recipe = Recipe.from_toml(folder / RECIPE)
        changed = {
            "steps": recipe.steps if steps is None else steps,
            "pictures": pictures or _moved(recipe.pictures, folder),
            "base": base or recipe.base,
        }
        run = cls(folder, Recipe.model_validate({**recipe.model_dump(), **changed}))
        if steps and run.stopped and steps > run.stopped:  # it is to learn on all the same
            run.recipe = run.recipe.model_copy(update={"stop": 0.0})
        return run

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether there is a run in a folder."""
        return (folder / RECIPE).is_file()

    @property
    def finished(self) -> bool:
        """Whether all its steps were learned and saved, or as many as are enough."""
        try:
            return self.concept.provenance.steps in (self.recipe.steps, self.stopped)
        except PinxitError:
            return False

    def find_pictures(self) -> None:
        """RunError if a run that was begun has lost its pictures."""
        if self.begun(self.folder) and not self.recipe.pictures.is_dir():
            raise RunError(
                f"the run's pictures are not in {self.recipe.pictures} any more",
                f"pinxit train --resume {self.folder} --pictures FOLDER says where they are",
            )

    def learn(self, model: Model) -> Generator[Event]:
        """Begin, or go on from the last checkpoint; every event is on the disk when it is told.

        However it ends (the last step, Ctrl-C, the generator closed), what was learned is saved.
        If learning goes wrong it goes back and tries once more, gently. RunError if it goes wrong
        again or if another process has the folder; DiskError if the disk takes no more.
        """
        self.settle(model)
        with closing(learn_together(model, [self])) as told:
            for _, event in told:
                if isinstance(event, Failed):
                    raise event.error
                yield event

    def settle(self, model: Model) -> None:
        """Read the pictures, and decide every number of the recipe for them and this base."""
        self.find_pictures()
        self.pictures = self.recipe.read_pictures()
        self.recipe = self.recipe.settled(model, len(self.pictures))

    def prepare(self, model: Model) -> Iterator[Preparing]:
        """Make what the method needs before the first step, and is not there yet."""
        return self.recipe.method.prepare(model, self.recipe.subject)

    def call_judge(self, model: Model) -> Iterator[Notice]:
        """Have the previews scored, if they are to be and there is who can judge them."""
        recipe = self.recipe
        if self.judge or not (recipe.score and recipe.preview_every):
            return
        try:
            judge = Judge.of(model, recipe, self.pictures, folder=self.folder / PLAIN)
            judge.verdict(judge.plain, judge.prompts)  # that it will have one of any pictures
            self.judge = judge
        except RequestError as trouble:
            yield Notice(f"previews are not scored, for {trouble.message}")


def learn_together(model: Model, runs: Sequence[Run]) -> Generator[tuple[Run, Told]]:
    """Begin, or go on with, several settled runs in one batch, telling whose each event is.

    A run that fails is told of and leaves; the others go on. One whose learning goes wrong goes
    back, and tries once more when the others are done. However it ends, all is saved.
    """
    wrong = yield from _attempt(model, dict.fromkeys(runs))
    for run, trouble in wrong.items():
        yield run, Notice(trouble.message)
    again = {run: trouble.message for run, trouble in wrong.items()}
    for run, trouble in (yield from _attempt(model, again)).items():
        yield run, Failed(trouble)


def _attempt(
    model: Model, runs: Mapping[Run, str | None]
) -> Generator[tuple[Run, Told], None, dict[Run, RunError]]:
    """Learn to the end; with whom it went wrong. What went wrong before is told with each run.

    The lesson is gone when it returns, so that a second attempt needs no second memory.
    """
    begun: dict[Run, Learner] = {}
    with ExitStack() as locks:
        for run, before in runs.items():
            try:
                make_folder(run.folder)
                run.must_be_whole()
                locks.enter_context(alone(run.folder))
                for event in _beginning(model, run, before, begun):
                    yield run, event
            except PinxitError as error:
                begun.pop(run, None)
                yield run, Failed(error)
        if begun:
            yield from _learning(model, begun)
    return {run: learner.trouble for run, learner in begun.items() if learner.trouble}


def _beginning(
    model: Model, run: Run, before: str | None, begun: dict[Run, Learner]
) -> Generator[Event]:
    run.write_recipe()
    yield from run.prepare(model)
    yield from run.call_judge(model)
    learner = begun[run] = Learner(model, run.recipe, run.pictures)
    yield from run.begin(learner, before)
    if learner.learning:
        yield from learner.samples.encode()


def _learning(model: Model, begun: Mapping[Run, Learner]) -> Generator[tuple[Run, Told]]:
    at, lesson = list(begun), Lesson(model, list(begun.values()))
    lesson.choice = noted = at[0].chosen
    with closing(train(lesson)) as steps, ExitStack() as ends:
        for run, learner in begun.items():
            ends.callback(_end, run, learner, lesson, at.index(run))
        for step in steps:
            shares = [(at[place], share) for place, share in step.shares()]
            if lesson.choice and lesson.choice != noted:
                noted = lesson.choice
                for run in at:
                    run.choose(noted)
                yield at[0], Chosen(noted.told(model.placement.precision))
            for run, share in shares:
                run.note(share, begun[run])
            for run, share in shares:
                lesson.serve(torch.tensor([at.index(run)]))  # whose previews are painted
                for event in run.follow(share, begun[run]):
                    yield run, event


def _end(run: Run, learner: Learner, lesson: Lesson, place: int) -> None:
    """Keep what was learned, and the line of a step that an interrupt came before."""
    with undisturbed():
        for at, share in lesson.last.shares() if lesson.last else ():
            if at == place:
                run.note(share, learner)
        run.keep(learner)


def teach(model: Model, recipe: Recipe, folder: Path | str) -> Run:
    """Learn from a recipe's pictures to the end; the run's folder holds all there is to know."""
    run = Run.create(folder, recipe)
    for _ in run.learn(model):
        pass
    return run


def _moved(pictures: Path, folder: Path) -> Path:
    """Where a run's pictures are: where they were, or by their folder's name beside the run."""
    places = [pictures, *(above / pictures.name for above in (folder, *folder.resolve().parents))]
    return next((place for place in places if place.is_dir()), pictures)
