"""The interface of a training method: options, trainable adapters and image pools."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from pinxit import registry
from pinxit.adapters.adapter import Adapter
from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.models.prompt import normal_form, token_pattern
from pinxit.options import Options

SubjectKind = Literal["object", "style"]


@dataclass(frozen=True)
class Subject:
    """The subject of a training run: placeholder token, class noun, kind and random seed."""

    token: str
    class_noun: str
    kind: SubjectKind
    seed: int


@dataclass(frozen=True)
class Advice:
    """Steps, batch size and learning rate that a method uses where the recipe gives none."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class TrainableAdapter:
    """An adapter with its learning rate and weight decay.

    In each step, its weights are moved by the fraction `pull` of the way to their initial values,
    which change nothing in the base model. With `average`, the average of the later steps is used
    to generate images and to save. With `adamw_rate`, the learning rate is one for AdamW that the
    user has not chosen; other optimizers convert it.
    """

    adapter: Adapter
    learning_rate: float
    weight_decay: float = 0.0
    average: bool = False
    pull: float = 0.0
    adamw_rate: bool = False


@dataclass(frozen=True)
class ImagePool:
    """Images that fill one part of every batch, each with its possible prompts.

    The part has `batch_size` samples, and its mean loss is multiplied by `weight`. With
    `base_answer`, the target of a sample is what the base model predicts for it, not its noise.
    """

    name: str
    images: tuple[TrainingImage, ...]
    prompts: tuple[tuple[str, ...], ...]
    weight: float = 1.0
    base_answer: bool = False


@dataclass(frozen=True)
class ClassImages:
    """Images for prior preservation: `count` images that the base model generates for a prompt.

    With a `folder`, those in it instead; the prompt is for images without a caption.
    """

    prompt: str
    count: int
    folder: Path | None = None


class Method(registry.Plugin, Options, ABC):
    """A training method; its fields are its options."""

    label: ClassVar[str] = "method"
    trains_all_weights: ClassVar[bool] = False
    style_caption_dropout: ClassVar[float] = 0.0  # if the recipe gives none

    @property
    def independent_concepts(self) -> bool:
        """Whether the adapters of a concept change only the samples of that concept.

        Then several concepts can be trained in one batch; otherwise each is trained alone.
        """
        return False

    @property
    def needs_weights(self) -> str:
        """What cannot be trained on a denoiser in 8 or 4 bits; "" if it can be."""
        return self.name if self.trains_all_weights else ""

    @abstractmethod
    def advise(self, model: Model, image_count: int) -> Advice:
        """Default steps, batch size and learning rate for a base model and number of images."""

    def check(self, subject: Subject) -> None:
        """Raise an error for options that are wrong whatever the base model is."""

    def settle(self, model: Model, subject: Subject) -> Self:  # noqa: ARG002
        """The method with every option chosen; RecipeError if one does not fit the model."""
        return self

    @abstractmethod
    def create_adapters(
        self, model: Model, subject: Subject, learning_rate: float
    ) -> tuple[TrainableAdapter, ...]:
        """New adapters to train, and those that are only applied (learning rate 0)."""

    def required_class_images(self, model: Model, subject: Subject) -> ClassImages:  # noqa: ARG002
        """The class images that `image_pools` needs; a count of 0 is none."""
        return ClassImages("", 0)

    @abstractmethod
    def image_pools(
        self,
        subject: Subject,
        images: tuple[TrainingImage, ...],
        class_images: tuple[TrainingImage, ...] = (),
    ) -> tuple[ImagePool, ...]:
        """The images of every batch with their prompts.

        Prompts of training images contain the placeholder token; those of class images do not.
        """


def prompts_for(
    images: Sequence[TrainingImage],
    subject: Subject,
    templates: Sequence[str],
    *,
    captions: bool | None,
) -> tuple[tuple[str, ...], ...]:
    """Possible prompts of each image: its caption with the token, or all templates.

    `captions` None uses captions for styles only: the token of a style does not need to learn what
    the captions already describe.
    """
    captions = subject.kind == "style" if captions is None else captions
    template_prompts = tuple(template.format(subject.token) for template in templates)
    return tuple(
        (insert_token(image.caption, subject),) if captions and image.caption else template_prompts
        for image in images
    )


def insert_token(caption: str, subject: Subject) -> str:
    """The caption with the token in place of the class noun, or else before the caption.

    A style's token comes after the caption.
    """
    caption, token = normal_form(caption), token_pattern((subject.token,))
    if token.search(caption):
        return caption
    if subject.kind == "style":
        return f"{caption}, in the style of {subject.token}"
    noun = token_pattern((subject.class_noun,))
    replaced = noun.sub(lambda _: subject.token, caption, count=1)
    # A noun may touch characters that the token may not.
    return replaced if token.search(replaced) else f"{subject.token}, {caption}"
