"""Generation requests and the denoising loop that all families and controls share."""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import torch
from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, field_validator
from torch import Tensor

from pinxit.adapters.adapter import applied
from pinxit.concepts.concept import Concept, combined_adapters
from pinxit.concepts.read import ConceptReference
from pinxit.errors import PinxitError, RequestError
from pinxit.files.atomic_write import atomic_write
from pinxit.generation.control import (
    ControlField,
    ControlHooks,
    SamplingContext,
    SamplingProgress,
    prepare_controls,
    without_tokens,
)
from pinxit.generation.schedulers import SCHEDULER_ALIASES, SCHEDULERS, Sampler, scheduler_name
from pinxit.images.tensors import to_image
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model, Precision
from pinxit.models.text_encoder import CLIP_SKIP, PromptParsing
from pinxit.options import Option, Options
from pinxit.progress import Notice

if TYPE_CHECKING:
    from PIL.Image import Image

_KEY = "pinxit"

# Images share a batch up to this many latent positions in all, and up to this many images.
_MAX_LATENT_POSITIONS = 8192
_MAX_BATCH = 16


def _concept_reference(value: object) -> object:
    return ConceptReference.parse(value) if isinstance(value, str | Path) else value


class GenerationRequest(Options):
    """Everything that determines generated images, except the weights of the base model."""

    error_type: ClassVar[type[PinxitError]] = RequestError

    prompt: str = Option(help="text prompt; may contain tokens of loaded concepts, like <mytoy>")
    negative_prompt: str = Option(
        "", aliases=("negative",), help="negative prompt: what the images should not show"
    )
    concepts: tuple[
        Annotated[ConceptReference, BeforeValidator(_concept_reference), PlainSerializer(str)], ...
    ] = Option(
        (),
        aliases=("concept",),
        help="run folders or concept files to load; FILE:0.7 scales a LoRA by 0.7",
    )
    num_images: int = Option(1, ge=1, aliases=("count", "n"), help="number of images")
    seed: int = Option(0, help="seed of the first image; each further image adds 1")
    steps: int = Option(
        25, ge=1, le=1000, aliases=("num_inference_steps",), help="number of denoising steps"
    )
    guidance_scale: float = Option(
        5.0,
        ge=1,
        aliases=("guidance", "cfg", "cfg_scale"),
        help="classifier-free guidance scale: higher follows the prompt more closely, 1 turns it "
        "off",
    )
    scheduler: str | None = Option(
        None,
        aliases=("sampler",),
        values=SCHEDULER_ALIASES,
        help=f"noise scheduler (sampler): {', '.join(SCHEDULERS)}",
        default_is="ddim; euler for base models that are rectified flows",
    )
    clip_skip: int | None = Option(
        None, ge=1, help=CLIP_SKIP, default_is="the base model's own layer"
    )
    width: int | None = Option(
        None,
        ge=8,
        help="image width in pixels",
        default_is="the height, or the base model's image size",
    )
    height: int | None = Option(None, ge=8, help="image height in pixels", default_is="the width")
    init_image: Path | None = Option(
        None, aliases=("init",), help="image to start from (image-to-image)"
    )
    denoising_strength: float = Option(
        0.6,
        gt=0,
        le=1,
        aliases=("strength",),
        help="how much of the initial image is replaced: the fraction of the steps that run",
    )
    controls: tuple[ControlField, ...] = Option(
        (), help="controls that preserve the structure of an image: see `pinxit transfer --help`"
    )
    base: str = Option("pocket", help="base model: a name, a folder, a checkpoint file or a hub id")
    vae: str | None = Option(
        None, help="VAE: a folder, a file or a hub id", default_is="the base model's own"
    )
    precision: Precision | None = Option(
        None, help="number format to compute in", default_is="chosen for the device"
    )

    @classmethod
    def title(cls) -> str:
        """What a message calls the request."""
        return "the request"

    @field_validator("scheduler")
    @classmethod
    def _is_scheduler(cls, name: str | None, _info: ValidationInfo) -> str | None:
        return name and scheduler_name("diffusion", name)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(range(self.seed, self.seed + self.num_images))

    def size(self, model: Model) -> tuple[int, int]:
        """Width and height in pixels on this model; RequestError if the latents do not allow it."""
        width = self.width or self.height or model.default_size
        height = self.height or width
        multiple = model.size_multiple
        if width % multiple or height % multiple:
            raise RequestError(
                f"{model.name} cannot generate {width}x{height} pixels: both sides must be "
                f"multiples of {multiple}",
                f"try {_nearest(width, multiple)}x{_nearest(height, multiple)}",
            )
        return width, height

    @property
    def prompt_parsing(self) -> PromptParsing:
        """How the prompts are parsed: with attention weights, as long as the model allows."""
        return PromptParsing(weights=True, long_prompts=True, clip_skip=self.clip_skip)

    @classmethod
    def from_png(cls, path: Path) -> Self:
        """The request that is stored in a generated image; RequestError if there is none."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                text: object = image.info.get(_KEY)
        except (OSError, UnidentifiedImageError) as error:
            raise RequestError(
                f"image {path} cannot be read: {error}", "give a PNG that pinxit generated"
            ) from error
        if not isinstance(text, str):
            raise RequestError(
                f"{path} contains no generation request", "give a PNG that pinxit generated"
            )
        return cls.model_validate_json(text)


@dataclass(frozen=True)
class GeneratedImage:
    """A finished image, the request that generates it again, and its latents (C, H, W)."""

    image: "Image" = field(repr=False)
    request: GenerationRequest
    latents: Tensor = field(repr=False)

    def save(self, path: Path) -> None:
        """Write a PNG with the request stored in its metadata."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text(_KEY, self.request.model_dump_json(exclude_none=True))
        atomic_write(path, lambda draft: self.image.save(draft, "PNG", pnginfo=info))


@torch.no_grad()
def sample_images(
    model: Model, request: GenerationRequest, concepts: Sequence[Concept] = ()
) -> Generator[Notice | SamplingProgress | GeneratedImage]:
    """Generate the images of a request and yield notices, progress and results.

    The concepts are applied to the model until the generator is closed.
    """
    width, height = request.size(model)
    _, rows_of_latents, columns = model.latent_shape(width, height)
    positions = rows_of_latents * columns
    plain_prompt = without_tokens(request.prompt, concepts)
    branch_prompts = [control.source_branch_prompt(plain_prompt) for control in request.controls]
    source_prompts = [prompt for prompt in branch_prompts if prompt is not None]
    changed = any(concept.has_strength or concept.has_full_weights for concept in concepts)
    rows = min(_MAX_BATCH, _MAX_LATENT_POSITIONS // positions)
    batch_size = max(1, rows // (1 + len(source_prompts)))
    batches = [
        request.seeds[first : first + batch_size]
        for first in range(0, request.num_images, batch_size)
    ]
    with applied(model, combined_adapters(concepts, model)):
        yield from _notices(model, request, concepts)
        if request.prompt in source_prompts:
            yield Notice(
                "the prompt and the source prompt are the same, so there is nothing to change. "
                "hint: describe the source image with --source-prompt"
            )
        prompts = [request.negative_prompt, request.prompt, *source_prompts]
        conditioning = model.condition(prompts, request.prompt_parsing)
        for number, seeds in enumerate(batches):
            events = _sample_batch(model, request, conditioning, seeds, branch_prompts, changed)
            for event in events:
                if isinstance(event, SamplingProgress):
                    done = number * event.total + event.done
                    yield replace(event, done=done, total=event.total * len(batches))
                else:
                    yield event


def generate_images(
    model: Model, request: GenerationRequest | str, concepts: Sequence[Concept | Path | str] = ()
) -> list[GeneratedImage]:
    """Generate images from a request or a prompt, with concepts or references like FILE:0.7."""
    references = [
        concept if isinstance(concept, Concept) else ConceptReference.parse(concept)
        for concept in concepts
    ]
    if isinstance(request, str):
        files = (reference for reference in references if isinstance(reference, ConceptReference))
        absolute = tuple(ConceptReference(file.path.resolve(), file.strength) for file in files)
        request = GenerationRequest(prompt=request, concepts=absolute)
    loaded = [
        reference if isinstance(reference, Concept) else reference.open()
        for reference in references
    ]
    events = sample_images(model, request, loaded)
    return [event for event in events if isinstance(event, GeneratedImage)]


def _sample_batch(
    model: Model,
    request: GenerationRequest,
    conditioning: Conditioning,
    seeds: Sequence[int],
    branch_prompts: Sequence[str | None],
    has_weight_changes: bool,
) -> Iterator[SamplingProgress | GeneratedImage]:
    """Denoise one batch of images; each image has its own random generator.

    `conditioning` has a row for the negative prompt, one for the prompt, and one for each prompt
    in `branch_prompts`, which has None for a control without a source branch.
    """
    kind, config = model.schedule.kind, model.scheduler_config
    name = scheduler_name(kind, request.scheduler)
    shape = model.latent_shape(*request.size(model))
    sampler = Sampler(kind, name, config, request.steps, shape)
    context = SamplingContext(
        model=model,
        make_sampler=lambda: Sampler(kind, name, config, request.steps, shape),
        size=request.size(model),
        seeds=seeds,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        conditioning=conditioning[1:2],
        has_weight_changes=has_weight_changes,
        branch=0,
        source_branches=len(conditioning.states) - 2,
    )
    hooks, steps_before = yield from prepare_controls(
        context, request.controls, conditioning, branch_prompts
    )
    start = _initial_latents(context, request, sampler, hooks)
    sources = [source for hook in hooks if (source := hook.source_latents(start)) is not None]
    latents, count = torch.cat([start, *sources]), len(seeds)
    branches = range(context.source_branches + 1)
    generators = [_copy(generator) for _ in branches for generator in context.generators]
    rows = [conditioning[branch + 1 : branch + 2] for branch in branches for _ in seeds]
    positive = Conditioning.stack(rows)
    negative = Conditioning.stack([conditioning[:1]] * len(latents))
    total = steps_before + len(sampler.timesteps)
    first_step = len(context.timesteps) - len(sampler.timesteps)
    with applied(model, [adapter for hook in hooks for adapter in hook.adapters]):
        for step, timestep in enumerate(sampler.timesteps, first_step):
            for hook in hooks:
                latents = hook.before_step(step, latents)
            scaled = sampler.scale_model_input(latents, timestep)
            prediction = model.guided(scaled, timestep, positive, negative, request.guidance_scale)
            latents = sampler.step(prediction, timestep, latents, generators)
            for hook in hooks:
                latents = hook.after_step(step, latents)
            done = steps_before + step - first_step + 1
            yield SamplingProgress("generating", done, total, latents=latents[:count])
    pixels = model.decode(latents[:count])
    for hook in hooks:
        pixels = hook.finished(pixels)
    used: dict[str, object] = {"base": model.name, "vae": model.source.vae, "num_images": 1}
    used |= {"precision": model.placement.precision, "scheduler": name}
    for seed, image_latents, image in zip(seeds, latents, pixels, strict=False):
        image_request = request.model_copy(update={**used, "seed": seed})
        yield GeneratedImage(to_image(image), image_request, image_latents)


def _initial_latents(
    context: SamplingContext,
    request: GenerationRequest,
    sampler: Sampler,
    hooks: Sequence[ControlHooks],
) -> Tensor:
    """The latents before the first step: noise, or from the initial image or a control."""
    starts = [start for hook in hooks if (start := hook.initial_latents(sampler)) is not None]
    if request.init_image is not None:
        starts.append(context.noise_image(sampler, request.init_image, request.denoising_strength))
    if len(starts) > 1:
        raise RequestError(
            f"{len(starts)} options set the initial latents, and only one can",
            "use --init-image or one control that sets them (img2img, inversion)",
        )
    return starts[0] if starts else sampler.scale_initial_noise(context.noise())


def _copy(generator: torch.Generator) -> torch.Generator:
    """A second generator in the same state."""
    return torch.Generator().set_state(generator.get_state())


def _notices(
    model: Model, request: GenerationRequest, concepts: Sequence[Concept]
) -> Iterator[Notice]:
    """What the user should know about the prompts and the concepts of a request."""
    for prompt in (request.prompt, request.negative_prompt):
        cut = model.truncated_text(prompt, request.prompt_parsing)
        if cut:
            yield Notice(
                f"`{prompt}` is too long for {model.name}; this part was left out: `{cut}`"
            )
    known = {token.lower() for token in model.placeholders}
    for token in re.findall(r"<[\w-]+>", f"{request.prompt} {request.negative_prompt}"):
        if token.lower() not in known:
            yield Notice(
                f"unknown token `{token}`. hint: load the concept that defines it: --concept RUN"
            )
    for concept in concepts:
        if concept.provenance.base_hash not in ("", model.hash):
            yield Notice(
                f"{concept.token} was trained on {concept.provenance.base}, not on {model.name}: "
                "images may differ from the training images"
            )
        clip_skip: int | None = concept.provenance.recipe_values.get("clip_skip")
        if clip_skip not in (None, request.clip_skip):
            yield Notice(
                f"{concept.token} was trained with clip skip {clip_skip}. hint: add --clip-skip "
                f"{clip_skip}"
            )


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
