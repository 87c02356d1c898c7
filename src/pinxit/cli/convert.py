"""`pinxit convert`: write a concept in another file format."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pinxit import registry
from pinxit.cli.screen import Switch, data, say

if TYPE_CHECKING:
    from pinxit.concepts.concept import Concept
    from pinxit.concepts.format import Format

# Number formats of weights in files.
WeightPrecision = Literal["fp32", "fp16", "bf16"]


def convert(
    file: Path,
    out: Path,
    *,
    format_: str | None = None,
    base: str | None = None,
    precision: WeightPrecision | None = None,
    separate_embeddings: Switch = False,
) -> None:
    """Convert an embedding, a LoRA or a full model to the file format of another program.

    Args:
        file: a concept file in any format, or a run folder
        out: file or folder to write; must be new
        format_: file format (default: chosen by the suffix of OUT)
        base: base model that completes a full model, or of which full differences are taken
            (default: the one it was trained on)
        precision: number format of a full model's weights (default: unchanged)
        separate_embeddings: write the embeddings of a LoRA to files of their own beside OUT
    """
    from pinxit.concepts.conversion import convert_concept

    concept, writer = convert_concept(
        file, out, format_, base, precision, separate_embeddings=separate_embeddings
    )
    say(*written_lines(writer, concept, out, bundled=not separate_embeddings))
    data(str(out))


def written_lines(
    writer: "Format", concept: "Concept", out: Path, *, bundled: bool = True
) -> Iterator[str]:
    """The format, what each program does with the file, and what to type in those that use it."""
    from pinxit.concepts.programs import content_kind, outcomes, usage

    name = registry.name_of(type(writer))
    yield f"{concept.token} written as {name}"
    config = out.with_suffix(".yaml")
    if writer.writes_config and config.is_file():
        yield f"{config} tells AUTOMATIC1111 that the model predicts v: keep it beside {out.name}"
    results = outcomes(name, out.suffix, concept, bundled=bundled)
    if concept.provenance.base == "pocket":
        yield "note: it fits pocket only, which diffusers can open and the other programs cannot"
        results = {program: results[program] for program in results if program == "diffusers"}
    elif not results and bundled and concept.content == "adapters":
        has_embedding = "with embedding" in content_kind(concept)
        other = "; --separate-embeddings writes the token beside it" if has_embedding else ""
        yield f"not tried in other programs{other}"
    for program, result in results.items():
        yield f"  {program}: {result}"
    for program, result in results.items():
        how = usage(program, concept, out)
        if how and result.startswith(("exact", "close", "not tried")):
            yield f"in {program}: {how}"
