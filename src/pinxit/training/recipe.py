"""Everything that decides a run, frozen, in one TOML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self, cast

import torch
from pydantic import BeforeValidator, Field, PlainSerializer

from pinxit import registry
from pinxit.errors import RecipeError
from pinxit.images.folder import Masks, Picture, read_pictures
from pinxit.models.model import Model, Precision
from pinxit.models.text_encoder import CLIP_SKIP, Reading
from pinxit.options import Checked, read_toml
from pinxit.training.early_stopping import steps_between_looks
from pinxit.training.method import Kind, Method, Subject


def _method(given: object) -> object:
    """A method from its name, or from its table `{name = ..., knobs ...}`."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        return given
    table = dict(cast("Mapping[str, object]", given))
    if "name" not in table:
        raise RecipeError(
            "the recipe's method has no name",
            f"write [method] with name = one of: {', '.join(registry.names('methods'))}",
        )
    method: type[Method] = registry.load("methods", str(table.pop("name")))
    return method.model_validate(table)


def _table(method: Method) -> dict[str, object]:
    return {"name": method.name, **method.model_dump(exclude_none=True)}


class Recipe(Checked):
    """What to learn, from which pictures, on which base, how, and for how long.

    `steps`, `batch_size` and `rate` are the method's advice unless given: `settled` fills them in.
    """

    method: Annotated[Method, BeforeValidator(_method), PlainSerializer(_table)]
    pictures: Path = Field(description="folder with the pictures to learn from")
    token: str = Field(description="the new word, best in angle brackets: <mytoy>")
    class_noun: str = Field(description="what it is a kind of, in the base's words: toy")
    kind: Kind = Field(default="object", description="whether the word is a thing or a style")
    base: str = Field(default="pocket", description="a name, a folder, a file, or a hub id")
    vae: str | None = Field(default=None, description="another autoencoder: folder, file, hub id")
    seed: int = Field(default=0, description="all randomness of the run follows from it")
    steps: int | None = Field(default=None, ge=1, description="how many steps to learn")
    batch_size: int | None = Field(default=None, ge=1, description="pictures of the subject a step")
    rate: float | None = Field(default=None, gt=0, description="learning rate")
    size: int | None = Field(
        default=None, ge=8, description="pixels of a side to learn at; else the base's size"
    )
    masks: Masks = Field(
        default="beside",
        description="learn the subject only: toy.mask.png beside toy.jpg, pictures' alpha, or none",
    )
    skip_bad: bool = Field(default=False, description="leave pictures out that cannot be read")
    flip: bool = Field(default=True, description="show pictures mirrored half of the time")
    clip: float = Field(default=1.0, gt=0, description="largest norm of a concept's gradient")
    min_snr: float | None = Field(
        default=None, gt=0, description="weigh times by min-SNR with this gamma; all alike if unset"
    )
    clip_skip: int | None = Field(
        default=None, ge=1, description=f"{CLIP_SKIP}; paint with the same"
    )
    precision: Precision | None = Field(default=None, description="numbers to compute in")
    stop: float = Field(
        default=0,
        ge=0,
        description="learned enough when the loss of fixed samples falls by less than this share "
        "of all it fell, such as 0.05; 0 takes all steps",
    )
    look_every: int | None = Field(
        default=None, ge=1, description="steps between looks at those samples"
    )
    preview_every: int = Field(default=100, ge=0, description="steps between previews, 0 for none")
    checkpoint_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    score: bool = Field(default=True, description="score previews, and keep the best of the run")
    keep_every: int = Field(
        default=0, ge=0, description="steps between concepts that all stay, 0 for none"
    )

    @property
    def subject(self) -> Subject:
        """What is to be learned."""
        return Subject(self.token, self.class_noun, self.kind, self.seed)

    def read_pictures(self) -> tuple[Picture, ...]:
        """Its pictures, with their masks; PictureError names those that cannot be read."""
        return read_pictures(self.pictures, self.masks, skip_bad=self.skip_bad)

    @property
    def reading(self) -> Reading:
        """How its prompts are read: literally, for a caption's brackets are no weights."""
        return Reading(clip_skip=self.clip_skip)

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """A recipe from its file."""
        return cls.model_validate(read_toml(path, "recipe"))

    def to_toml(self) -> str:
        """Itself as TOML, complete."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def settled(self, model: Model, count: int) -> Self:
        """The recipe with every number decided, for this base and so many pictures.

        RecipeError if the token already means something, the base does not know the class noun,
        cannot have the size, or its schedule does not know min-SNR.
        """
        _check_words(model, self.subject)
        model.schedule.weight(torch.zeros(1, dtype=torch.long), self.min_snr)
        if self.precision not in (None, model.placement.precision):
            raise RecipeError(
                f"the recipe computes in {self.precision}, and {model.name} is open in "
                f"{model.placement.precision}",
                f"open it with --precision {self.precision}",
            )
        plan = self.method.plan(model, count)
        size = self.size or model.picture_size
        batch_size = self.batch_size or plan.batch_size
        if size % model.grain:
            raise RecipeError(
                f"{model.name} cannot learn at {size} pixels", f"take a multiple of {model.grain}"
            )
        return self.model_copy(
            update={
                "method": self.method.settled(model, self.subject),
                "pictures": self.pictures.expanduser().resolve(),
                "steps": self.steps or plan.steps,
                "batch_size": batch_size,
                "look_every": self.look_every or steps_between_looks(plan.steps, batch_size),
                "rate": self.rate or plan.rate,
                "size": size,
                "base": model.name,
                "vae": model.source.vae,
                "precision": model.placement.precision,
            }
        )


def _check_words(model: Model, subject: Subject) -> None:
    token, noun = subject.token, subject.class_noun
    if not token or token.split() != [token]:
        raise RecipeError(
            f"the token `{token}` is not one word", "write it in angle brackets, as <mytoy>"
        )
    for tower in model.towers.values():
        if len(tower.ids(token)) == 1:
            raise RecipeError(
                f"the token `{token}` already means something to {model.name}",
                f"take a new word, such as <my{token}>",
            )
        unknown = [word for word in noun.split() if not tower.knows(word)]
        if unknown or not noun.split():
            raise RecipeError(
                f"{model.name} does not know the class noun `{noun}`", tower.nearest(noun)
            )
