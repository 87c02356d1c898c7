"""`pinxit convert`: write a concept in another file format."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pinxit import registry
from pinxit.cli.screen import data, say


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
    from pinxit.concepts.conversion import convert_concept

    concept, writer = convert_concept(file, out, format_, base, precision)
    say(f"{concept.token} written as {registry.name_of(type(writer))}, for {writer.used_by}")
    data(str(out))
