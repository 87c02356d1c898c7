"""A concept that takes part in an evaluation, read from a run's folder or a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pinxit import registry
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept
from pinxit.errors import RequestError
from pinxit.images.folder import TrainingImage, fingerprint
from pinxit.runs.best import still_rising
from pinxit.runs.events import PreviewScores
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def generated_files(folder: Path) -> list[Path]:
    """The images in a folder that is no run and no concept; empty for another path."""
    if not folder.is_dir() or Run.exists(folder) or (folder / "model_index.json").is_file():
        return []
    return [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts 2.png before 10.png."""
    return [(int(n or 0), text) for n, text in re.findall(r"(\d*)(\D*)", path.name)]


@dataclass(frozen=True)
class Entrant:
    """A concept to evaluate: its title in the report, its recipe, training images and losses.

    `seconds` is the time of all training steps, 0 if it is not known. `rising` is whether the
    likeness of its previews was still rising at the last step. `image_files` are images of another
    program; then nothing is generated.
    """

    title: str
    concept: Concept = field(repr=False)
    recipe: Recipe
    images: tuple[TrainingImage, ...] = field(repr=False)
    losses: tuple[float, ...] = field(default=(), repr=False)
    seconds: float = 0.0
    rising: bool = False
    image_files: tuple[Path, ...] = ()

    @classmethod
    def of_images(cls, folder: Path, recipe: Recipe, images: tuple[TrainingImage, ...]) -> Self:
        """Images that another program generated, of the subject of a recipe."""
        provenance = Provenance.from_metadata(folder.name, {})
        files = tuple(sorted(map(Path, generated_files(folder)), key=_natural_order))
        return cls(folder.name, Concept((), provenance), recipe, images, image_files=files)

    def check_count(self, count: int) -> None:
        """Raise RequestError if the images of another program are not so many."""
        if len(self.image_files) != count:
            raise RequestError(
                f"{self.title} has {len(self.image_files)} images, and the prompts need {count}",
                "put the images of all prompts into it, named in the order of the prompts",
            )

    @classmethod
    def from_path(cls, path: Path, overrides: Mapping[str, Any]) -> Self:
        """Read a run's folder or a concept file; `overrides` are options that replace the recipe's.

        RequestError if neither says where the training images are, or what the class noun is.
        """
        overrides = Recipe.chosen(overrides)
        if Run.exists(path):
            images = overrides.get("images")
            run = Run.open(path, images=Path(str(images)) if images else None)
            recipe = Recipe.model_validate({**run.recipe.model_dump(), **overrides})
            losses = tuple(step.loss for step in run.state.steps)
            seconds = sum(step.seconds for step in run.state.steps)
            images, rising = recipe.read_images(), still_rising(run.state.of_kind(PreviewScores))
            return cls(path.name, run.concept, recipe, images, losses, seconds, rising)
        concept = read_concept(path)
        stored = Recipe.chosen(concept.provenance.recipe_values)
        if Run.exists(path.parent):  # only the run's recipe says in which folder the images are
            stored["images"] = Run.open(path.parent).recipe.images
        options = {**stored, **overrides}
        missing = [name for name in ("images", "class_noun") if name not in options]
        if missing:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise RequestError(f"{path} does not say what it was trained on", f"give {flags}")
        # Nothing is trained here: if the file does not name its method, any method will do.
        method = concept.provenance.method or registry.names("methods")[0]
        recipe = Recipe.model_validate({"token": concept.token, "method": method, **options})
        return cls(path.stem, concept, recipe, recipe.read_images())

    @property
    def method(self) -> str:
        """The training method, or "another program"."""
        return self.concept.provenance.method or "another program"

    @property
    def without_seed(self) -> tuple[object, ...]:
        """Equal for runs that differ in their seed and token only."""
        values = self.recipe.model_dump(exclude={"seed", "token"})
        return (self.method, self.steps, repr(sorted(values.items(), key=repr)))

    @property
    def steps(self) -> int:
        """The number of training steps; 0 if it is not known."""
        return self.concept.provenance.steps

    @property
    def subject_key(self) -> tuple[object, ...]:
        """Equal for entrants with the same images and base model; the base model comes first."""
        recipe = self.recipe
        base = (recipe.base, recipe.vae, recipe.text_encoders, recipe.precision)
        subject = (fingerprint(self.images), recipe.class_noun, recipe.kind)
        return (base, *subject, recipe.resolution, recipe.clip_skip)
