"""What methods share that tune a base's own networks: a rare word, and class pictures."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field

from pinxit.adapters.adapter import Alias
from pinxit.errors import RecipeError
from pinxit.images.folder import Picture
from pinxit.models.model import LITTLE, Model
from pinxit.training.class_images import ClassPictures
from pinxit.training.method import Method, Plan, Pool, Preparing, Subject, prompts_for

Size = Literal["little", "real"]

# How many class pictures, by the denoiser's size; for real ones as in DreamBooth's paper.
_PRIOR = {"little": 48, "real": 200}
# How many of the rarest words a user's word may stand for: enough that two words seldom meet.
_CHOICE = 64


class Tuning(Method):
    """A method that learns "a [V] class" and keeps the class alive (arXiv:2208.12242).

    `plans` are for five pictures, by the base's size.
    """

    plans: ClassVar[Mapping[Size, Plan]]

    prior_pictures: int | None = Field(
        default=None,
        ge=0,
        description="pictures of the class, painted by the base; 0 for none, as for a style",
    )
    prior_weight: float = Field(
        default=1.0, ge=0, description="how much keeping the class counts against the subject"
    )
    train_text_encoder: bool = Field(
        default=False, description="tune the text encoder too: truer likeness, more memory"
    )
    text_rate: float = Field(
        default=0.1, gt=0, description="the text encoder's rate, as a share of the denoiser's"
    )
    rare_token: str | None = Field(
        default=None, description="the base's own word to use; picked if it is not given"
    )
    captions: bool | None = Field(
        default=None,
        description="learn with the pictures' own captions where they have one; unset, a style",
    )

    @property
    def says_rare(self) -> bool:
        """Whether the subject goes by a rare word of the base's."""
        return True

    def plan(self, model: Model, count: int) -> Plan:
        """More pictures take more steps to be seen equally often."""
        plan, share = self.plans[size(model)], min(max(count, 3), 12) / 5
        return Plan(round(plan.steps * share**0.5), plan.batch_size, plan.rate)

    def settled(self, model: Model, subject: Subject) -> Self:
        """With the class pictures counted, and the rare token picked, or found to be one."""
        wanted = 0 if subject.kind == "style" else _PRIOR[size(model)]
        count = wanted if self.prior_pictures is None else self.prior_pictures
        counted = self.model_copy(update={"prior_pictures": count})
        if not self.says_rare:
            return counted
        rare = self.rare_token or _rare_token(model, subject)
        for tower in model.towers.values():
            if len(tower.ids(rare)) != 1:
                raise RecipeError(
                    f"`{rare}` is no single token of {model.name}",
                    f"take one that is, such as {_rare_token(model, subject)}",
                )
        return counted.model_copy(update={"rare_token": rare})

    def prepare(self, model: Model, subject: Subject) -> Iterator[Preparing]:
        """Paint those class pictures that no earlier run has painted."""
        yield from self._class_pictures(subject).paint(model)

    def pools(
        self, model: Model, subject: Subject, pictures: tuple[Picture, ...]
    ) -> tuple[Pool, ...]:
        """The subject's pictures as "a [V] class", and the base's own as "a class"."""
        template = "a painting in the style of {}" if subject.kind == "style" else "a photo of a {}"
        prompts = prompts_for(pictures, subject, (template,), captions=self.captions)
        own = Pool("own", pictures, prompts)
        if not self.prior_pictures:
            return (own,)
        others = self._class_pictures(subject).found(model)
        prior = tuple((other.caption or subject.class_noun,) for other in others)
        return own, Pool("class", others, prior, self.prior_weight)

    def alias(self, model: Model, subject: Subject) -> Alias:
        """The user's word for "[V] class"; of a style, for "[V]"."""
        rare = self.rare_token or _rare_token(model, subject)
        text = rare if subject.kind == "style" else f"{rare} {subject.class_noun}"
        return Alias(subject.token, text)

    def _class_pictures(self, subject: Subject) -> ClassPictures:
        prompt = "a painting" if subject.kind == "style" else f"a photo of a {subject.class_noun}"
        return ClassPictures(prompt, self.prior_pictures or 0)


def size(model: Model) -> Size:
    """Which plans and defaults a base wants, by its denoiser's size."""
    return "little" if model.size < LITTLE else "real"


def _rare_token(model: Model, subject: Subject) -> str:
    """An existing word that means next to nothing; which one follows from the user's word."""
    tower = next(iter(model.towers.values()))
    rare = tower.rare_words()[:_CHOICE]
    if not rare:
        raise RecipeError(
            f"{model.name} has no rare short word that `{subject.token}` could stand for",
            "name one of its words with --rare-token",
        )
    digest = hashlib.sha256(subject.token.encode()).digest()
    return rare[int.from_bytes(digest[:4], "big") % len(rare)]
