"""What a control is: a way to preserve the structure of a source image during generation."""

import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from PIL.Image import Image
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import ModelChange
from pinxit.concepts.concept import Concept
from pinxit.errors import ImageError, PinxitError, RequestError
from pinxit.generation.schedulers import Sampler
from pinxit.images.collected import ImageFile
from pinxit.images.decode import UnreadableError, decode
from pinxit.images.tensors import to_pixels
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model
from pinxit.models.prompt import normal_form, token_pattern
from pinxit.options import Option, Options
from pinxit.progress import Progress

ChangedWeights = Literal["none", "style", "object"]


@dataclass(frozen=True)
class SamplingProgress(Progress):
    """The progress of sampling in steps, and the latents after the last step, (N, C, H, W)."""

    latents: Tensor = field(repr=False, kw_only=True)


@dataclass(frozen=True)
class SamplingContext:
    """A batch of images that is about to be denoised, as its controls see it.

    The rows of the latents are those of `num_branches` branches: the generated images (branch 0),
    then as many rows for each source branch. `branch` is the number of the control's own source
    branch, or 0 without one, and `conditioning` is that of the branch's prompt, (1, L, D).
    `changed_weights` is what the prompt calls the concepts that have changed weights of the base
    model, if there are any.
    """

    model: Model
    scheduler: str
    steps: int
    size: tuple[int, int]
    seeds: Sequence[int]
    generators: Sequence[torch.Generator]
    conditioning: Conditioning
    branch: int = 0
    num_branches: int = 1
    changed_weights: ChangedWeights = "none"

    def make_sampler(self) -> Sampler:
        """A new sampler; each one serves for one run from noise to image."""
        model = self.model
        shape, config = model.latent_shape(*self.size), model.scheduler_config
        return Sampler(model.schedule, self.scheduler, config, self.steps, shape)

    def split_branches(self, latents: Tensor) -> Tensor:
        """A copy of the latents of all branches as (branches, N, C, H, W)."""
        return latents.unflatten(0, (self.num_branches, len(self.seeds))).clone()

    @cached_property
    def timesteps(self) -> Tensor:
        """All timesteps of the sampler, from noise to image."""
        return self.make_sampler().timesteps

    def noise(self, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Unit noise (N, C, H, W), each image's from its own generator."""
        shape = (1, *self.model.latent_shape(*self.size))
        noises = [torch.randn(shape, generator=rng) for rng in generators or self.generators]
        return torch.cat(noises).to(self.model.device)

    def pixels(self, path: Path) -> Tensor:
        """The pixels of an image file, (1, 3, H, W), at the size of the generated images."""
        return to_pixels(read_image(path), *self.size)

    def noise_image(self, sampler: Sampler, path: Path, strength: float) -> Tensor:
        """Noisy latents of an image file; the last `strength` of the sampler's steps remain."""
        encoded = self.model.encode(self.pixels(path))
        latents = encoded.mean + encoded.std * self.noise()
        return sampler.noise_image_latents(latents, self.noise(), strength)

    def trajectory(self, latents: Tensor, noises: Sequence[Tensor]) -> list[Tensor]:
        """Latents (1, C, H, W) under the given noise of each timestep, then without noise.

        Each of them is repeated for all images, (N, C, H, W).
        """
        noisy = [
            self.make_sampler().add_noise(latents, noise, timestep)
            for noise, timestep in zip(noises, self.timesteps, strict=True)
        ]
        return [stage.expand(len(self.seeds), -1, -1, -1) for stage in [*noisy, latents]]


class ControlHooks:
    """Callbacks of a control around the denoising loop. The defaults change nothing.

    `step` is the index of the timestep. Latents are (N, C, H, W) with the rows of all branches.
    """

    adapters: Sequence[ModelChange] = ()

    def initial_latents(self, sampler: Sampler) -> Tensor | None:  # noqa: ARG002
        """Latents of the images to start from instead of noise, or None."""
        return None

    def source_latents(self, latents: Tensor) -> Tensor | None:  # noqa: ARG002
        """Initial latents of the source branch, given those of the images, or None."""
        return None

    def before_step(self, step: int, latents: Tensor) -> Tensor:  # noqa: ARG002
        """The latents that the denoiser sees at this step."""
        return latents

    def after_step(self, step: int, latents: Tensor) -> Tensor:  # noqa: ARG002
        """The latents to continue with after this step."""
        return latents

    def finished(self, pixels: Tensor) -> Tensor:
        """The final images (N, 3, H, W), given the decoded ones."""
        return pixels


class Control(registry.Plugin, Options, ABC):
    """A way to preserve something of a source image; its fields are options of the request.

    `recommended_guidance` is the guidance scale for small and for large base models, where the
    user gives none. `extra_passes` is how many times it runs over all timesteps beforehand.
    """

    label: ClassVar[str] = "control"
    error_type: ClassVar[type[PinxitError]] = RequestError
    recommended_guidance: ClassVar[tuple[float, float] | None] = None
    extra_passes: ClassVar[int] = 0

    def problems(self) -> list[str]:
        """What the user should know about its options."""
        return []

    def check(self) -> None:
        """Raise RequestError for files that are missing or do not fit; needs no model."""

    @property
    def sets_initial_latents(self) -> bool:
        """Whether the images start from the source image instead of noise."""
        return False

    def ignores_seeds(self, changed: ChangedWeights) -> bool:  # noqa: ARG002
        """Whether images start alike whatever their seeds are."""
        return False

    def source_branch_prompt(self, plain_prompt: str) -> str | None:  # noqa: ARG002
        """The prompt of the source branch, or None for a control without one.

        `plain_prompt` is the request's prompt without placeholder tokens.
        """
        return None

    @abstractmethod
    def prepare(self, context: SamplingContext) -> Generator[Tensor, None, ControlHooks]:
        """Return the hooks for a batch; yields latents after each step of an extra pass."""


PRESERVE: float = Option(
    0.5,
    ge=0,
    le=1,
    aliases=("keep",),
    help="how much of the source image to preserve: 0 nothing, 1 everything",
)


class ImageControl(Control):
    """A control that preserves something of one image file."""

    image: ImageFile = Option(aliases=("picture",))
    """source image"""

    def check(self) -> None:
        """The source image must be one."""
        read_image(self.image)


def prepare_controls(
    context: SamplingContext, controls: Sequence[Control], sources: Sequence[Conditioning | None]
) -> Generator[SamplingProgress, None, tuple[list[ControlHooks], int]]:
    """Prepare each control for a batch: its hooks, and how many steps that took in all.

    `sources` has the conditioning of each control's source branch, (1, L, D), or None.
    """
    hooks: list[ControlHooks] = []
    branches = count(1)
    done, steps_per_pass = 0, len(context.timesteps.unique())
    extra_steps = steps_per_pass * sum(control.extra_passes for control in controls)
    total = len(context.timesteps) + extra_steps
    for control, source in zip(controls, sources, strict=True):
        own_context = context
        if source is not None:
            own_context = replace(context, branch=next(branches), conditioning=source)
        preparation = control.prepare(own_context)
        while True:
            try:
                latents = next(preparation)
            except StopIteration as end:
                hooks.append(end.value)
                break
            done += 1
            yield SamplingProgress("generating", done, total, latents=latents)
    return hooks, done


def without_tokens(prompt: str, concepts: Sequence[Concept]) -> str:
    """The prompt with tokens of subjects replaced by class nouns, and styles left out."""
    prompt = _without_styles(prompt, concepts)
    for concept in concepts:
        noun = concept.provenance.class_noun.replace("\\", "")
        for expression in _token_expressions(concept):
            prompt = re.sub(expression, noun, prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


def changed_weights(prompt: str, concepts: Sequence[Concept]) -> ChangedWeights:
    """What the prompt calls the concepts that change weights: a style, unless it names an object.

    "none" if none of them changes weights of the base model.
    """
    changing = [one for one in concepts if one.has_strength or one.has_full_weights]
    rest = _without_styles(prompt, changing)
    expressions = [expression for one in changing for expression in _token_expressions(one)]
    if any(re.search(expression, rest, re.IGNORECASE) for expression in expressions):
        return "object"
    return "style" if changing else "none"


def _without_styles(prompt: str, concepts: Sequence[Concept]) -> str:
    prompt = normal_form(prompt)
    for concept in concepts:
        for expression in _token_expressions(concept):
            prompt = re.sub(rf",?\s*in the style of {expression}", "", prompt, flags=re.IGNORECASE)
    return prompt


def _token_expressions(concept: Concept) -> list[str]:
    tokens = filter(None, (*concept.tokens, concept.nickname))
    return [token_pattern((normal_form(token),)).pattern for token in tokens]


def read_image(path: Path) -> Image:
    """The decoded image of a file; RequestError if there is none, ImageError if it is damaged."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder, not an image", "give one of the files in it")
    if not path.is_file():
        raise RequestError(f"there is no image {path}", "give an image file")
    try:
        return decode(path).image
    except UnreadableError as error:
        raise ImageError(f"image {path} cannot be read: {error}", "give another file") from error


# A control as a field of a request.
_READ_CONTROL = BeforeValidator(partial(registry.from_table, "controls"))
ControlField = Annotated[Control, _READ_CONTROL, PlainSerializer(registry.to_table)]
