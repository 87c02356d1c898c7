"""The denoising loop that all families and controls share."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pinxit.adapters.adapter import applied, before_denoise
from pinxit.concepts.concept import Concept, combined_adapters
from pinxit.concepts.read import ConceptReference
from pinxit.errors import RequestError
from pinxit.generation.control import (
    ChangedWeights,
    ControlHooks,
    SamplingContext,
    SamplingProgress,
    changed_weights,
    prepare_controls,
    without_tokens,
)
from pinxit.generation.finite import check_finite
from pinxit.generation.notices import request_notices
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.schedulers import Sampler, scheduler_name
from pinxit.generation.style_guidance import STYLE_SHARE, styled_negative_prompt
from pinxit.images.tensors import to_image
from pinxit.models.conditioning import Conditioning
from pinxit.models.device import memory_errors, release_unused_memory
from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, Ranks
from pinxit.progress import Notice

# Images share a batch up to this many latent positions in all, and up to this many images.
_MAX_LATENT_POSITIONS = 8192
_MAX_BATCH = 16


def generate_images(
    model: Model, request: GenerationRequest | str, concepts: Sequence[Concept | Path | str] = ()
) -> list[GeneratedImage]:
    """Generate images from a request or a prompt, with concepts or references like FILE:0.7."""
    events = sample_images(model, *opened_request(request, concepts))
    return [event for event in events if isinstance(event, GeneratedImage)]


def batch_requests(model: Model, request: GenerationRequest) -> list[GenerationRequest]:
    """A request for each batch of a request without controls; the images have the same bits."""
    size = request.with_defaults(model).size(model)
    return [
        request.model_copy(update={"seed": seeds[0], "num_images": len(seeds)})
        for seeds in _seed_batches(model, request, size, 1)
    ]


def opened_request(
    request: GenerationRequest | str,
    concepts: Sequence[Concept | PathLike[str] | str],
    **options: object,
) -> tuple[GenerationRequest, list[Concept]]:
    """A request, or one of a prompt, with other options on top, and its concepts, read."""
    files: list[ConceptReference] = []
    loaded: list[Concept] = []
    for concept in concepts:
        if not isinstance(concept, Concept):
            file = ConceptReference.parse(concept)
            files.append(ConceptReference(file.path.resolve(), file.strength))
            concept = file.open()
        loaded.append(concept)
    if isinstance(request, str):
        request = GenerationRequest(prompt=request, concepts=tuple(files))
    if options:
        given = GenerationRequest.model_validate({"prompt": request.prompt, **options})
        changes = {name: getattr(given, name) for name in given.model_fields_set}
        request = request.model_copy(update=changes)
    return request, loaded


@torch.no_grad()
def sample_images(
    model: Model, request: GenerationRequest, concepts: Sequence[Concept] = (), ranks: Ranks = ALONE
) -> Generator[Notice | SamplingProgress | GeneratedImage]:
    """Generate the images of a request and yield notices, progress and results.

    The concepts are applied to the model until the generator is closed. Of several processes, each
    generates its share of the batches, which are those of one process: an image has the same bits.
    """
    request = request.with_defaults(model)
    request.check_start()
    size = request.size(model)  # a wrong size is reported before anything is done
    hint = "choose a smaller base model, another --precision, or --device cpu"
    enough_memory = memory_errors(RequestError, f"on {model.device} to generate", hint)
    with enough_memory, applied(model, combined_adapters(concepts, model)):
        yield from request_notices(model, request, concepts)
        plain_prompt = without_tokens(request.prompt, concepts)
        source_prompts = [one.source_branch_prompt(plain_prompt) for one in request.controls]
        prompts = _Prompts.encoded(model, request, source_prompts)
        batches = ranks.share(_seed_batches(model, request, size, len(prompts.branches)))
        changed = changed_weights(request.prompt, concepts)
        number, offloaded = 0, False
        while number < len(batches):
            try:
                for event in _sample_batch(model, request, prompts, batches[number], changed):
                    if isinstance(event, SamplingProgress):
                        done, total = number * event.total + event.done, len(batches) * event.total
                        yield replace(event, done=done, total=total)
                    else:
                        yield event
                number += 1
            except torch.OutOfMemoryError as error:
                # Processes that divide the weights must all do the same.
                sharded = any(getattr(one, "sharded", None) for one in model.changes)
                if sharded or (offloaded and len(batches[number]) == 1):
                    raise RequestError(
                        f"not enough memory on {model.device} for an image of {size[0]}x{size[1]} "
                        f"pixels in {model.placement.precision}",
                        "choose a smaller --size, --precision bf16, or --device cpu",
                    ) from error
                batches[number:] = _smaller_batches(model, batches[number:])
                offloaded = True
                yield Notice(f"memory ran out: {len(batches[number])} at a time from now on")


def _smaller_batches(model: Model, batches: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Offload unused networks after memory ran out; returns the seeds of halved batches."""
    # Networks that a concept has changed cannot be read again from the base model.
    changed = any(getattr(one, "changes_conditioning", False) for one in model.changes)
    encoders = () if changed else model.text_encoders
    model.offload("vae", *model.frozen_text_encoders, *encoders)
    release_unused_memory()
    middles = [(seeds, (len(seeds) + 1) // 2) for seeds in batches]
    halves = [half for seeds, at in middles for half in (seeds[:at], seeds[at:])]
    return list(filter(None, halves))


@dataclass(frozen=True)
class _Prompts:
    """The conditioning of each prompt, (1, L, D); `sources` has one for each control, or None.

    A batch has a branch of images for the prompt, then one for each source prompt, whose negative
    prompt has no style.
    """

    negative: Conditioning
    source_negative: Conditioning
    prompt: Conditioning
    sources: tuple[Conditioning | None, ...]

    @classmethod
    def encoded(
        cls, model: Model, request: GenerationRequest, source_prompts: Sequence[str | None]
    ) -> Self:
        """The conditioning of the prompts of a request and of its controls."""
        texts = [request.negative_prompt, request.prompt]
        texts += [prompt for prompt in source_prompts if prompt is not None]
        styled = styled_negative_prompt(model, request)
        texts += [styled] if styled else []
        conditioning = model.condition(texts, request.prompt_parsing)
        rows = iter([conditioning[row : row + 1] for row in range(len(texts))])
        plain, prompt = next(rows), next(rows)
        sources = tuple(None if source is None else next(rows) for source in source_prompts)
        negative = plain
        if styled:
            negative = Conditioning.stack([plain, next(rows)]).mixed(STYLE_SHARE)
        return cls(negative, plain, prompt, sources)

    @property
    def branches(self) -> list[Conditioning]:
        """The conditioning of each branch of a batch."""
        return [self.prompt, *(source for source in self.sources if source is not None)]

    @property
    def negatives(self) -> list[Conditioning]:
        """The conditioning of the negative prompt of each branch."""
        return [self.negative, *[self.source_negative] * (len(self.branches) - 1)]


def _seed_batches(
    model: Model, request: GenerationRequest, size: tuple[int, int], num_branches: int
) -> list[tuple[int, ...]]:
    """The seeds of each batch; all branches of a batch fit into memory."""
    _, height, width = model.latent_shape(*size)
    rows = min(_MAX_BATCH, _MAX_LATENT_POSITIONS // (width * height))
    count = max(1, rows // num_branches)
    seeds = request.seeds
    return [seeds[i : i + count] for i in range(0, len(seeds), count)]


def _sample_batch(
    model: Model,
    request: GenerationRequest,
    prompts: _Prompts,
    seeds: Sequence[int],
    changed: ChangedWeights,
) -> Iterator[SamplingProgress | GeneratedImage]:
    """Generate one batch of images; each image has its own random generator."""
    context = SamplingContext(
        model=model,
        scheduler=scheduler_name(model.schedule.kind, request.scheduler),
        steps=request.steps,
        size=request.size(model),
        seeds=seeds,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        conditioning=prompts.prompt,
        num_branches=len(prompts.branches),
        changed_weights=changed,
    )
    hooks, steps_before = yield from prepare_controls(context, request.controls, prompts.sources)
    sampler = context.make_sampler()
    starts = [start for hook in hooks if (start := hook.initial_latents(sampler)) is not None]
    if request.init_image is not None:
        starts.append(context.noise_image(sampler, request.init_image, request.denoising_strength))
    images = starts[0] if starts else sampler.scale_initial_noise(context.noise())
    sources = [source for hook in hooks if (source := hook.source_latents(images)) is not None]
    steps = _denoise(
        context, sampler, torch.cat([images, *sources]), prompts, hooks, request.guidance_scale
    )
    total = steps_before + len(sampler.timesteps)
    with applied(model, [adapter for hook in hooks for adapter in hook.adapters]):
        for done, latents in enumerate(steps, steps_before + 1):
            images = latents[: len(seeds)]
            yield SamplingProgress("generating", done, total, latents=images)
    yield from _finished_images(context, request, images, hooks)


def _denoise(
    context: SamplingContext,
    sampler: Sampler,
    latents: Tensor,
    prompts: _Prompts,
    hooks: Sequence[ControlHooks],
    scale: float,
) -> Iterator[Tensor]:
    """Denoise the latents of all branches, (branches * N, C, H, W); yields them after each step."""
    rows = [row for row in prompts.branches for _ in context.seeds]
    negative = [row for row in prompts.negatives for _ in context.seeds] if scale > 1 else []
    conditioning = Conditioning.stack([*negative, *rows])
    # Each branch draws the same random numbers.
    states = [rng.get_state() for _ in prompts.branches for rng in context.generators]
    generators = [torch.Generator().set_state(state) for state in states]
    first_step = len(context.timesteps) - len(sampler.timesteps)
    for step, timestep in enumerate(sampler.timesteps, first_step):
        for hook in hooks:
            latents = hook.before_step(step, latents)
        scaled = sampler.scale_model_input(latents, timestep)
        before_denoise(context.model, timestep.view(1))
        prediction = context.model.guided(scaled, timestep, conditioning, scale)
        latents = sampler.step(prediction, timestep, latents, generators)
        for hook in hooks:
            latents = hook.after_step(step, latents)
        yield latents


def _finished_images(
    context: SamplingContext,
    request: GenerationRequest,
    latents: Tensor,
    hooks: Sequence[ControlHooks],
) -> Iterator[GeneratedImage]:
    """The images of final latents, each with the request that generates it alone."""
    model = context.model
    pixels = model.decode(latents)
    check_finite(model, latents, pixels)
    for hook in hooks:
        pixels = hook.finished(pixels)
    used = {
        "base": model.name,
        "vae": model.source.vae,
        "text_encoders": model.source.text_encoders,
        "num_images": 1,
        "precision": model.placement.precision,
        "scheduler": context.scheduler,
    }
    for seed, image_latents, image in zip(context.seeds, latents, pixels, strict=True):
        image_request = request.model_copy(update={**used, "seed": seed})
        yield GeneratedImage(to_image(image), image_request, image_latents)
