"""A run is a folder: recipe, journal of steps, previews, checkpoints, and what was learned."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pinxit.checkpoint import Manifest, keep, newest
from pinxit.concept import Concept, Provenance
from pinxit.durable import alone, make_folder, replace_text, sweep, undisturbed
from pinxit.errors import DiskError, PinxitError, RunError
from pinxit.journal import Journal
from pinxit.method import Preparing
from pinxit.model import Model
from pinxit.pictures import Picture, read_pictures
from pinxit.preview import Preview, preview
from pinxit.recipe import Recipe
from pinxit.train import DivergedError, Lesson, Step, train

_RECIPE = "recipe.toml"
_JOURNAL = "journal.jsonl"
_CONCEPT = "concept.safetensors"
_CHECKPOINTS = "checkpoints"
_PREVIEWS = "previews"

# What a run is slowed down to when its learning has gone wrong.
_GENTLER = 0.5
_BROKEN = "are of one colour: a lower --rate or --precision fp32 may help"


@dataclass(frozen=True)
class Saved:
    """What was learned is on the disk, up to this step."""

    number: int
    path: Path


@dataclass(frozen=True)
class Notice:
    """Something that went otherwise than it should, and what was done about it."""

    text: str


Event = Preparing | Step | Preview | Saved | Notice


class Run:
    """The only writer into a run's folder."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.notes = Journal(folder / _JOURNAL)
        self.kept = 0  # the step that the disk surely has
        self._noted = 0

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
        if not (folder / _RECIPE).is_file():
            raise RunError(f"{folder} is no run folder", f"a run folder has a {_RECIPE}")
        recipe = Recipe.from_toml(folder / _RECIPE)
        changed = {
            "steps": recipe.steps if steps is None else steps,
            "pictures": pictures or _moved(recipe.pictures, folder),
            "base": base or recipe.base,
        }
        return cls(folder, Recipe.model_validate({**recipe.model_dump(), **changed}))

    @property
    def concept(self) -> Concept:
        """What was learned; ConceptError if nothing was yet."""
        return Concept.load(self.folder)

    def read_pictures(self) -> tuple[Picture, ...]:
        """The pictures it learns from; PictureError if some are no pictures, RunError if gone."""
        if (self.folder / _RECIPE).is_file() and not self.recipe.pictures.is_dir():
            raise RunError(
                f"the run's pictures are not in {self.recipe.pictures} any more",
                f"pinxit train --resume {self.folder} --pictures FOLDER says where they are",
            )
        return read_pictures(self.recipe.pictures)

    def learn(self, model: Model) -> Generator[Event]:
        """Begin, or go on from the last checkpoint; every event is on the disk when it is told.

        However it ends (the last step, Ctrl-C, the generator closed), what was learned is saved.
        If learning goes wrong it goes back and tries once more, gently. RunError if it goes wrong
        again or if another process has the folder; DiskError if the disk takes no more.
        """
        pictures = self.read_pictures()
        self.recipe = recipe = self.recipe.settled(model, len(pictures))
        make_folder(self.folder)
        with self._resumable(), alone(self.folder):
            if not (self.folder / _RECIPE).is_file():
                replace_text(self.folder / _RECIPE, recipe.to_toml())
            yield from recipe.method.prepare(model, recipe.subject)
            wrong = yield from self._attempt(model, pictures)
            if wrong:
                yield Notice(wrong)
                _ = yield from self._attempt(model, pictures, wrong)

    def journal(self) -> list[dict[str, object]]:
        """Every step so far, as it was noted."""
        return self.notes.steps()

    def _attempt(
        self, model: Model, pictures: tuple[Picture, ...], wrong: str | None = None
    ) -> Generator[Event, None, str | None]:
        """Learn to the end; what went wrong if it did, unless something had gone wrong before.

        The lesson is gone when it returns, so that a second attempt needs no second memory.
        """
        lesson = Lesson.of(model, self.recipe, pictures)
        yield from self._begin(lesson, pictures, wrong)
        try:
            yield from self._steps(model, lesson, pictures)
        except DivergedError as trouble:
            if lesson.pace < 1:
                raise
            return trouble.message
        return None

    def _begin(
        self, lesson: Lesson, pictures: tuple[Picture, ...], wrong: str | None
    ) -> Generator[Event]:
        """Bring the lesson to where the run stopped, or to where it was before it went wrong."""
        sweep(self.folder)
        every = self.recipe.checkpoint_every if wrong else 1
        found = newest(self.folder / _CHECKPOINTS, every)
        if found:
            fingerprints = _fingerprints(pictures)
            found.manifest.must_fit(lesson.model, fingerprints, self.recipe.steps or 0)
            lesson.restore(found.state)
            for file in found.damaged:
                yield Notice(f"{file} is damaged: going on from step {lesson.done}")
        elif not wrong:
            yield from self._afresh()
        self.kept = self._noted = lesson.done
        replace_text(self.folder / _RECIPE, self.recipe.to_toml())
        make_folder(self.folder / _PREVIEWS)
        self.notes.go_back(lesson.done)
        if wrong:
            lesson.slow_down(_GENTLER)
            self.notes.note({"number": lesson.done + 1, "pace": lesson.pace, "because": wrong})
            yield Notice(f"going on from step {lesson.done} with {_GENTLER:.0%} of the rate")
        elif found and not self._concept_is(self._provenance(lesson, pictures)):
            self._keep_concept(lesson, pictures)

    def _afresh(self) -> Iterator[Event]:
        """A notice that steps are lost; RunError if checkpoints are."""
        if (self.folder / _CONCEPT).is_file():
            raise RunError(
                f"the checkpoints of {self.folder} are gone",
                f"bring its folder {_CHECKPOINTS} back from a copy, or begin a new run",
            )
        lost = len(self.journal())
        if lost:
            yield Notice(f"{lost} steps were not kept: it begins again at 1")

    def _steps(
        self, model: Model, lesson: Lesson, pictures: tuple[Picture, ...]
    ) -> Generator[Event]:
        """Learn to the end, noting, showing and keeping as the recipe says."""
        recipe = self.recipe
        worth = True
        with closing(train(lesson)) as steps:
            try:
                for step in steps:
                    self._note(step)
                    yield step
                    if _due(step, recipe.preview_every):
                        shown = preview(model, recipe, step.number, self.folder / _PREVIEWS)
                        yield shown
                        if shown.flat:
                            yield Notice(f"{shown.flat} previews of step {step.number} {_BROKEN}")
                    if _due(step, recipe.checkpoint_every):
                        self._keep(lesson, pictures)
                        yield Saved(self.kept, self.folder / _CONCEPT)
            except (DiskError, DivergedError):
                worth = False  # there is no room for it, or nothing good in it
                raise
            finally:
                if worth and lesson.done > self.kept:
                    with undisturbed():
                        if lesson.last and lesson.last.number > self._noted:
                            self._note(lesson.last)  # an interrupt came before it was told
                        self._keep(lesson, pictures)

    def _note(self, step: Step) -> None:
        """Add a step to the journal."""
        with undisturbed():
            self.notes.note(asdict(step))
            self._noted = step.number

    def _keep(self, lesson: Lesson, pictures: tuple[Picture, ...]) -> None:
        """Save the lesson, to go on from, and the concept, to paint with."""
        state = lesson.state()
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if broken:
            raise DivergedError(
                f"learning went wrong by step {lesson.done}: {len(broken)} of {len(state)} tensors "
                "are not finite",
                "try a lower --rate, or --precision fp32; what was kept before is sound",
            )
        self.notes.flush()
        manifest = Manifest(lesson.done, lesson.model.hash, _fingerprints(pictures))
        keep(self.folder / _CHECKPOINTS, state, manifest, self.recipe.checkpoint_every)
        self._keep_concept(lesson, pictures)
        self.kept = lesson.done

    def _keep_concept(self, lesson: Lesson, pictures: tuple[Picture, ...]) -> None:
        """Save what is learned so far, to paint with."""
        parts = tuple(adapter.part() for adapter in lesson.adapters)
        Concept(parts, self._provenance(lesson, pictures)).save(self.folder / _CONCEPT)

    def _concept_is(self, provenance: Provenance) -> bool:
        """Whether the concept is there, sound, and of this step and recipe."""
        try:
            return self.concept.provenance == provenance
        except PinxitError:
            return False

    def _provenance(self, lesson: Lesson, pictures: tuple[Picture, ...]) -> Provenance:
        recipe, model = self.recipe, lesson.model
        return Provenance(
            token=recipe.token,
            class_noun=recipe.class_noun,
            method=recipe.method.name,
            base=model.name,
            base_hash=model.hash,
            steps=lesson.done,
            pictures=_fingerprints(pictures),
            recipe=recipe.to_toml(),
        )

    @contextmanager
    def _resumable(self) -> Generator[None]:
        """What to do after the disk took no more."""
        try:
            yield
        except DiskError as trouble:
            raise DiskError(
                trouble.message,
                f"{trouble.hint}, then go on with pinxit train --resume {self.folder}; "
                f"step {self.kept} is kept",
            ) from trouble


def teach(model: Model, recipe: Recipe, folder: Path | str) -> Run:
    """Learn from a recipe's pictures to the end; the run's folder holds all there is to know."""
    run = Run.create(folder, recipe)
    for _ in run.learn(model):
        pass
    return run


def _due(step: Step, every: int) -> bool:
    """Whether something done now and then, and at the end, is to be done after this step."""
    return every > 0 and (step.number % every == 0 or step.number == step.total)


def _moved(pictures: Path, folder: Path) -> Path:
    """Where a run's pictures are: where they were, or by their folder's name beside the run."""
    places = [pictures, *(above / pictures.name for above in (folder, *folder.resolve().parents))]
    return next((place for place in places if place.is_dir()), pictures)


def _fingerprints(pictures: tuple[Picture, ...]) -> dict[str, str]:
    return {picture.path.name: picture.sha256 for picture in pictures}
