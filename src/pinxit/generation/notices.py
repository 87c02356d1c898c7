"""Notices about a generation request: what the user should know before the images are generated."""

import re
from collections.abc import Iterator, Sequence

from pinxit.adapters.parts import EmbeddingPart
from pinxit.concepts.concept import Concept
from pinxit.generation.control import changed_weights, without_tokens
from pinxit.generation.request import GenerationRequest
from pinxit.models.model import Model
from pinxit.models.prompt import parse_prompt
from pinxit.progress import Notice

# Sizes with less than this fraction of a model's area, or more than its inverse, are unusual.
_MIN_AREA = 0.4
_MAX_SHOWN = 200  # characters of a prompt in a notice
# What prompts of other programs may contain and is not syntax here.
_FOREIGN = re.compile(
    r"<(?:lora|lyco|hypernet):[^<>]*>|\bembedding:\S+|\b(?:BREAK|AND)\b|\[[^\[\]]*[:|][^\[\]]*\]"
)


def request_notices(
    model: Model, request: GenerationRequest, concepts: Sequence[Concept]
) -> Iterator[Notice]:
    """What the user should know about the prompts and the concepts of a request."""
    for prompt in (request.prompt, request.negative_prompt):
        cut = model.truncated_text(prompt, request.prompt_parsing)
        if cut:
            yield Notice(
                f"`{_start(prompt)}` is too long for {model.name}; this part was left out: "
                f"`{_start(cut)}`"
            )
    plain_prompt = without_tokens(request.prompt, concepts)
    yield from _unusual(model, request, plain_prompt)
    sources = [control.source_branch_prompt(plain_prompt) for control in request.controls]
    if request.prompt in sources:
        yield Notice(
            "the prompt and the source prompt are the same, so there is nothing to change. "
            "hint: describe the source image with --source-prompt"
        )
    changed = changed_weights(request.prompt, concepts)
    if request.num_images > 1 and any(one.ignores_seeds(changed) for one in request.controls):
        yield Notice(
            f"the {request.num_images} images will be alike, whatever their seeds: all "
            "start from the noise of the source image. hint: --initial-noise random"
        )
    known = {token.lower() for token in model.placeholders}
    for token in re.findall(r"<[\w-]+>", f"{request.prompt} {request.negative_prompt}"):
        if token.lower() not in known:
            yield Notice(
                f"unknown token `{token}`. hint: load the concept that defines it: --concept RUN"
            )
    yield from _concept_notices(model, request, concepts)


def _start(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _unusual(model: Model, request: GenerationRequest, plain_prompt: str) -> Iterator[Notice]:
    """A request that the model was not made for: size, no prompt, words that it does not know."""
    width, height = request.size(model)
    yield from size_notices(model, width, height)
    for control in request.controls:
        yield from map(Notice, control.problems())
    yield from map(Notice, _without_effect(request, plain_prompt))
    if not request.prompt.strip():
        yield Notice("the prompt is empty: the images show anything that the base model knows")
    brackets = re.sub(r"\\.", "", request.prompt)
    if any(brackets.count(left) != brackets.count(right) for left, right in ("()", "[]")):
        yield Notice(
            "a bracket in the prompt has no partner, so other words may have its weight. hint: "
            "write \\( for a bracket that is text"
        )
    words = re.findall(r"[^\W\d_]+", re.sub(r"<[\w-]+>", " ", plain_prompt))
    encoders = model.text_encoders.values()
    unknown = [word for word in words if not all(e.has_word(word.lower()) for e in encoders)]
    if unknown:
        yield Notice(
            f"{model.name} does not know {_listed(unknown)}: its vocabulary is small, and these "
            "words have no meaning for it"
        )


def _without_effect(request: GenerationRequest, plain_prompt: str) -> Iterator[str]:
    """What was given and changes nothing, or means something else than in other programs."""
    if request.negative_prompt.strip() and request.guidance_scale == 1:
        yield "the negative prompt has no effect at guidance scale 1. hint: --guidance-scale 5"
    default = GenerationRequest.model_fields["denoising_strength"].default
    if request.denoising_strength != default and not request.init_image:
        yield "--denoising-strength has no effect without an image: --init-image FILE"
    foreign = _FOREIGN.findall(f"{plain_prompt} {request.negative_prompt}")
    if foreign:
        yield (
            f"read as ordinary words: {_listed(foreign)}. hint: load LoRAs and embeddings with "
            "--concept FILE:0.8; weights such as (red:1.2) work as in other programs"
        )


def size_notices(model: Model, width: int, height: int) -> Iterator[Notice]:
    """A notice if a size in pixels is far from the one that a model was trained at."""
    ratio = width * height / model.default_size**2
    if not _MIN_AREA <= ratio <= 1 / _MIN_AREA:
        yield Notice(
            f"{model.name} was trained at {model.default_size} pixels: at {width}x{height}, images "
            f"are repeated or lose their structure. hint: --size {model.default_size}"
        )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in dict.fromkeys(words))


def _is_used(model: Model, request: GenerationRequest, concept: Concept) -> bool:
    """Whether a prompt contains a token of the concept, its file name, or an alias's text."""
    prompts = (request.prompt, request.negative_prompt)
    names = {*concept.tokens, concept.nickname}
    pieces = (parse_prompt(prompt, model.placeholders, weights=True) for prompt in prompts)
    lower_names = {name.lower() for name in names}
    texts = [part.prompt_text.lower() for part in concept.parts if part.prompt_text]
    return any(piece.token in names for some in pieces for piece in some if piece.token) or any(
        text in prompt.lower() for text in texts for prompt in prompts if text not in lower_names
    )


def _concept_notices(
    model: Model, request: GenerationRequest, concepts: Sequence[Concept]
) -> Iterator[Notice]:
    """Concepts that the prompts do not use, and what differs from how they were trained."""
    for concept in concepts:
        if concept.tokens and not _is_used(model, request, concept):
            effect = "has an effect all the same" if concept.has_strength else "has no effect"
            yield Notice(
                f"{concept.token} is given, but is not in the prompt: the concept {effect}. hint: "
                f"write {concept.token} as a word of its own"
            )
        for part in concept.parts:
            missing = model.text_encoders.keys() - part.tensors.keys()
            if isinstance(part, EmbeddingPart) and missing:
                yield Notice(
                    f"{part.token} has no vectors for the text encoder `{min(missing)}` of "
                    f"{model.name}, in which it stands for nothing"
                )
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
