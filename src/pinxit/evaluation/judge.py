"""The judge: subject fidelity and prompt following of images of a trained concept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Literal, Protocol, Self

from PIL import Image

from pinxit import registry
from pinxit.errors import RequestError
from pinxit.evaluation.metric import Images, Metric, Scale, relative_position
from pinxit.evaluation.networks import CLIP, DINO, require_networks
from pinxit.evaluation.prompt_sets import Prompt, prompt_set, suitable_set
from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.words import NAMES

_GREY = (124, 116, 104)  # ImageNet's mean colour, outside of the subject's mask

SubjectKind = Literal["object", "style"]


@dataclass(frozen=True)
class JudgeScore:
    """Scores of images of a concept.

    `likeness` is subject fidelity on a scale from floor (0: other members of the class) to
    ceiling (1: more real images), or None if the metric cannot tell those apart; `prompt` is how
    well the prompts are followed. Both can be below 0 or above 1.
    """

    likeness: float | None
    prompt: float

    @property
    def overall(self) -> float | None:
        """The geometric mean of both, each clipped to 0..1: checkpoints are compared by it.

        None without a likeness.
        """
        if self.likeness is None:
            return None
        likeness, prompt = (min(max(score, 0.0), 1.0) for score in (self.likeness, self.prompt))
        return math.sqrt(likeness * prompt)


class JudgedSubject(Protocol):
    """What is judged, and how its images are generated; a training recipe has all of it.

    `resolution` is the side of the images in pixels. None stands for the base model's own value.
    """

    token: str
    class_noun: str
    kind: SubjectKind
    resolution: int | None
    clip_skip: int | None


@dataclass(frozen=True)
class MetricSet:
    """The metrics that a judge uses.

    `similarity` compares images of one prompt with each other, and `other_fidelity` are reported
    after the first. `eyes` is pocket's own classifier, for base models of pocket's world: there
    prompt following is a fraction of attributes and needs no anchors.
    """

    fidelity: Metric
    prompt_following: Metric
    similarity: Metric
    other_fidelity: tuple[Metric, ...] = ()
    eyes: Eyes | None = None

    @classmethod
    def for_base(
        cls, model: Model, kind: SubjectKind, dino: str | None = None, clip: str | None = None
    ) -> Self:
        """Pocket's classifier for models with pocket's vocabulary, DINO and CLIP for others.

        `dino` and `clip` are hub ids or folders; RequestError if they are not on this machine.
        Styles are judged by Gram matrices in pocket's world and by CLIP elsewhere. In pocket's
        world, too, subject fidelity is measured by DINO (of styles by CLIP) if that is given.
        """
        by_dino = _metric("dino", weights=dino or DINO)
        by_clip = _metric("clip-i", weights=clip or CLIP)
        if uses_pocket_vocabulary(model):
            pocket = cls.for_pocket(Eyes.load(), kind)
            fidelity, chosen = (by_clip, clip) if kind == "style" else (by_dino, dino)
            require_networks(filter(None, [chosen]))
            return replace(pocket, fidelity=fidelity) if chosen else pocket
        require_networks((dino or DINO, clip or CLIP))
        prompt_following = _metric("clip-t", weights=clip or CLIP)
        if kind == "style":
            return cls(by_clip, prompt_following, by_dino, (_metric("gram"),))
        return cls(by_dino, prompt_following, by_dino, (by_clip,))

    @classmethod
    def for_pocket(cls, eyes: Eyes, kind: SubjectKind) -> Self:
        """Metrics of pocket's classifier; thumbnails compare images of one prompt."""
        questions = ("class", "background", *(() if kind == "style" else ("style",)))
        attributes = _metric("pocket-attributes", eyes=eyes, questions=questions)
        if kind == "style":
            fidelity, other = _metric("gram"), _metric("colour")
        else:
            fidelity = _metric("pocket-likeness", eyes=eyes)
            other = _metric("pocket-parameters", eyes=eyes)
        return cls(fidelity, attributes, _metric("nearest"), (other,), eyes)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise RequestError for prompts that cannot be measured, or if a network is missing."""
        texts = [prompt.target_text for prompt in prompts]
        self.prompt_following.score([Image.new("RGB", (64, 64))] * len(texts), (), texts)
        if self.eyes is None and len({*texts}) < 2:  # images of other prompts are the floor
            raise RequestError(
                f"prompt fidelity needs at least two different prompts, not only `{texts[0]}`",
                "add another prompt to --prompts",
            )


@dataclass(frozen=True)
class Anchors:
    """Real images of other members of the class, and of the subject outside of the training set."""

    lookalikes: tuple[Image.Image, ...] = field(default=(), repr=False)
    held_out_images: tuple[Image.Image, ...] = field(default=(), repr=False)


NO_ANCHORS = Anchors()


@dataclass(frozen=True)
class PromptRun:
    """Prompts to generate for a subject, each `images_per_prompt` times.

    `steps` is the number of denoising steps, None for what suits the base model.
    """

    subject: JudgedSubject
    prompts: tuple[Prompt, ...]
    images_per_prompt: int = 1
    steps: int | None = None

    @property
    def prompt_of_each_image(self) -> tuple[Prompt, ...]:
        """The prompt of each image, in the order in which they are generated."""
        return tuple(prompt for prompt in self.prompts for _ in range(self.images_per_prompt))


@dataclass(frozen=True)
class Judge:
    """Scores images of one concept.

    `prompt_anchors` are the prompt-following scores of the base model's images under other
    prompts (0 on the scale) and under their own (1). `base_images` are generated without the
    token. `backgrounds` are the training images without their subjects, if all have masks.
    """

    metrics: MetricSet
    prompt_run: PromptRun
    fidelity_scale: Scale
    prompt_anchors: tuple[float, float]
    base_images: tuple[Image.Image, ...] = field(repr=False)
    training_images: tuple[Image.Image, ...] = field(repr=False)
    backgrounds: tuple[Image.Image, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        metrics: MetricSet,
        prompt_run: PromptRun,
        base_images: tuple[Image.Image, ...],
        images: Sequence[TrainingImage],
        anchors: Anchors = NO_ANCHORS,
    ) -> Self:
        """The judge of a subject, given the base model's images of the prompts without the token.

        Without anchors, the floor is the score of these images, and the ceiling is that of the
        training images among themselves.
        """
        training_images = references = tuple(image.open() for image in images)
        if prompt_run.subject.kind == "object" and not metrics.eyes:
            references = [crop_to_subject(*image.open_with_mask()) for image in images]
        lookalikes = anchors.lookalikes or base_images
        scale = Scale.of(metrics.fidelity, references, lookalikes, anchors.held_out_images)
        backgrounds: tuple[Image.Image, ...] = ()
        if all(image.mask for image in images):
            backgrounds = tuple(grey_out_subject(*image.open_with_mask()) for image in images)
        prompt_scale = prompt_anchors(metrics, base_images, prompt_run)
        return cls(
            metrics, prompt_run, scale, prompt_scale, base_images, training_images, backgrounds
        )

    @property
    def no_likeness(self) -> str:
        """Why likeness is not measured, and which judge may measure it; "" if it is measured."""
        if self.fidelity_scale.separates:
            return ""
        name = registry.name_of(type(self.fidelity_scale.metric))
        pocket = name not in ("dino", "clip-i")
        judge = "pocket's classifier" if pocket else name
        flag = "--clip-model" if self.prompt_run.subject.kind == "style" else "--dino-model"
        other = f"{flag} MODEL" if pocket else f"another {flag} model, or more training images"
        return (
            f"{judge} cannot tell these training images from other images, so that a likeness "
            f"would mean nothing; pinxit evaluate with {other} may tell them apart"
        )

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompt of each image that is judged."""
        return self.prompt_run.prompt_of_each_image

    @cached_property
    def base_prompt(self) -> float:
        """The prompt-following score of the base model without the token."""
        return self._prompt_score(self.base_images, self.prompts)

    def score(self, images: Images, prompts: Sequence[Prompt]) -> JudgeScore:
        """The scores of images that were generated with the token, one prompt for each."""
        scale = self.fidelity_scale
        likeness = scale.score(images).relative if scale.separates else None
        return JudgeScore(likeness, self._prompt_score(images, prompts))

    def prompt_scores(self, images: Images, prompts: Sequence[Prompt]) -> list[float]:
        """The prompt-following score of each image, not on the scale."""
        texts = [prompt.target_text for prompt in prompts]
        return self.metrics.prompt_following.score(images, (), texts)

    def _prompt_score(self, images: Images, prompts: Sequence[Prompt]) -> float:
        return relative_position(fmean(self.prompt_scores(images, prompts)), *self.prompt_anchors)


def prompt_anchors(
    metrics: MetricSet, base_images: Images, prompt_run: PromptRun
) -> tuple[float, float]:
    """Prompt-following scores of the base model's images under other prompts and under their own.

    0 and 1 in pocket's world.
    """
    if metrics.eyes:
        return 0.0, 1.0
    texts = [prompt.target_text for prompt in prompt_run.prompt_of_each_image]
    shift = prompt_run.images_per_prompt
    other_texts, score = [*texts[shift:], *texts[:shift]], metrics.prompt_following.score
    return fmean(score(base_images, (), other_texts)), fmean(score(base_images, (), texts))


def suitable_prompts(model: Model, subject: JudgedSubject) -> tuple[Prompt, ...]:
    """All prompts of the set that suits a subject and a base model."""
    noun, style = subject.class_noun, subject.kind == "style"
    return prompt_set(suitable_set(noun, style=style, pocket=uses_pocket_vocabulary(model)), noun)


def crop_to_subject(image: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The part of an image inside its mask, on grey; the image itself without a mask."""
    if mask is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, _GREY), mask).crop(mask.getbbox())


def grey_out_subject(image: Image.Image, mask: Image.Image | None) -> Image.Image:
    """An image with its subject replaced by grey; the image itself without a mask."""
    return Image.composite(Image.new("RGB", image.size, _GREY), image, mask) if mask else image


def _metric(name: str, **settings: object) -> Metric:
    return registry.load("metrics", name)(**settings)


def uses_pocket_vocabulary(model: Model) -> bool:
    """Whether a name that exists only in pocket's world is one token of the model."""
    lengths = {len(encoder.ids(NAMES[0])) for encoder in model.text_encoders.values()}
    return lengths == {1}
