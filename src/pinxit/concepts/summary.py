"""A summary of a concept file for a person: content, what it fits, origin, use and problems."""

import re
from collections.abc import Iterator
from pathlib import Path

from pinxit import registry
from pinxit.adapters.parts import norm_range
from pinxit.concepts.concept import Concept
from pinxit.concepts.programs import outcomes
from pinxit.concepts.read import open_concept, recognize_format
from pinxit.errors import typed
from pinxit.files.open_any import OpenedFile
from pinxit.models.open_base import open_base

# Metadata that training programs write and that is not shown.
_HIDDEN_METADATA = re.compile(
    r"(ss_|sshs_|modelspec\.)"
    r"(?!(base_model_version|sd_model_name|steps|output_name|title|author|trigger_phrase)$)"
)


def summarize(file: Path, base: str | None = None) -> Iterator[tuple[str, str]]:
    """Labels and texts about a concept file; with `base` also that model's embedding norms.

    Raises ConceptError or FileError if the file contains no concept.
    """
    opened = open_concept(file)
    layout = recognize_format(opened)
    concept = layout.read(opened).with_nickname(file)
    name = registry.name_of(type(layout))
    yield "format", f"{name}: {registry.summary('formats', name)}"
    for part in concept.parts:
        yield from part.describe()
    if base is not None:
        yield "base model", _vocabulary(base)
    yield "origin", _origin(concept)
    yield "to use", _usage(concept, file)
    results = outcomes(name, file.suffix, concept)
    programs = [program for program in results if results[program].startswith(("exact", "close"))]
    yield "opens in", ", ".join(programs) or layout.used_by
    for problem in _problems(opened, concept) or ["nothing"]:
        yield "suspicious", problem


def _usage(concept: Concept, file: Path) -> str:
    """How to generate with the concept."""
    nickname = concept.nickname if concept.nickname != concept.token else ""
    also = f", or `{nickname}`" if nickname else ""
    prompt = f"write {concept.token}{also} in the prompt, with " if concept.tokens else ""
    path = typed(file)
    other = "" if concept.tokens else f", or --base {path}"
    if concept.has_strength:
        other = f", or --concept {path}:0.7 for a lower strength"
    return f"{prompt}--concept {path}{other}"


def _vocabulary(base: str) -> str:
    """The embedding norms of a base model's own vocabulary."""
    model = open_base(base)
    tables = {
        name: text_encoder.embedding.weight.detach()
        for name, text_encoder in model.text_encoders.items()
    }
    norms = [f"{norm_range(t)} for `{name}` (width {t.shape[1]})" for name, t in tables.items()]
    return f"embedding norms of {model.name}: {'; '.join(norms)}"


def _origin(concept: Concept) -> str:
    """What the file says about its training."""
    provenance = concept.provenance
    facts: list[str] = []
    if provenance.method:
        count = len(provenance.images)
        images = f"{count} image{'' if count == 1 else 's'}"
        facts.append(f"{provenance.method}, {provenance.steps} steps, {images}")
    facts += [
        f"{name} {value}"
        for name, value in provenance.metadata.items()
        if not _HIDDEN_METADATA.match(name)
    ]
    if provenance.base:
        facts.append(f"base model {provenance.base}")
    return ", ".join(facts) or "unknown: the file does not say"


def _problems(opened: OpenedFile, concept: Concept) -> list[str]:
    """What a user should know before using the file."""
    problems: list[str] = []
    is_safetensors = opened.path.suffix == ".safetensors"
    if opened.container != "folder" and is_safetensors != (opened.container == "safetensors"):
        problems.append(f"{opened.path.name} is really a {opened.container} file")
    return problems + [problem for part in concept.parts for problem in part.problems()]
