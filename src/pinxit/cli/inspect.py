"""`pinxit inspect`: what a concept file contains, which base models it fits, and its problems."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pinxit import registry
from pinxit.cli.screen import data, printable

if TYPE_CHECKING:
    from torch import Tensor

    from pinxit.adapters.adapter import Part
    from pinxit.concepts.concept import Concept
    from pinxit.files.open_any import OpenedFile

# Metadata that training programs write and that is not shown.
_HIDDEN_METADATA = re.compile(
    r"(ss_|sshs_|modelspec\.)"
    r"(?!(base_model_version|sd_model_name|steps|output_name|title|author|trigger_phrase)$)"
)
# Embedding vectors have norms of about 0.5; training does not reach this norm.
_HUGE_NORM = 1000.0


def inspect(
    file: Annotated[Path, Parameter(help="a concept file in any format, or a run folder")],
    *,
    base: Annotated[
        str | None,
        Parameter(help="base model to compare the embedding norms with (default: none)"),
    ] = None,
) -> None:
    """Show what a concept file contains, what it fits, how it was trained, and its problems."""
    from pinxit.concepts.read import recognize_format
    from pinxit.files.open_any import open_any

    opened = open_any(file)
    layout = recognize_format(opened)
    concept = layout.read(opened).with_nickname(file)
    name = registry.name_of(type(layout))
    _print_row("format", f"{name}: {registry.summary('formats', name)}")
    for part in concept.parts:
        for label, text in _part_rows(part):
            _print_row(label, text)
    if base is not None:
        _print_row("base model", _vocabulary(base))
    _print_row("origin", _origin(concept))
    _print_row("to use", _usage(concept, file))
    _print_row("opens in", layout.used_by)
    for problem in _problems(opened, concept) or ["nothing"]:
        _print_row("suspicious", problem)


def _print_row(label: str, text: str) -> None:
    data(f"{label:12}{printable(text)}")


def _usage(concept: "Concept", file: Path) -> str:
    """How to generate with the concept."""
    nickname = concept.nickname if concept.nickname != concept.token else ""
    also = f", or `{nickname}`" if nickname else ""
    prompt = f"write {concept.token}{also} in the prompt, with " if concept.tokens else ""
    other = "" if concept.tokens else f", or --base {file}"
    if concept.has_strength:
        other = f", or --concept {file}:0.7 for a lower strength"
    return f"{prompt}--concept {file}{other}"


def _part_rows(part: "Part") -> Iterator[tuple[str, str]]:
    """Rows about one part: what it is, and which base models it fits."""
    from pinxit.adapters.adapter import embedding_widths
    from pinxit.models.family import families_by_text_widths, family_of_denoiser

    if "text" in part.settings:
        yield "token", f"{part.settings['word']}, stands for `{part.settings['text']}`"
    elif "network" in part.settings:
        yield "network", f"{part.settings['network']}, {_size(part.tensors.values())}"
        family = family_of_denoiser(part.tensors)
        if family:
            yield "fits", family.title
    elif "target" in part.settings:
        yield from _lora_rows(part)
    else:
        yield "token", f"{part.settings['word']}, a new embedding"
        for text_encoder, table in part.tensors.items():
            count, width = table.shape
            yield "embedding", f"{count} x {width} for `{text_encoder}`, norm {_norms(table)}"
        families = families_by_text_widths(list(embedding_widths(part.tensors).values()))
        titles = " or ".join(family.title for family in families)
        yield "fits", titles or "no known base model has this embedding width"


def _lora_rows(part: "Part") -> Iterator[tuple[str, str]]:
    """Rows about a LoRA or another adapter of layers: what it changes, and its rank."""
    from pinxit.concepts.lora_file import layer_rank, matching_base, tensors_by_layer

    layers, kind = tensors_by_layer(part), part.settings["kind"]
    weights = [tensor for name, tensor in part.tensors.items() if not name.endswith(".alpha")]
    target = part.settings["target"]
    yield "adapter", f"{kind} of {len(layers)} layers of `{target}`, {_size(weights)}"
    if kind != "oft":
        ranks = [layer_rank(tensors) for tensors in layers.values()]
        alphas = [float(tensors["alpha"]) for tensors in layers.values() if "alpha" in tensors]
        alpha = _range(alphas) if alphas else "the same"
        yield "rank", f"{_range(ranks)}, alpha {alpha}"
    # Several families have the same first text encoder, so only the denoiser tells the family.
    family = matching_base([part]) if target == "denoiser" else None
    if family:
        yield "fits", family.title


def _size(tensors: "Iterable[Tensor]") -> str:
    """The number of weights and their formats."""
    weights = list(tensors)
    formats = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights})
    return f"{sum(tensor.numel() for tensor in weights):,} weights, {', '.join(formats)}"


def _range(values: Iterable[float]) -> str:
    """The smallest and the largest value; one number if all are the same."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _norms(table: "Tensor") -> str:
    """The range of the norms of a table's vectors."""
    norms = table.float().norm(dim=1)
    low, high = float(norms.min()), float(norms.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _vocabulary(base: str) -> str:
    """The embedding norms of a base model's own vocabulary."""
    from pinxit.models.open_base import open_base

    model = open_base(base)
    tables = {
        name: text_encoder.embedding.weight.detach()
        for name, text_encoder in model.text_encoders.items()
    }
    norms = [f"{_norms(t)} for `{name}` (width {t.shape[1]})" for name, t in tables.items()]
    return f"embedding norms of {model.name}: {'; '.join(norms)}"


def _origin(concept: "Concept") -> str:
    """What the file says about its training."""
    provenance = concept.provenance
    facts: list[str] = []
    if provenance.method:
        images = len(provenance.images)
        facts.append(f"{provenance.method}, {provenance.steps} steps, {images} images")
    facts += [
        f"{name} {value}"
        for name, value in provenance.metadata.items()
        if not _HIDDEN_METADATA.match(name)
    ]
    if provenance.base:
        facts.append(f"base model {provenance.base}")
    return ", ".join(facts) or "unknown: the file does not say"


def _problems(opened: "OpenedFile", concept: "Concept") -> list[str]:
    """What a user should know before using the file."""
    problems: list[str] = []
    is_safetensors = opened.path.suffix == ".safetensors"
    if opened.container != "folder" and is_safetensors != (opened.container == "safetensors"):
        problems.append(f"{opened.path.name} is really a {opened.container} file")
    for part in concept.parts:
        for name, tensor in part.tensors.items():
            problems += _tensor_problems(name, tensor, "word" in part.settings)
    return problems


def _tensor_problems(name: str, tensor: "Tensor", is_embedding: bool) -> list[str]:
    broken = int((~tensor.isfinite()).sum())
    if broken:
        return [f"{broken} values of {name} are infinite or NaN"]
    if not is_embedding:
        return []
    problems: list[str] = []
    norms = tensor.float().norm(dim=1)
    if (norms == 0).any() or (norms > _HUGE_NORM).any():
        problems.append(f"{name} has vectors of norm {_norms(tensor)}")
    if "." in name:
        problems.append(f"{name} is for the output of the text encoder; pinxit does not use it")
    return problems
