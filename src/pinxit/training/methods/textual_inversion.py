"""Textual inversion: a new word whose vectors alone are learned (arXiv:2208.01618)."""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from pinxit.adapters.adapter import NewWord
from pinxit.images.folder import Picture
from pinxit.models.model import Model
from pinxit.models.prompt import Directed
from pinxit.models.text_encoder import TextTower
from pinxit.rng import generator
from pinxit.training.finetuning import size
from pinxit.training.method import Kind, Learnable, Method, Plan, Pool, Subject, prompts_for

# Steps, batch size and rate, by the denoiser's size: the little base wants bold steps, and real
# ones the rate of the authors' code. Tune here.
_PLANS = {"little": Plan(steps=300, batch_size=8, rate=1e-2), "real": Plan(2000, 2, 5e-3)}

# A style is more than one vector holds; with more, places in the prompt count less.
_VECTORS: dict[Kind, int] = {"object": 1, "style": 4}

# The paper's appendix D, and the style list of the authors' code.
_OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
_STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)


class TextualInversion(Method):
    """Learn a new word; the base stays as it is."""

    vectors: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="vectors of the word: more look more like the pictures, and obey prompts less; "
        "unset, one for a thing and four for a style",
    )
    start: Literal["class-noun", "random"] = Field(
        default="class-noun", description="what the vectors are before the first step"
    )
    length: Literal["held", "free"] = Field(
        default="free",
        description="held: the vectors stay as long as the class noun's, and learn a direction; "
        "free: they may grow, and then count more than the prompt's other words",
    )
    captions: bool | None = Field(
        default=None,
        description="learn with the pictures' own captions where they have one, not templates; "
        "unset, a style",
    )

    @property
    def apart(self) -> bool:
        """A word acts in the prompts that have it."""
        return True

    def plan(self, model: Model, count: int) -> Plan:  # noqa: ARG002
        """The steps hardly depend on the number of pictures: one word holds only so much."""
        return _PLANS[size(model)]

    def settled(self, model: Model, subject: Subject) -> Self:  # noqa: ARG002
        """With the vectors counted."""
        return self.model_copy(update={"vectors": self.vectors or _VECTORS[subject.kind]})

    def adapters(self, model: Model, subject: Subject, rate: float) -> tuple[Learnable, ...]:
        """The new word, with a table in every tower."""
        count = self.vectors or _VECTORS[subject.kind]
        word = NewWord.of(model, subject.token, subject.class_noun, count)
        tables: Mapping[str, Tensor] = word.tables
        if self.start == "random":
            tables = {
                name: self._random(tower, count, subject) for name, tower in model.towers.items()
            }
        learned = NewWord(subject.token, subject.class_noun, tables)
        if self.length == "held":
            # To a millionth, so that the number of threads does not matter.
            nouns = {n: float(v.detach().norm(dim=1).mean()) for n, v in word.tables.items()}
            lengths = {name: round(length, 6) for name, length in nouns.items()}
            learned.vectors = Directed(learned.tables, lengths)
        return (Learnable(learned, rate, swings=True),)

    def pools(
        self,
        model: Model,  # noqa: ARG002
        subject: Subject,
        pictures: tuple[Picture, ...],
    ) -> tuple[Pool, ...]:
        """The pictures under templates that name the new word, or under their captions."""
        templates = _STYLE_TEMPLATES if subject.kind == "style" else _OBJECT_TEMPLATES
        prompts = prompts_for(pictures, subject, templates, captions=self.captions)
        return (Pool("own", pictures, prompts),)

    def _random(self, tower: TextTower, count: int, subject: Subject) -> Tensor:
        """First vectors (n, width) drawn from the seed, as long as the tower's own are."""
        draws = generator(subject.seed, "start", tower.name)
        spread = float(tower.embedding.weight.std())
        return torch.randn(count, tower.width, generator=draws) * spread
