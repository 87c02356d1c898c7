# pyright: standard, reportPrivateImportUsage=false
"""A diffusers pipeline with concepts in its weights, made of copies of a model's networks."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch

from pinxit.adapters.adapter import applied
from pinxit.arguments import checked
from pinxit.concepts.concept import Concept, combined_adapters
from pinxit.errors import ConceptError, ModelError
from pinxit.generation.schedulers import make_scheduler
from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.model import Model
from pinxit.models.tokenizers import clip_tokenizer, fast_tokenizer


@checked
@torch.no_grad()
def to_pipeline(model: Model, concepts: Sequence[Concept] | Concept) -> Any:
    """The pipeline of the model's family; see `Model.to_pipeline`."""
    import diffusers

    concepts = [concepts] if isinstance(concepts, Concept) else concepts
    facts = model.facts
    if not facts.pipeline:
        raise ModelError(
            f"{type(model).__name__} models cannot become a diffusers pipeline yet",
            "use pinxit.generate",
        )
    if model.placement.is_quantized:
        raise ModelError(
            f"{model.name} is open in {model.placement.precision}, which pipelines do not support",
            'open it with precision="fp32", "fp16" or "bf16"',
        )
    kind: Any = getattr(diffusers, facts.pipeline)
    # Names of files are no tokens in other programs.
    named = [replace(concept, nickname="") for concept in concepts]
    with applied(model, combined_adapters(named, model)):
        parts = _copied_parts(model)
        if model.placeholders:
            _check_supports_tokens(model, kind)
            _add_tokens(model, parts)
    optional = dict.fromkeys(kind._optional_components)
    settings = model.source.config("")
    for name in ("requires_safety_checker", "force_zeros_for_empty_prompt"):
        if name in signature(kind).parameters:
            optional[name] = settings.get(name, name.startswith("force"))
    parts["scheduler"] = make_scheduler(model.schedule.kind, None, model.scheduler_config)
    return kind(**{**optional, **parts})


def _copied_parts(model: Model) -> dict[str, Any]:
    """Copies of the networks, and new tokenizers, by folder in diffusers' layout."""
    parts: dict[str, Any] = {}
    for folder, name in {**model.facts.networks, **model.facts.frozen_networks}.items():
        if not model.source.has(folder):
            continue
        dtype = None if name in model.frozen_text_encoders else model.placement.dtype
        parts[folder] = copy.deepcopy(model.network(name)).to(dtype=dtype)
        tokenizer = folder.replace("text_encoder", "tokenizer")
        if isinstance(model.text_encoders.get(name), ClipEncoder):
            parts[tokenizer] = clip_tokenizer(model.source, tokenizer)
            parts[tokenizer].model_max_length = parts[folder].config.max_position_embeddings
        elif folder != tokenizer:
            template = getattr(model.frozen_text_encoders.get(name), "chat_template", "")
            parts[tokenizer] = fast_tokenizer(model.source, tokenizer, template)
    return parts


def _check_supports_tokens(model: Model, kind: type) -> None:
    if not hasattr(kind, "maybe_convert_prompt"):
        token = min(model.placeholders)
        raise ConceptError(
            f"{kind.__name__} has no placeholder tokens such as {token}",
            "use pinxit.generate, or pinxit.convert and load_lora_weights for a LoRA",
        )


def _add_tokens(model: Model, parts: Mapping[str, Any]) -> None:
    """Add the placeholder tokens to tokenizers and text encoders, as diffusers does.

    A token with several vectors is followed by `TOKEN_1`, `TOKEN_2`, which the pipeline inserts. A
    token that stands for a text has the embeddings of the text.
    """
    folders = {name: folder for folder, name in model.facts.networks.items()}
    for name, encoder in model.text_encoders.items():
        network = parts[folders[name]]
        tokenizer = parts[folders[name].replace("text_encoder", "tokenizer")]
        vectors = {
            f"{token}_{number}" if number else token: vector
            for token, meaning in model.placeholders.items()
            for number, vector in enumerate(
                meaning.vectors[name] if meaning.vectors else encoder.token_embeddings(meaning.text)
            )
        }
        tokenizer.add_tokens(list(vectors))
        with torch.random.fork_rng([]):  # the new rows are random at first
            network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = network.get_input_embeddings().weight
        for token, vector in vectors.items():
            table[tokenizer.convert_tokens_to_ids(token)] = vector.to(table)
        # The pooled state is that of the end token; the largest id may now be an added token's.
        for module in network.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = tokenizer.eos_token_id
