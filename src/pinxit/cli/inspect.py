"""`pinxit inspect`: what a file is, what it fits, where it is from, and what is odd about it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pinxit import registry
from pinxit.cli.screen import data, printable

if TYPE_CHECKING:
    from torch import Tensor

    from pinxit.adapters.adapter import Part
    from pinxit.concepts.concept import Concept
    from pinxit.files.open_any import Opened

# What trainers write of themselves that few people ask for.
_WORDY = re.compile(
    r"(ss_|sshs_|modelspec\.)"
    r"(?!(base_model_version|sd_model_name|steps|output_name|title|author|trigger_phrase)$)"
)
# No training leaves a vector this long beside words of length one half or so.
_HUGE = 1000.0


def inspect(
    file: Annotated[Path, Parameter(help="a concept in any format, or a run folder")],
    *,
    base: Annotated[
        str | None, Parameter(help="a base to compare the vectors with: a name, folder or file")
    ] = None,
) -> None:
    """Say what a file holds, what it fits, what it was trained on, and what is odd about it."""
    from pinxit.concepts.concept import recognised
    from pinxit.files.open_any import opened

    found = opened(file)
    layout = recognised(found)
    concept = layout.read(found).opened_as(file)
    name = registry.name_of(type(layout))
    _tell("format", f"{name}: {registry.summary('formats', name)}")
    for part in concept.parts:
        for label, text in _part(part):
            _tell(label, text)
    if base is not None:
        _tell("vocabulary", _vocabulary(base))
    _tell("origin", _origin(concept))
    also = f", or as `{concept.nickname}`" if concept.nickname not in ("", concept.token) else ""
    written = f"write {concept.token} in a prompt{also}, with " if concept.words else ""
    more = "" if concept.words else f", or --base {file}"
    if concept.weighable:
        more = f", or {file}:0.7 for less of it"
    _tell("to use", f"{written}--concept {file}{more}")
    _tell("opens in", layout.used_by)
    for odd in _oddities(found, concept) or ["nothing"]:
        _tell("suspicious", odd)


def _tell(label: str, text: str) -> None:
    data(f"{label:12}{printable(text)}")


def _part(part: "Part") -> Iterator[tuple[str, str]]:
    """What one part is, and what it fits."""
    from pinxit.adapters.adapter import word_widths
    from pinxit.models import modelspec

    if "text" in part.settings:
        yield "word", f"{part.settings['word']}, which stands for `{part.settings['text']}`"
    elif "network" in part.settings:
        count = sum(tensor.numel() for tensor in part.tensors.values())
        numbers = {str(tensor.dtype).removeprefix("torch.") for tensor in part.tensors.values()}
        yield "network", f"{part.settings['network']}, {count:,} weights, {', '.join(numbers)}"
        kind = modelspec.attending(part.tensors)
        if kind:
            yield "fits", kind.title
    elif "target" in part.settings:
        yield from _change(part)
    else:
        yield "word", f"{part.settings['word']}, new"
        for tower, table in part.tensors.items():
            count, width = table.shape
            yield "vectors", f"{count} of {width} numbers for `{tower}`, of length {_norms(table)}"
        kind = modelspec.fitting(list(word_widths(part.tensors).values()))
        yield "fits", kind.title if kind else "no kind of base that has a name, by its width"


def _change(part: "Part") -> Iterator[tuple[str, str]]:
    """What a LoRA or one of its kin changes in a network, and how much."""
    from pinxit.concepts.lora_file import by_layer, fits, rank_of

    layers, kind = by_layer(part), part.settings["kind"]
    weights = {name: t for name, t in part.tensors.items() if not name.endswith(".alpha")}
    numbers = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
    count = sum(tensor.numel() for tensor in weights.values())
    beside = f"beside {len(layers)} layers of `{part.settings['target']}`"
    yield "adapter", f"{kind} {beside}, {count:,} weights, {', '.join(sorted(numbers))}"
    if kind != "oft":
        ranks = sorted({rank_of(held) for held in layers.values()})
        alphas = sorted({float(held["alpha"]) for held in layers.values() if "alpha" in held})
        told = [" to ".join(f"{n:g}" for n in (*s[:1], *s[1:][-1:])) for s in (ranks, alphas)]
        yield "rank", f"{told[0]}, alpha {told[1] or 'the same'}"
    # The first text tower of several kinds of base is the same.
    base = fits([part]) if part.settings["target"] == "denoiser" else None
    if base:
        yield "fits", base.title


def _norms(table: "Tensor") -> str:
    lengths = table.float().norm(dim=1)
    low, high = float(lengths.min()), float(lengths.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _vocabulary(base: str) -> str:
    """How long the vectors of a base's own words are."""
    from pinxit.models.model import open_base

    model = open_base(base)
    tables = {name: tower.embedding.weight.detach() for name, tower in model.towers.items()}
    told = [f"of length {_norms(t)} for `{name}`, width {t.shape[1]}" for name, t in tables.items()]
    return f"{model.name}'s words are {'; '.join(told)}"


def _origin(concept: "Concept") -> str:
    """What is known of where it came from."""
    known = concept.provenance
    told = [f"{name} {value}" for name, value in known.told.items() if not _WORDY.match(name)]
    if known.method:
        told = [f"{known.method}, {known.steps} steps, {len(known.pictures)} pictures", *told]
    return ", ".join([*told, *([f"base {known.base}"] if known.base else [])]) or "it does not say"


def _oddities(found: "Opened", concept: "Concept") -> list[str]:
    """What a person should know before using the file."""
    odd: list[str] = []
    safe = found.path.suffix == ".safetensors"
    if found.container != "folder" and safe != (found.container == "safetensors"):
        odd.append(f"{found.path.name} is in truth a {found.container}")
    for part in concept.parts:
        for name, tensor in part.tensors.items():
            broken = int((~tensor.isfinite()).sum())
            if broken:
                odd.append(f"{broken} of {name}'s numbers are infinite or no numbers")
            elif "word" in part.settings:
                lengths = tensor.float().norm(dim=1)
                if (lengths == 0).any() or (lengths > _HUGE).any():
                    odd.append(f"{name} has vectors of length {_norms(tensor)}")
                if "." in name:
                    odd.append(f"{name} is for behind the text tower, which pinxit does not use")
    return odd
