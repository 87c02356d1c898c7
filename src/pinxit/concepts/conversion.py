"""Convert a concept file to the file format of another program."""

from pathlib import Path

from pinxit import registry
from pinxit.adapters.parts import FullWeightsPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Format, Precision, Target, all_formats, default_format
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import ConceptReference
from pinxit.concepts.same_change import check_same_change
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import make_folder
from pinxit.models.open_base import family_of
from pinxit.models.source import Source


def convert_concept(
    file: Path,
    out: Path,
    format_name: str | None = None,
    base: str | None = None,
    precision: Precision | None = None,
    *,
    separate_embeddings: bool = False,
) -> tuple[Concept, Format]:
    """Write the concept of a file or run folder to `out`; without a format, its suffix decides.

    Raises ConceptError if the format cannot store the concept, or if `out` exists.
    """
    concept = ConceptReference(file).open()
    prepare_output(out, format_name)
    concept.check_finite()
    target = Target(out, base, precision, separate_embeddings)
    return concept, write_in_format(concept, target, format_name)


def write_in_format(concept: Concept, target: Target, format_name: str | None = None) -> Format:
    """Write a concept to a new file or folder; without a format, the suffix decides.

    Returns the format. Raises ConceptError as `convert_concept` does.
    """
    out = target.out
    writer = _format_for(out, format_name or default_format(concept, out.suffix))
    prepare_output(out)
    writer.write(concept, target)
    check_same_change(concept, out)
    return writer


def check_base(source: Source, out: Path, format_name: str | None = None) -> None:
    """Raise ConceptError if the format of a complete model cannot store those of this base.

    ModelError if it is no base model.
    """
    family_of(source)
    concept = Concept((FullWeightsPart("denoiser", {}),), Provenance.from_metadata("", {}))
    _format_for(out, format_name or default_format(concept, out.suffix)).check_base(source)


def prepare_output(out: Path, format_name: str | None = None, content: str = "") -> None:
    """Make the folder of an output file, before anything long is done.

    ConceptError if the file exists, if its suffix is not one of the format, or if the format
    cannot store this kind of content.
    """
    if out.exists():
        raise ConceptError(f"{out} exists already", "choose another name, or remove it first")
    writer = _format_for(out, format_name) if format_name else None
    if writer and content and content not in writer.contents:
        raise ConceptError(
            f"the format {format_name} stores {' and '.join(writer.contents)}, not {content}",
            f"use --format {', '.join(_formats_of(content))}",
        )
    if content and not any(out.suffix in one.suffixes for one in _formats_of(content).values()):
        raise ConceptError(f"{out}: no format for {content} has this suffix", "use .safetensors")
    make_folder(out.parent, writable=True)


def _formats_of(content: str) -> dict[str, Format]:
    return {name: one for name, one in all_formats().items() if content in one.contents}


def _format_for(out: Path, name: str) -> Format:
    """A format by its name; ConceptError if its files have other suffixes than `out`."""
    writer: Format = registry.load("formats", name)()
    if out.suffix not in writer.suffixes:
        suffixes = " or ".join(suffix or "no suffix (a folder)" for suffix in writer.suffixes)
        raise ConceptError(f"{out} has the wrong suffix for the format {name}", f"use {suffixes}")
    return writer
