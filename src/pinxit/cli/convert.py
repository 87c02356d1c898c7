"""`pinxit convert`: write a concept in another file format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from pinxit import registry
from pinxit.cli.screen import data, say
from pinxit.errors import ConceptError

if TYPE_CHECKING:
    pass


def convert(
    file: Annotated[Path, Parameter(help="a concept file in any format, or a run folder")],
    out: Annotated[Path, Parameter(help="file or folder to write; must be new")],
    *,
    format_: Annotated[
        str | None,
        Parameter(name="--format", help="file format (default: chosen by the suffix of OUT)"),
    ] = None,
    base: Annotated[
        str | None,
        Parameter(
            help="base model that completes a full model (default: the one it was trained on)"
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        Parameter(help="number format of a full model's weights (default: unchanged)"),
    ] = None,
) -> None:
    """Convert an embedding, a LoRA or a full model to the file format of another program."""
    from pinxit.concepts.format import Format, Target, default_format
    from pinxit.concepts.read import read_concept

    concept = read_concept(file)
    name = format_ or default_format(concept, out.suffix)
    writer: Format = registry.load("formats", name)()
    if out.suffix not in writer.suffixes:
        suffixes = " or ".join(suffix or "no suffix (a folder)" for suffix in writer.suffixes)
        raise ConceptError(f"{out} has the wrong suffix for the format {name}", f"use {suffixes}")
    if out.exists():
        raise ConceptError(f"{out} exists already", "choose another name, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer.write(concept, Target(out, base, precision))
    say(f"{concept.token} written as {name}, for {writer.used_by}")
    data(str(out))
