"""Judging: how like its pictures a learned word paints, and how well prompts are still met."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Self

from pinxit import registry
from pinxit.concepts.concept import Concept
from pinxit.evaluation.metric import Metric, Scale, share
from pinxit.evaluation.prompt_sets import Prompt, brief, prompt_set, suited
from pinxit.generation.generate import Request
from pinxit.generation.image_cache import Portfolio
from pinxit.images.folder import Picture
from pinxit.models.model import Model
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.words import NAMES
from pinxit.training.method import Kind
from pinxit.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

_PROMPTS = 8  # to score a run by as it goes
_GREY = (124, 116, 104)  # ImageNet's mean: what is off the subject's mask

DINO, CLIP = "facebook/dino-vits16", "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Verdict:
    """What some pictures of a learned word are worth.

    `likeness` is the share of the way from floor (0, other members of the class) to ceiling (1,
    more real pictures); `prompt` is how well the prompts are met. Neither is clipped.
    """

    likeness: float
    prompt: float

    @property
    def best(self) -> float:
        """The geometric mean of both, each within 0..1: what runs are compared by."""
        likeness, prompt = (min(max(one, 0.0), 1.0) for one in (self.likeness, self.prompt))
        return math.sqrt(likeness * prompt)


@dataclass(frozen=True)
class Sight:
    """What pictures are judged by: likeness to the references, and how a prompt is met.

    `eyes` are pocket's, where it is pocket's world that is looked at: then what a prompt asks for
    is counted, and needs no anchors. `apart` tells pictures of one prompt apart, and `also` has
    other likenesses to be told beside the first.
    """

    likeness: Metric
    asked: Metric
    apart: Metric
    also: tuple[Metric, ...] = ()
    eyes: Eyes | None = None

    @classmethod
    def of(cls, model: Model, kind: Kind, dino: str = DINO, clip: str = CLIP) -> Self:
        """Pocket's own eyes for a base that speaks pocket's words; otherwise DINO and CLIP.

        Those are hub ids or folders; RequestError if they cannot be had. A style is judged by its
        manner, and on photographs by CLIP.
        """
        if speaks_pocket(model):
            return cls.of_pocket(Eyes.load(), kind)
        like = _metric("dino", weights=dino), _metric("clip-i", weights=clip)
        asked = _metric("clip-t", weights=clip)
        if kind == "style":
            return cls(like[1], asked, like[0], (_metric("gram"),))
        return cls(like[0], asked, like[0], like[1:])

    @classmethod
    def of_pocket(cls, eyes: Eyes, kind: Kind) -> Self:
        """What pocket's eyes see; thumbnails tell pictures apart."""
        if kind == "style":
            asked = _metric("attributes", eyes=eyes, questions=("class", "background"))
            return cls(_metric("gram"), asked, _metric("nearest"), (_metric("colour"),), eyes)
        asked = _metric("attributes", eyes=eyes, questions=("class", "background", "style"))
        like, also = _metric("likeness", eyes=eyes), _metric("hidden", eyes=eyes)
        return cls(like, asked, _metric("nearest"), (also,), eyes)


@dataclass(frozen=True)
class Known:
    """Pictures of other members of the class, and more of the subject than were learned from."""

    lookalikes: tuple["Image", ...] = field(default=(), repr=False)
    others: tuple["Image", ...] = field(default=(), repr=False)


NOTHING = Known()


@dataclass(frozen=True)
class Sitting:
    """What is painted to be judged: prompts, each `count` times, as a recipe's word is painted."""

    recipe: Recipe
    prompts: tuple[Prompt, ...]
    count: int = 1
    steps: int = 25

    @property
    def each(self) -> tuple[Prompt, ...]:
        """The prompt of every picture."""
        return tuple(prompt for prompt in self.prompts for _ in range(self.count))

    def pictures(
        self,
        model: Model,
        word: str | None,
        portfolio: Portfolio,
        told: Callable[[int, int], None] | None = None,
    ) -> "tuple[Image, ...]":
        """All of them, with the word, or without one in the base's own words."""
        images: list[Image] = []
        for done, prompt in enumerate(self.prompts, 1):
            said = prompt.plain if word is None else prompt.saying(word)
            images += portfolio.pictures(model, self._request(model, said, prompt.seed))
            if told:
                told(done, len(self.prompts))
        return tuple(images)

    def _request(self, model: Model, said: str, seed: int) -> Request:
        return Request(
            prompt=said,
            seed=seed * self.count,
            count=self.count,
            steps=self.steps,
            base=model.name,
            clip_skip=self.recipe.clip_skip,
            width=self.recipe.size,
        )


@dataclass(frozen=True)
class Judge:
    """Scores pictures of one word: its scale of likeness, and what prompts reach.

    `met` is what prompts that have nothing to do with a picture reach, and what the base reaches
    with its own words; `plain` are the base's pictures without the word, `pictures` those that
    were learned from, as a whole, and `grounds` what is around the subject in them, if all have
    masks.
    """

    sight: Sight
    sitting: Sitting
    likeness: Scale
    met: tuple[float, float]
    plain: tuple["Image", ...] = field(repr=False)
    pictures: tuple["Image", ...] = field(repr=False)
    grounds: tuple["Image", ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        recipe: Recipe,
        pictures: Sequence[Picture],
        *,
        folder: Path | None = None,
        sight: Sight | None = None,
        sitting: Sitting | None = None,
        known: Known = NOTHING,
    ) -> "Judge":
        """The judge of a recipe's word; nothing that is learned may be in the model yet.

        The floor is what the base paints of the prompts without the word, kept in the folder if
        there is one; the ceiling, the pictures against each other; unless pictures of look-alikes
        and more real ones are known.
        """
        sight = sight or Sight.of(model, recipe.kind)
        sitting = sitting or Sitting(recipe, brief(suited_set(model, recipe), _PROMPTS))
        plain = sitting.pictures(model, None, Portfolio(folder))
        shown = references(pictures, masked=recipe.kind == "object" and not sight.eyes)
        scale = Scale.of(sight.likeness, shown, known.lookalikes or plain, known.others)
        whole = tuple(references(pictures, masked=False))
        masked = all(picture.mask for picture in pictures)
        around = tuple(off_mask(*picture.opened()) for picture in pictures) if masked else ()
        return cls(sight, sitting, scale, anchors(sight, plain, sitting), plain, whole, around)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """A short fixed set, each with its seed, to score a run by as it goes."""
        return self.sitting.each

    @cached_property
    def base_prompt(self) -> float:
        """How well the base's pictures without the word meet the prompts."""
        return self._prompts_met(self.plain, self.prompts)

    def verdict(self, images: Sequence["Image"], prompts: Sequence[Prompt]) -> Verdict:
        """What these pictures are worth, each painted of one of the prompts with the word."""
        return Verdict(self.likeness.score(images).share, self._prompts_met(images, prompts))

    def look(self, model: Model, concepts: Sequence[Concept] = ()) -> Verdict:
        """Paint the prompts with the word, which is in the model already or given, and judge."""
        token = self.sitting.recipe.token
        images = self.sitting.pictures(model, token, Portfolio(concepts=concepts))
        return self.verdict(images, self.prompts)

    def _prompts_met(self, images: Sequence["Image"], prompts: Sequence[Prompt]) -> float:
        marks = self.sight.asked.score(images, (), [prompt.meant for prompt in prompts])
        return share(fmean(marks), *self.met)


def anchors(sight: Sight, plain: Sequence["Image"], sitting: Sitting) -> tuple[float, float]:
    """What the base's pictures reach under one another's prompts, and under their own."""
    if sight.eyes:
        return 0.0, 1.0
    meant = [prompt.meant for prompt in sitting.each]
    turned = [*meant[sitting.count :], *meant[: sitting.count]]
    wrong, own = (fmean(sight.asked.score(plain, (), asked)) for asked in (turned, meant))
    return wrong, own


def suited_set(model: Model, recipe: Recipe) -> tuple[Prompt, ...]:
    """The whole set of prompts that suits a recipe's word on this base."""
    noun, style = recipe.class_noun, recipe.kind == "style"
    return prompt_set(suited(noun, style=style, pocket=speaks_pocket(model)), noun)


def references(pictures: Sequence[Picture], *, masked: bool) -> "list[Image]":
    """Pictures to compare with; if wanted, of those that have a mask only the subject, on grey."""
    return [on_mask(*picture.opened()) if masked else picture.open() for picture in pictures]


def on_mask(image: "Image", mask: "Image | None") -> "Image":
    """A picture with what is off its mask made grey, cut to the mask; itself without one."""
    from PIL import Image

    if mask is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, _GREY), mask).crop(mask.getbbox())


def off_mask(image: "Image", mask: "Image | None") -> "Image":
    """A picture with its subject made grey; itself without a mask."""
    from PIL import Image

    return Image.composite(Image.new("RGB", image.size, _GREY), image, mask) if mask else image


def _metric(name: str, **settings: object) -> Metric:
    return registry.load("metrics", name)(**settings)


def speaks_pocket(model: Model) -> bool:
    """Whether a base's words are those of pocket's world: it knows a name that nobody else does."""
    return all(len(tower.ids(NAMES[0])) == 1 for tower in model.towers.values())
