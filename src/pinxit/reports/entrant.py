"""Who is evaluated: a learned word from a run's folder or a file, with all that judging needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pinxit import registry
from pinxit.concepts.concept import Concept
from pinxit.errors import RequestError
from pinxit.images.folder import Picture, fingerprint
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe


@dataclass(frozen=True)
class Contender:
    """A learned word: what it is called here, its recipe, its pictures and its losses."""

    title: str
    concept: Concept = field(repr=False)
    recipe: Recipe
    pictures: tuple[Picture, ...] = field(repr=False)
    losses: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, path: Path, given: Mapping[str, Any]) -> Self:
        """From a run's folder or a concept's file; `given` are fields of the recipe that are so.

        RequestError if nothing says what pictures it is to be like, or what it is a kind of.
        """
        if Run.begun(path):
            run = Run.open(path, pictures=given.get("pictures"))
            recipe = Recipe.model_validate({**run.recipe.model_dump(), **given})
            losses = tuple(_mean(step["losses"]) for step in run.journal())
            return cls(path.name, run.concept, recipe, recipe.read_pictures(), losses)
        concept = Concept.load(path)
        told = {**concept.provenance.choices, **given}
        missing = [name for name in ("pictures", "class_noun") if name not in told]
        if missing:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise RequestError(f"{path} does not say what it was learned from", f"give {flags}")
        # Nothing is learned any more: where no file says how it was, any method will do.
        method = concept.provenance.method or registry.names("methods")[0]
        word = {"token": concept.token, "method": method}
        recipe = Recipe.model_validate({**word, **told})
        return cls(path.stem, concept, recipe, recipe.read_pictures())

    def called(self, title: str) -> Self:
        """Itself under another name."""
        return replace(self, title=title)

    @property
    def method(self) -> str:
        """How it was learned, as far as that is known."""
        return self.concept.provenance.method or "another program"

    @property
    def steps(self) -> int:
        """How many steps it was learned for."""
        return self.concept.provenance.steps

    @property
    def acts_alone(self) -> bool:
        """Whether only prompts with its word change."""
        return all("word" in part.settings for part in self.concept.parts)

    @property
    def subject(self) -> tuple[object, ...]:
        """What those have in common that are judged by the same pictures on the same base."""
        one = self.recipe
        base = (one.base, one.vae, one.precision)
        return (base, fingerprint(self.pictures), one.class_noun, one.kind, one.size, one.clip_skip)


def _mean(losses: object) -> float:
    """The mean of a step's losses, as the journal has them."""
    if isinstance(losses, list):
        return sum(map(_mean, losses)) / len(losses)
    return float(losses) if isinstance(losses, int | float) else float("nan")
