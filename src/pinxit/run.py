"""A run is a folder: recipe, journal of steps, previews, checkpoints, and what was learned."""

import json
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from pinxit.checkpoint import Manifest, keep, newest
from pinxit.concept import Concept, Provenance
from pinxit.durable import replace, replace_text
from pinxit.errors import RunError
from pinxit.generate import Request, paint
from pinxit.method import Preparing
from pinxit.model import Model
from pinxit.pictures import Picture
from pinxit.pixels import sheet
from pinxit.recipe import Recipe
from pinxit.train import Lesson, Step, train

_RECIPE = "recipe.toml"
_JOURNAL = "journal.jsonl"
_CONCEPT = "concept.safetensors"
_CHECKPOINTS = "checkpoints"
_PREVIEWS = "previews"
_PREVIEW_COUNT = 4


@dataclass(frozen=True)
class Preview:
    """A sheet of pictures painted with what is learned so far."""

    number: int
    path: Path


@dataclass(frozen=True)
class Saved:
    """What was learned is on the disk, up to this step."""

    number: int
    path: Path


Event = Preparing | Step | Preview | Saved


class Run:
    """The only writer into a run's folder."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe

    @classmethod
    def create(cls, folder: Path | str, recipe: Recipe) -> "Run":
        """A run that has not begun; nothing is written yet. RunError if the folder is taken."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(
                f"{folder} exists already",
                f"go on with it by --resume {folder}, or give another --out",
            )
        return cls(folder, recipe)

    @classmethod
    def open(cls, folder: Path | str, steps: int | None = None) -> "Run":
        """A run that was begun, perhaps to go on for more steps; RunError if the folder is none."""
        folder = Path(folder)
        if not (folder / _RECIPE).is_file():
            raise RunError(f"{folder} is no run folder", f"a run folder has a {_RECIPE}")
        recipe = Recipe.from_toml(folder / _RECIPE)
        return cls(folder, recipe.model_copy(update={"steps": steps or recipe.steps}))

    @property
    def concept(self) -> Concept:
        """What was learned; ConceptError if nothing was yet."""
        return Concept.load(self.folder)

    def learn(self, model: Model) -> Generator[Event]:
        """Begin, or go on from the last checkpoint; every event is on the disk when it is told.

        However it ends (the last step, Ctrl-C, the generator closed), what was learned is saved.
        """
        pictures = self.recipe.read_pictures()
        self.recipe = recipe = self.recipe.settled(model, len(pictures))
        yield from recipe.method.prepare(model, recipe.subject)
        lesson = Lesson.of(model, recipe, pictures)
        self._begin(lesson, pictures)
        saved = lesson.done
        with closing(train(lesson)) as steps:
            try:
                for step in steps:
                    self._note(step)
                    yield step
                    if _due(step, recipe.preview_every):
                        yield self._preview(model, step.number)
                    if _due(step, recipe.checkpoint_every):
                        saved = self._keep(lesson, pictures)
                        yield Saved(saved, self.folder / _CONCEPT)
            finally:
                if lesson.done > saved:
                    _ = self._keep(lesson, pictures)

    def journal(self) -> list[dict[str, object]]:
        """Every step so far, as it was noted."""
        file = self.folder / _JOURNAL
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _begin(self, lesson: Lesson, pictures: tuple[Picture, ...]) -> None:
        """Write a new run's recipe, or bring the lesson to where this one stopped."""
        (self.folder / _PREVIEWS).mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / _RECIPE, self.recipe.to_toml())
        found = newest(self.folder / _CHECKPOINTS)
        if found:
            manifest, state = found
            _must_be_same(manifest, lesson.model, _fingerprints(pictures))
            lesson.restore(state)
        noted = [entry for entry in self.journal() if _number(entry) <= lesson.done]
        replace_text(self.folder / _JOURNAL, "".join(map(_line, noted)))

    def _note(self, step: Step) -> None:
        """Add a step to the journal."""
        entry = asdict(step)
        with (self.folder / _JOURNAL).open("a", encoding="utf-8") as file:
            _ = file.write(_line(entry))

    def _preview(self, model: Model, number: int) -> Preview:
        """Paint what is learned so far; the adapters are in the model already."""
        subject = self.recipe.subject
        begin = "a painting in the style of" if subject.kind == "style" else "a photo of a"
        prompt, clip_skip = f"{begin} {subject.token}", self.recipe.clip_skip
        side = self.recipe.size
        request = Request(prompt=prompt, count=_PREVIEW_COUNT, clip_skip=clip_skip, width=side)
        paper = sheet([painted.image for painted in paint(model, request)])
        path = self.folder / _PREVIEWS / f"{number:07}.png"
        replace(path, lambda beside: paper.save(beside, "PNG"))
        return Preview(number, path)

    def _keep(self, lesson: Lesson, pictures: tuple[Picture, ...]) -> int:
        """Save the lesson, to go on from, and the concept, to paint with; the step they are of."""
        model, recipe = lesson.model, self.recipe
        fingerprints = _fingerprints(pictures)
        step = keep(self.folder / _CHECKPOINTS, lesson.state(), model.hash, fingerprints)
        provenance = Provenance(
            token=recipe.token,
            class_noun=recipe.class_noun,
            method=recipe.method.name,
            base=model.name,
            base_hash=model.hash,
            steps=step,
            pictures=fingerprints,
            recipe=recipe.to_toml(),
        )
        parts = tuple(adapter.part() for adapter in lesson.adapters)
        Concept(parts, provenance).save(self.folder / _CONCEPT)
        return step


def teach(model: Model, recipe: Recipe, folder: Path | str) -> Run:
    """Learn from a recipe's pictures to the end; the run's folder holds all there is to know."""
    run = Run.create(folder, recipe)
    for _ in run.learn(model):
        pass
    return run


def _due(step: Step, every: int) -> bool:
    """Whether something done now and then, and at the end, is to be done after this step."""
    return every > 0 and (step.number % every == 0 or step.number == step.total)


def _line(entry: Mapping[str, object]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _number(entry: Mapping[str, object]) -> int:
    number = entry["number"]
    assert isinstance(number, int)
    return number


def _fingerprints(pictures: tuple[Picture, ...]) -> dict[str, str]:
    return {picture.path.name: picture.sha256 for picture in pictures}


def _must_be_same(manifest: Manifest, model: Model, pictures: dict[str, str]) -> None:
    """RunError if the run would go on from other pictures or on another base."""
    if manifest.base_hash != model.hash:
        raise RunError(
            f"the run was begun on another base than {model.name}", "bring that base back"
        )
    changed = {name for name, _ in pictures.items() ^ manifest.pictures.items()}
    if changed:
        raise RunError(
            f"the pictures have changed since the run was begun: {', '.join(sorted(changed))}",
            "put them back as they were, or begin a new run",
        )
