"""A run is a folder: recipe, journal of steps, previews, checkpoints, and what was learned."""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pinxit.checkpoint import Manifest, keep, newest
from pinxit.concept import Concept, Provenance
from pinxit.durable import replace, replace_text
from pinxit.errors import PinxitError, RunError
from pinxit.generate import Request, paint
from pinxit.method import Preparing
from pinxit.model import Model
from pinxit.pictures import Picture
from pinxit.pixels import sheet
from pinxit.recipe import Recipe
from pinxit.train import Learner, Lesson, Step, train

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


@dataclass(frozen=True)
class Failed:
    """A run cannot begin or go on; what it learned before stays."""

    error: PinxitError


Event = Preparing | Step | Preview | Saved
Told = Event | Failed


class Run:
    """The only writer into a run's folder."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.pictures: tuple[Picture, ...] = ()
        self._saved = 0

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
        if not cls.begun(folder):
            raise RunError(f"{folder} is no run folder", f"a run folder has a {_RECIPE}")
        recipe = Recipe.from_toml(folder / _RECIPE)
        return cls(folder, recipe.model_copy(update={"steps": steps or recipe.steps}))

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether there is a run in a folder."""
        return (folder / _RECIPE).is_file()

    @property
    def finished(self) -> bool:
        """Whether all its steps were learned and saved."""
        saved = (self.folder / _CONCEPT).is_file()
        return saved and self.concept.provenance.steps == self.recipe.steps

    @property
    def concept(self) -> Concept:
        """What was learned; ConceptError if nothing was yet."""
        return Concept.load(self.folder)

    def learn(self, model: Model) -> Generator[Event]:
        """Begin, or go on from the last checkpoint; every event is on the disk when it is told.

        However it ends (the last step, Ctrl-C, the generator closed), what was learned is saved.
        """
        self.settle(model)
        with closing(learn_together(model, [self])) as told:
            for _, event in told:
                if isinstance(event, Failed):
                    raise event.error
                yield event

    def settle(self, model: Model) -> None:
        """Read the pictures, and decide every number of the recipe for them and this base."""
        self.pictures = self.recipe.read_pictures()
        self.recipe = self.recipe.settled(model, len(self.pictures))

    def prepare(self, model: Model) -> Iterator[Preparing]:
        """Make what the method needs before the first step, and is not there yet."""
        return self.recipe.method.prepare(model, self.recipe.subject)

    def begin(self, model: Model) -> Learner:
        """Its learner, at the beginning or at the last checkpoint."""
        learner = Learner(model, self.recipe, self.pictures)
        self._begin(learner)
        self._saved = learner.done
        return learner

    def follow(self, step: Step, learner: Learner) -> Generator[Event]:
        """Do and tell what is due after a step that was noted."""
        yield step
        if _due(step, self.recipe.preview_every):
            yield self._preview(learner.model, step.number)
        if _due(step, self.recipe.checkpoint_every):
            self.keep(learner)
            yield Saved(step.number, self.folder / _CONCEPT)

    def keep(self, learner: Learner) -> None:
        """Save what is not yet: the learner, to go on from, and the concept, to paint with."""
        if learner.done > self._saved:
            self._saved = self._keep(learner)

    def journal(self) -> list[dict[str, object]]:
        """Every step so far, as it was noted."""
        file = self.folder / _JOURNAL
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _begin(self, learner: Learner) -> None:
        """Write a new run's recipe, or bring the learner to where this one stopped."""
        (self.folder / _PREVIEWS).mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / _RECIPE, self.recipe.to_toml())
        found = newest(self.folder / _CHECKPOINTS)
        if found:
            manifest, state = found
            _must_be_same(manifest, learner.model, _fingerprints(self.pictures))
            learner.restore(state)
        noted = [entry for entry in self.journal() if _number(entry) <= learner.done]
        replace_text(self.folder / _JOURNAL, "".join(map(_line, noted)))

    def note(self, step: Step) -> None:
        """Add a step to the journal."""
        entry = asdict(step)
        del entry["concepts"]
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

    def _keep(self, learner: Learner) -> int:
        model, recipe = learner.model, self.recipe
        fingerprints = _fingerprints(self.pictures)
        step = keep(self.folder / _CHECKPOINTS, learner.state(), model.hash, fingerprints)
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
        parts = tuple(adapter.part() for adapter in learner.adapters)
        Concept(parts, provenance).save(self.folder / _CONCEPT)
        return step


def learn_together(model: Model, runs: Sequence[Run]) -> Generator[tuple[Run, Told]]:
    """Begin, or go on with, several settled runs in one batch, telling whose each event is.

    A run that fails is told of and leaves; the others go on. However it ends, all is saved.
    """
    begun: dict[Run, Learner] = {}
    for run in runs:
        yield from ((run, event) for event in _beginning(model, run, begun))
    if not begun:
        return
    at, failed = list(begun), set[Run]()
    lesson = Lesson(model, list(begun.values()))
    with closing(train(lesson)) as steps, ExitStack() as ends:
        for run, learner in begun.items():
            _ = ends.callback(run.keep, learner)
        for step in steps:
            shares = [(place, at[place], share) for place, share in step.shares()]
            for _, run, share in shares:
                run.note(share)
            for place, run, share in shares:
                lesson.serve(torch.tensor([place]))
                yield from ((run, event) for event in run.follow(share, begun[run]))
            for run in at:
                trouble = begun[run].trouble
                if trouble and run not in failed:
                    failed.add(run)
                    yield run, Failed(trouble)


def _beginning(model: Model, run: Run, begun: dict[Run, Learner]) -> Generator[Told]:
    try:
        yield from run.prepare(model)
        begun[run] = run.begin(model)
    except PinxitError as error:
        yield Failed(error)


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
    """What each picture and its mask hold, by the picture's name."""
    masks = (f"+{picture.mask.sha256}" if picture.mask else "" for picture in pictures)
    known = zip(pictures, masks, strict=True)
    return {picture.path.name: picture.sha256 + mask for picture, mask in known}


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
