"""`pinxit convert`: a concept's file as another program wants it."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pinxit import registry
from pinxit.cli.screen import data, say
from pinxit.errors import ConceptError

# What the ending of OUT means for a word, for a LoRA, and for tuned networks.
_USUAL = {
    ".safetensors": ("emb-params", "kohya", "single-file"),
    ".pt": ("a1111", "kohya", "single-file"),
    "": ("diffusers", "diffusers-lora", "diffusers"),
}


def convert(
    file: Annotated[Path, Parameter(help="a concept in any format, or a run folder")],
    out: Annotated[Path, Parameter(help="where to write it; must be new")],
    *,
    format_: Annotated[
        str | None, Parameter(name="--format", help="by OUT's ending if not given")
    ] = None,
    base: Annotated[
        str | None, Parameter(help="completes tuned networks; the one trained on if not given")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        Parameter(help="round a base's numbers; every bit is kept if not given"),
    ] = None,
) -> None:
    """Write a learned word, a LoRA or a tuned base as another program opens it."""
    from pinxit.concepts.concept import Concept
    from pinxit.concepts.format import Format, Target

    concept = Concept.load(file)
    which = 2 if concept.tuned else int(concept.weighable)
    name = format_ or _USUAL.get(out.suffix, ("emb-params", "kohya", "diffusers"))[which]
    written: Format = registry.load("formats", name)()
    if out.suffix not in written.endings:
        endings = " or ".join(ending or "nothing, being a folder" for ending in written.endings)
        raise ConceptError(f"{out} is no name for {name}", f"its files end in {endings}")
    if out.exists():
        raise ConceptError(f"{out} exists already", "give another name, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    written.write(concept, Target(out, base, precision))
    say(f"{concept.token} is written as {name}, for {written.used_by}")
    data(str(out))
